"""Randomized weights and other classes: what moves, what does not, and the correlations against loops and libraries."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from xattn.errors import NotApplicableError, ParameterError, ShapeError
from xattn.explainer import Explainer
from xattn.explainers import resolve
from xattn.functional.complexity import histogram_entropy
from xattn.functional.ranking import average_ranks, pearson, spearman
from xattn.functional.similarity import ssim
from xattn.metrics import metrics
from xattn.metrics.randomization import layers_from_output, randomize, randomized, stages_from_output
from xattn.metrics.rerun import similarity
from xattn.metrics.sanity import ClassSensitivity, ParameterRandomization, RandomLogit
from xattn.spec import ModelSpec
from xattn.trace import Trace, record

NAMES = ["parameter_randomization", "random_logit", "class_sensitivity"]


def trace_for(methods: list[Explainer], x: Tensor, model: nn.Module | None = None, **options: Any) -> Trace:
    model = tiny.tiny_cnn() if model is None else model
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    layers = [layer for m in methods for layer in m.layers(spec)]
    return record(model, x, spec=spec, layers=layers, **options)


def naive_ranks(row: list[float]) -> list[float]:
    return [sum(b < a for b in row) + (sum(b == a for b in row) + 1) / 2 for a in row]


def tied_rows(seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(4, 15, generator=g)
    rows[0] = (rows[0] * 2).round()
    rows[1, :10] = 0
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_ranks_and_spearman_oracle(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = tied_rows(seed), tied_rows(seed + 10)
    assert average_ranks(a).tolist() == [naive_ranks(row) for row in a.tolist()]
    for mine, u, v in zip(spearman(a, b), a.tolist(), b.tolist(), strict=True):
        x, y = naive_ranks(u), naive_ranks(v)
        mx, my = sum(x) / 15, sum(y) / 15
        top = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
        bottom = (sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y)) ** 0.5
        assert float(mine) == pytest.approx(top / bottom, abs=1e-12)
        assert float(mine) == pytest.approx(stats.spearmanr(u, v).statistic, abs=1e-12)
    for mine, u, v in zip(pearson(a, b), a.tolist(), b.tolist(), strict=True):
        assert float(mine) == pytest.approx(np.corrcoef(u, v)[0, 1], abs=1e-12)


def test_correlation_of_constant_and_extreme_rows() -> None:
    a = torch.rand(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = a.flip(1)
    b[1] = 3.0
    b[2, 4] = torch.nan
    assert spearman(a, b).isnan().tolist() == [False, True, True]
    assert pearson(a, b).isnan().tolist() == [False, True, True]
    torch.testing.assert_close(pearson(a * 1e-200, b)[:1], pearson(a, b)[:1])
    assert average_ranks(torch.zeros(2, 1)).tolist() == [[1.0], [1.0]]
    with pytest.raises(ShapeError):
        spearman(a, b[:, :3])
    with pytest.raises(ShapeError):
        pearson(a, b[:, :3])


def test_ssim_oracle_and_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    g = torch.Generator().manual_seed(0)
    a = torch.rand(3, 1, 12, 10, generator=g)
    b = (a + 0.3 * torch.rand(3, 1, 12, 10, generator=g)).clamp(max=1)
    b[2] = 1 - a[2]
    got = ssim(a, b)
    for i in range(3):
        x, y = a[i, 0].double().numpy(), b[i, 0].double().numpy()
        values = []
        for r in range(12 - 6):
            for c in range(10 - 6):
                u, v = x[r : r + 7, c : c + 7].ravel(), y[r : r + 7, c : c + 7].ravel()
                cov = ((u - u.mean()) * (v - v.mean())).sum() / 48
                top = (2 * u.mean() * v.mean() + 1e-4) * (2 * cov + 9e-4)
                bottom = (u.mean() ** 2 + v.mean() ** 2 + 1e-4) * (u.var(ddof=1) + v.var(ddof=1) + 9e-4)
                values.append(top / bottom)
        assert float(got[i]) == pytest.approx(np.mean(values), abs=1e-9)
        assert float(got[i]) == pytest.approx(skimage.structural_similarity(x, y, data_range=1.0), abs=1e-9)
    assert float(got[2]) < 0
    with pytest.raises(ShapeError, match="smaller than the window"):
        ssim(a[..., :5], b[..., :5])
    with pytest.raises(ShapeError):
        ssim(a, b[:2])
    with pytest.raises(ParameterError, match="odd"):
        ssim(a, b, window=4)


def test_similarity_is_one_for_a_rescaled_map_and_nan_for_a_constant_one() -> None:
    a = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    b = a * 3 + 2
    b[1] = 1.0
    b[2, 0, 0, 0] = torch.nan
    found = similarity(a, b, (16, 16))
    for values in found.values():
        assert float(values[0]) == pytest.approx(1.0, abs=1e-5)
        assert values[1:].isnan().all()
    noisy = a.clone()
    noisy[0, 0, 0] = 0.5 + torch.tensor([0.0, 6e-8, 0.0, -6e-8])  # rounding, not an order
    flat = noisy.clone()
    flat[0, 0, 0] = 0.5
    assert torch.equal(similarity(noisy, a, (16, 16))["spearman"][:2], similarity(flat, a, (16, 16))["spearman"][:2])
    signed = similarity(a - 0.5, 0.5 - a, (16, 16))["spearman"]
    assert float(signed[0]) == pytest.approx(-1.0)
    assert float(similarity(a - 0.5, 0.5 - a, (16, 16), absolute=True)["spearman"][0]) == pytest.approx(1.0)
    assert similarity(a, b, (5, 5))["ssim"].isnan().all()  # smaller than the window


def test_layers_come_in_the_order_of_the_pass() -> None:
    class Crossed(nn.Module):
        """Registers its layers in another order than it runs them; one is read without being called."""

        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 3)
            self.first = nn.Conv2d(3, 4, 3)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.first(x).flatten(2).mT
            return self.last(self.attention(tokens, tokens, tokens)[0].mean(1))

    model = Crossed().train()
    names = layers_from_output(model, torch.randn(1, 3, 8, 8))
    assert names == ["last", "attention.out_proj", "attention", "first"]
    assert model.training
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_stages() -> None:
    assert stages_from_output(list("abcdefg"), 3) == [["a"], list("bcd"), list("efg")]
    assert stages_from_output(list("abc"), 9) == [["a"], ["b"], ["c"]]
    assert stages_from_output(list("abc"), 1) == [list("abc")]
    assert stages_from_output([], 3) == []


@pytest.mark.parametrize("how", ["reset", "permute"])
def test_randomize_changes_own_tensors_only_and_repeats(how: str) -> None:
    bn = nn.BatchNorm2d(6)
    with torch.no_grad():
        for tensor in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
            tensor.copy_(torch.arange(6.0) + 1)
    conv = nn.Conv2d(3, 4, 3)
    before = copy.deepcopy(conv.state_dict())
    state = torch.get_rng_state()
    twin = copy.deepcopy(conv)
    randomize(conv, "conv", how, 0)
    randomize(twin, "conv", how, 0)
    assert torch.equal(conv.weight, twin.weight)
    assert not torch.equal(conv.weight, before["weight"])
    other = copy.deepcopy(conv)
    other.load_state_dict(before)
    randomize(other, "another", how, 0)
    assert not torch.equal(conv.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), state)
    if how == "permute":
        assert torch.equal(conv.weight.flatten().sort().values, before["weight"].flatten().sort().values)
        randomize(bn, "bn", how, 0)
        assert torch.equal(bn.weight, bn.running_var)  # channels move as one
        assert not torch.equal(bn.weight, torch.arange(6.0) + 1)
    else:
        randomize(bn, "bn", how, 0)
        assert torch.equal(bn.running_var, torch.ones(6))


class Bare(nn.Module):
    """A parameter without a way to draw it anew."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.arange(8.0))


