"""Running a model on probes: what each module gave, in which order, and what the class scores are made of."""

from __future__ import annotations

import functools
import re
import threading
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xattn.attention_taps import AttentionShapes, is_plain_layer
from xattn.inputs import Inputs, Views, feed
from xattn.outputs import Choice, Made, Which, choose, rows, take
from xattn.running import evaluating
from xattn.taps import Recording, first_tensor, put_back

# What only passes on what it was given: no layer to read by its own name.
PASSING = (nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.Identity, nn.Flatten)
_HANDING_ON = (nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.Identity)
_POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_FEW = 2**12  # integers that a lean pass always keeps
_LARGE = 2**14  # values of an output that a lean pass does not keep
_LAST_SAVED = 2**22  # values for gradients that a lean pass over tokens keeps, the last ones: what is behind the blocks


@dataclass(eq=False)
class Call:
    """One call of a submodule, in the order in which the calls ended.

    Args:
        name: of the module.
        index: number of the call of this module in the pass, from zero.
        module: the module itself.
        output: what it gave, or the first tensor of that.
        plain: the output is a tensor and not one of several, so that all that follows reads it.
        node: of autograd, that made the output; None without a graph.
        started: when the call started, by a clock that counts calls.
        ended: when it ended.
    """

    name: str
    index: int
    module: nn.Module
    output: Tensor
    plain: bool
    node: Any
    started: int
    ended: int

    @property
    def passes_on(self) -> bool:
        """Whether the module makes no map of its own: dropout, identity, and pooling to a size of its choice."""
        kind = type(self.module).__name__
        return isinstance(self.module, (*PASSING, *_POOLING)) or "Adaptive" in kind or "GlobalPool" in kind

    @functools.cached_property
    def may_be_a_map(self) -> bool:
        """Whether its output, for one image, has more than one place."""
        shape = self.output.shape
        if len(shape) not in (3, 4) or shape[0] != 1:
            return False
        return self.output.numel() > max(shape[1:]) and self.output.is_floating_point() and not self.passes_on


