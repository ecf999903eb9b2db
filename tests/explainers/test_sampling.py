"""Methods that hide parts of the image: exact on linear models, Shapley values that sum, masks and segments."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from tests.explainers.test_integrated import Linear, black
from xattn.errors import NotApplicableError, ParameterError
from xattn.explainers import explainers
from xattn.explaining import explain
from xattn.functional.pixels import normalize_pixels
from xattn.functional.sampling import (
    grid_segments,
    lime_weights,
    orders,
    ridge,
    rise_masks,
    shapley_coalitions,
    shapley_regression,
    shapley_weights,
    slic_segments,
    window_means,
    window_starts,
)
from xattn.spec import ModelSpec
from xattn.trace import record

TARGET = [2, 1]
GRID = "segments=grid,count=6"


def maps(model: nn.Module, x: Tensor, method: str, target: Any = TARGET, **options: Any) -> Tensor:
    return explain(model, x, method, target, spec=model.spec, **options).maps


def by_segment(values: Tensor, labels: Tensor) -> Tensor:
    """Sum (N, 1, H, W) of values over the segment that each pixel is in."""
    sums = torch.zeros(len(values), int(labels.max()) + 1, dtype=values.dtype)
    sums.index_add_(1, labels.flatten(), values.flatten(1))
    return sums[:, labels][:, None]


# --- what must come out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        "feature-ablation",
        "shapley-sampling:samples=1",
        "kernel-shap:samples=20",
        "kernel-shap",
        "lime:samples=30,penalty=1e-12",
    ],
)
@pytest.mark.parametrize("baseline", ["black", "mean"])
def test_segments_of_a_linear_model_get_what_they_add(method: str, baseline: str) -> None:
    model, x = Linear().double(), tiny.images(2, 8, 12).double()
    start = black(x) if baseline == "black" else torch.zeros_like(x)
    parts = (model.conv.weight.detach()[TARGET] * (x - start)).sum(1)
    expected = by_segment(parts, grid_segments((8, 12), 6))
    found = maps(model, x, f"{method}{',' if ':' in method else ':'}{GRID},baseline={baseline}")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_windows_of_a_linear_model() -> None:
    """Each pixel has the mean over its windows of what the window adds."""
    model, x = Linear().double(), tiny.images(2, 8, 12).double()
    parts = (model.conv.weight.detach()[TARGET] * x).sum(1, keepdim=True)
    sums = torch.nn.functional.avg_pool2d(parts, 4, 2, divisor_override=1)
    found = maps(model, x, "occlusion:window=0.5")
    for i, j in ((0, 0), (3, 5), (7, 11), (2, 9)):
        tops = [t for t in range(0, 5, 2) if t <= i < t + 4]
        lefts = [t for t in range(0, 9, 2) if t <= j < t + 4]
        expected = sum(sums[:, 0, t // 2, left // 2] for t in tops for left in lefts) / (len(tops) * len(lefts))
        torch.testing.assert_close(found[:, 0, i, j], expected)


def test_rise_finds_what_a_linear_model_looks_at() -> None:
    """In the mean over the masks a pixel has its own share and those of its neighbours under the same cells."""
    model = Linear(16, 16)
    with torch.no_grad():
        model.conv.weight.zero_()[:, :, 10:13, 3:6] = 1
    found = maps(model, torch.ones(1, 3, 16, 16), "rise:samples=2000", 0)[0, 0]
    row, column = divmod(int(found.argmax()), 16)
    assert 9 <= row <= 13
    assert 2 <= column <= 6


def test_a_constant_in_the_score_leaves_no_pattern_in_rise() -> None:
    model, x = tiny.tiny_cnn().double(), tiny.images(2).double()

    def shifted(logits: Tensor, target: Tensor) -> Tensor:
        return logits.gather(1, target[:, None])[:, 0] + 100

    own = maps(model, x, "rise:samples=30")
    torch.testing.assert_close(maps(model, x, "rise:samples=30", score=shifted), own + 100)
    expected = "rise:samples=30,normalize=expected"
    pattern = maps(model, x, expected, score=shifted) - maps(model, x, expected)
    assert pattern.std() > 1


@pytest.mark.parametrize("method", ["shapley-sampling:samples=3", "kernel-shap:samples=30", "kernel-shap:samples=4"])
def test_shapley_values_sum_whatever_is_drawn(method: str) -> None:
    model, x = tiny.tiny_cnn().double(), tiny.images(3).double()
    trace = record(model, x, 1, spec=model.spec)
    found = explainers.parse(f"{method},segments=grid,count=16")
    shown = found.explanation(trace)
    assert shown.status == ("ok",) * 3
    assert found.conservation(trace, shown.maps).max() < 1e-10
    assert found.conservation(trace, 2 * shown.maps).min() > 0.1  # it is no formality
    sums = shown.maps.sum((1, 2, 3)) / 64  # 16 cells of 64 pixels
    torch.testing.assert_close(sums, trace.logits[:, 1] - trace.score(torch.zeros_like(x), trace.target))


def test_sampled_shapley_values_approach_the_exact_ones() -> None:
    model, x = tiny.tiny_cnn().double(), tiny.images(2).double()
    exact = maps(model, x, f"kernel-shap:{GRID}")
    assert (maps(model, x, f"kernel-shap:samples=16,{GRID}") - exact).abs().max() > 1e-4
    torch.testing.assert_close(maps(model, x, f"kernel-shap:samples=62,{GRID}"), exact)
    errors = [(maps(model, x, f"shapley-sampling:samples={s},{GRID}") - exact).abs().max() for s in (2, 200)]
    assert errors[0] > 4 * errors[1]


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    twins = torch.cat([x[:1], x[:1]])
    for method in ("rise:samples=20", f"lime:samples=20,{GRID}", f"kernel-shap:samples=20,{GRID}"):
        found = maps(model, twins, method, 1, seeds=[5, 6])
        assert not torch.allclose(found[0], found[1], atol=1e-4)
        same = maps(model, twins, method, 1, seeds=[5, 5])
        torch.testing.assert_close(same[0], same[1])
        torch.testing.assert_close(same[:1], found[:1])


def test_passes_are_counted() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    trace = record(model, x, spec=model.spec)
    for method, images in ((f"feature-ablation:{GRID}", 6), (f"lime:samples=9,{GRID}", 9), ("rise:samples=7", 7)):
        del seen[:]
        before = trace.forwards
        explainers.parse(method).explanation(trace)
        assert sum(seen) == 2 * images
        assert trace.forwards - before == len(seen)


# --- segments ----------------------------------------------------------------------------------------------------


def quarters() -> Tensor:
    """An image (1, 3, 32, 40) of four colours."""
    pixels = torch.zeros(1, 3, 32, 40)
    pixels[:, 0, :20, :15] = 0.9
    pixels[:, 1, :20, 15:] = 0.8
    pixels[:, 2, 20:, :15] = 0.9
    return pixels


def test_superpixels_follow_the_image() -> None:
    labels = slic_segments(quarters(), 4)[0]
    assert labels.unique().tolist() == [0, 1, 2, 3]
    for part in (labels[:20, :15], labels[:20, 15:], labels[20:, :15], labels[20:, 15:]):
        assert len(part.unique()) == 1


def test_images_with_different_numbers_of_superpixels() -> None:
    """Values of the methods lie on them, whatever the other images of the batch have."""
    model = tiny.tiny_cnn()
    flat = torch.full((1, 3, 32, 40), 0.4)
    x = normalize_pixels(torch.cat([quarters(), flat, quarters().flip(3)]), model.spec.mean, model.spec.std)
    for method in ("feature-ablation", "lime:samples=20", "kernel-shap", "shapley-sampling:samples=2"):
        spec = f"{method}{',' if ':' in method else ':'}count=4"
        together = maps(model, x, spec, 1)
        labels = slic_segments(quarters(), 4)[0]
        for k in range(4):
            assert len(together[0, 0][labels == k].unique()) == 1
        for i in range(3):
            torch.testing.assert_close(together[i : i + 1], maps(model, x[i : i + 1], spec, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*constant")
def test_one_segment() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    fall = maps(model, x, "feature-ablation:segments=grid,count=1", 1)
    assert fall.flatten(1).std(1).max() == 0
    for method in ("kernel-shap", "shapley-sampling"):
        torch.testing.assert_close(maps(model, x, f"{method}:segments=grid,count=1", 1), fall)
    assert maps(model, x, "lime:segments=grid,count=1,samples=9", 1).isfinite().all()


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    model, x = tiny.tiny_cnn(), tiny.images(2)
    with pytest.raises(
        NotApplicableError,
        match=r"lime: .*superpixels \(segments=grid does without\) needs skimage; pip install 'xattn\[metrics\]'",
    ):
        maps(model, x, "lime")
    assert maps(model, x, f"lime:samples=9,{GRID}").isfinite().all()


def test_grid_cells() -> None:
    labels = grid_segments((8, 12), 6)
    assert labels.unique(return_counts=True)[1].tolist() == [16] * 6
    assert labels[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert grid_segments((2, 2), 100).flatten().tolist() == [0, 1, 2, 3]  # no more than pixels
    assert grid_segments((4, 40), 2).max() == 1


# --- formulas ----------------------------------------------------------------------------------------------------


def test_windows_reach_the_border() -> None:
    assert window_starts(5, 5, 2).tolist() == [0]
    assert window_starts(3, 5, 2).tolist() == [0]
    starts = window_starts(7, 3, 3), window_starts(5, 3, 3)
    assert [s.tolist() for s in starts] == [[0, 3, 4], [0, 2]]
    counted = window_means(torch.ones(1, 6), starts, 3, (7, 5))
    assert torch.equal(counted, torch.ones(1, 1, 7, 5))


def test_rise_masks() -> None:
    full = rise_masks(torch.ones(2, 7, 7), torch.rand(2, 2), (30, 20))
    assert full.shape == (2, 1, 30, 20)
    torch.testing.assert_close(full, torch.ones_like(full))
    generator = torch.Generator().manual_seed(0)
    grid = (torch.rand(500, 4, 4, generator=generator) < 0.3).float()
    masks = rise_masks(grid, torch.rand(500, 2, generator=generator), (16, 16))
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert abs(float(masks.mean()) - 0.3) < 0.02
    # A shift of half a cell moves the mask by so many pixels.
    line = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    near, far = (rise_masks(line, torch.tensor([[0.0, s]]), (8, 8)) for s in (0.0, 0.5))
    torch.testing.assert_close(far[..., :-2], near[..., 2:])


def test_coalitions_of_kernel_shap() -> None:
    generator = torch.Generator().manual_seed(0)
    every = shapley_coalitions(4, 14, generator)
    assert len(every.unique(dim=0)) == 14
    weights = shapley_weights(every)
    sizes = every.sum(1)
    assert [float(weights[sizes == s].sum()) for s in (1, 2, 3)] == pytest.approx([1, 0.75, 1])  # (K-1)/(s(K-s))
    assert len(shapley_coalitions(60, 501, generator)) == 500
    assert len(shapley_coalitions(1, 10, generator)) == 0
    drawn = shapley_coalitions(12, 4000, generator)
    assert torch.equal(drawn[2000:], ~drawn[:2000])
    assert shapley_weights(drawn).unique().tolist() == [1]
    share = drawn.sum(1).bincount(minlength=13)[1:12] / 4000
    chances = torch.tensor([1 / (s * (12 - s)) for s in range(1, 12)])
    torch.testing.assert_close(share, chances / chances.sum(), atol=0.03, rtol=0)


def test_regression_of_few_coalitions_takes_the_shortest_solution() -> None:
    kept = torch.tensor([[True, False, False, False], [False, True, True, True]])
    found = shapley_regression(kept, torch.tensor([1.0, 3.0]), torch.ones(2), torch.tensor(4.0))
    torch.testing.assert_close(found, torch.ones(4, dtype=torch.float64))


def test_ridge_and_its_weights() -> None:
    z = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    exact = ridge(z, 3 + z @ torch.tensor([2.0, -1.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]), 1e-12)
    torch.testing.assert_close(exact, torch.tensor([2.0, -1.0], dtype=torch.float64))
    shrunk = ridge(z[:, :1], z[:, 0], torch.ones(4), 1.0)
    assert float(shrunk) == pytest.approx(0.5)  # sum of squares 1 about the mean, and the penalty 1
    nearness = lime_weights(z > 0, 0.25)
    assert float(nearness[0]) == 1
    assert float(nearness[3]) == pytest.approx(2.718281828 ** -(1 / (2 * 0.0625)))


def test_orders_come_with_their_reverse() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = orders(5, 4, generator)
    assert drawn.shape == (4, 5)
    assert torch.equal(drawn[0] + drawn[1], torch.full((5,), 4))
    assert orders(5, 3, generator).shape == (3, 5)
    assert len(orders(3, 6, generator).unique(dim=0)) == 6


@pytest.mark.parametrize(
    "method",
    [
        "occlusion:window=0",
        "occlusion:stride=2",
        "rise:keep=1",
        "rise:cells=0",
        "rise:samples=0",
        "lime:samples=1",
        "lime:width=0",
        "lime:penalty=0",
        "lime:count=0",
        "kernel-shap:samples=1",
        "shapley-sampling:samples=0",
        "feature-ablation:segments=quickshift",
        "rise:normalize=mean",
        "occlusion:chunk=0",
    ],
)
def test_parameters_out_of_range(method: str) -> None:
    with pytest.raises(ParameterError):
        explainers.parse(method)


def test_unknown_normalization_is_fine_where_the_spec_has_none() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    bare = ModelSpec(feature_layer="trunk")
    for method in ("occlusion:window=0.5", "ig:steps=8", f"lime:samples=9,{GRID}"):
        assert explain(model, x, method, 1, spec=bare).maps.isfinite().all()
