"""A classifier taken apart at its pooling, by its own forward traced: trunk, what lies between, linear classifier."""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from xattn.errors import NotApplicableError, reason_of
from xattn.outputs import take
from xattn.running import evaluating
from xattn.spec import ModelSpec

_SAME = 1e-4  # relative difference of values that are equal up to rounding
_DEEPEST = 6  # layers inside of each other that are opened to find the pooling
_READINGS = {1: (2, 3), 3: (1, 2)}  # the dimension of the channels of a map, and those of its cells


@dataclass(frozen=True, eq=False)
class Split:
    """A classifier that pools by the mean and classifies linearly, in its parts, which are those of the model.

    Args:
        trunk: from images (N, C, H, W) to the features (N, C, h, w) that are pooled, or classified cell by cell; also
            where the model has their channels last.
        neck: from pooled features to what the classifier reads (N, C'); None where that is the same.
        flat: the neck reads (N, C) and not (N, C, 1, 1).
        classifier: the linear layer or 1x1 convolution.
        cells: the classifier comes before the pooling.
        rectified: a ReLU comes between the two then.
    """

    trunk: nn.Module
    neck: nn.Module | None
    flat: bool
    classifier: nn.Linear | nn.Conv2d
    cells: bool = False
    rectified: bool = False


def split(model: nn.Module, spec: ModelSpec, x: Tensor) -> Split:
    """Take a classifier apart at its global average pooling.

    The forward of the model, and of the layers that hold the pooling or the classifier, is traced by `torch.fx`; all
    other layers stay what they are. What each part does is checked on images.

    Args:
        model: stays as it is; its layers are shared with the result.
        spec: facts about it; `classifier` and `output` are read.
        x: images (N, C, H, W).

    Raises:
        NotApplicableError: where it is not built that way, saying what stands in the way.
    """
    kind = type(model).__name__
    name = spec.classifier
    if name is None:
        with evaluating(model), torch.no_grad():
            return _Joined(model, spec, x).split()
    classifier = model.get_submodule(name)
    if not isinstance(classifier, (nn.Linear, nn.Conv2d)):
        raise NotApplicableError(f"{kind} cannot be converted: '{name}' is {type(classifier).__name__}, not linear.")
    with evaluating(model), torch.no_grad():
        return _Splitter(model, spec, x, name, classifier).split()


class _Values(fx.Interpreter):
    """Runs a graph and keeps what each node gave, as it was before anything worked in place."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.kept: dict[fx.Node, Any] = {}
        self.altered: list[tuple[fx.Node, fx.Node, bool]] = []

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """Arguments of a call, with lists of their own: layers may write into them, as those of HRNet do."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return tuple(_own(a) for a in args), {key: _own(a) for key, a in kwargs.items()}

    def run_node(self, n: fx.Node) -> Any:
        given = {m: self.env[m] for m in n.all_input_nodes if isinstance(self.env[m], Tensor)}
        versions = {m: _version(tensor) for m, tensor in given.items()}
        value = super().run_node(n)
        self.altered += [(n, m, value is t) for m, t in given.items() if _version(t) != versions[m]]
        self.kept[n] = value.clone() if isinstance(value, Tensor) else value
        return value


class _Tracer(fx.Tracer):
    """Looks into some layers and takes all others as they are."""

    def __init__(self, opened: set[str]) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened


