"""Properties of the perturbation metrics: ranks, curves, baselines, packing, and maps that mean nothing."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import tiny_models as tiny
from xattn.errors import NotApplicableError, ParameterError, ShapeError, UnknownNameError
from xattn.explainer import Explainer, Family
from xattn.explanation import Explanation
from xattn.functional.baselines import Blur, Fixed, baselines
from xattn.functional.curves import curve_correlation, pearson, step_counts, step_means, trapezoid_auc
from xattn.functional.imputation import linear_imputation
from xattn.functional.perturb import (
    cell_of_pixel,
    curve_scores,
    packed_scores,
    ranks,
    removal,
    segment_means,
    tie_orders,
    to_grid,
    undefined,
)
from xattn.functional.pixels import normalize_pixels
from xattn.metrics import metrics
from xattn.metrics import perturbation as shared
from xattn.metrics.perturbation import PerturbationMetric, draw_curves, find_baseline
from xattn.trace import Trace, record

NAMES = [n for n in metrics.names() if isinstance(metrics.create(n), PerturbationMetric)]
FAST = {  # few steps and samples; what is tested does not depend on them
    "deletion": {"steps": 8},
    "insertion": {"steps": 8},
    "curves": {"steps": 8},
    "irof": {"segments": 9},
    "road": {"steps": 4},
    "region_perturbation": {"side": 6},
    "faithfulness_correlation": {"samples": 12, "cells": 6},
    "sensitivity_n": {"samples": 6, "cells": 6, "sizes": 3},
    "infidelity": {"samples": 12},
}


@dataclass(frozen=True)
class Given(Explainer):
    """Stands for any method."""

    name: ClassVar[str] = "given"
    family: ClassVar[Family] = Family.CONTROL

    def attribute(self, trace: Trace) -> Tensor:
        raise NotImplementedError


def explanation(maps: Tensor, trace: Trace) -> Explanation:
    return Explanation(maps=maps, target=trace.target, method=Given(), input_size=trace.input_size)


def traced(x: Tensor, target: object = None, **options: object) -> Trace:
    torch.manual_seed(0)
    model = tiny.TinyCNN().to(x.dtype).eval()
    return record(model, x, target, spec=model.spec, grad=False, **options)


def quick(name: str, **parameters: object) -> PerturbationMetric:
    return metrics.create(name, **(FAST.get(name, {}) | parameters))


def random_maps(n: int, h: int, w: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, h, w, generator=torch.Generator().manual_seed(seed))


def generators(n: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


class Brightness:
    """A score that is a sum over pixels, so that curves can be worked out; counts its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: Tensor, own: Tensor) -> Tensor:
        assert len(images) == len(own)
        self.batches.append(len(images))
        return images.double().mean((1, 2, 3))


# --- ranks ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 9), w=st.integers(1, 9), levels=st.integers(1, 30), seed=st.integers(0, 999))
def test_ranks_order_the_map_whatever_its_ties(h: int, w: int, levels: int, seed: int) -> None:
    maps = (random_maps(3, h, w, seed) * levels).floor()
    found, share = ranks(maps, tie_orders(h * w, generators(3)))
    for m in range(3):
        flat = maps[m].flatten()
        assert sorted(found[m].tolist()) == list(range(h * w))
        ordered = flat[found[m].long().argsort()]
        assert (ordered[:-1] >= ordered[1:]).all()
        assert share[m].item() == pytest.approx(sum(flat.tolist().count(v) > 1 for v in flat.tolist()) / (h * w))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), power=st.sampled_from([1, 3, 5]), scale=st.floats(0.5, 4), shift=st.integers(-3, 3))
def test_ranks_ignore_increasing_rescaling(seed: int, power: int, scale: float, shift: int) -> None:
    maps = (random_maps(2, 6, 7, seed) * 12).floor().double() - 5
    ties = tie_orders(42, generators(2))
    torch.testing.assert_close(ranks(maps, ties), ranks(maps.pow(power) * scale + shift, ties))


