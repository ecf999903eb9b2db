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

SCORES, PROBABILITIES = "scores", "probabilities"

See = Callable[[str, str, Tensor], Tensor]

_SOFTMAX = frozenset({F.softmax, torch.softmax, Tensor.softmax})
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


class AttentionTaps(TorchFunctionMode):
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
        self._inside: list[str] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> AttentionTaps:
        def enter(name: str) -> Callable[..., None]:
            return lambda *_: self._inside.append(name)

        def leave(*_: object) -> None:
            self._inside.pop()

        for name, module in self.modules.items():
            self._handles.append(module.register_forward_pre_hook(enter(name)))
            self._handles.append(module.register_forward_hook(leave))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._inside.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._inside:
            return func(*args, **kwargs)
        if func in _SOFTMAX:
            return self._softmax(func, *args, **kwargs)
        if func is F.scaled_dot_product_attention and not kwargs.get("enable_gqa"):
            return self._scaled_dot_product(*args, **kwargs)[0]
        if func is F.multi_head_attention_forward:
            given = _MULTI_HEAD.bind(*args, **kwargs)
            given.apply_defaults()
            if given.arguments["query"].ndim == 3 and not any(
                given.arguments[name] is not None and given.arguments[name] is not False for name in _UNUSUAL
            ):
                return self._multi_head(given.arguments)
        return func(*args, **kwargs)

    def _show(self, kind: str, tensor: Tensor) -> Tensor:
        return self.see(self._inside[-1], kind, tensor)

    def _softmax(self, func: Callable[..., Tensor], scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dim = kwargs.get("dim", args[0] if args else None)
        if dim not in (-1, scores.ndim - 1):
            return func(scores, *args, **kwargs)
        return self._show(PROBABILITIES, func(self._show(SCORES, scores), *args, **kwargs))

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
        """What `nn.MultiheadAttention` computes, of tokens (T, N, C)."""
        if given["use_separate_proj_weight"]:
            weights = [given[f"{letter}_proj_weight"] for letter in "qkv"]
        else:
            weights = given["in_proj_weight"].chunk(3)
        biases = (None,) * 3 if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
        inputs = (given["query"], given["key"], given["value"])
        query, key, value = (
            F.linear(x, weight, bias).unflatten(2, (given["num_heads"], -1)).permute(1, 2, 0, 3)
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        )
        mask = given["attn_mask"]
        if mask is not None and mask.ndim == 3:
            mask = mask.unflatten(0, (-1, given["num_heads"]))
        if mask is not None and mask.dtype == torch.bool:
            mask = ~mask  # here True forbids a position
        mixed, probabilities = self._scaled_dot_product(query, key, value, attn_mask=mask)
        out = F.linear(mixed.permute(2, 0, 1, 3).flatten(2), given["out_proj_weight"], given["out_proj_bias"])
        if not given["need_weights"]:
            return out, None
        return out, probabilities.mean(dim=1) if given["average_attn_weights"] else probabilities
