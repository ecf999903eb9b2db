"""Sparsity and complexity: naive formulas in float64 and Quantus as witness."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import xattn
from tests.tiny_models import images, tiny_cnn
from xattn.errors import ParameterError, ShapeError, UnknownNameError
from xattn.explainer import Explainer, Family
from xattn.explainers import resolve
from xattn.explanation import Explanation
from xattn.functional import complexity as F
from xattn.functional import localization
from xattn.metric import NEITHER
from xattn.metrics import metrics
from xattn.spec import ModelSpec
from xattn.trace import Trace, record

NAMES = ["sparsity", "gini", "entropy", "effective_complexity"]


@dataclass(frozen=True)
class Given(Explainer):
    """Stands for the method that made the maps of a test."""

    name: ClassVar[str] = "given"
    family: ClassVar[Family] = Family.ATTENTION

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        return ("features",)

    def attribute(self, trace: Trace) -> Tensor:
        raise NotImplementedError


def trace_of(features: Tensor | None = None) -> Any:
    def activation(layer: str) -> Tensor:
        if features is None:
            raise UnknownNameError("not recorded")
        return features

    return SimpleNamespace(activation=activation, spec=None)


def explanation(maps: Tensor, size: tuple[int, int] | None = None, parts: Tensor | None = None) -> Explanation:
    target = torch.zeros(len(maps), dtype=torch.int64)
    return Explanation(maps, target, Given(), size or (maps.shape[-2], maps.shape[-1]), parts)


def zoo(seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(4, 1, 5, 6, generator=g)
    maps[1] = maps[1].clamp(min=0)
    maps[2] = 0
    maps[2, 0, 1, 2] = -3.0
    maps[3] = 1.5
    return maps


def naive_gini(m: Tensor) -> float:
    """Half the mean absolute difference over the mean."""
    v = [abs(float(a)) for a in m.flatten()]
    return sum(abs(a - b) for a in v for b in v) / (2 * len(v) * sum(v))


def naive_entropy(m: Tensor) -> float:
    v = [abs(float(a)) for a in m.flatten()]
    return -sum(a / sum(v) * math.log(a / sum(v)) for a in v if a > 0)


def naive_effective(m: Tensor, epsilon: float) -> float:
    v = [abs(float(a)) for a in m.flatten()]
    return sum(a > epsilon * max(v) for a in v) / len(v)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("ours", "oracle"),
    [
        (F.gini, naive_gini),
        (F.entropy, naive_entropy),
        (F.effective_complexity, lambda m: naive_effective(m, 0.05)),
        (lambda m: F.effective_complexity(m, 0.4), lambda m: naive_effective(m, 0.4)),
    ],
    ids=["gini", "entropy", "effective", "effective-0.4"],
)
def test_oracle(ours: Callable[[Tensor], Tensor], oracle: Callable[[Tensor], float], seed: int) -> None:
    maps = zoo(seed)
    got = ours(maps)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got, [oracle(m) for m in maps], rtol=1e-12, atol=1e-12)


def test_known_values() -> None:
    one = torch.zeros(1, 1, 4, 4)
    one[0, 0, 3, 3] = 5
    flat = torch.full((1, 1, 4, 4), 0.3)
    assert float(F.gini(one)) == pytest.approx(15 / 16)
    assert float(F.gini(flat)) == pytest.approx(0)
    assert float(F.entropy(one)) == 0
    assert float(F.entropy(flat)) == pytest.approx(math.log(16))
    assert float(F.effective_complexity(one)) == 1 / 16


@pytest.mark.parametrize("name", NAMES)
def test_columns_scale_and_batch_independence(name: str) -> None:
    maps = zoo(5)
    metric = metrics.create(name)
    assert set(metric.columns.values()) == {NEITHER}
    whole = metric.measure(explanation(maps, (10, 12)), trace_of(), None)
    assert list(whole) == list(metric.columns)
    for column, values in whole.items():
        assert values.dtype == torch.float64
        alone = [metric.measure(explanation(maps[i : i + 1], (10, 12)), trace_of(), None)[column] for i in range(4)]
        torch.testing.assert_close(values, torch.cat(alone), rtol=1e-12, atol=0, equal_nan=True)
        scaled = metric.measure(explanation(maps * 2.0**-70, (10, 12)), trace_of(), None)[column]
        torch.testing.assert_close(values, scaled, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_undefined_is_nan(name: str, value: float) -> None:
    maps = zoo(6)
    maps[1] = value
    got = metrics.create(name).measure(explanation(maps), trace_of(), None)
    for values in got.values():
        assert values[1].isnan()
        assert not values[0].isnan()


def test_resized_or_on_the_own_grid() -> None:
    maps = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    large = explanation(maps, (12, 12))
    for name, formula in (("gini", F.gini), ("effective_complexity", F.effective_complexity)):
        column = next(iter(metrics.create(name).columns))
        own = metrics.create(name, resized=False).measure(large, trace_of(), None)[column]
        whole = metrics.create(name).measure(large, trace_of(), None)[column]
        assert torch.equal(own, formula(maps))
        assert torch.equal(whole, formula(large.resized()))
    share = metrics.create("entropy", resized=False).measure(large, trace_of(), None)
    torch.testing.assert_close(share["entropy_share"], F.entropy(maps) / math.log(9))
    dot = metrics.create("entropy", resized=False).measure(explanation(torch.ones(1, 1, 1, 1)), trace_of(), None)
    assert dot["entropy_share"].isnan().all()


def naive_density(weights: Tensor, features: Tensor) -> float:
    """BR-NPA: A n / max n, each map over its own largest value plus 1e-5, mean of all; loops."""
    p, h, w = weights.shape
    norm = [[math.sqrt(sum(float(f) ** 2 for f in features[:, y, x])) for x in range(w)] for y in range(h)]
    peak = max(max(row) for row in norm)
    total = 0.0
    for i in range(p):
        b = [float(weights[i, y, x]) * norm[y][x] / peak for y in range(h) for x in range(w)]
        total += sum(v / (max(b) + 1e-5) for v in b)
    return total / (p * h * w)


def test_sparsity_of_part_maps_oracle() -> None:
    g = torch.Generator().manual_seed(0)
    weights = torch.rand(3, 2, 4, 5, generator=g, dtype=torch.float64) / 20
    features = torch.randn(3, 7, 4, 5, generator=g, dtype=torch.float64)
    parts = weights * torch.linalg.vector_norm(features, dim=1, keepdim=True)
    got = metrics.create("sparsity").measure(explanation(parts[:, :1], parts=parts), trace_of(features), None)
    expected = [naive_density(a, f) for a, f in zip(weights, features, strict=True)]
    np.testing.assert_allclose(got["density"], expected, rtol=1e-9)
    np.testing.assert_allclose(got["sparsity"], [1 / e for e in expected], rtol=1e-9)


def test_sparsity_of_one_map_is_its_mean_after_scaling() -> None:
    maps = zoo(7)[:2].double()
    got = metrics.create("sparsity").measure(explanation(maps), trace_of(), None)["density"]
    for value, m in zip(got, maps, strict=True):
        a = m.numpy()
        assert float(value) == pytest.approx(((a - a.min()) / (a.max() - a.min())).mean())


def test_sparsity_of_brnpa_and_of_gradcam() -> None:
    model = tiny_cnn()
    methods = resolve(["brnpa", "gradcam"])
    spec = model.spec
    trace = record(model, images(), spec=spec, layers=[layer for m in methods for layer in m.layers(spec)])
    for method in methods:
        found = metrics.create("sparsity").measure(method.explanation(trace), trace, None)
        assert ((found["density"] > 0) & (found["density"] <= 1)).all()
    features = trace.activation("trunk")
    parts = xattn.explain(model, images(), "brnpa").parts
    assert parts is not None
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    weights = parts / norm.clamp(min=1e-9)
    got = metrics.create("sparsity").measure(methods[0].explanation(trace), trace, None)["density"]
    np.testing.assert_allclose(got, [naive_density(a, f) for a, f in zip(weights, features, strict=True)], rtol=1e-4)


def test_wrong_shapes_and_parameters_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(N, 1, h, w\)"):
        F.gini(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ParameterError, match="epsilon"):
        F.effective_complexity(zoo(), 1.0)
    with pytest.raises(ParameterError, match="epsilon"):
        metrics.create("effective_complexity", epsilon=-1.0)


@pytest.mark.slow
def test_quantus_agrees() -> None:
    """Quantus where it is right: maps without ties, no normalization by the batch, one image at a time does not matter.

    Its pointing game counts an empty mask and a constant map as hits, so it is no witness.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantus = pytest.importorskip("quantus")
        g = torch.Generator().manual_seed(0)
        maps = torch.randn(4, 1, 12, 10, generator=g)
        masks = torch.rand(4, 1, 12, 10, generator=g) < 0.3
        positive = maps.clamp(min=0)
        peak = maps.abs().amax((1, 2, 3), keepdim=True)
        options = {
            "normalise": False, "disable_warnings": True, "display_progressbar": False, "return_aggregate": False,
        }  # fmt: skip
        signed, absolute = options | {"abs": False}, options | {"abs": True}
        cases = [
            (quantus.Sparseness(**absolute), maps, F.gini(maps)),
            (quantus.Complexity(**absolute), maps, F.entropy(maps)),
            (quantus.EffectiveComplexity(eps=0.05, **absolute), maps / peak, F.effective_complexity(maps) * 120),
            (quantus.RelevanceMassAccuracy(**signed), positive, localization.energy_share(positive, masks)),
            (quantus.RelevanceRankAccuracy(**signed), maps, localization.relevance_rank(maps, masks)),
            (quantus.TopKIntersection(k=20, **signed), maps, localization.top_k_intersection(maps, masks, 20)),
            (quantus.AUC(**signed), maps, localization.roc_auc(maps, masks)),
        ]
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(120, 2))
        for metric, given, ours in cases:
            theirs = metric(
                model=model, x_batch=np.zeros((4, 1, 12, 10), np.float32), y_batch=np.zeros(4, int),
                a_batch=given.numpy().copy(), s_batch=masks.numpy(), device="cpu",
            )  # fmt: skip
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, err_msg=type(metric).__name__)
