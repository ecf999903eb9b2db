"""Max-sensitivity: a naive loop, captum as witness, and methods whose answer is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.tiny_models import images, tiny_cnn
from xattn.errors import ParameterError
from xattn.explainer import Explainer, Family
from xattn.explainers import resolve
from xattn.metrics import metrics
from xattn.metrics.robustness import MaxSensitivity
from xattn.spec import ModelSpec
from xattn.trace import Trace, record


@dataclass(frozen=True)
class Pixels(Explainer):
    """The first channel of the image itself: its change is known exactly."""

    name: ClassVar[str] = "pixels"
    family: ClassVar[Family] = Family.CONTROL

    def attribute(self, trace: Trace) -> Tensor:
        return trace.x[:, :1]


def trace_for(methods: list[Explainer], x: Tensor, model: nn.Module | None = None, **options: Any) -> Trace:
    model = tiny_cnn() if model is None else model
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    layers = [layer for m in methods for layer in m.layers(spec)]
    return record(model, x, spec=spec, layers=layers, **options)


def test_oracle() -> None:
    """One image, one sample at a time, float64 norms by hand."""
    method = resolve(["gradcam"])[0]
    trace = trace_for([method], images(3), seeds=[4, 5, 6])
    got = MaxSensitivity(radius=0.05, samples=4).measure(method.explanation(trace), trace, None)
    std = np.array(trace.spec.std)[:, None, None]
    for i in range(3):
        generator = trace.generator(i, "max_sensitivity")
        alone = trace_for([method], trace.x[i : i + 1], trace.model, target=trace.target[i : i + 1])
        before = method.explanation(alone).maps.double().numpy().ravel()
        changes = []
        for _ in range(4):
            noise = torch.rand(trace.x.shape[1:], generator=generator).numpy() * 2 - 1
            moved = trace.x[i : i + 1] + torch.from_numpy(0.05 * noise / std).float()
            again = trace_for([method], moved, trace.model, target=trace.target[i : i + 1])
            after = method.explanation(again).maps.double().numpy().ravel()
            squares = sum((a - b) ** 2 for a, b in zip(after, before, strict=True))
            changes.append((squares / sum(b**2 for b in before)) ** 0.5)
        assert float(got["max_sensitivity"][i]) == pytest.approx(max(changes), rel=1e-4)
        assert float(got["avg_sensitivity"][i]) == pytest.approx(sum(changes) / 4, rel=1e-4)


def test_the_image_itself_changes_by_the_noise() -> None:
    trace = trace_for([Pixels()], images(2))
    metric = MaxSensitivity(radius=0.1, samples=200)
    got = metric.measure(Pixels().explanation(trace), trace, None)
    # Uniform noise of half-width a has the variance a^2 / 3; the first channel is divided by its deviation.
    norm = torch.linalg.vector_norm(trace.x[:, 0].flatten(1), dim=1)
    expected = 0.1 / trace.spec.std[0] * (32 * 32 / 3) ** 0.5 / norm  # type: ignore[index]
    torch.testing.assert_close(got["avg_sensitivity"], expected.double(), rtol=0.02, atol=0)
    assert (got["max_sensitivity"] > got["avg_sensitivity"]).all()


def test_captum_agrees() -> None:
    """The same quantity on average: captum draws its own noise, so the means of many samples are compared."""
    captum = pytest.importorskip("captum.metrics")
    method = resolve(["gradcam"])[0]
    model = tiny_cnn()
    model.spec = ModelSpec(feature_layer="trunk", classifier="fc", input_size=(32, 32))  # captum knows no deviations
    x = images(2)
    trace = trace_for([method], x, model)

    def attribute(inputs: tuple[Tensor], target: Tensor) -> tuple[Tensor]:
        return (method.explanation(trace_for([method], inputs[0], model, target=target)).maps,)

    mine = MaxSensitivity(radius=0.02, samples=1)
    ours = torch.stack(
        [
            mine.measure(method.explanation(t), t, None)["max_sensitivity"]
            for t in (trace_for([method], x, model, seeds=[s, s]) for s in range(60))
        ]
    )
    torch.manual_seed(1)
    theirs = torch.stack(
        [
            captum.sensitivity_max(attribute, x, perturb_radius=0.02, n_perturb_samples=1, target=trace.target)
            for _ in range(60)
        ]
    ).double()
    error = ((ours.var(0) + theirs.var(0)) / 60).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * error).all()


def test_many_methods_are_measured_as_one_by_one() -> None:
    methods = resolve(["gradcam", "saliency", "random", "center"])
    trace = trace_for(methods, images(3), seeds=[1, 2, 3])
    found = [m.explanation(trace) for m in methods]
    metric = metrics.create("max_sensitivity", samples=2)
    together = metric.measure_many(found, trace, None)
    for explanation, columns in zip(found, together, strict=True):
        for name, values in metric.measure(explanation, trace, None).items():
            torch.testing.assert_close(columns[name], values)
            assert values.dtype == torch.float64
    assert (together[2]["max_sensitivity"] == 0).all()  # the random control does not look at the image
    assert (together[3]["max_sensitivity"] == 0).all()
    assert (together[0]["max_sensitivity"] > 0).all()


def test_batch_independence_and_seeds() -> None:
    method = resolve(["gradcam"])[0]
    metric = metrics.create("max_sensitivity", samples=3)
    x = images(3)
    trace = trace_for([method], x)
    whole = metric.measure(method.explanation(trace), trace, None)
    for i in range(3):
        one = trace_for([method], x[i : i + 1], trace.model)
        alone = metric.measure(method.explanation(one), one, None)
        for name in whole:
            torch.testing.assert_close(whole[name][i : i + 1], alone[name], rtol=1e-4, atol=1e-7)
    again = metric.measure(method.explanation(trace), trace, None)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_scale_of_the_map_does_not_matter_and_zero_is_nan() -> None:
    @dataclass(frozen=True)
    class Scaled(Pixels):
        factor: float = 1.0

        def attribute(self, trace: Trace) -> Tensor:
            return trace.x[:, :1] * self.factor

    trace = trace_for([], images(2))
    metric = MaxSensitivity(samples=2)
    a, b, zero = metric.measure_many([Scaled(f).explanation(trace) for f in (1.0, 64.0, 0.0)], trace, None)
    assert torch.equal(a["max_sensitivity"], b["max_sensitivity"])
    assert zero["max_sensitivity"].isnan().all()
    assert zero["avg_sensitivity"].isnan().all()


def test_the_model_is_left_alone() -> None:
    method = resolve(["gradcam"])[0]
    trace = trace_for([method], images(2))
    before = {k: v.clone() for k, v in trace.model.state_dict().items()}
    metrics.create("max_sensitivity", samples=1).measure(method.explanation(trace), trace, None)
    assert all(torch.equal(v, before[k]) for k, v in trace.model.state_dict().items())
    assert all(p.grad is None for p in trace.model.parameters())


@pytest.mark.parametrize("parameters", [{"radius": 0.0}, {"samples": 0}])
def test_wrong_parameters_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="max_sensitivity"):
        metrics.create("max_sensitivity", **parameters)