def test_equal_cells_have_no_favourite_place() -> None:
    """Raster order would put the first cell first in each of the draws."""
    first = [int(ranks(torch.zeros(1, 1, 4, 4), tie_orders(16, generators(1, s)))[0][0, 0]) for s in range(200)]
    assert len(set(first)) == 16
    assert abs(sum(first) / 200 - 7.5) < 1.5


def test_interpolation_keeps_ties() -> None:
    """Beyond the centres of the outer cells the map is constant; and a constant map stays constant."""
    maps = torch.full((1, 1, 3, 3), 0.1)
    assert undefined(to_grid(maps, (50, 47), pixels=True)).item()
    corner = to_grid(random_maps(1, 3, 3), (30, 30), pixels=True)[0, 0, :5, :5]
    assert (corner == corner[0, 0]).all()


@pytest.mark.parametrize("grid", [(1, 1), (21, 21), (33, 33), (3, 17), (64, 64)])
def test_own_grid_is_no_finer_than_the_pixels(grid: tuple[int, int]) -> None:
    size = (32, 40)
    cells = to_grid(random_maps(1, *grid), size, pixels=False).shape[-2:]
    assert cells == (min(grid[0], 32), min(grid[1], 40))
    pixel = cell_of_pixel((cells[0], cells[1]), size)
    assert set(pixel.tolist()) == set(range(cells[0] * cells[1]))  # no cell without a pixel


def test_cell_of_pixel_is_nearest_neighbour() -> None:
    ids = torch.arange(15.0).view(1, 1, 3, 5)
    expected = torch.nn.functional.interpolate(ids, (17, 23), mode="nearest-exact").flatten().long()
    torch.testing.assert_close(cell_of_pixel((3, 5), (17, 23)), expected)


def test_ranks_refuse_orders_of_another_grid() -> None:
    with pytest.raises(ShapeError, match="ranks: ties"):
        ranks(torch.zeros(1, 1, 2, 2), torch.zeros(1, 5, dtype=torch.long))


# --- counts and areas -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(cells=st.integers(1, 4000), steps=st.integers(1, 400))
def test_counts_are_even_and_complete(cells: int, steps: int) -> None:
    counts = step_counts(cells, steps)
    width = counts.diff()
    assert counts[0] == 0
    assert counts[-1] == cells
    assert len(counts) == min(cells, steps) + 1
    assert width.min() >= 1
    assert width.max() - width.min() <= 1


def test_counts_of_all_cells() -> None:
    assert step_counts(5, None).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ParameterError, match="step_counts"):
        step_counts(5, 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.integers(0, 3))
def test_area_lies_in_the_range_and_ignores_repeated_ends(values: list[float], more: int) -> None:
    y = torch.tensor([values], dtype=torch.float64)
    area = trapezoid_auc(y).item()
    assert min(values) - 1e-9 <= area <= max(values) + 1e-9
    if len(values) > 1:
        x = torch.arange(len(values) + more, dtype=torch.float64).clamp(max=len(values) - 1)
        longer = torch.cat([y, y[:, -1:].expand(1, more)], 1)
        assert trapezoid_auc(longer, x).item() == pytest.approx(area, abs=1e-12)


def test_area_refuses_points_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="trapezoid_auc"):
        trapezoid_auc(torch.zeros(2, 3), torch.zeros(4))


def test_pearson_counts_only_valid_entries_and_is_nan_for_constants() -> None:
    a, b = torch.rand(3, 8, dtype=torch.float64), torch.rand(3, 8, dtype=torch.float64)
    valid = torch.ones(3, 8, dtype=torch.bool)
    valid[0, 5:] = False
    found = pearson(a, b, valid)
    for i, length in enumerate((5, 8, 8)):
        expected = torch.corrcoef(torch.stack([a[i, :length], b[i, :length]]))[0, 1]
        assert found[i].item() == pytest.approx(expected.item(), rel=1e-12)
    assert (
        pearson(torch.full((1, 7), 0.1), b[:1, :7]).isnan().all()
    )  # 0.1 is not exact: its mean differs in the last digit
    assert pearson(torch.full((1, 4), torch.nan), b[:1, :4]).isnan().all()
    assert pearson(a[:, :1], b[:, :1]).isnan().all()
    with pytest.raises(ShapeError, match="pearson"):
        pearson(a, b[:, 1:])


