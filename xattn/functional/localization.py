"""Where a map lies, compared with where the object is.

Maps (N, 1, H, W) and masks (N, 1, H, W) share one grid, which is that of the image: resize maps first. Every value is
float64, one per image, from that image alone. A map with NaN or infinite cells, an empty mask, and a constant map where
the order or the scale of cells matters give NaN: nothing can be said about them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from xattn.errors import ParameterError, ShapeError
from xattn.functional.ranking import sort_values, sort_with_order, tie_groups
from xattn.functional.resize import normalize

_CHUNK = 1 << 22  # pixels of binary masks that are labelled at a time


def _check(maps: Tensor, masks: Tensor, who: str) -> tuple[Tensor, Tensor]:
    """Maps and masks as rows (N, L), after a look at their shapes."""
    if maps.ndim != 4 or maps.shape[1] != 1:
        raise ShapeError(f"{who}: expected maps (N, 1, H, W) but got {tuple(maps.shape)}.")
    if masks.shape != maps.shape:
        raise ShapeError(
            f"{who}: masks {tuple(masks.shape)} do not fit maps {tuple(maps.shape)}; resize the maps to the image."
        )
    return maps.flatten(1), masks.flatten(1).bool()


def _finite(rows: Tensor) -> Tensor:
    return rows.isfinite().all(1)


def _varies(rows: Tensor) -> Tensor:
    """Finite and not constant."""
    return _finite(rows) & (rows.amax(1) > rows.amin(1))


def _where(valid: Tensor, values: Tensor) -> Tensor:
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
    found = torch.zeros_like(masks)
    for dy in range(min(radius, height - 1) + 1):  # a disc is one run of cells per row
        half = min(int((radius**2 - dy**2) ** 0.5 + 1e-9), reach)
        row = sums[..., reach + half + 1 :][..., :width] > sums[..., reach - half :][..., :width]
        found[..., dy:, :] |= row[..., : height - dy, :]
        found[..., : height - dy, :] |= row[..., dy:, :]
    return found


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

    Raises:
        ShapeError: if maps and masks disagree.
    """
    rows, target = _check(maps, masks, "pointing_hit")
    near = dilate(masks, tolerance_px).flatten(1)
    top = rows == rows.amax(1, keepdim=True)
    share = (top & near).sum(1).double() / top.sum(1)
    return _where(_varies(rows) & target.any(1), share)


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

    Raises:
        ShapeError: if maps and masks disagree.
    """
    rows, target = _check(maps, masks, "energy_share")
    positive = rows.double().clamp(min=0)
    peak = positive.amax(1, keepdim=True)
    positive = positive / peak  # keeps the sum in range
    share = (positive * target).sum(1) / positive.sum(1)
    return _where(_finite(rows) & target.any(1) & (peak[:, 0] > 0), share)


def energy_pointing(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the energy of the min-max scaled map that lies on the object (Wang et al. 2020, Score-CAM).

    Unlike `energy_share` it does not change when a constant is added to the map. A map of independent random values
    scores the share of the mask on average.

    Args:
        maps: (N, 1, H, W).
        masks: bool (N, 1, H, W).

    Returns:
        float64 (N,) in [0, 1]; NaN for an empty mask, a constant map or one that is not finite.

    Raises:
        ShapeError: if maps and masks disagree.
    """
    rows, target = _check(maps, masks, "energy_pointing")
    low, high = rows.amin(1, keepdim=True).double(), rows.amax(1, keepdim=True).double()
    scaled = (rows.double() - low) / (high - low)
    return _where(_varies(rows) & target.any(1), (scaled * target).sum(1) / scaled.sum(1))


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
    rows, target = _check(maps, masks, "top_share")
    if bool(((counts < 1) | (counts > rows.shape[1])).any()):
        raise ParameterError(f"top_share: counts must be from 1 to {rows.shape[1]}, the cells of a map.")
    last = sort_values(rows).gather(1, rows.shape[1] - counts[:, None])
    above, tied = rows > last, rows == last
    room = counts - above.sum(1)
    hits = (above & target).sum(1) + room * (tied & target).sum(1).double() / tied.sum(1)
    return _where(_varies(rows) & target.any(1), hits / counts)


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

    Raises:
        ShapeError: if maps and masks disagree.
    """
    return top_share(maps, masks, masks.flatten(1).sum(1).clamp(min=1))


def pixel_ranking(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """ROC AUC and average precision of the pixels as a detector of the object, from one sorting.

    Args:
        maps: (N, 1, H, W).
        masks: bool (N, 1, H, W).

    Returns:
        What `roc_auc` and `average_precision` give.

    Raises:
        ShapeError: if maps and masks disagree.
    """
    rows, target = _check(maps, masks, "pixel_ranking")
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
    valid = _varies(rows) & (positives > 0)
    return _where(valid & (negatives > 0), auc), _where(valid, (precision * hit).sum(1) / positives)


def roc_auc(maps: Tensor, masks: Tensor) -> Tensor:
    """Area under the ROC curve of the pixels: chance that one on the object is above one off it (Fawcett 2006).

    Ties count one half.

    Args:
        maps: (N, 1, H, W).
        masks: bool (N, 1, H, W).

    Returns:
        float64 (N,) in [0, 1]; NaN for an empty or full mask, a constant map or one that is not finite.

    Raises:
        ShapeError: if maps and masks disagree.
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

    Raises:
        ShapeError: if maps and masks disagree.
    """
    return pixel_ranking(maps, masks)[1]


def component_boxes(masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bounding rectangles of the connected components of masks, neighbours also across corners.

    All images at once, on their device: a mask is cut into the runs of its rows, runs of neighbouring rows that touch
    are joined, and labels of joined runs follow the largest one. There are far fewer runs than cells.

    Args:
        masks: bool (N, 1, H, W).

    Returns:
        For R components in all: the image of each (R,), its rectangle (R, 4) as xmin, ymin, xmax, ymax with the last
        two exclusive, and its number of cells (R,). All int64.

    >>> [t.tolist() for t in component_boxes(torch.tensor([[[[True, True, False, True]]]]))]
    [[0, 0], [[0, 0, 2, 1], [3, 0, 4, 1]], [2, 1]]
    """
    height, width = masks.shape[-2:]
    lines = pad(masks.bool().reshape(-1, width), (1, 1))
    line, first = (lines[:, 1:] & ~lines[:, :-1]).nonzero(as_tuple=True)
    end = (lines[:, :-1] & ~lines[:, 1:]).nonzero(as_tuple=True)[1]  # one past the last cell of the same runs
    y = line % height
    runs = torch.arange(len(line), device=masks.device)

    # Runs of the next line that touch a run are neighbours in the list: from the first that ends far enough to the
    # right to the last that starts far enough to the left.
    stride = width + 2
    low = torch.searchsorted(line * stride + end, (line + 1) * stride + first)
    high = torch.searchsorted(line * stride + first, (line + 1) * stride + end, right=True)
    count = torch.where(y < height - 1, high - low, 0)
    upper = runs.repeat_interleave(count)
    lower = low[upper] + torch.arange(len(upper), device=masks.device) - (count.cumsum(0) - count)[upper]

    labels = runs
    while not torch.equal(above := labels[upper], below := labels[lower]):
        most = torch.maximum(above, below)
        leader = runs.scatter_reduce(0, above, most, "amax").scatter_reduce(0, below, most, "amax")
        while not torch.equal(leader, further := leader[leader]):
            leader = further
        labels = leader[labels]
    roots, owner = labels.unique(return_inverse=True)

    def reduce(values: Tensor, how: str) -> Tensor:
        return torch.zeros_like(roots).scatter_reduce(0, owner, values, how, include_self=False)

    sides = reduce(first, "amin"), reduce(y, "amin"), reduce(end, "amax"), reduce(y + 1, "amax")
    return line[roots] // height, torch.stack(sides, 1), reduce(end - first, "sum")


