"""Localisation: naive oracles in float64, libraries as witnesses, and what perfect, central and random maps score."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from xattn import functional as F
from xattn.data.sample import Batch, box_masks
from xattn.errors import DataError, ParameterError, ShapeError
from xattn.explainer import Explainer, Family
from xattn.explanation import Explanation
from xattn.functional import boxes as regions
from xattn.functional.control import center_map, sobel_map
from xattn.metric import HIGHER, Metric
from xattn.metrics import metrics
from xattn.trace import Trace

NAMES = [
    "pointing_game", "energy_pointing_game", "relevance_mass", "relevance_rank", "top_k_intersection", "pixel_auc",
    "threshold_overlap", "max_box_accuracy", "pxap", "grid_pointing_game", "object_size",
]  # fmt: skip
TRACE: Any = SimpleNamespace()


@dataclass(frozen=True)
class Given(Explainer):
    """Stands for the method that made the maps of a test."""

    name: ClassVar[str] = "given"
    family: ClassVar[Family] = Family.CONTROL

    def attribute(self, trace: Trace) -> Tensor:
        raise NotImplementedError


def explanation(maps: Tensor, size: tuple[int, int] | None = None) -> Explanation:
    target = torch.zeros(len(maps), dtype=torch.int64)
    return Explanation(maps, target, Given(), size or (maps.shape[-2], maps.shape[-1]))


def batch_of(masks: Tensor, boxes: tuple[Tensor, ...] | None = None) -> Batch:
    n = len(masks)
    x = torch.zeros(n, 3, *masks.shape[-2:])
    return Batch(x, torch.zeros(n, dtype=torch.int64), tuple(map(str, range(n))), masks, boxes)


def zoo(seed: int = 0, n: int = 6, size: tuple[int, int] = (7, 9)) -> tuple[Tensor, Tensor]:
    """Maps with many ties, with negative cells and with none, and masks of all kinds."""
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(n, 1, *size, generator=g)
    maps[0] = (maps[0] * 2).round()
    maps[1] = maps[1].clamp(min=0)
    maps[2] = (maps[2] > 1).float()
    maps[2, 0, 0, 0] = 1
    masks = torch.rand(n, 1, *size, generator=g) < torch.rand(n, 1, 1, 1, generator=g)
    masks[3] = False
    masks[3, 0, 2, 3] = True
    masks[4] = False
    masks[4, 0, 1:5, 2:8] = True
    masks[[0, 1, 2, 5], 0, 0, :2] = torch.tensor([True, False])  # neither empty nor full
    return maps, masks


Pixels = list[tuple[float, bool]]


def pixels(m: Tensor, k: Tensor) -> Pixels:
    return [(float(a), bool(b)) for a, b in zip(m.flatten(), k.flatten(), strict=True)]


def naive_pointing(m: Tensor, k: Tensor, tolerance: int) -> float:
    height, width = m.shape[-2:]
    top = float(m.max())
    hits = points = 0
    for y in range(height):
        for x in range(width):
            if float(m[0, y, x]) == top:
                points += 1
                hits += any(
                    bool(k[0, v, u]) and (u - x) ** 2 + (v - y) ** 2 <= tolerance**2
                    for v in range(height) for u in range(width)
                )  # fmt: skip
    return hits / points


def naive_energy(m: Tensor, k: Tensor) -> float:
    low = min(a for a, _ in pixels(m, k))
    return sum(a - low for a, b in pixels(m, k) if b) / sum(a - low for a, _ in pixels(m, k))


def naive_mass(m: Tensor, k: Tensor) -> float:
    return sum(a for a, b in pixels(m, k) if b and a > 0) / sum(a for a, _ in pixels(m, k) if a > 0)


def naive_top(m: Tensor, k: Tensor, count: int) -> float:
    """Take whole groups of equal values from the top; of the last group the expected share."""
    left, hits = count, 0.0
    for value in sorted({a for a, _ in pixels(m, k)}, reverse=True):
        group = [b for a, b in pixels(m, k) if a == value]
        taken = min(left, len(group))
        hits += taken * sum(group) / len(group)
        left -= taken
    return hits / count


def naive_auc(m: Tensor, k: Tensor) -> float:
    on = [a for a, b in pixels(m, k) if b]
    off = [a for a, b in pixels(m, k) if not b]
    return sum((a > b) + 0.5 * (a == b) for a in on for b in off) / (len(on) * len(off))


def naive_ap(m: Tensor, k: Tensor) -> float:
    total = sum(b for _, b in pixels(m, k))
    area = recall = 0.0
    for value in sorted({a for a, _ in pixels(m, k)}, reverse=True):
        found = [b for a, b in pixels(m, k) if a >= value]
        area += (sum(found) / total - recall) * sum(found) / len(found)
        recall = sum(found) / total
    return area


def naive_regions(binary: np.ndarray) -> list[tuple[int, int, int, int, int]]:
    """Flood fill: xmin, ymin, xmax, ymax (exclusive) and number of cells of each region, corners touch."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(binary), strict=True)}
    found = []
    while left:
        waiting, region = [left.pop()], []
        while waiting:
            y, x = waiting.pop()
            region.append((y, x))
            for v in range(y - 1, y + 2):
                for u in range(x - 1, x + 2):
                    if (v, u) in left:
                        left.remove((v, u))
                        waiting.append((v, u))
        ys, xs = [p[0] for p in region], [p[1] for p in region]
        found.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1, len(region)))
    return sorted(found)