def test_correlation_of_insertion_has_the_other_sign() -> None:
    saliency, scores = torch.rand(2, 6), torch.rand(2, 7)
    torch.testing.assert_close(
        curve_correlation(saliency, scores), -curve_correlation(saliency, scores, insertion=True)
    )


def test_step_means_are_those_of_the_cells_of_a_step() -> None:
    maps = torch.tensor([[0.4, 0.9, 0.1, 0.6]])
    rank = torch.tensor([[2, 0, 3, 1]])
    torch.testing.assert_close(
        step_means(maps, rank, torch.tensor([0, 2, 3, 4])), torch.tensor([[0.75, 0.4, 0.1]], dtype=torch.float64)
    )


# --- curves -----------------------------------------------------------------------------------------------------------


def pieces(n: int = 2, h: int = 6, w: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, baselines, ranks of pixels and counts."""
    x, other = tiny.images(n, h, w, seed), tiny.images(n, h, w, seed + 1)
    rank, _ = ranks(random_maps(n, h, w, seed), tie_orders(h * w, generators(n)))
    return x, other, rank, step_counts(h * w, 7).expand(n, -1)


def drawn(
    x: Tensor, other: Tensor, rank: Tensor, counts: Tensor, order: str, chunk: int = 5, score: Brightness | None = None
) -> Tensor:
    score = score or Brightness()
    everything = torch.arange(len(x))
    ends = score(x, everything), score(other, everything)
    return curve_scores(score, x, Fixed(other), rank, everything, counts, ends, order=order, chunk=chunk)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), chunk=st.integers(1, 40))
def test_orders_are_one_curve_read_in_different_ways(seed: int, chunk: int) -> None:
    x, other, rank, counts = pieces(seed=seed)
    morf, lerf, insertion = (drawn(x, other, rank, counts, order, chunk) for order in ("morf", "lerf", "insertion"))
    # images swapped: putting the most important back is removing it from the baseline
    torch.testing.assert_close(insertion, drawn(other, x, rank, counts, "morf", chunk))
    # order reversed and read backwards: what is not yet put back is what is removed with the least important first
    torch.testing.assert_close(insertion, lerf.flip(1))
    torch.testing.assert_close(lerf, drawn(x, other, 47 - rank, counts, "morf", chunk))
    torch.testing.assert_close(morf[:, 0], x.double().mean((1, 2, 3)))
    torch.testing.assert_close(morf[:, -1], other.double().mean((1, 2, 3)))


def test_curves_do_not_depend_on_the_packing() -> None:
    x, other, rank, counts = pieces(3)
    expected = drawn(x, other, rank, counts, "morf", 1)
    for chunk in (2, 7, 64, 1000):
        score = Brightness()
        torch.testing.assert_close(drawn(x, other, rank, counts, "morf", chunk, score), expected, rtol=0, atol=0)
        inner = score.batches[2:]  # the first two are the ends, scored here
        assert sum(inner) == 3 * 6
        assert max(inner) <= chunk
        assert len(set(inner[:-1])) <= 1
        assert len(inner) == -(-18 // chunk)


def test_curves_of_unequal_length_cost_no_more() -> None:
    x, other, rank, _ = pieces(2)
    counts = torch.tensor([[0, 8, 20, 48], [0, 24, 48, 48]])
    score = Brightness()
    found = drawn(x, other, rank, counts, "morf", 64, score)
    assert score.batches[2:] == [3]
    torch.testing.assert_close(found[1, 2], found[1, 3])


def test_many_maps_of_one_image_share_it() -> None:
    x, other, _, counts = pieces(2)
    rank, _ = ranks(random_maps(4, 6, 8), tie_orders(48, generators(4)))
    owner = torch.tensor([1, 0, 1, 0])
    ends = x.double().mean((1, 2, 3)), other.double().mean((1, 2, 3))
    found = curve_scores(Brightness(), x, Fixed(other), rank, owner, counts[:1].expand(4, -1), ends, chunk=5)
    for m in range(4):
        i = int(owner[m])
        torch.testing.assert_close(
            found[m : m + 1], drawn(x[i : i + 1], other[i : i + 1], rank[m : m + 1], counts[:1], "morf")
        )


def test_curve_scores_refuse_what_does_not_fit() -> None:
    x, other, rank, counts = pieces(2)
    ends = torch.zeros(2), torch.zeros(2)
    with pytest.raises(ShapeError, match="do not fit images"):
        curve_scores(Brightness(), x, Fixed(other), rank[:1], torch.arange(2), counts, ends)
    with pytest.raises(ParameterError, match="order"):
        curve_scores(Brightness(), x, Fixed(other), rank, torch.arange(2), counts, ends, order="random")
    with pytest.raises(ParameterError, match="chunk"):
        curve_scores(Brightness(), x, Fixed(other), rank, torch.arange(2), counts, ends, chunk=0)


def test_batches_keep_channels_last() -> None:
    x = tiny.images(2, 6, 8).to(memory_format=torch.channels_last)
    seen = []

    def score(images: Tensor, own: Tensor) -> Tensor:
        seen.append(images.is_contiguous(memory_format=torch.channels_last))
        return images.mean((1, 2, 3))

    mask = torch.ones(1, 1, 6, 8, dtype=torch.bool)
    build = removal(Fixed(torch.zeros(1, 3, 1, 1)), lambda index: mask.expand(len(index), -1, -1, -1))
    packed_scores(score, x, build, torch.tensor([0, 1, 1, 0]), 3)
    assert seen == [True, True]


def test_segment_means() -> None:
    maps = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    labels = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])
    expected = torch.tensor([[1.5, 3.5], [2.5, -torch.inf]], dtype=torch.float64)
    torch.testing.assert_close(segment_means(maps, labels, 2), expected)


# --- baselines --------------------------------------------------------------------------------------------------------

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def replaced(name: str, x: Tensor, removed: Tensor, seed: int = 0) -> Tensor:
    replace = baselines.parse(name).prepare(x, MEAN, STD, lambda i: torch.Generator().manual_seed(seed + i))
    return replace(x, removed, torch.arange(len(x)))


def pixels(x: Tensor) -> Tensor:
    return x * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)


@pytest.mark.parametrize("name", baselines.names())
def test_baselines_touch_only_what_is_removed(name: str) -> None:
    if name == "telea":
        pytest.importorskip("cv2")
    x = normalize_pixels(torch.rand(3, 3, 12, 14, generator=torch.Generator().manual_seed(99)), MEAN, STD)
    removed = torch.rand(3, 1, 12, 14, generator=torch.Generator().manual_seed(1)) < 0.4
    found = replaced(name, x, removed)
    assert found.isfinite().all()
    torch.testing.assert_close(torch.where(removed, 0, found), torch.where(removed, 0, x), rtol=0, atol=0)
    assert (found != x).any(dim=1, keepdim=True)[removed].float().mean() > 0.95
    for i in range(3):  # each image by itself
        replace = baselines.parse(name).prepare(
            x[i : i + 1], MEAN, STD, lambda _, i=i: torch.Generator().manual_seed(i)
        )
        alone = replace(x[i : i + 1], removed[i : i + 1], torch.zeros(1, dtype=torch.long))
        torch.testing.assert_close(alone[0], found[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", baselines.names())
def test_baselines_take_an_image_without_any_pixel_left(name: str) -> None:
    if name == "telea":
        pytest.importorskip("cv2")
    x = tiny.images(2, 9, 7)
    assert replaced(name, x, torch.ones(2, 1, 9, 7, dtype=torch.bool)).isfinite().all()


def test_colours_are_those_of_pixel_space() -> None:
    x, everything = tiny.images(1, 4, 5), torch.ones(1, 1, 4, 5, dtype=torch.bool)
    torch.testing.assert_close(pixels(replaced("black", x, everything)), torch.zeros(1, 3, 4, 5), rtol=0, atol=1e-6)
    average = torch.tensor(MEAN).view(1, 3, 1, 1).expand(1, 3, 4, 5)
    torch.testing.assert_close(pixels(replaced("mean", x, everything)), average)
    noise = pixels(replaced("noise", tiny.images(1, 60, 60), torch.ones(1, 1, 60, 60, dtype=torch.bool)))
    assert noise.min() > -1e-6
    assert noise.max() < 1 + 1e-6
    assert noise.mean().item() == pytest.approx(0.5, abs=0.02)
    assert noise.var().item() == pytest.approx(1 / 12, abs=0.01)


def test_blur_keeps_the_colour_at_the_border() -> None:
    x = torch.full((1, 3, 20, 30), 0.7)
    torch.testing.assert_close(replaced("blur", x, torch.ones(1, 1, 20, 30, dtype=torch.bool)), x)


def test_linear_imputation_is_exact_on_planes_and_independent_of_the_batch() -> None:
    """A plane solves the equations inside the image: each pixel is the mean of its neighbours."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(15.0), indexing="ij")
    plane = (2 * y - x)[None, None].double()
    hole = torch.zeros(1, 1, 12, 15, dtype=torch.bool)
    hole[..., 2:10, 3:12] = True
    torch.testing.assert_close(linear_imputation(plane, hole, tolerance=1e-10), plane, rtol=0, atol=1e-7)
    images = tiny.images(3, 12, 15)
    removed = torch.rand(3, 1, 12, 15, generator=torch.Generator().manual_seed(2)) < torch.tensor(
        [0.1, 0.5, 0.95]
    ).view(-1, 1, 1, 1)
    together = linear_imputation(images, removed)
    alone = torch.cat([linear_imputation(images[i : i + 1], removed[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    assert linear_imputation(images[:1, :, :1, :1], torch.zeros(1, 1, 1, 1, dtype=torch.bool)).isfinite().all()


def test_imputation_noise_has_the_size_that_is_asked_for() -> None:
    x = torch.zeros(1, 3, 40, 40)
    hole = torch.ones(1, 1, 40, 40, dtype=torch.bool)
    hole[..., 0, 0] = False
    spread = pixels(replaced("linear:noise=0.05", x, hole)).std((0, 2, 3))
    torch.testing.assert_close(spread, torch.full((3,), 0.05), rtol=0.1, atol=0)


def test_bad_baselines_are_named() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'black'"):
        metrics.create("deletion", baseline="blakc")
    with pytest.raises(ParameterError, match="sigma must be positive"):
        Blur(sigma=0)
    with pytest.raises(ParameterError, match="noise must not be negative"):
        find_baseline("linear:noise=-1")
    with pytest.raises(ParameterError, match="imputation needs pixels"):
        metrics.create("average_drop", baseline="linear").measure(
            explanation(random_maps(1, 4, 4), traced(tiny.images(1))), traced(tiny.images(1)), None
        )


def test_telea_refuses_images_that_it_cannot_fill() -> None:
    pytest.importorskip("cv2")
    with pytest.raises(NotApplicableError, match="1 or 3 channels"):
        find_baseline("telea").prepare(torch.zeros(1, 4, 8, 8), None, None, lambda i: torch.Generator())


# --- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", [(1, 1), (5, 3), (21, 21), (33, 33)])
def test_grids_of_any_size(name: str, grid: tuple[int, int]) -> None:
    """Grids that no step count divides, and finer than the image; one cell orders nothing but on its own grid."""
    trace = traced(tiny.images(2, 20, 24))
    found = quick(name).measure(explanation(random_maps(2, *grid), trace), trace, None)
    one = grid == (1, 1)
    for column, value in found.items():
        own_grid = column.startswith(("dauc_brnpa", "iauc_brnpa", "dauc_gomez", "iauc_gomez"))
        known = not one or own_grid or column == "tie_share"
        assert value.isfinite().all() == known, column
        assert value.isnan().all() != known, column


def test_one_cell_on_its_own_grid_is_the_mean_of_the_ends() -> None:
    trace = traced(tiny.images(2))
    found = quick("deletion", grid="map", baseline="mean").measure(
        explanation(random_maps(2, 1, 1), trace), trace, None
    )
    chance = trace.logits.softmax(1).gather(1, trace.target[:, None])[:, 0]
    with torch.no_grad():
        grey = trace.model(torch.zeros_like(trace.x)).softmax(1).gather(1, trace.target[:, None])[:, 0]
    torch.testing.assert_close(found["deletion"], ((chance + grey) / 2).double(), rtol=1e-5, atol=1e-6)
    assert found["dc"].isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_maps_that_order_nothing_are_nan_and_leave_the_others_alone(name: str) -> None:
    trace = traced(tiny.images(5, 20, 24))
    maps = random_maps(5, 5, 6)
    expected = quick(name).measure(explanation(maps, trace), trace, None)
    spoiled = maps.clone()
    spoiled[0] = 0.1
    spoiled[1, 0, 2, 3] = torch.nan
    spoiled[2, 0, 0, 0] = torch.inf
    spoiled[3] = 0
    for column, value in quick(name).measure(explanation(spoiled, trace), trace, None).items():
        if column == "tie_share":
            assert value[0] == value[3] == 1
        else:
            assert value[:4].isnan().all(), column
        torch.testing.assert_close(value[4], expected[column][4], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("average_drop",)])
def test_increasing_affine_rescaling_changes_nothing(name: str) -> None:
    trace = traced(tiny.images(2, 20, 24))
    maps = random_maps(2, 20, 24).double() - 0.5
    plain = quick(name).measure(explanation(maps, trace), trace, None)
    # powers of two are exact; a shift is not meant for contributions, whose zero has a meaning
    shift = 0.0 if name == "infidelity" else 0.25
    scaled = quick(name).measure(explanation(maps * 4 + shift, trace), trace, None)
    for column in plain:
        torch.testing.assert_close(scaled[column], plain[column], rtol=1e-6, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(power=st.sampled_from([3, 5, 7]), seed=st.integers(0, 99))
def test_rank_metrics_ignore_any_increasing_rescaling_on_the_ranked_grid(power: int, seed: int) -> None:
    trace = traced(tiny.images(1, 16, 16))
    maps = ((random_maps(1, 4, 4, seed) * 10).floor() - 5).double()
    for name, column in (("deletion", "deletion"), ("insertion", "insertion"), ("abpc", "abpc")):
        metric = metrics.create(name, grid="map", steps=5, baseline="mean")
        plain, bent = (metric.measure(explanation(m, trace), trace, None)[column] for m in (maps, maps.pow(power)))
        torch.testing.assert_close(plain, bent)


@pytest.mark.parametrize("name", NAMES)
def test_methods_share_batches_and_agree_with_one_at_a_time(name: str) -> None:
    x = tiny.images(2, 20, 24)
    found = [explanation(random_maps(2, *grid, seed=s), traced(x)) for s, grid in enumerate([(4, 5), (20, 24), (3, 3)])]
    together = quick(name).measure_many(found, traced(x), None)
    for one, expected in zip(found, together, strict=True):
        alone = quick(name, chunk=7).measure(one, traced(x), None)
        for column, value in expected.items():
            torch.testing.assert_close(alone[column], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_no_methods_give_no_rows(name: str) -> None:
    trace = traced(tiny.images(1, 16, 16))
    assert quick(name).measure_many([], trace, None) == []


def test_one_curve_serves_every_metric_that_reads_it() -> None:
    """Deletion, and LeRF as insertion read backwards, with one pass for the replaced images in all."""
    trace = traced(tiny.images(2))
    one = explanation(random_maps(2, 4, 4), trace)
    before = trace.forwards
    options = {"steps": 9, "baseline": "mean", "chunk": 1000}
    metrics.create("deletion", **options).measure(one, trace, None)
    assert trace.forwards - before == 2  # the replaced images, then all steps of both images
    metrics.create("abpc", **options).measure(one, trace, None)
    assert trace.forwards - before == 3  # only the curve with the least important first is new
    metrics.create("deletion", **options).measure(one, trace, None)
    assert trace.forwards - before == 3
    metrics.create("insertion", **options).measure(one, trace, None)
    assert trace.forwards - before == 4


def test_curves_are_those_of_deletion_and_insertion() -> None:
    trace = traced(tiny.images(2))
    one = explanation(random_maps(2, 4, 4), trace)
    (deletion,) = metrics.create("deletion", steps=196).measure_many([one], trace, None)
    insertion = metrics.create("insertion", steps=196).measure(one, trace, None)
    before = trace.forwards
    found = metrics.create("curves", steps=196).measure(one, trace, None)
    assert trace.forwards == before  # nothing is scored again
    for kind, area in (("deletion", deletion["deletion"]), ("insertion", insertion["insertion"])):
        points = torch.stack([found[f"{kind}_at_{tenth:03d}"] for tenth in range(0, 101, 10)], dim=1)
        torch.testing.assert_close(trapezoid_auc(points), area, rtol=0.05, atol=0.01)
    clean = trace.logits.softmax(1).gather(1, trace.target[:, None])[:, 0].double()
    torch.testing.assert_close(found["deletion_at_000"], clean)
    torch.testing.assert_close(found["insertion_at_100"], clean)
    torch.testing.assert_close(found["insertion_at_000"], found["deletion_at_100"])


def test_one_curve_serves_every_score() -> None:
    x = tiny.images(2)
    trace = traced(x)
    maps = random_maps(2, 4, 4)
    values = {}
    for name in ("prob", "logit", "sigmoid", "margin"):
        before = trace.forwards
        values[name] = metrics.create("deletion", steps=8, score=name).measure(explanation(maps, trace), trace, None)[
            "deletion"
        ]
        assert trace.forwards - before == (2 if name == "prob" else 0)
        other = traced(x)
        alone = metrics.create("deletion", steps=8, score=name).measure(explanation(maps, other), other, None)
        assert torch.equal(values[name], alone["deletion"])
    assert len({tuple(v.tolist()) for v in values.values()}) == 4


def test_points_between_steps_lie_on_straight_lines() -> None:
    curve = shared.Curve(
        scores=torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64),
        share=torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64),
        saliency=torch.zeros(1, 2),
        ties=torch.zeros(1),
        undefined=torch.zeros(1, dtype=torch.bool),
    )
    for share, value in ((0.0, 1.0), (0.1, 0.8), (0.25, 0.5), (0.55, 0.3), (1.0, 0.0)):
        assert curve.at(share).item() == pytest.approx(value)


def test_subset_scores_serve_all_methods() -> None:
    trace = traced(tiny.images(2))
    several = [explanation(random_maps(2, 4, 4, s), trace) for s in range(5)]
    for name in ("infidelity", "faithfulness_correlation", "sensitivity_n"):
        before = trace.forwards
        quick(name, chunk=1000).measure_many(several, trace, None)
        assert trace.forwards - before == 1


def test_what_is_shared_dies_with_the_trace() -> None:
    trace = traced(tiny.images(1))
    quick("deletion").measure(explanation(random_maps(1, 4, 4), trace), trace, None)
    quick("road").measure(explanation(random_maps(1, 4, 4), trace), trace, None)
    quick("infidelity").measure(explanation(random_maps(1, 4, 4), trace), trace, None)
    assert trace.once("curves", dict)
    gone = weakref.ref(trace)
    del trace
    gc.collect()
    assert gone() is None


def test_scores_are_probabilities_unless_said() -> None:
    trace = traced(tiny.images(2), score="logit")
    one = explanation(random_maps(2, 4, 4), trace)
    prob = quick("deletion").measure(one, trace, None)["deletion"]
    logit = quick("deletion", score="logit").measure(one, trace, None)["deletion"]
    assert ((prob > 0) & (prob < 1)).all()
    assert (prob - logit).abs().min() > 1e-3
    (curve,) = draw_curves([one], trace, baseline=Blur(), steps=8, pixels=True, order="morf", score="logit", chunk=64)
    torch.testing.assert_close(curve.scores[:, 0], trace.logits.gather(1, trace.target[:, None])[:, 0].double())


def test_binary_models_are_scored_for_the_class_that_is_explained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = tiny.images(2, 16, 16)
    both = [record(model, x, target, spec=tiny.TinyCNN().spec, grad=False) for target in (0, 1)]
    values = [quick("deletion").measure(explanation(random_maps(2, 4, 4), t), t, None)["deletion"] for t in both]
    torch.testing.assert_close(values[0] + values[1], torch.ones(2, dtype=torch.float64))


def test_columns_of_protocols_never_share_a_name() -> None:
    seen: dict[str, str] = {}
    for name in NAMES:
        for column in metrics.create(name).columns:
            assert column not in seen, f"{name} and {seen[column]}"
            seen[column] = name


def test_presets_are_frozen() -> None:
    for name in ("brnpa2021", "gomez2023", "rise2018"):
        with pytest.raises(ParameterError, match="a preset cannot be changed"):
            metrics.create(name, score="logit")
        with pytest.raises(UnknownNameError):
            metrics.create(name, steps=10)


def test_chunk_is_no_part_of_the_provenance() -> None:
    assert metrics.create("deletion", chunk=3) == metrics.create("deletion")
    assert "chunk" not in repr(metrics.create("deletion", chunk=3))
    assert metrics.parse("deletion:chunk=3").chunk == 3
    assert metrics.create("deletion", chunk=3).images_per_batch(traced(tiny.images(1))) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deletion:steps=0", "steps must be at least 1"),
        ("deletion:grid=cells", "must be one of pixels, map"),
        ("deletion:score=loss", "unknown score"),
        ("deletion:chunk=0", "chunk must be none or at least 1"),
        ("average_drop:score=logit", "share"),
        ("irof:segments=1", "segments must be at least 2"),
        ("region_perturbation:side=0", "side must be at least 1"),
        ("faithfulness_correlation:share=1", "more than 0 and less than 1"),
        ("faithfulness_correlation:samples=1", "samples must be at least 2"),
        ("sensitivity_n:smallest=0.9", "smallest must not be more than largest"),
        ("infidelity:largest=2", "largest must be more than 0 and at most 1"),
    ],
)
def test_parameters_are_checked(text: str, message: str) -> None:
    with pytest.raises((ParameterError, UnknownNameError), match=message):
        metrics.parse(text)


def test_maps_of_another_batch_are_refused() -> None:
    trace = traced(tiny.images(2))
    with pytest.raises(ShapeError, match="pass the explanation of the same batch"):
        quick("deletion").measure(explanation(random_maps(2, 4, 4), traced(tiny.images(2, 16, 16))), trace, None)


def test_grid_must_be_known() -> None:
    with pytest.raises(ParameterError, match="grid must be one of pixels, map"):
        metrics.create("deletion", grid="cells")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_gpu_agrees_with_cpu(name: str) -> None:
    x, maps = tiny.images(2, 20, 24).double(), random_maps(2, 5, 6).double()
    here = traced(x, seeds=[1, 2])
    expected = quick(name).measure(explanation(maps, here), here, None)
    model = here.model.to("cuda")
    there = record(model, x.cuda(), here.target.cuda(), spec=model.spec, grad=False, seeds=[1, 2])
    found = quick(name).measure(explanation(maps.cuda(), there), there, None)
    for column, value in expected.items():
        assert found[column].is_cuda
        torch.testing.assert_close(found[column].cpu(), value, rtol=1e-5, atol=1e-6, equal_nan=True)
