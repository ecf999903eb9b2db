"""The classifier: what the class scores are made of alone, found by their values and by what runs behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xattn.inspection.probing import Call, Probe, frontier
from xattn.spec import PROVED, Evidence

_SAME = 1e-3  # relative difference of values that are the same up to rounding


def find_classifier(model: nn.Module, first: Probe, evidence: dict[str, Evidence]) -> Call | None:
    """The linear layer or 1x1 convolution that the class scores are made of alone; None where there is none."""
    values = first.values
    classes = values.shape[1]
    for call in reversed(first.calls):
        module = call.module
        linear = isinstance(module, nn.Linear) and module.out_features == classes and call.output.numel() == classes
        pointwise = (
            isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.out_channels == classes
            and call.output.ndim == 4
        )  # fmt: skip
        if not (linear or pointwise):
            continue
        if not call.output.is_meta and _gives(call.output, values):
            evidence["classifier"] = Evidence(PROVED, "the class scores are its output")
            return call
        if _alone(model, first, call):
            evidence["classifier"] = Evidence(PROVED, "the class scores are a function of its output alone")
            return call
    evidence["classifier"] = Evidence(PROVED, "no linear layer gives the class scores")
    return None


def _gives(output: Tensor, values: Tensor) -> bool:
    """Whether class scores (1, K) are the output of a layer, pooled, as probabilities or as they are."""
    made = [output.flatten(1)] if output.flatten(1).shape == values.shape else []
    if output.ndim == 4:
        made += [output.mean((2, 3)), output.relu().mean((2, 3)), output.amax((2, 3))]
    for plain in made:
        for form in (plain, plain.softmax(1), plain.log_softmax(1), plain.sigmoid(), nn.functional.logsigmoid(plain)):
            if form.shape == values.shape and torch.allclose(form, values, rtol=_SAME, atol=1e-6):
                return True
    return False


def _alone(model: nn.Module, first: Probe, call: Call) -> bool:
    """Whether nothing with weights of its own comes behind a call, and no way leads around it."""
    if first.raw.grad_fn is None or call.node is None or any(True for _ in model.parameters(recurse=False)):
        return False
    later = (c for c in first.calls if c.ended > call.ended and any(True for _ in c.module.parameters(recurse=False)))
    met, around = frontier(first.raw.grad_fn, {call.node: call})
    return next(later, None) is None and bool(met) and not around