def scaled(m: Tensor) -> np.ndarray:
    a = m.double().numpy()[0]
    return (a - a.min()) / (a.max() - a.min())


def naive_overlap(m: Tensor, k: Tensor, threshold: float) -> dict[str, float]:
    found = np.zeros(k.shape[1:], bool)
    for x0, y0, x1, y1, _ in naive_regions(scaled(m) > threshold):
        found[y0:y1, x0:x1] = True
    real = k.numpy()[0]
    tp = fp = fn = tn = 0
    for a, b in zip(found.flat, real.flat, strict=True):
        tp, fp, fn, tn = tp + (a and b), fp + (a and not b), fn + (b and not a), tn + (not a and not b)
    return {
        "iou": tp / (tp + fp + fn),
        "dice": 2 * tp / (2 * tp + fp + fn),
        "precision": tp / (tp + fp) if tp + fp else 0.0,
        "recall": tp / (tp + fn),
        "pixel_accuracy": (tp + tn) / (tp + fp + fn + tn),
    }


def naive_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inner = max(w, 0) * max(h, 0)
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("ours", "oracle"),
    [
        (lambda m, k: F.pointing_hit(m, k, 0), lambda m, k: naive_pointing(m, k, 0)),
        (lambda m, k: F.pointing_hit(m, k, 3), lambda m, k: naive_pointing(m, k, 3)),
        (F.energy_pointing, naive_energy),
        (F.energy_share, naive_mass),
        (F.relevance_rank, lambda m, k: naive_top(m, k, int(k.sum()))),
        (lambda m, k: F.top_k_intersection(m, k, 11), lambda m, k: naive_top(m, k, 11)),
        (F.roc_auc, naive_auc),
        (F.average_precision, naive_ap),
        (F.mask_share, lambda m, k: float(k.double().mean())),
    ],
    ids=["pointing", "pointing-tolerance", "energy", "mass", "rank", "top-k", "auc", "ap", "share"],
)
def test_oracle(ours: Callable[..., Tensor], oracle: Callable[..., float], seed: int) -> None:
    maps, masks = zoo(seed)
    got = ours(masks) if ours is F.mask_share else ours(maps, masks)
    assert got.dtype == torch.float64
    expected = [oracle(m, k) for m, k in zip(maps, masks, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8])
def test_threshold_overlap_oracle(threshold: float) -> None:
    maps, masks = zoo(5, size=(9, 8))
    got = F.threshold_overlap(maps, masks, threshold)
    for i, (m, k) in enumerate(zip(maps, masks, strict=True)):
        for name, value in naive_overlap(m, k, threshold).items():
            assert float(got[name][i]) == pytest.approx(value, abs=1e-12), name