def test_reset_falls_back_to_permuting_and_keeps_half_precision() -> None:
    bare = Bare()
    randomize(bare, "bare", "reset", 0)
    assert sorted(bare.gain.tolist()) == list(range(8))
    assert bare.gain.tolist() != list(range(8))
    half = nn.Linear(4, 4).half()
    before = half.weight.clone()
    randomize(half, "half", "reset", 0)
    assert half.weight.dtype == torch.float16
    assert not torch.equal(half.weight, before)


@pytest.mark.parametrize("how", ["reset", "permute"])
def test_cascading_keeps_and_independent_restores(how: str) -> None:
    model = tiny.tiny_cnn()
    learned = copy.deepcopy(model.state_dict())
    order = ["fc", "bn3", "conv3", "bn2", "conv2", "bn1", "conv1"]
    with torch.no_grad():
        model.bn1.weight.copy_(torch.arange(6.0))
        model.bn2.weight.copy_(torch.arange(8.0))
        model.bn3.weight.copy_(torch.arange(8.0))
    learned = copy.deepcopy(model.state_dict())
    for cascading in (True, False):
        stages = randomized(model, tiny.images(1), stages=7, how=how, cascading=cascading)
        for done, network in enumerate(stages, 1):
            state = network.state_dict()
            changed = {k.split(".")[0] for k, v in state.items() if not torch.equal(v, learned[k])}
            assert changed == (set(order[:done]) if cascading else {order[done - 1]})
        assert done == 7
        assert all(torch.equal(v, learned[k]) for k, v in model.state_dict().items())