@dataclass
class Probe:
    """What one pass over probes showed.

    Args:
        x: the probes (B, C, H, W).
        choice: the output that is explained.
        calls: of all submodules.
        attention: where attention ran, by the innermost module, and the shape of its probabilities.
        raw: the tensor that was chosen, with its graph if there is one.
        inputs: the other inputs of the model.
        uncut: the graph leads through the model's own `no_grad`, `inference_mode` and `detach()`.
        lean: large outputs were not kept, nor what gradients need, but for the last layers of a network of tokens.
    """

    x: Tensor
    choice: Choice
    raw: Tensor
    calls: list[Call] = field(default_factory=list)
    attention: list[tuple[str, torch.Size]] = field(default_factory=list)
    inputs: Inputs | None = None
    uncut: bool = False
    lean: bool = False

    @property
    def values(self) -> Tensor:
        """The class scores (B, K)."""
        return self.choice.values

    @functools.cached_property
    def reaches_input(self) -> bool | None:
        """Whether a gradient comes from the class scores back to the input; None where a lean pass cannot tell."""
        leaf, foreign = None, False
        visited = set()
        waiting: list[Any] = [self.raw.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            foreign = foreign or type(node).__name__ == "CppFunction"
            variable = getattr(node, "variable", None)
            if variable is not None and not isinstance(variable, nn.Parameter):
                leaf = variable
            waiting.extend(following for following, _ in node.next_functions)
        if leaf is None or not foreign:
            return leaf is not None
        if self.lean:
            return None
        # Operations from elsewhere, such as quantized ones, may stand in the graph and have no derivative.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.autograd.grad(self.raw.sum(), leaf, retain_graph=True, allow_unused=True)[0] is not None

    def runs(self, name: str) -> int:
        """How often a module ran."""
        return sum(call.name == name for call in self.calls)

    def call(self, name: str, index: int = -1) -> Call | None:
        """A call of a module, the last one unless another is asked for; None if it did not run."""
        own = [call for call in self.calls if call.name == name]
        return own[index] if own and -len(own) <= index < len(own) else None


@dataclass(frozen=True)
class Swap:
    """The call whose outputs are given to the other image of two, to see what of the scores goes with them.

    Args:
        name: of the module.
        index: of the call.
    """

    name: str
    index: int


def run(
    model: nn.Module, x: Tensor, *, which: Which = None, graph: bool = False, attention: bool = False,
    swap: Swap | None = None, uncut: bool = False, inputs: Inputs | None = None, lean: bool = False,
    only: Collection[str] | None = None, named: str | None = None,
) -> Probe:  # fmt: skip
    """Run the model once and record what every submodule gives.

    Args:
        model: in evaluation mode while it runs; it leaves as it came.
        x: probes (B, C, H, W), at the model's dtype and device.
        which: the output to explain; None finds it.
        graph: keep autograd's graph from the input on.
        attention: look where attention runs.
        swap: exchange the outputs of a call between the images.
        uncut: keep the graph through the model's own `no_grad`, `inference_mode` and `detach()` too.
        inputs: the other inputs of the model, of one image.
        lean: keep no large outputs, and of the graph its shape alone, with what gradients back to the last layers need
            where tokens are mixed: keeping all costs a third of a pass.
        only: names of the modules to record; None is all.
        named: the layer that a person named; without one a lean pass leaves out what hands on inside of blocks.
    """
    calls: list[Call] = []
    seen: list[tuple[str, torch.Size]] = []
    inside: list[str] = []
    starts: dict[str, list[tuple[int, int]]] = {}
    counts: dict[str, int] = {}
    clock = 0
    recording = Recording(uncut)
    handles = []
    views = inputs if isinstance(inputs, Views) else None
    own_thread = threading.get_ident()

    def before(name: str) -> Callable[..., None]:
        own = starts.setdefault(name, [])

        def hook(module: nn.Module, inputs: Any) -> None:
            nonlocal clock
            if threading.get_ident() != own_thread:
                return
            clock += 1
            if uncut:
                recording.restart()
            own.append((clock, len(inside)))
            inside.append(name)

        return hook

    def after(name: str) -> Callable[..., Any]:
        # It runs behind each of hundreds of small layers, where each line counts.
        def hook(module: nn.Module, given_to: Any, output: Any) -> Any:
            if threading.get_ident() != own_thread:
                return None
            with torch._C.DisableTorchFunction():  # what looks for attention need not see these lines
                return seen_after(module, output)

        def seen_after(module: nn.Module, output: Any) -> Any:
            nonlocal clock
            clock += 1
            started = clock
            if starts.get(name):
                started, depth = starts[name].pop()
                del inside[depth:]
            plain = isinstance(output, Tensor)
            tensor = output if plain else first_tensor(output)
            if tensor is None:
                return None
            tensor = tensor.clone() if tensor.is_inference() else tensor
            index = counts.get(name, 0)
            counts[name] = index + 1
            kept = not lean or tensor.numel() <= _LARGE or _may_classify(module)
            given = tensor.detach() if kept else _stand_in(tensor.shape, tensor.dtype)
            given = given if inputs is None else inputs.laid(given, len(x))
            calls.append(Call(name, index, module, given, plain, tensor.grad_fn, started, clock))
            if swap is not None and (name, index) == (swap.name, swap.index):
                if views is not None and len(tensor) == len(x) * views.count:
                    tensor = tensor.unflatten(0, (len(x), views.count)).flip(0).flatten(0, 1)
                else:
                    tensor = tensor.flip(0)
                return put_back(output, tensor)
            return None

        return hook

    def note(shape: torch.Size) -> None:
        if inside:
            seen.append((inside[-1], shape))

    # TorchScript takes no hooks.
    modules = {n: m for n, m in model.named_modules() if n and not isinstance(m, torch.jit.ScriptModule)}
    tokens = mixes_tokens(modules.values())
    saved = _LastSaved(_LAST_SAVED if tokens else 0) if lean else nullcontext()
    wanted = modules.items() if only is None else ((n, m) for n, m in modules.items() if n in only)
    try:
        for name, module in wanted:
            if lean and named is None and _only_hands_on(name, module):
                continue
            if uncut or not is_plain_layer(module):  # nothing starts inside of the others
                handles.append(module.register_forward_pre_hook(before(name)))
            handles.append(module.register_forward_hook(after(name)))
        taps = AttentionShapes(note) if attention and tokens else nullcontext()
        with evaluating(model), torch.inference_mode(False), torch.set_grad_enabled(graph), recording, saved, taps:
            own = x.clone() if x.is_inference() else x.detach()
            output = feed(model, own.requires_grad_() if graph else x, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if which is None:
        choice = choose(output, len(x), _made(calls))
    else:
        explained = take(output, which)
        values = rows(explained, len(x))
        path = which if isinstance(which, tuple) else () if callable(which) else (which,)
        choice = Choice(path, explained.flatten(1) if values is None else values, "it was named")
    raw = choice.values
    choice = Choice(choice.path, raw.detach(), choice.why, choice.others)
    return Probe(x, choice, raw, calls, seen, inputs, uncut, lean)


@functools.lru_cache(maxsize=256)
def _stand_in(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A tensor without values; one for all outputs of a shape, since small ones between large ones split the memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _only_hands_on(name: str, module: nn.Module) -> bool:
    """Whether it is one of the many layers inside of numbered blocks that give what they are given in evaluation."""
    return type(module) in _HANDING_ON and re.search(r"\.\d+\.", name) is not None


def _may_classify(module: nn.Module) -> bool:
    """Whether it may give class scores for each place, whose values are looked at."""
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.bias is not None


class DroppedError(Exception):
    """A gradient needs what a lean pass did not keep."""


class _LastSaved(torch.autograd.graph.saved_tensors_hooks):
    """While it is entered, of the tensors that autograd saves only the last ones are kept: memory costs most of a pass.

    Args:
        most: values of all that are kept, without short lists of integers.
    """

    def __init__(self, most: int) -> None:
        cells: deque[list[Any]] = deque()
        held = 0

        def save(tensor: Tensor) -> list[Any]:
            nonlocal held
            # With hooks autograd does not notice what is changed in place later on.
            cell = [tensor, tensor._version]
            if tensor.numel() <= _FEW and not tensor.is_floating_point():  # which rows or tokens are taken
                return cell
            if not most:
                return []
            cells.append(cell)
            held += tensor.numel()
            while held > most and cells:
                first = cells.popleft()
                held -= first[0].numel()
                first.clear()
            return cell

        def give(cell: list[Any]) -> Tensor:
            if not cell or cell[0]._version != cell[1]:
                raise DroppedError
            return cell[0]

        super().__init__(save, give)


def _made(calls: list[Call]) -> Callable[[Tensor], Made]:
    """What an output was made of, and when: at the end of the call that gave it, or after all of them."""

    def made(tensor: Tensor) -> Made:
        own = [c.ended for c in calls if c.output.data_ptr() == tensor.data_ptr() and c.output.shape == tensor.shape]
        behind = _behind(tensor.grad_fn)
        of = {(c.name, c.index) for c in calls if c.node in behind and any(True for _ in c.module.parameters(False))}
        return Made(frozenset(of), min(own) if own else float("inf"))

    return made


def _behind(root: Any) -> set[Any]:
    """All nodes of autograd's graph from one back to the input."""
    visited, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in visited:
            visited.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    return visited


def mixes_tokens(modules: Iterable[nn.Module]) -> bool:
    """Whether there may be self-attention to look for: convolutional networks are spared the search."""
    return any(isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention)) for module in modules)


def frontier(root: Any, stops: dict[Any, Call]) -> tuple[list[Call], bool]:
    """The calls through which all paths of autograd's graph from `root` to the input go.

    Args:
        root: node of the class scores.
        stops: calls by the node that made their output; no path is followed beyond one.

    Returns:
        The calls that were met, and whether a path reached the input without meeting one.
    """
    met: dict[int, Call] = {}
    around = False
    visited = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if (call := stops.get(node)) is not None:
            met[id(call)] = call
            continue
        variable = getattr(node, "variable", None)
        if variable is not None and not isinstance(variable, nn.Parameter):
            around = True
        waiting.extend(following for following, _ in node.next_functions)
    return sorted(met.values(), key=lambda call: call.ended), around


def leads_to(node: Any, other: Any) -> bool:
    """Whether autograd's graph leads from one node back to another."""
    visited = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current is other:
            return True
        if current is not None and current not in visited:
            visited.add(current)
            waiting.extend(following for following, _ in current.next_functions)
    return False


# Nodes of autograd behind which the values are still those of the node before: shapes, copies, choices.
_SHAPING = ("View", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "Clone", "Alias", "ToCopy", "Transpose")
_LAST = {
    "Softmax": "probabilities",
    "Sigmoid": "probabilities",
    "LogSoftmax": "log-probabilities",
    "LogSigmoid": "log-probabilities",
}


def last_operation(node: Any) -> str | None:
    """What the last operation makes of the class scores: probabilities or log-probabilities; None for others."""
    while node is not None:
        name = type(node).__name__.removesuffix("0").removesuffix("Backward").lstrip("_").removeprefix("Unsafe")
        if name in _LAST:
            return _LAST[name]
        if not name.startswith(_SHAPING) or not node.next_functions:
            return None
        node = node.next_functions[0][0]
    return None
