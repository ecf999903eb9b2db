"""FullGrad: what the input and each bias of a network add to the score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError
from xattn.explainer import Explainer, Family
from xattn.explainers import explainers
from xattn.explainers.intervention import refuse_views
from xattn.functional.resize import normalize, resize
from xattn.running import in_this_thread
from xattn.score import apply_score
from xattn.spec import ModelSpec
from xattn.trace import INPUT, Trace, promote

_AFFINE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def bias_of(module: nn.Module) -> Tensor | None:
    """What an affine layer adds in evaluation mode (C,): its bias, and that of a batch norm with its running mean."""
    if isinstance(module, _AFFINE):
        return module.bias
    if isinstance(module, _NORMS) and module.running_mean is not None and module.running_var is not None:
        scale = (module.running_var + module.eps).rsqrt() * (module.weight if module.affine else 1)
        return (module.bias if module.affine else 0) - module.running_mean * scale
    return None


Visit = Callable[[Tensor], None]


@contextmanager
def _bias_terms(model: nn.Module, visit: Callable[[Tensor, torch.dtype], None]) -> Iterator[None]:
    """While it is entered, a backward pass shows what each bias adds: bias times gradient, and the gradient's dtype."""
    handles = []
    for module in model.modules():
        bias = bias_of(module)
        if bias is None:
            continue
        at = -1 if isinstance(module, nn.Linear) else 1

        def forward(_: nn.Module, __: object, output: Tensor, bias: Tensor = bias, at: int = at) -> None:
            shape = [1] * output.ndim
            shape[at] = -1

            def backward(gradient: Tensor) -> None:
                visit(promote(bias.detach()).view(shape) * promote(gradient), gradient.dtype)

            if output.requires_grad:  # else it is not on the way from the input
                output.register_hook(backward)  # sees the gradient before a later layer changed the output in place

        handles.append(module.register_forward_hook(in_this_thread(forward)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def full_gradient(trace: Trace, visit: Visit) -> Tensor:
    """Split the score over the input and the biases; one forward and one backward pass of its own.

    Args:
        trace: the recorded pass.
        visit: called with bias x gradient of every layer, in the shape of its output and in the order of the backward
            pass, and last with input x gradient (N, C, H, W).

    Returns:
        Relative error (N,) of the sum of all terms, which should be the score where that is linear in the logits, and
        in general its derivative along the logits. Differences within the rounding of the terms are none.
    """
    sums, magnitudes, dtypes = [], [], set()

    def count(term: Tensor, dtype: torch.dtype) -> None:
        sums.append(term.flatten(1).sum(1))
        magnitudes.append(term.flatten(1).abs().sum(1))
        dtypes.add(torch.float16 if term.is_cuda and dtype == torch.float32 else dtype)  # TF32 has as many bits
        visit(term)

    with _bias_terms(trace.model, count):
        again = trace.again(layers=(INPUT,))
        gradient = again.gradient(INPUT)
    count(again.activation(INPUT) * gradient, again.dtype(INPUT))
    with torch.inference_mode(False), torch.enable_grad():
        logits = again.logits.clone().requires_grad_()
        score = apply_score(trace.score_fn, logits, trace.target)
        (slope,) = torch.autograd.grad(score.sum(), logits)
    logits = logits.detach()
    rounding = max(torch.finfo(dtype).eps for dtype in dtypes) * torch.stack(magnitudes).sum(0)
    excess = ((torch.stack(sums).sum(0) - (slope * logits).sum(1)).abs() - rounding).clamp(min=0)
    scale = slope.abs().sum(1) * logits.abs().amax(1)
    return excess / scale.masked_fill(scale == 0, 1)


@explainers.register("fullgrad", "full-gradient")
@dataclass(frozen=True)
class FullGrad(Explainer):
    """FullGrad: input and biases, each times its gradient, of all layers (Srinivas, Fleuret 2019, arXiv:1905.00780).

    Absolute values are scaled to [0, 1] over each layer (as in the released code, less its epsilon), summed over the
    channels, upsampled bilinearly and added up. Biases are those of convolutions and of batch norms with their
    running mean; those of linear layers have no place on the image. It proves itself: before absolute values are taken,
    all terms add up to the score. A network for which they do not, one with other activations than ReLU or with
    attention, is refused.
    """

    family: ClassVar[Family] = Family.GRADIENT
    passes: ClassVar[str] = "1 forward, 1 backward"
    serves: ClassVar[str] = "ReLU networks without attention"

    def check(self, spec: ModelSpec) -> None:
        if spec.attention is not None or spec.tokens is not None:
            raise NotApplicableError(
                "fullgrad: the score of a model with attention is not linear in its input and biases, "
                "so they do not add up to it; use input-x-gradient."
            )

    def attribute(self, trace: Trace) -> Tensor:
        refuse_views(trace, self.name)
        maps = torch.zeros_like(trace.x[:, :1])

        def add(term: Tensor) -> None:
            if term.ndim == 4:
                if len(term) != len(maps):
                    raise NotApplicableError(
                        f"fullgrad: layers of {type(trace.model).__name__} run on {len(term)} images for {len(maps)} "
                        "that are explained, as those of a finer copy by shifts do; use input-x-gradient."
                    )
                maps.add_(
                    resize(normalize(term.abs(), nan=torch.nan).sum(1, keepdim=True), trace.input_size, "bilinear")
                )

        error = full_gradient(trace, add)
        if bool((error > self.tolerance).any()):  # a NaN is the status of that image, not a fault of the model
            raise NotApplicableError(
                f"fullgrad: input and biases miss the score of {type(trace.model).__name__} by "
                f"{float(error.nan_to_num().max()):.0%}: it has activations other than ReLU, or biases in other layers "
                "than convolutions, batch norms and linear layers. Use input-x-gradient."
            )
        return maps
