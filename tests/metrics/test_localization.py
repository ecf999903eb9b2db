"""Localisation: naive oracles in float64, libraries as witnesses, and what perfect, central and random maps score."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.given import Given
from tests.oracles.naive_localization import zoo
from xattn import functional as F
from xattn.data.sample import Batch, box_masks
from xattn.errors import DataError, ParameterError, ShapeError
from xattn.explanation import Explanation
from xattn.functional.control import center_map, sobel_map
from xattn.metric import HIGHER, Metric
from xattn.metrics import metrics

NAMES = [
    "pointing_game", "energy_pointing_game", "relevance_mass", "relevance_rank", "top_k_intersection", "pixel_auc",
    "threshold_overlap", "max_box_accuracy", "pxap", "grid_pointing_game", "object_size",
]  # fmt: skip
TRACE: Any = SimpleNamespace()


def explanation(maps: Tensor, size: tuple[int, int] | None = None) -> Explanation:
    target = torch.zeros(len(maps), dtype=torch.int64)
    return Explanation(maps, target, Given(), size or (maps.shape[-2], maps.shape[-1]))


def batch_of(masks: Tensor, boxes: tuple[Tensor, ...] | None = None) -> Batch:
    n = len(masks)
    x = torch.zeros(n, 3, *masks.shape[-2:])
    return Batch(x, torch.zeros(n, dtype=torch.int64), tuple(map(str, range(n))), masks, boxes)


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