def test_regions_themselves() -> None:
    maps, masks = zoo(6)
    found = torch.from_numpy(np.stack([scaled(m) > 0.5 for m in maps]))[:, None]
    expected = F.overlap(found, masks)
    for name, value in F.threshold_overlap(maps, masks, 0.5, boxes=False).items():
        assert torch.equal(value, expected[name])


def spiral(side: int) -> np.ndarray:
    """One thin region that winds inwards: what a labelling in few rounds finds hardest."""
    grid = np.zeros((side, side), bool)
    y = x = 0
    dy, dx = 0, 1
    grid[0, 0] = True
    for _ in range(side * side):
        v, u = y + 2 * dy, x + 2 * dx
        if not (0 <= y + dy < side and 0 <= x + dx < side) or (0 <= v < side and 0 <= u < side and grid[v, u]):
            dy, dx = dx, -dy
            v, u = y + 2 * dy, x + 2 * dx
            if not (0 <= y + dy < side and 0 <= x + dx < side) or (0 <= v < side and 0 <= u < side and grid[v, u]):
                break
        y, x = y + dy, x + dx
        grid[y, x] = True
    return grid


@pytest.mark.parametrize("density", [0.0, 0.1, 0.3, 0.5, 0.7, 1.0])
def test_component_boxes_oracle(density: float) -> None:
    g = torch.Generator().manual_seed(3)
    masks = torch.rand(4, 1, 11, 13, generator=g) < density
    owner, boxes, sizes = F.component_boxes(masks)
    for i in range(4):
        mine = sorted((*b, s) for b, s in zip(boxes[owner == i].tolist(), sizes[owner == i].tolist(), strict=True))
        assert mine == naive_regions(masks[i, 0].numpy())


def test_component_boxes_of_spirals() -> None:
    masks = torch.from_numpy(np.stack([spiral(21), spiral(21).T, ~spiral(21)]))[:, None]
    owner, boxes, sizes = F.component_boxes(masks)
    for i in range(3):
        mine = sorted((*b, s) for b, s in zip(boxes[owner == i].tolist(), sizes[owner == i].tolist(), strict=True))
        assert mine == naive_regions(masks[i, 0].numpy())
    assert (owner == 0).sum() == 1


def test_components_beside_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    masks = torch.rand(3, 1, 40, 50, generator=torch.Generator().manual_seed(1)) < 0.4
    owner, boxes, _ = F.component_boxes(masks)
    for i in range(3):
        labels, _ = ndimage.label(masks[i, 0].numpy(), np.ones((3, 3)))
        theirs = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
        assert sorted(map(tuple, boxes[owner == i].tolist())) == sorted(theirs)


