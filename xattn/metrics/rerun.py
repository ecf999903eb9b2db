"""Maps of the same methods once more, for metrics that change the image, the class or the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xattn.explainer import needs_of
from xattn.explanation import Explanation
from xattn.functional.ranking import spearman
from xattn.functional.resize import normalize, resize
from xattn.functional.similarity import ssim
from xattn.trace import Trace

_LEVELS = 1 << 20  # of a map, for its ranks
_WINDOW = 7  # pixels on each side of the window of SSIM


def maps_again(
    explanations: Sequence[Explanation],
    trace: Trace,
    *,
    model: nn.Module | None = None,
    x: Tensor | None = None,
    target: Tensor | None = None,
) -> list[Tensor]:
    """Raw maps of the methods of some explanations, in one shared pass with something changed.

    Methods that draw random numbers get those of the first time, so that their sampling noise does not count as a
    difference: a method that knows nothing of what was changed gives the same map again.

    Args:
        explanations: of the same images.
        trace: the pass that they come from.
        model: another model of the same kind; None is that of the trace.
        x: other images (N, C, H, W); None are those of the trace.
        target: other classes (N,); None are those that were explained.

    Returns:
        Maps (N, 1, h, w) for each explanation.
    """
    methods = [explanation.method for explanation in explanations]
    again = trace.again(x, model=model, target=target, **needs_of(methods, trace.spec))
    return [method.explanation(again).maps for method in methods]


def similarity(a: Tensor, b: Tensor, size: tuple[int, int], *, absolute: bool = False) -> dict[str, Tensor]:
    """How alike maps are: rank correlation on their own grid, SSIM at the size of the image (Adebayo et al. 2018).

    Both are taken of the maps scaled to [0, 1] by their own range (arXiv:1810.03292). For the ranks, cells
    that differ by less than a millionth of it are equal: that is rounding, which would depend on the batch size.

    Args:
        a: maps (N, 1, h, w).
        b: maps (N, 1, h, w).
        size: height and width of the image.
        absolute: compare absolute values.

    Returns:
        `spearman` and `ssim`, float64 (N,) in [-1, 1]; NaN where a map is constant or not finite, and for SSIM where
        the image is smaller than its window of 7 pixels.
    """
    if absolute:
        a, b = a.abs(), b.abs()
    rows = [m.flatten(1) for m in (a, b)]
    valid = torch.stack([r.isfinite().all(1) & (r.amax(1) > r.amin(1)) for r in rows]).all(0)
    rank = spearman(*((normalize(m).flatten(1) * _LEVELS).round() for m in (a, b)))
    if min(size) < _WINDOW:
        alike = torch.full_like(rank, torch.nan)
    else:
        alike = ssim(normalize(resize(a, size)), normalize(resize(b, size)), window=_WINDOW)
    return {"spearman": rank.masked_fill(~valid, torch.nan), "ssim": alike.masked_fill(~valid, torch.nan)}
