"""Boxes and regions of a map: connected components, their rectangles, and how they overlap the object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from xattn.errors import ParameterError, ShapeError
from xattn.functional.localization import check_maps, varies, where_valid
from xattn.functional.resize import normalize

_CHUNK = 1 << 22  # pixels of binary masks that are labelled at a time


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


def overlap(regions: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """How two masks agree, pixel by pixel.

    Args:
        regions: bool (N, 1, H, W), what the map marks.
        masks: bool (N, 1, H, W), the object.

    Returns:
        float64 (N,) for `iou`, `dice`, `precision`, `recall` and `pixel_accuracy`; all NaN for an empty object.
        Nothing marked is precision 0.
    """
    a, b = check_maps(regions, masks, "overlap")
    a = a.bool()
    both, marked, real = ((t.sum(1)).double() for t in (a & b, a, b))
    values = {
        "iou": both / (marked + real - both),
        "dice": 2 * both / (marked + real),
        "precision": both / marked.clamp(min=1),
        "recall": both / real,
        "pixel_accuracy": (a == b).double().mean(1),
    }
    return {name: where_valid(real > 0, value) for name, value in values.items()}


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
    rows, _ = check_maps(maps, masks, "threshold_overlap")
    if not 0 <= threshold < 1:
        raise ParameterError(f"threshold_overlap: threshold must be in [0, 1) but is {threshold}.")
    regions = normalize(maps) > threshold
    if boxes:
        parts = []
        for piece in regions.split(_per_chunk(regions)):
            owner, rectangles, _ = component_boxes(piece)
            parts.append(fill_rectangles(owner, rectangles, len(piece), (regions.shape[2], regions.shape[3])))
        regions = torch.cat(parts) if parts else regions
    return {name: where_valid(varies(rows), value) for name, value in overlap(regions, masks).items()}


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
    """
    if maps.ndim != 4 or maps.shape[1] != 1 or len(boxes) != len(maps):
        raise ShapeError(
            f"box_iou_curve: expected maps (N, 1, H, W) and N lists of boxes but got {tuple(maps.shape)} and "
            f"{len(boxes)}."
        )
    n, _, height, width = maps.shape
    many = len(thresholds)
    valid = varies(maps.flatten(1)) & torch.tensor([len(b) > 0 for b in boxes], dtype=torch.bool, device=maps.device)
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
        owner, rectangles, sizes = component_boxes(above)
        if largest:
            most = torch.zeros(stop - start, dtype=sizes.dtype, device=maps.device)
            keep = sizes == most.scatter_reduce(0, owner, sizes, "amax")[owner]
            owner, rectangles = owner[keep], rectangles[keep]
        cell = flat[owner]
        ious = box_iou(rectangles, true[cell // many]).nan_to_num(0).amax(1)
        best.scatter_reduce_(0, cell, ious, "amax")
    return where_valid(valid[:, None], best.view(n, many))


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