def test_rectangles_beside_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    maps = torch.nn.functional.interpolate(
        torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(2)), size=(40, 48), mode="bilinear"
    )
    binary = F.normalize(maps) > 0.5
    owner, boxes, _ = F.component_boxes(binary)
    ours = F.fill_rectangles(owner, boxes, 5, (40, 48))
    for i in range(5):
        contours, _ = cv2.findContours(
            binary[i, 0].numpy().astype(np.uint8) * 255, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        theirs = np.zeros((40, 48), bool)
        for contour in contours:
            x, y, w, h = cv2.boundingRect(contour)
            theirs[y : y + h, x : x + w] = True
        assert np.array_equal(ours[i, 0].numpy(), theirs)


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 20])
def test_dilate_beside_distances(radius: int) -> None:
    _, masks = zoo(9)
    got = F.dilate(masks, radius)
    y, x = torch.meshgrid(torch.arange(7), torch.arange(9), indexing="ij")
    for mask, wide in zip(masks[:, 0], got[:, 0], strict=True):
        points = mask.nonzero()
        distance = ((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2).amin(-1)
        assert torch.equal(wide, distance <= radius**2)


def test_pixel_ranking_beside_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    maps, masks = zoo(11, n=8, size=(20, 20))
    auc, precision = F.roc_auc(maps, masks), F.average_precision(maps, masks)
    for i in range(8):
        truth, scores = masks[i].flatten().numpy(), maps[i].flatten().numpy()
        assert float(auc[i]) == pytest.approx(sklearn.roc_auc_score(truth, scores), abs=1e-12)
        assert float(precision[i]) == pytest.approx(sklearn.average_precision_score(truth, scores), abs=1e-12)


def test_box_iou_curve_oracle() -> None:
    maps, _ = zoo(13)
    boxes = [torch.tensor([[1.0, 1.0, 5.0, 4.0]]), torch.tensor([[0.5, 0.0, 3.0, 7.0], [4.0, 2.0, 9.0, 6.5]])] * 3
    thresholds = [0.0, 0.3, 0.55, 0.9]
    for largest in (False, True):
        got = F.box_iou_curve(maps, boxes, thresholds, largest=largest)
        for i in range(6):
            for j, threshold in enumerate(thresholds):
                regions = naive_regions(scaled(maps[i]) > threshold)
                most = max(r[4] for r in regions)
                kept = [r[:4] for r in regions if not largest or r[4] == most]
                best = max(naive_iou(r, tuple(b)) for r in kept for b in boxes[i].tolist())
                assert float(got[i, j]) == pytest.approx(best, abs=1e-9)


def test_box_iou_curve_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, _ = zoo(14)
    boxes = [torch.tensor([[1.0, 1.0, 5.0, 4.0]])] * 6
    whole = F.box_iou_curve(maps, boxes, [0.1, 0.5])
    overlap = F.threshold_overlap(maps, maps > 0)
    monkeypatch.setattr(regions, "_CHUNK", 7 * 9 * 5)
    assert torch.equal(whole, F.box_iou_curve(maps, boxes, [0.1, 0.5]))
    assert torch.equal(overlap["iou"], F.threshold_overlap(maps, maps > 0)["iou"])


def test_max_box_accuracy_has_one_threshold_for_all() -> None:
    curves = torch.tensor([[0.9, 0.2, 0.4], [0.1, 0.8, 0.4], [0.2, 0.6, 0.4], [math.nan] * 3], dtype=torch.float64)
    got = F.max_box_accuracy(curves, (0.3, 0.5, 0.7))
    # At 0.3 the last threshold finds all; each image by itself would find all at 0.5 as well.
    assert (got["max_box_acc_30"], got["threshold_30"]) == (1.0, 2.0)
    assert (got["max_box_acc_50"], got["threshold_50"]) == (pytest.approx(2 / 3), 1.0)
    assert got["max_box_acc_70"] == pytest.approx(1 / 3)
    assert got["max_box_acc_v2"] == pytest.approx(2 / 3)
    assert got["images"] == 3
    held_out = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    assert F.max_box_accuracy(curves, (0.5,), chosen_on=held_out)["max_box_acc_50"] == pytest.approx(1 / 3)
    assert math.isnan(F.max_box_accuracy(curves[3:])["max_box_acc_v2"])


def test_pixel_counts_and_pxap_oracle() -> None:
    maps, masks = zoo(15)
    thresholds = [0.0, 0.25, 0.5, 0.75]
    true, false = F.pixel_counts(maps, masks, thresholds)
    area, recall = 0.0, 0.0
    flat = [
        (a, bool(b)) for m, k in zip(maps, masks, strict=True) for a, b in zip(scaled(m).flat, k.flatten(), strict=True)
    ]
    total = sum(b for _, b in flat)
    for threshold in reversed(thresholds):
        found = [b for a, b in flat if a >= threshold]
        area += (sum(found) / total - recall) * sum(found) / len(found)
        recall = sum(found) / total
    for i, (m, k) in enumerate(zip(maps, masks, strict=True)):
        for j, threshold in enumerate(thresholds):
            assert float(true[i, j]) == (torch.from_numpy(scaled(m) >= threshold) & k[0]).sum()
            assert float(false[i, j]) == (torch.from_numpy(scaled(m) >= threshold) & ~k[0]).sum()
    assert F.pixel_average_precision(true, false) == pytest.approx(area)


def test_pxap_of_fine_thresholds_is_average_precision() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    maps, masks = zoo(16, size=(12, 12))
    maps = (maps * 50).round()  # fewer levels than thresholds
    true, false = F.pixel_counts(maps, masks, [i / 4000 for i in range(4001)])
    scores = np.concatenate([scaled(m).ravel() for m in maps])
    expected = sklearn.average_precision_score(masks.flatten().numpy(), scores)
    # Both ends of a level are never in one bin here, but rounding may move one across the edge.
    assert F.pixel_average_precision(true, false) == pytest.approx(expected, abs=2e-3)


def test_ties_are_broken_evenly() -> None:
    """The mean over random ways to break the ties is what is reported."""
    maps, masks = zoo(0)
    expected = float(F.top_k_intersection(maps[:1], masks[:1], 10)[0])
    g = torch.Generator().manual_seed(0)
    noisy = maps[:1] + 1e-3 * torch.rand(4000, 1, 7, 9, generator=g)
    drawn = F.top_k_intersection(noisy, masks[:1].expand(4000, -1, -1, -1), 10)
    assert float(drawn.mean()) == pytest.approx(expected, abs=0.01)
    assert float(drawn.std()) > 0.01


UNDEFINED = {
    "constant": lambda m, k: (torch.full_like(m, 2.0), k),
    "nan": lambda m, k: (m.index_fill(3, torch.tensor([1]), math.nan), k),
    "inf": lambda m, k: (m.index_fill(3, torch.tensor([1]), math.inf), k),
    "empty": lambda m, k: (m, torch.zeros_like(k)),
}


@pytest.mark.parametrize("kind", UNDEFINED)
@pytest.mark.parametrize("name", [n for n in NAMES if n != "object_size"])
def test_undefined_is_nan_and_stays_with_its_image(name: str, kind: str) -> None:
    maps, masks = zoo(4, size=(8, 8))
    boxes = tuple(torch.tensor([[1.0, 1.0, 4.0, 5.0]]) for _ in range(6))
    broken_map, broken_mask = UNDEFINED[kind](maps[1:2], masks[1:2])
    metric = metrics.create(name)
    whole = measure(metric, maps, masks, boxes)
    no_box = torch.zeros(0, 4)
    mixed_boxes = (boxes[0], no_box if kind == "empty" else boxes[1], *boxes[2:])
    maps, masks = maps.clone(), masks.clone()
    maps[1:2], masks[1:2] = broken_map, broken_mask
    if name == "energy_pointing_game":
        masks = box_masks(mixed_boxes, (8, 8))
    got = measure(metric, maps, masks, mixed_boxes)
    defined = kind == "constant" and name in ("relevance_mass", "grid_pointing_game")
    for column, values in got.items():
        assert bool(values[1].isnan()) != defined, column
        others = torch.arange(6) != 1
        torch.testing.assert_close(values[others], whole[column][others], equal_nan=True, rtol=0, atol=0)


def measure(metric: Metric, maps: Tensor, masks: Tensor, boxes: tuple[Tensor, ...] | None = None) -> dict[str, Tensor]:
    return metric.measure(explanation(maps, (masks.shape[-2], masks.shape[-1])), TRACE, batch_of(masks, boxes))


@pytest.mark.parametrize("name", NAMES)
def test_columns_dtype_and_batch_independence(name: str) -> None:
    maps, masks = zoo(21, size=(8, 8))
    masks = torch.nn.functional.interpolate(masks.float(), size=(16, 24)) > 0
    metric = metrics.create(name)
    whole = measure(metric, maps, masks)
    assert list(whole) == list(metric.columns)
    for column, values in whole.items():
        assert values.dtype == torch.float64
        assert values.shape == (6,)
        alone = torch.cat([measure(metric, maps[i : i + 1], masks[i : i + 1])[column] for i in range(6)])
        torch.testing.assert_close(values, alone, rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_scale_does_not_matter(name: str) -> None:
    maps, masks = zoo(22, size=(8, 8))
    metric = metrics.create(name)
    before, after = measure(metric, maps, masks), measure(metric, maps * 2.0**-30, masks)
    for column in before:
        torch.testing.assert_close(before[column], after[column], equal_nan=True)


@pytest.mark.parametrize("name", ["relevance_rank", "top_k_intersection", "pixel_auc", "pointing_game"])
def test_only_the_order_matters(name: str) -> None:
    maps, masks = zoo(23, size=(8, 8))
    metric = metrics.create(name)
    before, after = measure(metric, maps, masks), measure(metric, maps.double().exp(), masks)
    for column in before:
        torch.testing.assert_close(before[column], after[column], equal_nan=True)


SIDE = 32


def scene(n: int = 200) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor]]:
    """A bright box at a random place, a dark one as distractor at the mirrored place, noise; and maps to compare."""
    g = torch.Generator().manual_seed(7)
    wh = torch.randint(6, 20, (n, 2), generator=g)
    xy = (torch.rand(n, 2, generator=g) * (SIDE - wh)).long()
    rows = torch.cat([xy, xy + wh], 1).float()
    boxes = tuple(r[None] for r in rows)
    masks = box_masks(boxes, (SIDE, SIDE))
    image = torch.rand(n, 1, SIDE, SIDE, generator=g) * 0.4 + masks * 0.5 - masks.flip(2, 3) * 0.6
    maps = {
        "perfect": masks.float() + 1e-3 * torch.rand(n, 1, SIDE, SIDE, generator=g),
        "center": center_map((SIDE, SIDE)).float().expand(n, -1, -1, -1),
        "edges": sobel_map(image),
        "random": torch.rand(n, 1, SIDE, SIDE, generator=g),
    }
    return masks, boxes, maps


