"""What speaks for a class, cell by cell and channel by channel, and the parts that it falls into."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.errors import ParameterError, ShapeError
from xattn.functional.br_npa import br_npa_maps

_EMPTY = 1e-12


def relevance(features: Tensor, gradient: Tensor) -> Tensor:
    """What each channel of each cell adds to the score, where it speaks for it: max(0, features x gradient).

    Behind a mean and a linear layer features x gradient is the exact split of the logit over cells and channels (as in
    HiResCAM; Draelos and Carin 2020, arXiv:2011.08891); of other networks it is the first-order one.

    >>> relevance(torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[[[3.0, -1.0]]]])).tolist()
    [[[[6.0, 0.0]]]]

    Args:
        features: (N, C, h, w).
        gradient: of the score by the features, likewise.

    Returns:
        (N, C, h, w), not negative.
    """
    if features.shape != gradient.shape or features.ndim != 4:
        raise ShapeError(
            f"relevance: expected features and gradient of one shape (N, C, h, w) but got {tuple(features.shape)} and "
            f"{tuple(gradient.shape)}."
        )
    return (features * gradient).clamp(min=0)


def relevance_parts(values: Tensor, parts: int, attention: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Parts of what speaks for a class: their vectors, their maps and their shares.

    The part maps are those of BR-NPA (Gomez et al. 2022, arXiv:2106.02566, eqs. 1-4), of the relevance in place of the
    features, so that a part is what speaks for the class in the same way; or those of a trained attention head.

    A vector is the mean of the relevance, weighted by the part map. A map is the relevance under the part map, scaled
    to sum to one. A share is the part of the relevance that goes to the part if each cell is divided among the parts
    as the part maps divide it; shares sum to one less what lies where no part map is.

    Args:
        values: relevance (N, C, h, w), not negative.
        parts: number of parts P where they are to be found.
        attention: part maps (N, P, h, w), each summing to one.

    Returns:
        Vectors (N, P, C), maps (N, P, h, w) and shares (N, P). A part without relevance has zeros in all three.
    """
    if parts < 1:
        raise ParameterError(f"relevance_parts: expected at least one part but got parts={parts}.")
    weights = br_npa_maps(values, parts) if attention is None else attention.clamp(min=0)
    if weights.shape[2:] != values.shape[2:]:
        raise ShapeError(
            f"relevance_parts: attention is {weights.shape[2]}x{weights.shape[3]} but the relevance "
            f"{values.shape[2]}x{values.shape[3]}."
        )
    vectors = torch.einsum("nphw,nchw->npc", weights, values)
    level = values.sum(1, keepdim=True)
    maps = _to_one(weights * level)
    divided = weights / weights.sum(1, keepdim=True).clamp(min=_EMPTY)
    total = level.sum((1, 2, 3)).clamp(min=_EMPTY)
    return vectors, maps, (divided * level).sum((2, 3)) / total[:, None]


def whole_relevance(values: Tensor) -> Tensor:
    """The map (N, h, w) of all relevance (N, C, h, w), scaled to sum to one; zeros where there is none."""
    return _to_one(values.sum(1, keepdim=True))[:, 0]


def _to_one(maps: Tensor) -> Tensor:
    """Maps (N, P, h, w) divided by their sums."""
    total = maps.sum((2, 3), keepdim=True)
    return torch.where(total > _EMPTY, maps / total.clamp(min=_EMPTY), 0)


def leading_cells(maps: Tensor, mass: float, area: float) -> Tensor:
    """The fewest cells that hold a share of a map, the strongest first, and no more than a share of all cells.

    >>> leading_cells(torch.tensor([[[0.6, 0.3], [0.1, 0.0]]]), mass=0.7, area=0.5).tolist()
    [[[True, True], [False, False]]]

    Args:
        maps: (M, h, w), not negative; equal cells in the order of reading.
        mass: share of the sum that is to be held, in (0, 1].
        area: share of the cells at most; one cell is always allowed.

    Returns:
        bool (M, h, w); at least one cell each.
    """
    flat = maps.flatten(1).double()
    most = max(1, int(area * flat.shape[1] + 1e-9))
    ordered, order = flat.sort(dim=1, descending=True, stable=True)
    before = ordered.cumsum(1) - ordered
    wanted = before < mass * ordered.sum(1, keepdim=True) - 1e-12
    wanted[:, 0] = True
    wanted[:, most:] = False
    return torch.zeros_like(wanted).scatter_(1, order, wanted).view(maps.shape)


def shifted_elsewhere(cells: Tensor, generator: torch.Generator) -> Tensor:
    """The same cells at another place: moved around the frame as a whole, with the least overlap that there is.

    What leaves the frame on one side comes in on the other, so that the number of cells stays. Of all moves with the
    least overlap one is drawn.

    Args:
        cells: bool (h, w).
        generator: on the CPU.

    Returns:
        bool (h, w).
    """
    width = cells.shape[1]
    # How many cells each move leaves where there was one: the circular autocorrelation, whole numbers.
    overlap = torch.fft.ifft2(torch.fft.fft2(cells.double()).abs().square()).real.round().flatten()
    best = torch.nonzero(overlap == overlap.min()).flatten()
    move = int(best[int(torch.randint(len(best), (1,), generator=generator))])
    return cells.roll((move // width, move % width), (0, 1))
