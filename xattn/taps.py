"""Hooks that keep the outputs of named layers for the length of one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from xattn.attention_taps import AttentionTaps, attention_of, layer_of
from xattn.calls import Call, Calls
from xattn.errors import NotApplicableError, unknown
from xattn.running import in_this_thread, opaque

INPUT = ""
"""Name of the input itself among the layers."""


def split_call(layer: str, modules: Mapping[str, object]) -> tuple[str, int | None]:
    """Module and number of the call in the name of a layer.

    >>> split_call("pool[1]", {"pool": ...}), split_call("layer4", {"layer4": ...})
    (('pool', 1), ('layer4', None))
    """
    head, bracket, rest = layer.rpartition("[")
    if bracket and layer not in modules and rest.endswith("]") and rest[:-1].isdecimal():
        return head, int(rest[:-1])
    return layer, None


def first_tensor(output: Any) -> Tensor | None:
    """The output of a layer itself, or the first tensor of a tuple, list or mapping of outputs."""
    if isinstance(output, Tensor):
        return output
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((item for item in items if isinstance(item, Tensor)), None)


def put_back(output: Any, tensor: Tensor) -> Any:
    """An output with its first tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, Mapping):
        key = next(k for k, v in output.items() if isinstance(v, Tensor))
        changed = {**output, key: tensor}
        return changed if type(output) is dict else type(output)(**changed)
    place = next(i for i, item in enumerate(output) if isinstance(item, Tensor))
    parts = [*output[:place], tensor, *output[place + 1 :]]
    return output._make(parts) if hasattr(output, "_make") else type(output)(parts)


class Uncut(Calls):
    """While it is entered, `no_grad` and `detach()` inside a model do nothing.

    For a model that cuts the way from a layer to the scores: its function has a derivative there all the same.
    """

    def handle(self, call: Call) -> Any:
        """Nothing is cut, all else as it is."""
        if call.name == "set_grad_enabled":
            return None
        if call.name == "detach" and call.args and call.args[0].requires_grad:
            return call.args[0].view_as(call.args[0])
        if call.name in ("numpy", "array"):
            return call.run(call.args[0].detach())
        return call.run()


class Recording:
    """Whether autograd records, as long as a model runs, whatever the model itself enters and leaves.

    Args:
        uncut: record through the `no_grad`, `inference_mode` and `detach()` of the model.
    """

    def __init__(self, uncut: bool = False) -> None:
        self.uncut = uncut
        self._entered = ExitStack()

    def __enter__(self) -> Recording:
        # What is entered while the model runs is left before these are, so that nothing of it stays.
        recording = torch.is_grad_enabled()
        self._entered.enter_context(torch.inference_mode(torch.is_inference_mode_enabled()))  # switches recording on
        self._entered.enter_context(torch.set_grad_enabled(recording))
        if self.uncut:
            self._entered.enter_context(Uncut())
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)

    def restart(self) -> None:
        """Let autograd record from here on."""
        if torch.is_inference_mode_enabled():
            self._entered.enter_context(torch.inference_mode(False))
        torch.set_grad_enabled(True)


class Taps:
    """Keeps the outputs of named layers of one pass, and the scores and probabilities of named attention modules.

    Args:
        model: the module whose layers are named.
        layers: their names; `pool[1]` is the second call of a layer that runs more than once.
        grad: let autograd record what follows the first of them.
        uncut: let it record through the model's own `no_grad`, `inference_mode` and `detach()` too.

    Attributes:
        kept: the outputs by layer.
        calls: how often the module of a layer ran.

    Raises:
        UnknownNameError: for a layer that does not exist.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], grad: bool, uncut: bool = False) -> None:
        self.model = model
        self.grad = grad
        self.kept: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}
        self._layers = frozenset(layers)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._recording = Recording(uncut)
        modules = dict(model.named_modules())
        plain: dict[str, dict[int | None, str]] = {}
        inside: dict[str, nn.Module] = {}
        for layer in layers:
            attention = attention_of(layer)
            name, call = split_call(layer, modules) if attention is None else (attention[0], None)
            if reason := opaque(modules.get(name, model)):
                raise NotApplicableError(f"{type(model).__name__}: layer '{name}' cannot be read: it {reason}.")
            if name not in modules:
                raise unknown(f"layer of {type(model).__name__}", name, [n for n in modules if n])
            if attention is None:
                plain.setdefault(name, {})[call] = layer
            else:
                inside[name] = modules[name]
        self.attention = AttentionTaps(inside, self._see) if inside else nullcontext()
        try:
            if uncut:
                for module in modules.values():
                    if isinstance(module, torch.jit.ScriptModule):
                        continue
                    hook = in_this_thread(lambda *_: self._recording.restart())
                    self._handles.append(module.register_forward_pre_hook(hook))
            for name, calls in plain.items():
                self._handles.append(modules[name].register_forward_hook(in_this_thread(self._hook(name, calls))))
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> Taps:
        self._recording.__enter__()
        self.attention.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self.attention.__exit__(*error)
        finally:
            self._recording.__exit__(*error)

    def _keep(self, layer: str, tensor: Tensor) -> Tensor:
        """Keep a tensor; the model goes on with what is returned."""
        if layer in self.kept:
            raise NotApplicableError(
                f"{type(self.model).__name__}: layer '{layer}' runs more than once in a pass, so its output is "
                f"ambiguous; name the call, as in '{layer}[1]' for the second, or choose another layer."
            )
        if self.grad:
            # Nothing before the first tapped layer needs a graph; everything after it does.
            self._recording.restart()
            if tensor.is_inference():
                tensor = tensor.clone()
            if not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_()
        self.kept[layer] = tensor
        return tensor.clone()  # a later in-place layer must not change what is kept

    def _see(self, module: str, kind: str, tensor: Tensor) -> Tensor:
        layer = layer_of(module, kind)
        return self._keep(layer, tensor) if layer in self._layers else tensor

    def _hook(self, name: str, calls: Mapping[int | None, str]) -> Callable[..., Any]:
        """A hook that keeps the named calls of a layer; None stands for the only one."""
        count = 0

        def keep(module: nn.Module, inputs: object, output: object) -> object:
            nonlocal count
            wanted = [layer for call, layer in calls.items() if call is None or call == count]
            count += 1
            self.calls.update(dict.fromkeys(calls.values(), count))
            for layer in wanted:
                tensor = first_tensor(output)
                if tensor is None or not tensor.is_floating_point():
                    raise NotApplicableError(
                        f"{type(self.model).__name__}: layer '{name}' gives {type(output).__name__}, not a feature map."
                    )
                output = put_back(output, self._keep(layer, tensor))
            return output

        return keep

    def remove(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()
