"""Ranks, step counts, areas and curves of perturbation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import tiny_models as tiny
from tests.given import random_maps
from xattn.errors import ParameterError, ShapeError
from xattn.functional.baselines import Fixed
from xattn.functional.curves import curve_correlation, pearson, step_counts, step_means, trapezoid_auc
from xattn.functional.perturb import (
    curve_scores,
    packed_scores,
    ranks,
    removal,
    segment_means,
    tie_orders,
)


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