class _Traced:
    """A model whose forward is a graph, with what each node of it gives."""

    def __init__(self, model: nn.Module, spec: ModelSpec, x: Tensor) -> None:
        self.model, self.spec, self.x = model, spec, x
        self.kind = type(model).__name__
        self.known = 3 if spec.tokens is not None and spec.tokens.channels_last else 1
        self.opened: set[str] = set()

    def refuse(self, why: str) -> NotApplicableError:
        return NotApplicableError(f"{self.kind} cannot be converted: {why}.")

    def _trace(self) -> None:
        _, *others = inspect.signature(self.model.forward).parameters.values()
        fixed = {p.name: p.default for p in others if p.default is not p.empty}
        try:
            tracer = _Tracer(self.opened)
            self.graph = tracer.trace(self.model, concrete_args=fixed or None)
            self.module = fx.GraphModule(self.model, self.graph)
            run = _Values(self.module)
            output = run.run(self.x)
        except Exception as error:  # whatever a foreign forward raises when it meets a symbol
            reason = f"{type(error).__name__}: {reason_of(error)[:160]}"
            raise self.refuse(f"its forward cannot be followed ({reason})") from None
        self.values = run.kept
        self.logits = take(output, self.spec.output or None)
        self.moving: set[fx.Node] = set()  # what depends on the images
        for node in self.graph.nodes:
            if node.op == "placeholder" or any(n in self.moving for n in node.all_input_nodes):
                self.moving.add(node)
        self._follow(run.altered)

    def _follow(self, altered: list[tuple[fx.Node, fx.Node, bool]]) -> None:
        """Let calls read what was altered in place from the call that did it, where they come after it.

        Else a call whose result is not taken, such as `self.relu(x)` in place, would get lost.
        """
        place = {node: i for i, node in enumerate(self.graph.nodes)}
        for node, changed, itself in altered:
            later = [user for user in changed.users if place[user] > place[node]]
            if later and not itself:
                raise self.refuse(f"{node.name} alters in place what is read again later")
            for user in later:
                user.replace_input_with(changed, node)

    def _channels(self, pooled: fx.Node, features: fx.Node) -> int | None:
        """Which dimension of a map is its channels, 1 or 3, if a value is its mean over the others; None if it is not.

        For the images, and for any other maps where what lies between can be run alone.
        """
        value, maps = self.values[pooled], self.values[features]
        if not isinstance(value, Tensor) or value.ndim not in (2, 4):
            return None
        found = [c for c, cells in _READINGS.items() if _equal(value.flatten(1), maps.mean(cells))]
        part = self._alone(features, pooled, "Pool") if found else None
        if part is not None:
            found = [c for c in found if _alike(part, maps, partial(torch.mean, dim=_READINGS[c]))]
        # Of a map that is the same whichever way it is read, what is known of the layer decides.
        return next((c for c in found if c == self.known), found[0] if found else None)

    def _alone(self, first: fx.Node, last: fx.Node, name: str) -> fx.GraphModule | None:
        """What lies between two nodes, as a module; None where it reads something else, too."""
        try:
            return self._part(self._between(first, last), first, last, name)
        except NotApplicableError:
            return None

    def _between(self, first: fx.Node, last: fx.Node) -> list[fx.Node]:
        """The calls behind a node that a later one is made of, in their order."""
        needed, todo = set(), [last]
        while todo:
            node = todo.pop()
            if node not in needed and node is not first and not self._counts(node):
                needed.add(node)
                todo += node.all_input_nodes
        return [n for n in self.graph.nodes if n in needed and n.op not in ("get_attr", "placeholder")]

    def _counts(self, node: fx.Node) -> bool:
        """Whether a node asks a tensor for the number of images, as `x.size(0)` and `x.shape[0]` do."""
        count = self.values.get(node)
        if not isinstance(count, int) or count != len(self.x) or node not in self.moving:
            return False
        if node.op == "call_method" and node.target == "size":
            return (*node.args[1:], *node.kwargs.values()) == (0,)
        if node.target is not operator.getitem or node.args[1] != 0:
            return False
        shape: Any = node.args[0]
        return shape.target == "size" or (shape.target is getattr and shape.args[1] == "shape")

    def _cells(self, features: fx.Node, channels: int) -> tuple[int, ...]:
        """Height and width of a map."""
        return tuple(self.values[features].shape[cell] for cell in _READINGS[channels])

    def _whole(self, pooled: fx.Node, features: fx.Node, channels: int) -> tuple[fx.Node, int]:
        """The map of rows and columns, where one of the two was pooled ahead of the other."""
        before = [n for n in features.all_input_nodes if _is_map(self.values.get(n))]
        if min(self._cells(features, channels)) > 1 or len(before) != 1:
            return features, channels
        found = self._channels(pooled, before[0])
        if found is None or math.prod(self._cells(before[0], found)) <= math.prod(self._cells(features, channels)):
            return features, channels
        return self._whole(pooled, before[0], found)

    def _trunk(self, features: fx.Node, channels: int) -> nn.Module:
        """The model up to its features (N, C, h, w), as a layer."""
        images = next(n for n in self.graph.nodes if n.op == "placeholder")
        trunk = self._part(self._between(images, features), images, features, "Trunk")
        if not torch.equal(trunk(self.x), self.values[features]):
            raise self.refuse("its layers up to the pooling alone do not give its features")
        return _turned(trunk, after=(0, 3, 1, 2)) if channels == 3 else trunk

    def _part(self, nodes: list[fx.Node], first: fx.Node, last: fx.Node, name: str) -> fx.GraphModule:
        """Some nodes as a module of one input."""
        graph = fx.Graph()
        copied: dict[fx.Node, Any] = {first: graph.placeholder("x")}
        for node in nodes:
            for n in node.all_input_nodes:
                if n in copied:
                    continue
                if n.op == "get_attr":
                    copied[n] = graph.node_copy(n)
                elif self._counts(n):
                    copied[n] = graph.call_method("size", (copied[first], 0))
                else:
                    raise self.refuse(f"{n.name} leads around its pooling")
            copied[node] = graph.node_copy(node, lambda n: copied[n])
        graph.output(copied[last])
        return fx.GraphModule(self.model, graph, class_name=name)