@pytest.mark.parametrize("name", NAMES)
def test_perfect_beats_controls(name: str) -> None:
    masks, boxes, maps = scene()
    metric = metrics.create(name, **({"tolerance_px": 2} if name == "pointing_game" else {}))
    found = {}
    for kind, m in maps.items():
        columns = measure(metric, m, masks, boxes)
        found[kind] = {c: float(v.nanmean()) for c, v in columns.items()} | metric.pool(columns)
    directed = [c for c, d in {**metric.columns, **metric.pooled}.items() if d is HIGHER]
    assert directed or name == "object_size"
    for column in directed:
        for control in ("center", "edges", "random"):
            assert found["perfect"][column] > found[control][column] + 0.05, (column, control)
        assert found["perfect"][column] > 0.9


def chance_precision(masks: Tensor) -> Tensor:
    """Mean average precision of a random order, summed over the places where a pixel of the object can be."""
    cells = masks[0].numel()
    share = (masks.flatten(1).sum(1).double() - 1) / (cells - 1)
    return sum((share * (i - 1) + 1) / i for i in range(1, cells + 1)) / cells


@pytest.mark.parametrize(
    ("name", "column", "theory"),
    [
        ("pointing_game", "hit_exact", lambda k: F.mask_share(k)),
        ("pointing_game", "hit", lambda k: F.mask_share(F.dilate(k, 15))),
        ("energy_pointing_game", "energy", lambda k: F.mask_share(k)),
        ("relevance_mass", "mass", lambda k: F.mask_share(k)),
        ("relevance_rank", "rank", lambda k: F.mask_share(k)),
        ("top_k_intersection", "intersection", lambda k: F.mask_share(k)),
        ("pixel_auc", "roc_auc", lambda k: torch.tensor(0.5)),
        ("pixel_auc", "average_precision", lambda k: chance_precision(k)),
        ("grid_pointing_game", "cell", lambda k: F.mask_share(k)),
    ],
)
def test_random_scores_what_theory_says(name: str, column: str, theory: Callable[[Tensor], Tensor]) -> None:
    masks, boxes, maps = scene()
    values = measure(metrics.create(name), maps["random"], masks, boxes)[column]
    off = values - theory(masks)
    assert abs(float(off.mean())) < 4 * float(off.std()) / len(off) ** 0.5 + 1e-3
    assert float(off.std()) > 0