def test_a_model_without_parameters_or_that_cannot_be_copied_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="no parameters"):
        next(randomized(nn.Flatten(), torch.zeros(1, 3, 2, 2), stages=2))

    class Stuck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 2)
            self.note = torch.ones(2, requires_grad=True) * 2  # no leaf: deepcopy refuses it

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1))

    with pytest.raises(NotApplicableError, match="cannot be copied"):
        next(randomized(Stuck(), torch.zeros(1, 3, 2, 2), stages=2))


def test_parameter_randomization_oracle() -> None:
    """By hand: a copy of the model, its layers replaced one stage after the other, maps and correlations anew."""
    stats = pytest.importorskip("scipy.stats")
    method = resolve(["gradcam"])[0]
    trace = trace_for([method], tiny.images(3))
    base = method.explanation(trace)
    got = ParameterRandomization(stages=3).measure(base, trace, None)
    network = copy.deepcopy(trace.model)

    def levels(cells: Tensor) -> Tensor:  # what differs by less than a millionth of the range is equal
        return ((cells - cells.min()) / (cells.max() - cells.min()) * 1e6).round().ravel()

    rows = []
    for stage in (["fc"], ["bn3", "conv3", "bn2"], ["conv2", "bn1", "conv1"]):
        for name in stage:
            randomize(network.get_submodule(name), name, "reset", 0)
        again = trace_for([method], trace.x, network, target=trace.target)
        maps = method.explanation(again).maps
        rows.append([stats.spearmanr(levels(a), levels(b)).statistic for a, b in zip(base.maps, maps, strict=True)])
    np.testing.assert_allclose(got["spearman"], np.mean(rows, 0), atol=1e-6)
    np.testing.assert_allclose(got["spearman_first"], rows[0], atol=1e-6)
    np.testing.assert_allclose(got["spearman_last"], rows[-1], atol=1e-6)


def test_what_depends_on_weights_and_classes_moves_and_what_does_not_stays() -> None:
    methods = resolve(["edges", "random", "center", "activation", "gradcam", "saliency"])
    trace = trace_for(methods, tiny.images(4), seeds=[1, 2, 3, 4])
    found = [m.explanation(trace) for m in methods]
    for order in ("cascading", "independent"):
        rows = metrics.create("parameter_randomization", stages=3, order=order).measure_many(found, trace, None)
        for control in rows[:3]:
            for values in control.values():
                torch.testing.assert_close(values, torch.ones_like(values))
        assert (rows[3]["spearman_first"] == 1).all()  # the features do not know the classifier
        for moved in rows[3:]:
            assert (moved["spearman"] < 0.95).all()
            assert (moved["ssim"] < 0.95).all()
    for name in ("random_logit", "class_sensitivity"):
        rows = metrics.create(name).measure_many(found, trace, None)
        for blind in rows[:4]:
            assert float(blind["spearman"].min()) == pytest.approx(1.0)
            assert float(blind["ssim"].min()) == pytest.approx(1.0)
        assert float(rows[4]["spearman"].nanmean()) < 0.9
        assert float(rows[5]["spearman"].nanmean()) < 0.99


def test_other_classes() -> None:
    trace = trace_for([], tiny.images(6))
    other = RandomLogit().other(trace)
    assert (other != trace.target).all()
    assert ((other >= 0) & (other < tiny.CLASSES)).all()
    assert len(set(((other - trace.target) % tiny.CLASSES).tolist())) > 1
    assert torch.equal(other[2:4], RandomLogit().other(trace_for([], trace.x[2:4])))
    assert torch.equal(ClassSensitivity().other(trace), trace.logits.argmin(1))
    assert torch.equal(ClassSensitivity(other_class="next").other(trace), trace.logits.topk(2).indices[:, 1])
    low = trace_for([], trace.x, target=trace.logits.argmin(1))
    assert torch.equal(ClassSensitivity().other(low), trace.logits.topk(tiny.CLASSES - 1).indices[:, -1])
    binary = trace_for([], tiny.images(3), tiny.tiny_binary())
    for metric in (RandomLogit(), ClassSensitivity(), ClassSensitivity(other_class="next")):
        assert torch.equal(metric.other(binary), 1 - binary.target)