def fill_rectangles(owner: Tensor, boxes: Tensor, n: int, size: tuple[int, int]) -> Tensor:
    """Union of rectangles as masks.

    Args:
        owner: int64 (R,), the image of each rectangle.
        boxes: int64 (R, 4) as xmin, ymin, xmax, ymax, the last two exclusive.
        n: number of images.
        size: height and width of the masks.

    Returns:
        bool (n, 1, H, W).
    """
    height, width = size
    corners = torch.zeros(n, height + 1, width + 1, dtype=torch.int64, device=boxes.device)
    xmin, ymin, xmax, ymax = boxes.unbind(1)
    one = torch.ones_like(owner)
    for y, x, sign in ((ymin, xmin, one), (ymin, xmax, -one), (ymax, xmin, -one), (ymax, xmax, one)):
        corners.index_put_((owner, y, x), sign, accumulate=True)
    return (corners.cumsum(1).cumsum(2) > 0)[:, None, :height, :width]


def overlap(found: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """How two masks agree, pixel by pixel.

    Args:
        found: bool (N, 1, H, W), what the map marks.
        masks: bool (N, 1, H, W), the object.

    Returns:
        float64 (N,) for `iou`, `dice`, `precision`, `recall` and `pixel_accuracy`; all NaN for an empty object.
        Nothing found is precision 0.

    Raises:
        ShapeError: if the two disagree.
    """
    a, b = _check(found, masks, "overlap")
    a = a.bool()
    both, marked, real = ((t.sum(1)).double() for t in (a & b, a, b))
    values = {
        "iou": both / (marked + real - both),
        "dice": 2 * both / (marked + real),
        "precision": both / marked.clamp(min=1),
        "recall": both / real,
        "pixel_accuracy": (a == b).double().mean(1),
    }
    return {name: _where(real > 0, value) for name, value in values.items()}


def threshold_overlap(maps: Tensor, masks: Tensor, threshold: float = 0.5, *, boxes: bool = True) -> dict[str, Tensor]:
    """Overlap of the object with the rectangles around what exceeds a threshold (AGCAM; Leem, Seo 2024).

    The map is scaled to [0, 1] by its own range and compared with the threshold (strictly above); the union of the
    bounding rectangles of its connected regions is compared with the object.

    Args:
        maps: (N, 1, H, W).
        masks: bool (N, 1, H, W): the union of the object's boxes, as published, or its outline.
        threshold: on the scaled map.
        boxes: compare rectangles; False compares the regions themselves.

    Returns:
        The columns of `overlap`; all NaN for an empty object, a constant map or one that is not finite.

    Raises:
        ShapeError: if maps and masks disagree.
        ParameterError: if the threshold is not in [0, 1).
    """
    rows, _ = _check(maps, masks, "threshold_overlap")
    if not 0 <= threshold < 1:
        raise ParameterError(f"threshold_overlap: threshold must be in [0, 1) but is {threshold}.")
    found = normalize(maps) > threshold
    if boxes:
        parts = []
        for piece in found.split(_per_chunk(found)):
            owner, rectangles, _ = component_boxes(piece)
            parts.append(fill_rectangles(owner, rectangles, len(piece), (found.shape[2], found.shape[3])))
        found = torch.cat(parts) if parts else found
    return {name: _where(_varies(rows), value) for name, value in overlap(found, masks).items()}


def _per_chunk(masks: Tensor) -> int:
    return max(1, _CHUNK // (masks.shape[-2] * masks.shape[-1]))


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (R, 4) with boxes (R, B, 4), float64 (R, B); NaN coordinates give NaN."""
    a = a[:, None].double()
    b = b.double()
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    outer = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    return inner / outer


def box_iou_curve(
    maps: Tensor, boxes: Sequence[Tensor], thresholds: Sequence[float], *, largest: bool = False
) -> Tensor:
    """Best IoU of a box of the object with a box of the map, at each threshold (Choe et al. 2020, arXiv:2001.07437).

    The map is scaled to [0, 1] by its own range; each connected region strictly above the threshold gives one box.
    `max_box_accuracy` makes MaxBoxAcc of the curves of a data set. Differs from the released code, which rounds maps to
    256 levels, also takes the outlines of holes, and counts a box's last pixel twice.

    Args:
        maps: (N, 1, H, W).
        boxes: for each image (B, 4) as xmin, ymin, xmax, ymax in pixels of the map, the last two exclusive.
        thresholds: T numbers in [0, 1).
        largest: only the region with most cells counts (MaxBoxAcc); False takes all (MaxBoxAccV2).

    Returns:
        float64 (N, T); NaN without boxes, for a constant map or one that is not finite.

    Raises:
        ShapeError: if maps and boxes differ in number.
    """
    if maps.ndim != 4 or maps.shape[1] != 1 or len(boxes) != len(maps):
        raise ShapeError(
            f"box_iou_curve: expected maps (N, 1, H, W) and N lists of boxes but got {tuple(maps.shape)} and "
            f"{len(boxes)}."
        )
    n, _, height, width = maps.shape
    many = len(thresholds)
    valid = _varies(maps.flatten(1)) & torch.tensor([len(b) > 0 for b in boxes], dtype=torch.bool, device=maps.device)
    true = maps.new_full((n, max([len(b) for b in boxes], default=0), 4), torch.nan, dtype=torch.float64)
    for i, rows in enumerate(boxes):
        true[i, : len(rows)] = rows.to(true)
    if not (n and many and true.shape[1]):
        return maps.new_full((n, many), torch.nan, dtype=torch.float64)
    scaled = normalize(maps)
    levels = torch.tensor(thresholds, dtype=scaled.dtype, device=maps.device)
    best = torch.zeros(n * many, dtype=torch.float64, device=maps.device)
    for start, stop in _chunks(n * many, max(1, _CHUNK // (height * width))):
        flat = torch.arange(start, stop, device=maps.device)
        above = scaled[flat // many] > levels[flat % many][:, None, None, None]
        owner, found, sizes = component_boxes(above)
        if largest:
            most = torch.zeros(stop - start, dtype=sizes.dtype, device=maps.device)
            keep = sizes == most.scatter_reduce(0, owner, sizes, "amax")[owner]
            owner, found = owner[keep], found[keep]
        cell = flat[owner]
        ious = box_iou(found, true[cell // many]).nan_to_num(0).amax(1)
        best.scatter_reduce_(0, cell, ious, "amax")
    return _where(valid[:, None], best.view(n, many))


def _chunks(total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, size):
        yield start, min(start + size, total)


def max_box_accuracy(
    curves: Tensor, deltas: Sequence[float] = (0.3, 0.5, 0.7), *, chosen_on: Tensor | None = None
) -> dict[str, float]:
    """MaxBoxAcc and MaxBoxAccV2 of a data set (Choe et al. 2020, arXiv:2001.07437).

    For each delta, the share of images whose IoU is at least delta, at the ONE threshold that is best for the data set;
    V2 is the mean over the deltas. The threshold is chosen on other images where they are given, as the authors do it.

    Args:
        curves: IoU (N, T) of `box_iou_curve`; images with NaN are left out and counted.
        deltas: IoU that counts as found.
        chosen_on: IoU (M, T) of held-out images on which the thresholds are chosen; None takes `curves` itself, which
            is optimistic.

    Returns:
        `max_box_acc_v2`, `max_box_acc_<100 delta>` for each delta, `threshold_<100 delta>` as the place of the chosen
        threshold in the curve, and `images`, how many counted.

    >>> max_box_accuracy(torch.tensor([[0.2, 0.9], [0.6, 0.1]]), (0.5,))
    {'max_box_acc_v2': 0.5, 'max_box_acc_50': 0.5, 'threshold_50': 0.0, 'images': 2.0}
    """
    kept = curves[~curves.isnan().any(1)]
    judge = kept if chosen_on is None else chosen_on[~chosen_on.isnan().any(1)]
    values: dict[str, float] = {}
    for delta in deltas:
        name = f"{round(100 * delta)}"
        if not len(kept) or not len(judge):
            values[f"max_box_acc_{name}"] = values[f"threshold_{name}"] = float("nan")
            continue
        place = int((judge >= delta).double().mean(0).argmax())
        values[f"max_box_acc_{name}"] = float((kept[:, place] >= delta).double().mean())
        values[f"threshold_{name}"] = float(place)
    mean = sum(v for k, v in values.items() if k.startswith("max_box_acc")) / len(deltas)
    return {"max_box_acc_v2": mean, **values, "images": float(len(kept))}


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
    rows, target = _check(maps, masks, "pixel_counts")
    if not thresholds or thresholds[0] != 0 or any(a >= b for a, b in pairwise(thresholds)):
        raise ParameterError(f"pixel_counts: thresholds must start at 0 and increase but are {list(thresholds)}.")
    scaled = normalize(maps).flatten(1)
    levels = torch.tensor(thresholds, dtype=scaled.dtype, device=maps.device)
    level = torch.bucketize(scaled, levels, right=True) - 1  # the last threshold that the pixel reaches
    valid = (_varies(rows) & target.any(1))[:, None]

    def count(which: Tensor) -> Tensor:
        histogram = torch.zeros(len(rows), len(thresholds), dtype=torch.float64, device=maps.device)
        histogram.scatter_add_(1, level, which.double())
        return _where(valid, histogram.flip(1).cumsum(1).flip(1))

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
