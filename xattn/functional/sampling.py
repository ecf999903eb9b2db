"""Segments of images, random masks over them, and the linear models that are fitted to the scores."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from xattn.errors import needs
from xattn.functional.grid import cell_of_pixel

Segments = Literal["slic", "grid"]


def grid_segments(size: tuple[int, int], count: int) -> Tensor:
    """About `count` nearly square cells of an image: int64 (H, W), numbered from zero.

    >>> grid_segments((2, 4), 2).tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    rows = min(size[0], max(1, round(math.sqrt(count * size[0] / size[1]))))
    columns = min(size[1], max(1, round(count / rows)))
    return cell_of_pixel((rows, columns), size).view(size)


def slic_segments(pixels: Tensor, count: int) -> Tensor:
    """About `count` superpixels of each image by SLIC (Achanta et al. 2012, doi 10.1109/TPAMI.2012.120).

    Args:
        pixels: (N, C, H, W) in [0, 1].
        count: superpixels to ask for.

    Returns:
        int64 (N, H, W) on the CPU, numbered from zero in each image.
    """
    needs("metrics", "a segmentation into superpixels (segments=grid does without)")
    from skimage.segmentation import slic

    labels = []
    for image in pixels.permute(0, 2, 3, 1).cpu().double().numpy():
        superpixels = torch.from_numpy(slic(image, n_segments=count, start_label=0, channel_axis=-1)).long()
        labels.append(superpixels.unique(return_inverse=True)[1])
    return torch.stack(labels)


def window_starts(size: int, window: int, stride: int) -> Tensor:
    """First pixels of windows that slide along a line; the last one ends at its end.

    >>> window_starts(10, 4, 4).tolist()
    [0, 4, 6]
    """
    starts = torch.arange(0, max(size - window, 0) + 1, stride)
    return starts if int(starts[-1]) + window >= size else torch.cat([starts, torch.tensor([size - window])])


def window_means(values: Tensor, starts: tuple[Tensor, Tensor], window: int, size: tuple[int, int]) -> Tensor:
    """Mean, at each pixel, of the values of the square windows that cover it.

    Args:
        values: (N, rows * columns), one value for each pair of a row and a column of windows.
        starts: first pixels of the windows down and across.
        window: side in pixels.
        size: height and width of the image.

    Returns:
        (N, 1, H, W).
    """
    inside = []
    for first, n in zip(starts, size, strict=True):
        at = torch.arange(n)
        inside.append(((at >= first[:, None]) & (at < first[:, None] + window)).to(values))
    rows, columns = inside
    grid = values.view(len(values), len(rows), len(columns))
    with torch.autocast(values.device.type, enabled=False):
        total = rows.T @ grid @ columns
    return (total / (rows.sum(0)[:, None] * columns.sum(0)))[:, None]