@pytest.mark.parametrize("name", NAMES)
def test_columns_batch_independence_and_an_untouched_model(name: str) -> None:
    methods = resolve(["gradcam", "brnpa"])
    x = tiny.images(3)
    trace = trace_for(methods, x)
    before = copy.deepcopy(trace.model.state_dict())
    state = torch.get_rng_state()
    metric = metrics.create(name)
    whole = metric.measure_many([m.explanation(trace) for m in methods], trace, None)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in trace.model.state_dict().items())
    for columns in whole:
        assert list(columns) == list(metric.columns)
        assert all(v.dtype == torch.float64 and v.shape == (3,) for v in columns.values())
    for i in range(3):
        one = trace_for(methods, x[i : i + 1], trace.model)
        for method, columns in zip(methods, whole, strict=True):
            alone = metric.measure(method.explanation(one), one, None)
            for column, values in columns.items():
                torch.testing.assert_close(values[i : i + 1], alone[column], rtol=0, atol=1e-5, equal_nan=True)


def test_wrong_parameters_are_refused() -> None:
    for parameters in ({"order": "upwards"}, {"how": "zero"}, {"stages": 0}):
        with pytest.raises(ParameterError, match="parameter_randomization"):
            metrics.create("parameter_randomization", **parameters)
    with pytest.raises(ParameterError, match="class_sensitivity"):
        metrics.create("class_sensitivity", other_class="most")


def test_histogram_entropy_oracle() -> None:
    """Counted value by value; a constant map and one that is not finite have none."""
    maps = torch.randn(5, 1, 6, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    maps[1] = maps[1].round()
    maps[3], maps[4, 0, 2, 2] = 0.5, torch.inf
    found = histogram_entropy(maps, 10).tolist()
    for i in range(3):
        values = maps[i].flatten().tolist()
        low, span = min(values), max(values) - min(values)
        places = [min(int((v - low) / span * 10), 9) for v in values]
        shares = [places.count(b) / len(values) for b in set(places)]
        assert found[i] == pytest.approx(-sum(p * math.log(p) for p in shares), abs=1e-12)
    assert all(math.isnan(v) for v in found[3:])
    torch.testing.assert_close(histogram_entropy(maps * -4 + 8, 10)[2], histogram_entropy(-maps, 10)[2])


def test_efficient_mprt_is_the_rise_from_the_map_to_that_of_all_random_weights() -> None:
    methods = resolve(["saliency", "center"])
    trace = trace_for(methods, tiny.images(3))
    explanations = [m.explanation(trace) for m in methods]
    saliency, center = metrics.create("efficient_mprt", seed=4).measure_many(explanations, trace, None)
    assert center["complexity_rise"].tolist() == [0.0] * 3
    *_, network = randomized(trace.model, trace.x[:1], stages=50, seed=4)  # the last stage of any number is the same
    again = trace_for(methods, tiny.images(3), copy.deepcopy(network), target=trace.target)
    before, after = (histogram_entropy(t.maps) for t in (explanations[0], methods[0].explanation(again)))
    torch.testing.assert_close(saliency["complexity_rise"], (after - before) / before)


def test_smooth_mprt_compares_means_over_noisy_images() -> None:
    methods = resolve(["saliency"])
    trace = trace_for(methods, tiny.images(2), seeds=[7, 8])
    one = methods[0].explanation(trace)
    found = ParameterRandomization(stages=1, samples=3, noise=0.2).measure(one, trace, None)
    (network,) = randomized(trace.model, trace.x[:1], stages=1)
    for i in range(2):
        generator, sums = trace.generator(i, "smooth mprt"), [0.0, 0.0]
        image = trace.x[i : i + 1]
        for _ in range(3):
            noisy = image + 0.2 * (image.max() - image.min()) * torch.randn(image.shape[1:], generator=generator)
            for k, model in enumerate((trace.model, network)):
                again = trace_for(methods, noisy, model, target=trace.target[i : i + 1])
                sums[k] = sums[k] + methods[0].explanation(again).maps.double() / 3
        expected = similarity(sums[0], sums[1], trace.input_size)
        for column in ("spearman", "ssim"):
            assert found[column][i].item() == pytest.approx(expected[column].item(), abs=1e-5)
    plain = ParameterRandomization(stages=1).measure(one, trace, None)
    assert not torch.allclose(plain["spearman"], found["spearman"])