def test_random_pxap_is_the_share_of_all_masks() -> None:
    masks, boxes, maps = scene()
    metric = metrics.create("pxap")
    got = metric.pool(measure(metric, maps["random"], masks, boxes))["pxap"]
    assert got == pytest.approx(float(masks.double().mean()), abs=0.005)


def test_object_size_flags_small_objects() -> None:
    masks = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    masks[0, 0, 0, :3] = True
    masks[1, 0, :2] = True
    got = measure(metrics.create("object_size"), torch.rand(3, 1, 4, 4), masks)
    assert got["mask_share"].tolist()[:2] == [3 / 16, 0.5]
    assert got["small"].tolist()[:2] == [1.0, 0.0]
    assert got["small"][2].isnan()
    quarter = measure(metrics.create("object_size", below=0.6), torch.rand(3, 1, 4, 4), masks)
    assert quarter["small"].tolist()[:2] == [1.0, 1.0]


def test_energy_takes_boxes_and_mass_takes_masks() -> None:
    masks = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    masks[0, 0, 1, 1] = True
    boxes = (torch.tensor([[1.0, 1.0, 3.0, 3.0]]),)
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 2, 2] = 1.0
    assert float(measure(metrics.create("energy_pointing_game"), maps, masks, boxes)["energy"]) == 1.0
    assert float(measure(metrics.create("relevance_mass"), maps, masks, boxes)["mass"]) == 0.0
    curve = measure(metrics.create("max_box_accuracy"), maps, masks)["iou_50"]
    assert float(curve) == 0.0  # masks alone: the rectangle around the mask


