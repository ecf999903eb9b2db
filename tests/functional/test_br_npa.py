"""BR-NPA maps: the paper's formula as loops, its laws, its gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from xattn.errors import ParameterError, ShapeError
from xattn.functional.br_npa import br_npa_maps, coverage_maps

EPS = 1e-5


def loops(features, parts, activation="norm", suppress="similarity", refine=True):
    """The table of the paper in plain Python numbers, cell by cell."""
    n, c, h, w = features.shape
    out = torch.zeros(n, parts, h, w, dtype=torch.float64)
    for image in range(n):
        cells = [[float(features[image, k, i, j]) for k in range(c)] for i in range(h) for j in range(w)]
        norms = [math.sqrt(sum(v * v for v in cell)) + EPS for cell in cells]
        level = [r * r if activation == "squared_norm" else r for r in norms]
        for part in range(parts):
            seed = level.index(max(level))
            s = []
            for cell, r in zip(cells, norms, strict=True):
                dot = sum(a * b for a, b in zip(cell, cells[seed], strict=True))
                s.append(max(dot / (r * norms[seed]), 0.0))
            total = sum(s)
            weights = [v / total if total > 0 else 1 / len(s) for v in s]
            shown = weights if refine else [float(i == seed) for i in range(len(s))]
            for i, v in enumerate(shown):
                out[image, part, i // w, i % w] = v
            level = [
                a * (1 - (v if suppress == "similarity" else u)) for a, v, u in zip(level, s, weights, strict=True)
            ]
    return out


def features_of(seed, shape=(2, 6, 4, 5), signed=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (x if signed else x.relu()).to(dtype)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("activation", ["norm", "squared_norm"])
@pytest.mark.parametrize("suppress", ["similarity", "weight"])
@pytest.mark.parametrize("refine", [True, False])
def test_equals_the_formula_cell_by_cell(signed, activation, suppress, refine):
    options = {"activation": activation, "suppress": suppress, "refine": refine}
    for seed in range(3):
        x = features_of(seed, signed=signed)
        torch.testing.assert_close(br_npa_maps(x, 4, **options), loops(x, 4, **options), atol=1e-12, rtol=0)


def test_channels_last_and_slices_give_the_same():
    x = features_of(3, (3, 40, 7, 6))
    expected = loops(x, 3)
    torch.testing.assert_close(br_npa_maps(x.contiguous(memory_format=torch.channels_last)), expected)
    wide = torch.zeros(3, 80, 7, 12, dtype=x.dtype)
    wide[:, ::2, :, ::2] = x
    torch.testing.assert_close(br_npa_maps(wide[:, ::2, :, ::2]), expected)


def test_many_channels_are_summed_over_all_chunks():
    x = features_of(5, (1, 131, 40, 40), dtype=torch.float32)  # 40 channels at a time: some chunks and a rest
    norm = x.double().square().sum(1).sqrt()
    seed = norm.flatten().argmax()
    first = br_npa_maps(x, 1)[0, 0].flatten()
    flat = x[0].double().flatten(1)
    s = (flat[:, seed] @ flat) / ((norm.flatten() + EPS) * (norm.flatten()[seed] + EPS))
    torch.testing.assert_close(first.double(), s / s.sum(), rtol=1e-5, atol=1e-9)


def test_printed_suppression_chooses_the_same_seed_again():
    x = features_of(0, (4, 16, 14, 14))
    printed = br_npa_maps(x, 3, suppress="weight")
    torch.testing.assert_close(printed[:, 1], printed[:, 0])
    ours = br_npa_maps(x, 3)
    assert (ours[:, 1] - ours[:, 0]).abs().amax((1, 2)).min() > 1e-4


def test_ties_take_the_first_cell():
    x = torch.eye(4, dtype=torch.float64).reshape(1, 4, 2, 2)
    assert br_npa_maps(x, 4, refine=False)[0].flatten(1).argmax(1).tolist() == [0, 1, 2, 3]


shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))


@given(shapes, st.integers(1, 5), st.integers(0, 2**31), st.sampled_from([1e-30, 1e-7, 1.0, 1e6]), st.booleans())
def test_parts_are_distributions_whatever_comes(shape, parts, seed, scale, signed):
    x = features_of(seed, shape, signed, torch.float32) * scale
    x[:, :, 0, 0] = 0
    x.requires_grad_()
    for options in ({}, {"suppress": "weight"}, {"activation": "squared_norm"}, {"refine": False}, {"seed": "random"}):
        maps = br_npa_maps(x, parts, **options)
        assert maps.shape == (shape[0], parts, *shape[2:])
        assert bool((maps >= 0).all())
        torch.testing.assert_close(maps.sum((2, 3)), torch.ones((*shape[:1], parts)))
        if maps.requires_grad:
            (gradient,) = torch.autograd.grad(maps.square().sum(), x)
            assert bool(gradient.isfinite().all())


@given(st.integers(0, 2**31), st.booleans())
def test_permuted_cells_give_permuted_maps(seed, signed):
    x = features_of(seed, (2, 5, 3, 4), True)
    x = x if signed else x.abs()  # without zero cells, so that no two activations tie
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    moved = x.flatten(2)[:, :, order].unflatten(2, (3, 4))
    torch.testing.assert_close(br_npa_maps(moved).flatten(2), br_npa_maps(x).flatten(2)[:, :, order])


@given(st.integers(0, 2**31))
def test_batch_equals_one_by_one(seed):
    x = features_of(seed, (3, 9, 4, 4), True, torch.float32)
    alone = torch.cat([br_npa_maps(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(br_npa_maps(x), alone)


def test_nothing_to_see_is_uniform_with_zero_gradient():
    x = torch.zeros(2, 4, 3, 3, requires_grad=True)
    maps = br_npa_maps(x)
    assert torch.equal(maps, torch.full((2, 3, 3, 3), 1 / 9))
    maps.square().sum().backward()
    assert not x.grad.any()


def test_nan_stays_visible():
    x = features_of(0, (1, 4, 3, 3))
    x[0, 0, 1, 1] = torch.nan
    assert br_npa_maps(x).isnan().any()


@pytest.mark.parametrize("options", [{}, {"suppress": "weight"}, {"activation": "squared_norm", "parts": 2}])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_match_finite_differences(options, signed, layout):
    x = features_of(11, (2, 5, 3, 4), True)
    x = x if signed else x.abs()
    x = x.contiguous(memory_format=layout).requires_grad_()
    assert gradcheck(lambda x: br_npa_maps(x, **options), x)
    assert gradgradcheck(lambda x: br_npa_maps(x, **options), x)


def test_gradient_equals_autograd_through_the_formula():
    x = features_of(2, (2, 8, 5, 5)).requires_grad_()
    pull = features_of(7, (2, 3, 5, 5), True)
    (ours,) = torch.autograd.grad((br_npa_maps(x) * pull).sum(), x)
    flat = x.flatten(2)
    # A cell that ReLU has emptied has no direction; the norm would give NaN there, so it is taken as constant.
    norm = torch.where(flat.any(1), (flat.square().sum(1) + (~flat.any(1))).sqrt(), 0) + EPS
    level, maps = norm.detach(), []
    for _ in range(3):
        j = level.argmax(1)
        seed = flat.gather(2, j[:, None, None].expand(-1, 8, 1))
        s = (flat * seed).sum(1).relu() / (norm * norm.gather(1, j[:, None]))
        maps.append(s / s.sum(1, keepdim=True))
        level = level * (1 - s.detach())
    (expected,) = torch.autograd.grad((torch.stack(maps, 1) * pull.flatten(2)).sum(), x)
    torch.testing.assert_close(ours, expected)


def test_random_seeds_come_from_the_generator_and_differ_by_part():
    x = features_of(0, (64, 3, 6, 6), True)
    draw = [
        br_npa_maps(x, 3, seed="random", generator=torch.Generator().manual_seed(s), refine=False) for s in (1, 1, 2)
    ]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert not torch.equal(draw[0][:, 0], draw[0][:, 1])
    chosen = draw[0][:, 0].flatten(1).argmax(1)
    level = x.flatten(2).norm(dim=1).argmax(1)
    assert (chosen == level).float().mean() < 0.2  # the strongest cell has no advantage
    refined = br_npa_maps(x, 3, seed="random", generator=torch.Generator().manual_seed(1))
    flat = torch.nn.functional.normalize(x.flatten(2), dim=1)
    s = torch.einsum("ncl,nc->nl", flat, flat[torch.arange(64), :, chosen]).relu()
    torch.testing.assert_close(refined[:, 0].flatten(1), s / s.sum(1, keepdim=True), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x = features_of(4, (2, 7, 4, 4)).to(dtype)
    maps = br_npa_maps(x)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.double(), loops(x.double(), 3), rtol=1e-5, atol=1e-7)


def test_autocast_changes_nothing():
    x = features_of(4, (2, 7, 4, 4), dtype=torch.float32).requires_grad_()
    pull = features_of(5, (2, 3, 4, 4), dtype=torch.float32)
    (outside,) = torch.autograd.grad((br_npa_maps(x) * pull).sum(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = br_npa_maps(x)
        (inside,) = torch.autograd.grad((maps * pull).sum(), x)
    assert maps.dtype == torch.float32
    assert torch.equal(maps, br_npa_maps(x))
    assert torch.equal(inside, outside)


def test_no_temporary_of_the_size_of_the_features():
    x = torch.rand(2, 1024, 40, 40)
    with torch.profiler.profile(profile_memory=True) as profile:
        br_npa_maps(x)
    allocated = [
        e.nbytes for e in profile.profiler.kineto_results.events() if e.name() == "[memory]" and e.nbytes() > 0
    ]
    largest = max(n() if callable(n) else n for n in allocated)
    assert largest < 0.1 * x.numel() * 4


def test_shapes_can_be_counted_without_computing():
    assert br_npa_maps(torch.empty(2, 5, 4, 3, device="meta"), 4).shape == (2, 4, 4, 3)


def test_bad_input_says_what_to_change():
    x = torch.rand(1, 2, 3, 3)
    with pytest.raises(ShapeError, match=r"expected features \(N, C, h, w\) but got \(2, 3, 3\)"):
        br_npa_maps(x[0])
    with pytest.raises(ParameterError, match="parts=0"):
        br_npa_maps(x, 0)
    for option in ("activation", "suppress", "seed"):
        with pytest.raises(ParameterError, match=f"{option} must be one of .* but got 'other'"):
            br_npa_maps(x, **{option: "other"})


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_coverage_takes_of_each_cell_what_the_parts_before_have_left(parts):
    torch.manual_seed(2)
    features = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    maps = br_npa_maps(features, parts)
    made = coverage_maps(maps)
    for image in range(3):
        for i in range(4):
            for j in range(6):
                left = 1.0
                for part in range(parts):
                    alike = float(maps[image, part, i, j]) / float(maps[image, part].max())
                    share = left if part == parts - 1 else left * alike
                    left -= share
                    assert float(made[image, part, i, j]) == pytest.approx(share * parts / 24, abs=1e-12)
    torch.testing.assert_close(made.mean(1), torch.full_like(made[:, 0], 1 / 24))


def test_coverage_of_features_that_are_zero():
    made = coverage_maps(br_npa_maps(torch.zeros(1, 3, 2, 2), 3))
    torch.testing.assert_close(made[0, 0], torch.full((2, 2), 3 / 4))  # the first part takes all
    assert not bool(made[0, 1:].any())