class _Splitter(_Traced):
    """By the one layer that gives the class scores."""

    def __init__(
        self, model: nn.Module, spec: ModelSpec, x: Tensor, name: str, classifier: nn.Linear | nn.Conv2d
    ) -> None:
        super().__init__(model, spec, x)
        self.name, self.classifier = name, classifier
        parts = name.split(".")
        self.opened = {".".join(parts[:depth]) for depth in range(1, len(parts))}

    def split(self) -> Split:
        for _ in range(_DEEPEST):
            self._trace()
            last = self._node()
            source = last.all_input_nodes[0]
            if _is_map(self.values[source]):
                return self._before_pooling(last, source)
            way = list(self._back(source))
            reader, features = way[-1], self._map_before(way[-1])
            # The mean may take several calls, such as a sum and a division.
            means = ((n, self._channels(n, features)) for n in reversed(way))
            pooled, channels = next(((n, c) for n, c in means if c is not None), (None, None))
            # What is pooled inside of a layer is looked for there.
            if reader.op == "call_module" and pooled is None:
                module = self.model.get_submodule(str(reader.target))
                if any(True for _ in module.children()) and str(reader.target) not in self.opened:
                    self.opened.add(str(reader.target))
                    continue
            if pooled is None or channels is None:
                raise self._not_the_mean(features, reader)
            return self._behind_pooling(features, channels, pooled, way[0])
        raise self.refuse("its pooling lies too deep inside of other layers")

    def _node(self) -> fx.Node:
        """The one call of the classifier."""
        nodes = [n for n in self.graph.nodes if n.op == "call_module" and n.target == self.name]
        if len(nodes) != 1:
            raise self.refuse(f"its classifier '{self.name}' runs {len(nodes)} times")
        return nodes[0]

    def _back(self, node: fx.Node) -> Iterator[fx.Node]:
        """The calls before the classifier, from the last one back to the one that reads a map."""
        while True:
            moving = [n for n in node.all_input_nodes if n in self.moving]
            before = [n for n in moving if isinstance(self.values.get(n), Tensor)] or moving
            if not before:
                raise self.refuse("nothing that is pooled leads to its classifier")
            if len(before) > 1:
                # What is left of a map of one cell looks like a vector, and its channels like ways that meet.
                one = all(self.values[n].ndim == 4 and not _is_map(self.values[n]) for n in before)
                small = f"; images of {self.x.shape[-2]}x{self.x.shape[-1]} may be too small for it" if one else ""
                raise self.refuse(
                    f"several ways meet before its classifier (at {node.name}), so there is no one map to pool{small}"
                )
            yield node
            node = before[0]
            if _is_map(self.values[node]):
                return

    def _map_before(self, reader: fx.Node) -> fx.Node:
        return next(n for n in reader.all_input_nodes if _is_map(self.values.get(n)))

    def _not_the_mean(self, features: fx.Node, reader: fx.Node) -> NotApplicableError:
        h, w = self._cells(features, self.known)
        what = (
            type(self.model.get_submodule(str(reader.target))).__name__ if reader.op == "call_module" else reader.name
        )
        return self.refuse(
            f"its last map ({h}x{w}) is not pooled by the mean but read by {what}, which weighs or selects cells"
        )

    def _behind_pooling(self, features: fx.Node, channels: int, pooled: fx.Node, read: fx.Node) -> Split:
        self._check_logits(self._node())
        features, channels = self._whole(pooled, features, channels)
        vector = self.values[pooled]
        neck = self._neck(pooled, read)
        if neck is not None and vector.ndim == 4 and vector.shape[1] != self.values[features].shape[channels]:
            neck = _turned(neck, before=(0, 2, 3, 1))
        return Split(self._trunk(features, channels), neck, vector.ndim == 2, self.classifier)

    def _neck(self, pooled: fx.Node, read: fx.Node) -> fx.GraphModule | None:
        """What lies between the mean and the classifier; None if any other vectors come through unchanged, too."""
        if read is pooled:
            return None
        neck = self._part(self._between(pooled, read), pooled, read, "Neck")
        return None if _alike(neck, self.values[pooled], lambda vectors: vectors) else neck

    def _before_pooling(self, last: fx.Node, source: fx.Node) -> Split:
        """The classifier is a 1x1 convolution over the cells, whose output is pooled."""
        cells, tail = self.values[last], self._tail_of(last)
        if max(getattr(self.classifier, "kernel_size", (1,))) > 1:
            raise self.refuse(f"its classifier '{self.name}' looks at several cells at once")
        for channels, dimensions in _READINGS.items():
            for rectified in (False, True):

                def mean(scores: Tensor, rectified: bool = rectified, dimensions: Any = dimensions) -> Tensor:
                    return (scores.relu() if rectified else scores).mean(dimensions)

                if _equal(mean(cells), self.logits) and (tail is None or _alike(tail, cells, mean)):
                    trunk, classifier = self._trunk(source, channels), _by_cell(self.classifier)
                    return Split(trunk, None, False, classifier, cells=True, rectified=rectified)
        raise self.refuse(f"what its classifier '{self.name}' gives for each cell is not pooled by the mean")

    def _check_logits(self, last: fx.Node) -> None:
        tail = self._tail_of(last)
        same = _equal(self.values[last].flatten(1), self.logits)
        if not same or (tail is not None and not _alike(tail, self.values[last], lambda logits: logits)):
            raise self.refuse(f"its class scores are not what its classifier '{self.name}' gives")

    def _tail_of(self, last: fx.Node) -> fx.GraphModule | None:
        """What makes the class scores of the output of the classifier, where that can be run alone."""
        end: Any = next(n for n in self.graph.nodes if n.op == "output").args[0]
        for step in self.spec.output:
            try:
                end = end[step]
            except (KeyError, IndexError, TypeError):
                return None
        return self._alone(last, end, "Tail") if isinstance(end, fx.Node) and end is not last else None


