"""How alike two pictures are."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import avg_pool2d

from xattn.errors import ParameterError, ShapeError


def ssim(a: Tensor, b: Tensor, *, window: int = 7, data_range: float = 1.0) -> Tensor:
    """Structural similarity (Wang et al. 2004, IEEE TIP 13(4), eq. 13) with a flat window, as scikit-image computes it.

    Means, sample variances and covariance over each window that lies inside the image; K1 = 0.01, K2 = 0.03; the mean
    over all windows.

    Args:
        a: (N, 1, H, W).
        b: (N, 1, H, W).
        window: pixels on each side, odd.
        data_range: distance between the smallest and the largest possible value.

    Returns:
        float64 (N,) in [-1, 1]; NaN where a picture has NaN.

    Raises:
        ShapeError: if the shapes differ or the picture is smaller than the window.
        ParameterError: if the window is even or not larger than one.

    >>> import torch
    >>> ssim(torch.eye(8)[None, None], torch.eye(8)[None, None]).round(decimals=9)
    tensor([1.], dtype=torch.float64)
    """
    if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 1:
        raise ShapeError(f"ssim: expected two tensors (N, 1, H, W) but got {tuple(a.shape)} and {tuple(b.shape)}.")
    if window < 3 or window % 2 == 0:
        raise ParameterError(f"ssim: window must be odd and at least 3 but is {window}.")
    if min(a.shape[2:]) < window:
        raise ShapeError(f"ssim: pictures of {a.shape[2]}x{a.shape[3]} are smaller than the window of {window} pixels.")
    x, y = a.double(), b.double()

    def mean(t: Tensor) -> Tensor:
        # The flat window is separable: two passes of `window` terms in place of one of their product.
        return avg_pool2d(avg_pool2d(t, (window, 1), stride=1), (1, window), stride=1)

    mx, my = mean(x), mean(y)
    unbiased = window**2 / (window**2 - 1)
    vx = unbiased * (mean(x * x) - mx * mx)
    vy = unbiased * (mean(y * y) - my * my)
    vxy = unbiased * (mean(x * y) - mx * my)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    value = ((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return value.mean((1, 2, 3))
