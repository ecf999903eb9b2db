"""A cheaper copy of a network for scoring many images: folded batch norms, `channels_last`, half precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xattn.running import copied, evaluating, in_this_thread, unwrap
from xattn.spec import ModelSpec
from xattn.targets import logits_of
from xattn.trace import place_of


def fast_copy(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """A copy that gives nearly the same logits in half the time or less; the model itself stays as it is.

    Batch norms are folded into the convolutions before them, weights are laid out channels last, and all but the
    classifier computes in bfloat16 where the processor does that fast; the classifier stays in float32, so that
    logits are not rounded to eight bits.

    Args:
        model: any classifier.
        spec: facts about it: the size of an image, and which layer is the classifier.

    Returns:
        A module from images to logits (N, K) that needs no gradient.
    """
    lean = _folded(unwrap(model), spec)
    lean = lean.to(memory_format=torch.channels_last)
    device, dtype = place_of(lean)
    if dtype == torch.float32 and _computes_bfloat16(device):
        lean = lean.bfloat16()
        last = dict(lean.named_modules()).get(spec.classifier or "")
        if isinstance(last, (nn.Linear, nn.Conv2d)):
            last.float()
            last.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
    return lean


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is an instruction of the device; emulated it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # torch has no public question
    return device.type == "cpu" and known is not None and bool(known())


@dataclass
class _Norm:
    """A batch norm and the tensor that it was given in the probe."""

    name: str
    module: nn.BatchNorm2d
    given: Tensor


def _folded(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """A copy whose batch norms are part of the convolutions that they follow; unfolded if that changes the logits.

    Which convolution a norm follows is seen on a pass, so that it does not matter how the network is written.
    """
    device, dtype = place_of(model)
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    noise = torch.rand(2, channels, *spec.input_size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    folded = _frozen(model)
    made: list[tuple[nn.Conv2d, Tensor]] = []
    norms: list[_Norm] = []
    handles = []
    for name, module in folded.named_modules():
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(in_this_thread(lambda m, _, output: made.append((m, output)))))
        elif type(module) is nn.BatchNorm2d and module.running_mean is not None:

            def seen(m: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                norms.append(_Norm(name, m, inputs[0]))  # type: ignore[arg-type]

            handles.append(module.register_forward_pre_hook(in_this_thread(seen)))
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        expected = logits_of(model(noise), model, len(noise))
        try:
            folded(noise)
        finally:
            for handle in handles:
                handle.remove()
        convolutions = [id(m) for m, _ in made]
        for norm in norms:
            source = next((m for m, output in made if output is norm.given), None)
            once = sum(n.module is norm.module for n in norms) == 1
            if source is not None and once and convolutions.count(id(source)) == 1:
                _fold(folded, source, norm)
        error = (logits_of(folded(noise), folded, len(noise)) - expected).abs().max()
    return folded if float(error) <= 1e-3 * float(expected.abs().max()) else _frozen(model)


def _frozen(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that asks for no gradient."""
    return copied(model).eval().requires_grad_(False)


def _fold(model: nn.Module, source: nn.Conv2d, norm: _Norm) -> None:
    """Fold: gamma (W x + b - mean) / sqrt(var + eps) + beta as one convolution."""
    module = norm.module
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        return
    scale = (variance.double() + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight.double()
    bias = torch.zeros_like(scale) if source.bias is None else source.bias.double()
    bias = (bias - mean.double()) * scale
    if module.bias is not None:
        bias = bias + module.bias.double()
    weight = source.weight
    source.weight = nn.Parameter((weight.double() * scale[:, None, None, None]).to(weight.dtype), requires_grad=False)
    source.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
    model.set_submodule(norm.name, nn.Identity())