class _Joined(_Traced):
    """Where several layers give the class scores together, such as the two heads of RepViT: shown to be linear."""

    def split(self) -> Split:
        self._trace()
        last = next(n for n in self.graph.nodes if n.op == "output").args[0]
        if not isinstance(last, fx.Node):
            raise self.unknown()
        tail, maps = self._tail(last)
        if len(maps) != 1 or len(readers := [n for n in tail if maps[0] in n.all_input_nodes]) != 1:
            raise self.unknown()
        pooled, features = readers[0], maps[0]
        channels = self._channels(pooled, features)
        if pooled is last or channels is None:
            raise self.unknown()
        whole = self._part([n for n in self.graph.nodes if n in tail and n is not pooled], pooled, last, "Tail")
        return Split(self._trunk(features, channels), None, True, self._linear(whole, self.values[pooled]))

    def unknown(self) -> NotApplicableError:
        found = self.spec.evidence.get("classifier")
        return self.refuse(found.why if found else "no classifier is known")

    def _tail(self, last: fx.Node) -> tuple[set[fx.Node], list[fx.Node]]:
        """All calls that lead from maps to a node, itself included, and these maps."""
        tail, maps, todo = set(), [], [last]
        while todo:
            node = todo.pop()
            if node in tail or node in maps:
                continue
            if _is_map(self.values.get(node)):
                maps.append(node)
            else:
                tail.add(node)
                todo += node.all_input_nodes
        return tail, maps

    def _linear(self, tail: nn.Module, vectors: Tensor) -> nn.Linear:
        """What follows the pooling as one linear layer, by what it gives for each channel alone."""
        shape, dtype = vectors.shape[1:], vectors.dtype
        tail, vectors = copy.deepcopy(tail).double(), vectors.double()  # so that a difference keeps its digits
        units = torch.eye(shape.numel(), dtype=vectors.dtype, device=vectors.device)
        bias = take(tail(units.new_zeros(1, *shape)), self.spec.output or None)
        matrix = take(tail(units.unflatten(1, shape)), self.spec.output or None) - bias
        either = torch.cat([vectors, -vectors])
        if not _equal(either.flatten(1) @ matrix + bias, take(tail(either), self.spec.output or None)):
            raise self.unknown()
        inputs, outputs = matrix.shape
        layer = nn.Linear(inputs, outputs, dtype=dtype, device=vectors.device)
        layer.weight.copy_(matrix.T)
        layer.bias.copy_(bias[0])
        return layer


