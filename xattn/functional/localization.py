"""Where a map lies, compared with where the object is.

Maps (N, 1, H, W) and masks (N, 1, H, W) share one grid, which is that of the image: resize maps first. Every value is
float64, one per image, from that image alone. A map with NaN or infinite cells, an empty mask, and a constant map where
the order or the scale of cells matters give NaN: nothing can be said about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from xattn.errors import ParameterError, ShapeError
from xattn.functional.ranking import sort_values, sort_with_order, tie_groups
from xattn.functional.resize import normalize


def check_maps(maps: Tensor, masks: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Maps and masks as rows (N, L), after a look at their shapes."""
    if maps.ndim != 4 or maps.shape[1] != 1:
        raise ShapeError(f"{name}: expected maps (N, 1, H, W) but got {tuple(maps.shape)}.")
    if masks.shape != maps.shape:
        raise ShapeError(
            f"{name}: masks {tuple(masks.shape)} do not fit maps {tuple(maps.shape)}; resize the maps to the image."
        )
    return maps.flatten(1), masks.flatten(1).bool()


def finite(rows: Tensor) -> Tensor:
    """Whether each row holds numbers alone: bool (N,)."""
    return rows.isfinite().all(1)


def varies(rows: Tensor) -> Tensor:
    """Finite and not constant."""
    return finite(rows) & (rows.amax(1) > rows.amin(1))


def where_valid(valid: Tensor, values: Tensor) -> Tensor:
    """Values as float64, NaN where they are not valid."""
    return values.double().masked_fill(~valid, torch.nan)


def mask_share(masks: Tensor) -> Tensor:
    """Share (N,) of the image that the mask (N, 1, H, W) covers; NaN where it is empty.

    >>> mask_share(torch.tensor([[[[True, False, False, False]]]]))
    tensor([0.2500], dtype=torch.float64)
    """
    share = masks.flatten(1).bool().double().mean(1)
    return share.masked_fill(share == 0, torch.nan)


def dilate(masks: Tensor, radius: int) -> Tensor:
    """All cells within Euclidean distance `radius` of a mask.

    Args:
        masks: bool (N, 1, H, W).
        radius: in cells; 0 changes nothing.

    Returns:
        bool (N, 1, H, W).

    Raises:
        ParameterError: if the radius is negative.

    >>> dilate(torch.tensor([[[[False, False, True, False, False]]]]), 1).int().tolist()
    [[[[0, 1, 1, 1, 0]]]]
    """
    if radius < 0:
        raise ParameterError(f"dilate: radius must not be negative but is {radius}.")
    masks = masks.bool()
    if radius == 0:
        return masks
    height, width = masks.shape[-2:]
    reach = min(radius, width)
    sums = pad(pad(masks, (reach, reach)).int().cumsum(-1), (1, 0))
    grown = torch.zeros_like(masks)
    for dy in range(min(radius, height - 1) + 1):  # a disc is one run of cells per row
        half = min(int((radius**2 - dy**2) ** 0.5 + 1e-9), reach)
        row = sums[..., reach + half + 1 :][..., :width] > sums[..., reach - half :][..., :width]
        grown[..., dy:, :] |= row[..., : height - dy, :]
        grown[..., : height - dy, :] |= row[..., dy:, :]
    return grown


def pointing_hit(maps: Tensor, masks: Tensor, tolerance_px: int = 15) -> Tensor:
    """Whether the highest point of the map is on the object (pointing game; Zhang et al. 2018, IJCV 126).

    As in TorchRay, a point that is at most `tolerance_px` away from the object is a hit. Several highest points, such
    as the flat border of a map that was enlarged, give the share of them that hit: what a random choice would score.

    Args:
        maps: (N, 1, H, W).
        masks: bool (N, 1, H, W).
        tolerance_px: distance in cells of the grid of maps and masks.

    Returns:
        float64 (N,) in [0, 1]; NaN for an empty mask, a constant map or one that is not finite.
    """
    rows, target = check_maps(maps, masks, "pointing_hit")
    near = dilate(masks, tolerance_px).flatten(1)
    top = rows == rows.amax(1, keepdim=True)
    share = (top & near).sum(1).double() / top.sum(1)
    return where_valid(varies(rows) & target.any(1), share)