def test_grid_pointing_ignores_images_explained_for_another_class() -> None:
    maps, masks = zoo(1)
    given = explanation(maps)
    other = Explanation(given.maps, torch.tensor([0, 0, 1, 0, 0, 0]), given.method, given.input_size)
    got = metrics.create("grid_pointing_game").measure(other, TRACE, batch_of(masks))["cell"]
    assert got.isnan().tolist() == [False, False, True, False, False, False]


def test_no_boxes_and_no_masks_is_said_clearly() -> None:
    maps, masks = zoo(1)
    empty = Batch(batch_of(masks).x, torch.zeros(6, dtype=torch.int64), tuple("abcdef"))
    for name in NAMES:
        with pytest.raises(DataError, match="neither masks nor boxes"):
            metrics.create(name).measure(explanation(maps), TRACE, empty)


def test_wrong_shapes_and_parameters_are_refused() -> None:
    maps, masks = zoo(1)
    with pytest.raises(ShapeError, match="resize the maps"):
        F.roc_auc(maps[..., :3], masks)
    with pytest.raises(ShapeError, match=r"\(N, 1, H, W\)"):
        F.roc_auc(maps[0], masks[0])
    with pytest.raises(ShapeError, match="pass the batch"):
        metrics.create("pixel_auc").measure(explanation(maps), TRACE, batch_of(masks[:3]))
    with pytest.raises(ShapeError, match="pass the batch"):
        metrics.create("max_box_accuracy").measure(explanation(maps), TRACE, batch_of(masks, (torch.zeros(0, 4),)))
    with pytest.raises(ShapeError, match="box_iou_curve"):
        F.box_iou_curve(maps, [], [0.5])
    for name, parameters in (
        ("pointing_game", {"tolerance_px": -1}), ("top_k_intersection", {"share": 0.0}),
        ("threshold_overlap", {"threshold": 1.0}),
    ):  # fmt: skip
        with pytest.raises(ParameterError):
            metrics.create(name, **parameters)
    with pytest.raises(ParameterError, match="k must be"):
        F.top_k_intersection(maps, masks, 0)
    with pytest.raises(ParameterError, match="counts"):
        F.top_share(maps, masks, torch.full((6,), 100))
    with pytest.raises(ParameterError, match="start at 0"):
        F.pixel_counts(maps, masks, [0.5])
    with pytest.raises(ParameterError, match="radius"):
        F.dilate(masks, -1)
    with pytest.raises(ParameterError, match="threshold"):
        F.threshold_overlap(maps, masks, 1.5)


def test_no_images() -> None:
    maps, masks = torch.zeros(0, 1, 8, 8), torch.zeros(0, 1, 8, 8, dtype=torch.bool)
    for name in NAMES:
        assert all(v.shape == (0,) for v in measure(metrics.create(name), maps, masks).values())