def rise_masks(grid: Tensor, shift: Tensor, size: tuple[int, int]) -> Tensor:
    """Smooth masks from coarse binary ones: upsampled bilinearly and shifted (Petsiuk et al. 2018, arXiv:1806.07421).

    The grid of s x s cells is enlarged to one cell more than the image has, of which the image is cut out at a shift
    of less than a cell (sec. 3.2).

    Args:
        grid: (M, s, s), zeros and ones.
        shift: (M, 2) in [0, 1): down and across, as shares of a cell.
        size: height and width of the image.

    Returns:
        (M, 1, H, W) in [0, 1].
    """
    cells = grid.shape[-1]
    cell = [-(-n // cells) for n in size]
    large = interpolate(grid[:, None], [(cells + 1) * n for n in cell], mode="bilinear", align_corners=False)
    place = (shift * torch.tensor(cell, device=shift.device)).long()
    rows, columns = (place[:, i, None] + torch.arange(size[i], device=shift.device) for i in (0, 1))
    return large[torch.arange(len(grid), device=grid.device)[:, None, None], 0, rows[:, :, None], columns[:, None]][
        :, None
    ]


def lime_weights(kept: Tensor, width: float) -> Tensor:
    """Nearness of coalitions to the whole image: exp(-d^2 / (2 width^2)) with the cosine distance d of z and ones.

    That is the released code; the paper (Ribeiro et al. 2016, arXiv:1602.04938, sec. 3.4) has no 2.

    Args:
        kept: (S, K), true where a segment stays.
        width: of the kernel.

    Returns:
        float64 (S,).
    """
    distance = 1 - kept.double().mean(dim=1).sqrt()
    return torch.exp(-distance.square() / (2 * width**2))


def ridge(features: Tensor, values: Tensor, weights: Tensor, penalty: float) -> Tensor:
    """Coefficients (K,) of the weighted linear fit with an intercept, the squares of the coefficients penalized.

    Args:
        features: (S, K).
        values: (S,).
        weights: (S,).
        penalty: factor of the sum of squares; the intercept is free.

    Returns:
        float64 (K,).
    """
    z, y, w = features.double(), values.double(), weights.double() / weights.sum()
    z, y = z - w @ z, y - w @ y
    gram = z.T @ (w[:, None] * z) + penalty / float(weights.sum()) * torch.eye(z.shape[1], dtype=z.dtype)
    return torch.linalg.solve(gram, z.T @ (w * y))


def shapley_coalitions(segments: int, samples: int, generator: torch.Generator) -> Tensor:
    """Coalitions for KernelSHAP (Lundberg and Lee 2017, arXiv:1705.07874, th. 2), neither empty nor complete.

    All of them if there are no more than `samples`; else pairs of a coalition and its complement, drawn by the Shapley
    kernel (Covert and Lee 2021, arXiv:2012.01536).

    Args:
        segments: number K.
        samples: coalitions at most.
        generator: on the CPU.

    Returns:
        bool (S, K); S is zero for one segment.
    """
    k = segments
    if k < 32 and 2**k - 2 <= samples:
        return (torch.arange(1, 2**k - 1)[:, None] >> torch.arange(k)) & 1 == 1
    pairs = max(1, samples // 2)
    sizes = torch.arange(1, k, dtype=torch.float64)
    size = torch.multinomial(1 / (sizes * (k - sizes)), pairs, replacement=True, generator=generator) + 1
    half = torch.rand(pairs, k, generator=generator).argsort(dim=1).argsort(dim=1) < size[:, None]
    return torch.cat([half, ~half])


def shapley_weights(kept: Tensor) -> Tensor:
    """Weights float64 (S,) of what `shapley_coalitions` gives, bool (S, K).

    Where these are all coalitions there are, the Shapley kernel (K - 1) / (C(K, s) s (K - s)) at their size s; where
    they were drawn by it, ones.
    """
    k = kept.shape[1]
    if len(kept) < 2**k - 2:
        return torch.ones(len(kept), dtype=torch.float64)
    kernel = [(k - 1) / (math.comb(k, s) * s * (k - s)) for s in kept.sum(dim=1).tolist()]
    return torch.tensor(kernel, dtype=torch.float64)


def shapley_regression(kept: Tensor, gain: Tensor, weights: Tensor, total: Tensor) -> Tensor:
    """Shapley values as the weighted fit of sums to gains, with the constraint that they sum to the total.

    The least-squares solution of Lundberg and Lee (2017, arXiv:1705.07874, th. 2), the constraint by a multiplier
    (Covert and Lee 2021, arXiv:2012.01536); of several solutions the one of least length.

    Args:
        kept: bool (S, K), the coalitions.
        gain: (S,), score of each less that of the empty one.
        weights: (S,).
        total: gain of the complete one, a scalar.

    Returns:
        float64 (K,).
    """
    z, w, total = kept.double(), weights.double(), total.double()
    k = z.shape[1]
    if k == 1:
        return total.view(1)
    # With values = total / K + v the constraint is that v sums to zero: v = basis @ free.
    basis = torch.eye(k, dtype=z.dtype) - 1 / k
    design = (w / w.sum()).sqrt()[:, None] * (z @ basis)
    aim = (w / w.sum()).sqrt() * (gain.double() - z.sum(dim=1) * total / k)
    return total / k + basis @ (torch.linalg.pinv(design) @ aim)


def orders(segments: int, samples: int, generator: torch.Generator) -> Tensor:
    """Random orders, each with its reverse; all orders there are if these are no more than `samples`.

    Args:
        segments: number K.
        samples: orders at most.
        generator: on the CPU.

    Returns:
        int64 (P, K): the place of each segment in each order.
    """
    if segments < 13 and math.factorial(segments) <= samples:
        return torch.tensor(list(itertools.permutations(range(segments))))
    drawn = [torch.randperm(segments, generator=generator) for _ in range(-(-samples // 2))]
    return torch.stack([place for one in drawn for place in (one, segments - 1 - one)])[:samples]
