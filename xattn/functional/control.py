"""Maps that know nothing of the model: what a method must beat."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from xattn.errors import ParameterError, ShapeError


def center_map(size: tuple[int, int], sigma: float = 0.25) -> Tensor:
    """A Gaussian in the middle of the image: photographers put their subject there (Judd et al. 2009, ICCV).

    Args:
        size: height and width of the map.
        sigma: standard deviation as a share of the height (vertically) and of the width (horizontally).

    Returns:
        (1, 1, height, width) in float64; the value at the very centre would be one.

    Raises:
        ParameterError: unless `sigma` is positive.

    >>> center_map((1, 3), sigma=1 / 3).squeeze().exp().argmax().item()
    1
    """
    if not sigma > 0:
        raise ParameterError(f"center_map: sigma must be positive but is {sigma}.")
    y, x = (((torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5) / sigma for n in size)
    return torch.exp(-(y[:, None].square() + x.square()) / 2)[None, None]


def sobel_map(images: Tensor) -> Tensor:
    """Strength of the edges: length of the Sobel gradient of the grey image (Adebayo et al. 2018, arXiv:1810.03292).

    Grey is 0.299 R + 0.587 G + 0.114 B of three channels and the mean of any other number. Pixels beyond the border
    repeat those on it.

    Args:
        images: (N, C, H, W), in pixel space for the weights of grey to mean what they say.

    Returns:
        (N, 1, H, W), float32 (float64 is kept).
    """
    if images.ndim != 4:
        raise ShapeError(f"sobel_map: expected images (N, C, H, W) but got {tuple(images.shape)}.")
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    if images.shape[1] == 3:
        grey = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    else:
        grey = images.mean(1, keepdim=True)
    horizontal = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([horizontal, horizontal.T])[:, None]
    with torch.autocast(images.device.type, enabled=False):
        edges = conv2d(pad(grey, (1, 1, 1, 1), mode="replicate"), kernels)
    return torch.linalg.vector_norm(edges, dim=1, keepdim=True)
