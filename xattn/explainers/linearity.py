"""What methods share that split the logit of a linear classifier over the cells of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError, SpecError
from xattn.trace import Trace, promote


def classifier_of(trace: Trace, method: str) -> nn.Linear | nn.Conv2d:
    """The linear layer, or 1x1 convolution, that gives the logits.

    Raises:
        NotApplicableError: if the layer named in the spec is something else, or gives another number of classes.
        SpecError: if the spec names a layer that does not exist.
    """
    if not trace.goal.by_class:
        raise NotApplicableError(
            f"{method}: '{trace.goal.text(0, trace.spec)}' is no output of the classifier alone; use hirescam."
        )
    name = trace.spec.classifier
    try:
        module = trace.model.get_submodule(name or "")
    except AttributeError:
        raise SpecError(
            f"{method}: {type(trace.model).__name__} has no layer '{name}'; correct ModelSpec.classifier."
        ) from None
    pointwise = isinstance(module, nn.Conv2d) and tuple(module.kernel_size) == (1, 1) and module.groups == 1
    if not isinstance(module, (nn.Linear, nn.Conv2d)) or not (pointwise or isinstance(module, nn.Linear)):
        raise NotApplicableError(
            f"{method}: classifier '{name}' is a {type(module).__name__}, expected a linear layer or a 1x1 "
            "convolution; use hirescam."
        )
    if module.weight.shape[0] != trace.logits.shape[1]:
        raise NotApplicableError(
            f"{method}: classifier '{name}' has {module.weight.shape[0]} outputs but the model has "
            f"{trace.logits.shape[1]} logits; correct ModelSpec.classifier."
        )
    return module


def column_of(trace: Trace) -> Tensor:
    """The column of the logits (N,) that is explained; the only one of a model with one output."""
    return trace.target if trace.logits.shape[1] > 1 else torch.zeros_like(trace.target)


def target_sign(trace: Trace) -> Tensor:
    """-1 for class 0 of a model with one output, whose logit is -z; else 1. Shape (N,)."""
    one = torch.ones_like(trace.target, dtype=promote(trace.logits).dtype)
    return torch.where(trace.opposite, -one, one)


def target_rows(trace: Trace, classifier: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights (N, C) and biases (N,) of each image's target, without the sign of `target_sign`."""
    row = column_of(trace)
    weight = classifier.weight.detach().flatten(1)[row].to(dtype)
    bias = classifier.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach()[row].to(dtype)


def conservation_error(trace: Trace, total: Tensor, magnitude: Tensor, terms: Tensor, dtype: torch.dtype) -> Tensor:
    """Relative error (N,) between the target's logit and the sum that should be equal to it.

    Args:
        trace: the recorded pass.
        total: the sum (N,).
        magnitude: sum of the absolute values over the cells (N,); the error is relative to it or to the logit.
        terms: sum of the absolute values of all products that were added up (N,). The model may round each of them,
            so that a difference within this rounding is no error.
        dtype: in which the model computed.
    """
    reference = trace.goal.score(promote(trace.logits), trace.target)
    rounding = torch.finfo(dtype).eps
    if trace.x.is_cuda and dtype == torch.float32:
        rounding = torch.finfo(torch.float16).eps  # TF32 has as many bits
    excess = ((total - reference).abs() - rounding * terms).clamp(min=0)
    scale = torch.maximum(reference.abs(), magnitude)
    return excess / scale.masked_fill(scale == 0, 1)