def _turned(
    part: fx.GraphModule, *, before: tuple[int, ...] | None = None, after: tuple[int, ...] | None = None
) -> fx.GraphModule:
    """A traced part with the dimensions of what it reads, or gives, in another order, in place."""
    graph = part.graph
    first, last = (next(n for n in graph.nodes if n.op == op) for op in ("placeholder", "output"))
    if before is not None:
        with graph.inserting_after(first):
            turned = graph.call_method("permute", (first, *before))
        first.replace_all_uses_with(turned, delete_user_cb=lambda user: user is not turned)
    if after is not None:
        with graph.inserting_before(last):
            last.args = (graph.call_method("permute", (last.args[0], *after)),)
    part.recompile()
    return part


def _by_cell(classifier: nn.Linear | nn.Conv2d) -> nn.Conv2d:
    """A classifier that reads each cell as a 1x1 convolution."""
    if isinstance(classifier, nn.Conv2d):
        return classifier
    made = nn.Conv2d(classifier.in_features, classifier.out_features, 1, bias=classifier.bias is not None)
    made = made.to(classifier.weight.device, classifier.weight.dtype)
    made.weight.copy_(classifier.weight[:, :, None, None])
    if made.bias is not None:
        made.bias.copy_(classifier.bias)
    return made


def _own(value: Any) -> Any:
    """A value whose lists are those of this call alone."""
    return [_own(v) for v in value] if isinstance(value, list) else value


def _is_map(value: Any) -> bool:
    """Whether a value has several cells, wherever its channels are."""
    return isinstance(value, Tensor) and value.ndim == 4 and min(value.shape[1:3].numel(), value.shape[2:].numel()) > 1


def _version(tensor: Tensor) -> int:
    """How often a tensor was altered in place."""
    return 0 if tensor.is_inference() else tensor._version


@torch.no_grad()
def _alike(part: nn.Module, like: Tensor, wanted: Callable[[Tensor], Tensor]) -> bool:
    """Whether a part gives what is wanted of other values as well, of both signs, and tiny and large ones.

    Args:
        part: of a network.
        like: values (N, ...) of the shape that it reads.
        wanted: what it should give.
    """
    scales = torch.logspace(-2, 4, 32 if like.ndim < 4 else 8).view(-1, *[1] * (like.ndim - 1))
    noise = torch.randn(len(scales), *like.shape[1:], generator=torch.Generator().manual_seed(0))
    scales = scales.to(like)
    values = noise.to(like) * scales
    try:
        made = part(values.clone())
    except Exception:  # values that foreign code refuses
        return False
    rows = scales.flatten()[:, None]
    if not isinstance(made, Tensor) or len(made) != len(rows):
        return False
    return _equal(made.flatten(1) / rows, wanted(values).flatten(1) / rows)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=_SAME, atol=_SAME * float(b.abs().max()))
