"""Self-attention run step by step, so that its scores and probabilities can be read and differentiated.

Fused kernels never form the probabilities, and what libraries return beside them is not what the output was made of.
Here attention is computed as softmax(q k^T / sqrt(d)) v while the model runs; the model itself is not touched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xattn.calls import Call, Calls
from xattn.running import in_this_thread

SCORES, PROBABILITIES = "scores", "probabilities"

See = Callable[[str, str, Tensor], Tensor]

_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)
_UNUSUAL = ("bias_k", "bias_v", "key_padding_mask", "static_k", "static_v", "add_zero_attn")


def layer_of(module: str, kind: str) -> str:
    """Name under which `xattn.trace.record` keeps the scores or probabilities of an attention module.

    >>> layer_of("blocks.0.attn", PROBABILITIES)
    'blocks.0.attn:probabilities'
    """
    return f"{module}:{kind}"


def attention_of(layer: str) -> tuple[str, str] | None:
    """The attention module and the kind that a layer's name stands for, or None for an ordinary layer."""
    module, _, kind = layer.rpartition(":")
    return (module, kind) if kind in (SCORES, PROBABILITIES) else None


class AttentionTaps(Calls):
    """While it is entered, attention inside the given modules is run step by step and shown to `see`.

    Softmax over the last axis, `scaled_dot_product_attention` and `nn.MultiheadAttention` are attention; whatever else
    a model may do instead runs as it is and is not seen.

    Args:
        modules: where to look, by name; of nested ones the innermost counts.
        see: called with the name of the module, `"scores"` or `"probabilities"`, and the tensor (N, heads, T, T);
            the model goes on with what it returns.
    """

    def __init__(self, modules: Mapping[str, nn.Module], see: See) -> None:
        super().__init__()
        self.modules = modules
        self.see = see
        self.active = False
        self._inside: list[str] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> AttentionTaps:
        def enter(name: str) -> Callable[..., None]:
            def inside(*_: object) -> None:
                self._inside.append(name)
                self.active = True

            return inside

        def leave(*_: object) -> None:
            self._inside.pop()
            self.active = bool(self._inside)

        for name, module in self.modules.items():
            self._handles.append(module.register_forward_pre_hook(in_this_thread(enter(name))))
            self._handles.append(module.register_forward_hook(in_this_thread(leave)))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._inside.clear()
        self.active = False

    def handle(self, call: Call) -> Any:
        """Attention step by step, all else as it is."""
        run = _RUN.get(call.name)
        return call.run() if run is None else run(self, call)

    def _show(self, kind: str, tensor: Tensor) -> Tensor:
        return self.see(self._inside[-1], kind, tensor)

    def _softmax(self, call: Call) -> Any:
        scores, dim = call.args[0], call.arguments.get("dim")
        if dim not in (-1, scores.ndim - 1):
            return call.run()
        return self._show(PROBABILITIES, call.run(self._show(SCORES, scores)))

    def _fused(self, call: Call) -> Any:
        return call.run() if call.kwargs.get("enable_gqa") else self._scaled_dot_product(*call.args, **call.kwargs)[0]

    def _module(self, call: Call) -> Any:
        plain = _plain_multi_head(call)
        return call.run() if plain is None else self._multi_head(plain)

    def _scaled_dot_product(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # unused: models run in evaluation mode
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attended values (N, heads, T, d), and the probabilities."""
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            masked = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
        probabilities = self._show(PROBABILITIES, self._show(SCORES, scores).softmax(dim=-1))
        return probabilities.to(value.dtype) @ value, probabilities

    def _multi_head(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """What `nn.MultiheadAttention` computes, of tokens (T, N, C); images come first in the calls that it makes."""
        if given["use_separate_proj_weight"]:
            weights = [given[f"{letter}_proj_weight"] for letter in "qkv"]
        else:
            weights = given["in_proj_weight"].chunk(3)
        biases = (None,) * 3 if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
        inputs = (given["query"], given["key"], given["value"])
        query, key, value = (
            F.linear(x.transpose(0, 1), weight, bias).unflatten(2, (given["num_heads"], -1)).transpose(1, 2)
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        )
        mask = given["attn_mask"]
        if mask is not None and mask.ndim == 3:
            mask = mask.unflatten(0, (-1, given["num_heads"]))
        if mask is not None and mask.dtype == torch.bool:
            mask = ~mask  # here True forbids a position
        mixed, probabilities = self._scaled_dot_product(query, key, value, attn_mask=mask)
        out = F.linear(mixed.transpose(1, 2).flatten(2), given["out_proj_weight"], given["out_proj_bias"])
        out = out.transpose(0, 1)
        if not given["need_weights"]:
            return out, None
        return out, probabilities.mean(dim=1) if given["average_attn_weights"] else probabilities


_RUN: dict[str, Callable[[AttentionTaps, Call], Any]] = {
    "softmax": AttentionTaps._softmax,
    "scaled_dot_product_attention": AttentionTaps._fused,
    "multi_head_attention_forward": AttentionTaps._module,
}


class AttentionShapes(TorchFunctionMode):
    """Tells the shapes of the probabilities of attention, which runs as it is.

    Args:
        note: called with the shape (N, heads, T, T).
    """

    def __init__(self, note: Callable[[torch.Size], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Hundreds of other calls come for each one of attention, so they are told apart by no more than their name.
        if getattr(func, "__name__", "") in _SEEN:
            shape = _shape(Call(func, args, kwargs or {}))
            if shape is not None:
                self.note(shape)
        return func(*args, **kwargs) if kwargs else func(*args)


_SEEN = frozenset(("_softmax", *_RUN))


def is_plain_layer(module: nn.Module) -> bool:
    """Whether it is a layer of torch without attention or layers of its own, such as a linear one."""
    own = type(module).__module__.startswith("torch.nn.modules.") and not module._modules
    return own and not isinstance(module, (nn.Softmax, nn.Softmax2d, nn.MultiheadAttention))


def _shape(call: Call) -> torch.Size | None:
    """The shape of the probabilities of a call that is attention; None for others."""
    if call.name == "softmax":
        scores = call.args[0]
        return scores.shape if call.arguments.get("dim") in (-1, scores.ndim - 1) else None
    if call.name == "scaled_dot_product_attention" and not call.kwargs.get("enable_gqa"):
        given = dict(zip(("query", "key"), call.args, strict=False)) | call.kwargs
        return torch.Size((*given["query"].shape[:-1], given["key"].shape[-2]))
    if call.name == "multi_head_attention_forward" and (plain := _plain_multi_head(call)) is not None:
        tokens, images, _ = plain["query"].shape
        return torch.Size((images, plain["num_heads"], tokens, len(plain["key"])))
    return None


def _plain_multi_head(call: Call) -> Mapping[str, Any] | None:
    """The arguments of a call of `nn.MultiheadAttention` on a batch; None where it has keys that are no tokens."""
    given = _MULTI_HEAD.bind(*call.args, **call.kwargs)
    given.apply_defaults()
    unusual = any(given.arguments[name] is not None and given.arguments[name] is not False for name in _UNUSUAL)
    return None if unusual or given.arguments["query"].ndim != 3 else given.arguments