def energy_share(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the positive relevance that lies on the object: sum over the mask / sum over the image.

    Relevance mass accuracy of Arras et al. 2022 (arXiv:2003.07258), with the positive part in place of their
    pooling of channels, and localisation in the grid of Böhle et al. 2021 (arXiv:2104.00032).

    Args:
        maps: (N, 1, H, W); negative cells count as zero.
        masks: bool (N, 1, H, W).

    Returns:
        float64 (N,) in [0, 1]; a constant positive map gets the share of the mask. NaN for an empty mask or a map
        without a positive cell.
    """
    rows, target = check_maps(maps, masks, "energy_share")
    positive = rows.double().clamp(min=0)
    peak = positive.amax(1, keepdim=True)
    positive = positive / peak  # keeps the sum in range
    share = (positive * target).sum(1) / positive.sum(1)
    return where_valid(finite(rows) & target.any(1) & (peak[:, 0] > 0), share)


def energy_pointing(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the energy of the min-max scaled map that lies on the object (Wang et al. 2020, Score-CAM).

    Unlike `energy_share` it does not change when a constant is added to the map. A map of independent random values
    scores the share of the mask on average.

    Args:
        maps: (N, 1, H, W).
        masks: bool (N, 1, H, W).

    Returns:
        float64 (N,) in [0, 1]; NaN for an empty mask, a constant map or one that is not finite.
    """
    rows, target = check_maps(maps, masks, "energy_pointing")
    low, high = rows.amin(1, keepdim=True).double(), rows.amax(1, keepdim=True).double()
    scaled = (rows.double() - low) / (high - low)
    return where_valid(varies(rows) & target.any(1), (scaled * target).sum(1) / scaled.sum(1))


def top_share(maps: Tensor, masks: Tensor, counts: Tensor) -> Tensor:
    """Share of the `counts` highest cells that lie on the object.

    Cells that tie at the last place count by the share of them that is on the object, which is the mean over all ways
    to break the tie.

    Args:
        maps: (N, 1, H, W).
        masks: bool (N, 1, H, W).
        counts: int64 (N,), from 1 to H W.

    Returns:
        float64 (N,) in [0, 1]; NaN for an empty mask, a constant map or one that is not finite.

    Raises:
        ShapeError: if maps and masks disagree.
        ParameterError: if a count is out of range.
    """
    rows, target = check_maps(maps, masks, "top_share")
    if bool(((counts < 1) | (counts > rows.shape[1])).any()):
        raise ParameterError(f"top_share: counts must be from 1 to {rows.shape[1]}, the cells of a map.")
    last = sort_values(rows).gather(1, rows.shape[1] - counts[:, None])
    above, tied = rows > last, rows == last
    room = counts - above.sum(1)
    hits = (above & target).sum(1) + room * (tied & target).sum(1).double() / tied.sum(1)
    return where_valid(varies(rows) & target.any(1), hits / counts)


def top_k_intersection(maps: Tensor, masks: Tensor, k: int) -> Tensor:
    """Share of the k highest cells that lie on the object (Theiner et al. 2021, arXiv:2104.14995).

    Args:
        maps: (N, 1, H, W).
        masks: bool (N, 1, H, W).
        k: number of cells; a larger one than the map has is the whole map.

    Returns:
        float64 (N,) in [0, 1], NaN as in `top_share`.

    Raises:
        ShapeError: if maps and masks disagree.
        ParameterError: unless k is positive.
    """
    if k < 1:
        raise ParameterError(f"top_k_intersection: k must be at least 1 but is {k}.")
    cells = maps.shape[-2] * maps.shape[-1]
    return top_share(maps, masks, torch.full((len(maps),), min(k, cells), device=maps.device))


def relevance_rank(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the K highest cells that lie on the object of K cells (Arras et al. 2022, arXiv:2003.07258).

    Args:
        maps: (N, 1, H, W).
        masks: bool (N, 1, H, W).

    Returns:
        float64 (N,) in [0, 1], NaN as in `top_share`.
    """
    return top_share(maps, masks, masks.flatten(1).sum(1).clamp(min=1))


def pixel_ranking(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """ROC AUC and average precision of the pixels as a detector of the object, from one sorting.

    Args:
        maps: (N, 1, H, W).
        masks: bool (N, 1, H, W).

    Returns:
        What `roc_auc` and `average_precision` give.
    """
    rows, target = check_maps(maps, masks, "pixel_ranking")
    ordered, order = sort_with_order(rows)
    hit = target.gather(1, order)
    first, last = tie_groups(ordered)
    cells, positives = rows.shape[1], target.sum(1)
    negatives = cells - positives
    seen = pad(hit.cumsum(1), (1, 0))  # objects among the lowest i pixels
    on_below, on_upto = seen.gather(1, first), seen.gather(1, last + 1)
    off_below, off_upto = first - on_below, last + 1 - on_upto
    auc = ((off_below + off_upto).double() * hit).sum(1) / 2 / (positives * negatives)
    precision = (positives[:, None] - on_below).double() / (cells - first)
    valid = varies(rows) & (positives > 0)
    return where_valid(valid & (negatives > 0), auc), where_valid(valid, (precision * hit).sum(1) / positives)


def roc_auc(maps: Tensor, masks: Tensor) -> Tensor:
    """Area under the ROC curve of the pixels: probability that one on the object is above one off it (Fawcett 2006).

    Ties count one half.

    Args:
        maps: (N, 1, H, W).
        masks: bool (N, 1, H, W).

    Returns:
        float64 (N,) in [0, 1]; NaN for an empty or full mask, a constant map or one that is not finite.
    """
    return pixel_ranking(maps, masks)[0]


def average_precision(maps: Tensor, masks: Tensor) -> Tensor:
    """Average precision of the pixels: sum of precision times the step in recall, over the distinct values of the map.

    Equal values are one threshold, as in scikit-learn, so that their order does not matter. A random map of L pixels
    scores q (1 - H / L) + H / L on average, with q = (K - 1) / (L - 1) for an object of K pixels and H the sum of 1 / i
    to L: hardly more than the share of the mask.

    Args:
        maps: (N, 1, H, W).
        masks: bool (N, 1, H, W).

    Returns:
        float64 (N,) in [0, 1]; NaN for an empty mask, a constant map or one that is not finite.
    """
    return pixel_ranking(maps, masks)[1]


def pixel_counts(maps: Tensor, masks: Tensor, thresholds: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Pixels at or above each threshold, on and off the object (Choe et al. 2020, arXiv:2001.07437, for PxAP).

    The map is scaled to [0, 1] by its own range. `pixel_average_precision` pools the counts of a data set.

    Args:
        maps: (N, 1, H, W).
        masks: bool (N, 1, H, W).
        thresholds: T increasing numbers from 0; at 0 every pixel counts.

    Returns:
        True and false positives, float64 (N, T) each; NaN for an empty mask, a constant map or one that is not finite.

    Raises:
        ShapeError: if maps and masks disagree.
        ParameterError: unless the thresholds start at 0 and increase.
    """
    rows, target = check_maps(maps, masks, "pixel_counts")
    if not thresholds or thresholds[0] != 0 or any(a >= b for a, b in pairwise(thresholds)):
        raise ParameterError(f"pixel_counts: thresholds must start at 0 and increase but are {list(thresholds)}.")
    scaled = normalize(maps).flatten(1)
    levels = torch.tensor(thresholds, dtype=scaled.dtype, device=maps.device)
    level = torch.bucketize(scaled, levels, right=True) - 1  # the last threshold that the pixel reaches
    valid = (varies(rows) & target.any(1))[:, None]

    def count(which: Tensor) -> Tensor:
        histogram = torch.zeros(len(rows), len(thresholds), dtype=torch.float64, device=maps.device)
        histogram.scatter_add_(1, level, which.double())
        return where_valid(valid, histogram.flip(1).cumsum(1).flip(1))

    return count(target), count(~target)


def pixel_average_precision(true: Tensor, false: Tensor) -> float:
    """PxAP: area under the precision-recall curve of all pixels of a data set (Choe et al. 2020, arXiv:2001.07437).

    PxPrec and PxRec are taken over the pixels of all images at one threshold; the area is the sum of precision times
    the step in recall. Images with NaN are left out.

    Args:
        true: true positives (N, T) of `pixel_counts`, thresholds increasing.
        false: false positives (N, T).

    Returns:
        A number in [0, 1]; NaN if no image is left.

    >>> pixel_average_precision(torch.tensor([[2.0, 2.0]]), torch.tensor([[2.0, 0.0]]))
    1.0
    """
    kept = ~(true.isnan() | false.isnan()).any(1)
    tp, fp = true[kept].double().sum(0).flip(0), false[kept].double().sum(0).flip(0)
    if not bool(kept.any()):
        return float("nan")
    precision = tp / (tp + fp).clamp(min=1)
    recall = tp / tp[-1]
    return float((precision * recall.diff(prepend=recall.new_zeros(1))).sum())
