"""The distillation loss against a naive loop in float64, and the learning rate against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from xattn.errors import ParameterError, ShapeError
from xattn.training.losses import distillation_loss
from xattn.training.recipe import OptimizerSection
from xattn.training.schedule import learning_rate


def softmax(z: list[float], temperature: float) -> list[float]:
    exps = [math.exp(v / temperature) for v in z]
    return [e / sum(exps) for e in exps]


def naive(s: Tensor, t: Tensor, y: Tensor, weight: float, temperature: float, smoothing: float, form: str) -> float:
    """Image by image from the printed formulas."""
    total = 0.0
    classes = s.shape[1]
    for zs, zt, label in zip(s.tolist(), t.tolist(), y.tolist(), strict=True):
        p = softmax(zs, 1)
        truth = [smoothing / classes + (1 - smoothing) * (k == label) for k in range(classes)]
        entropy = -sum(q * math.log(v) for q, v in zip(truth, p, strict=True))
        if form == "hinton":
            teacher, student = softmax(zt, temperature), softmax(zs, temperature)
            divergence = temperature**2 * sum(a * math.log(a / b) for a, b in zip(teacher, student, strict=True))
        else:
            teacher, student = softmax(zt, 1), softmax(zs, 1)
            divergence = sum(b * math.log(b / a) for a, b in zip(teacher, student, strict=True))
        total += (1 - weight) * entropy + weight * divergence
    return total / len(y)


@pytest.mark.parametrize("form", ["hinton", "printed"])
@pytest.mark.parametrize(("weight", "temperature", "smoothing"), [(0.5, 6.0, 0.0), (0.9, 1.0, 0.1), (0.0, 3.0, 0.1)])
def test_distillation_is_the_formula(form: str, weight: float, temperature: float, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(1)
    s, t = (torch.randn(5, 7, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    y = torch.randint(7, (5,), generator=generator)
    loss = distillation_loss(s, t, y, weight, temperature, label_smoothing=smoothing, form=form)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(naive(s, t, y, weight, temperature, smoothing, form), rel=1e-10)


def test_the_two_forms_differ_in_direction() -> None:
    s, t, y = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([0])
    forward = distillation_loss(s, t, y, 1.0, 1.0)
    backward = distillation_loss(s, t, y, 1.0, 1.0, form="printed")
    assert abs(forward - backward) > 0.1


def test_no_gradient_reaches_the_teacher_and_equal_logits_cost_nothing() -> None:
    s, t = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    distillation_loss(s, t, torch.tensor([0, 1, 2])).backward()
    assert t.grad is None
    assert s.grad is not None
    same = torch.randn(3, 4)
    assert distillation_loss(same, same, torch.tensor([0, 1, 2]), weight=1.0).abs() < 1e-5


def test_without_weight_it_is_the_cross_entropy() -> None:
    s, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    torch.testing.assert_close(distillation_loss(s, torch.randn(3, 4), y, weight=0.0), F.cross_entropy(s, y))


def test_what_cannot_be_is_refused() -> None:
    z, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ShapeError, match="same classes"):
        distillation_loss(z, torch.zeros(2, 4), y)
    with pytest.raises(ParameterError, match="weight in"):
        distillation_loss(z, z, y, weight=2)
    with pytest.raises(ParameterError, match="form must be"):
        distillation_loss(z, z, y, form="other")  # type: ignore[arg-type]


def test_warmup_rises_and_cosine_falls_to_nearly_zero() -> None:
    plan = OptimizerSection(lr=0.4, warmup_epochs=2, schedule="cosine")
    rates = [learning_rate(plan, i, 10, 8) for i in range(80)]
    assert rates[:20] == pytest.approx([0.4 * (i + 1) / 20 for i in range(20)])
    assert rates[20:] == pytest.approx([0.2 * (1 + math.cos(math.pi * i / 60)) for i in range(60)])
    assert rates[-1] < 1e-3


def test_steps_of_the_paper() -> None:
    plan = OptimizerSection(lr=1e-3, warmup_epochs=0, schedule="step", step_epochs=2, step_factor=0.9)
    rates = [learning_rate(plan, 5 * epoch, 5, 50) for epoch in range(6)]
    assert rates == pytest.approx([1e-3, 1e-3, 9e-4, 9e-4, 8.1e-4, 8.1e-4])
    assert learning_rate(OptimizerSection(lr=0.1, warmup_epochs=0, schedule="constant"), 99, 5, 50) == 0.1
