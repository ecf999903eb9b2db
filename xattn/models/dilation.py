"""Strides become dilation: finer feature maps from the same weights, whose old cells keep their values.

Behind a stride that is removed every layer works at a rate r: its input has r times the cells of before in each
direction, and the cells (r i + o, r j + o) are those of before. Where the first one stands, o, is chosen so that the
new cells look at where they stand, in the middle of the image to half a cell: a layer that pads both sides alike reads
around the first cell (o = 0), one that pads the end alone, as TensorFlow does, or not at all reads around a later one,
and with o = 0 the last cells would look past the image and all maps be drawn too far up and left. Where the strides do
not divide the image, the new map covers more of it than there is, or less, by the same at both ends.

A layer that looks at several cells must skip r - 1 of r of them. Convolutions and max pools do so by their dilation;
all other layers, also those that look at all cells at once such as squeeze-excite, run as they are on each of the r x r
interleaved grids (Shelhamer et al. 2017, arXiv:1605.06211, sec. 3.2), so that each of them sees what it was trained on.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from xattn.calls import Call, Calls, Kind
from xattn.errors import NotApplicableError, ParameterError, XattnError, reason_of
from xattn.models.dilated_layers import displacement, native, old_cells, pair, spread
from xattn.models.trunk import features_of, noise
from xattn.running import copied, evaluating, in_this_thread
from xattn.spec import TokenGrid

FACTORS: dict[str, int] = {"low": 1, "x2": 2, "x4": 4, "x8": 8, "high": 4}
"""How many times finer a map is in each direction; `high` is two strides less, as in BR-NPA."""

SAME = 1e-3
"""Largest difference of what should be the same, as a share of its spread."""

_ROUNDED = 0.1  # largest one in single precision that is looked at again in double precision
_BY_POSITION = {
    Kind.LINEAR, Kind.BATCH_NORM, Kind.SUM, Kind.PRODUCT, Kind.QUOTIENT, Kind.NEGATION, Kind.RECTIFIER, Kind.CLIP,
    Kind.ACTIVATION, Kind.CURVE, Kind.GATE, Kind.OTHER,
}  # fmt: skip
_TURNS = ("permute", "transpose", "movedim", "moveaxis", "contiguous", "clone", "to", "float", "dropout", "dropout2d")


def factor_of(resolution: str) -> int:
    """How many times finer a resolution is.

    >>> factor_of("x2"), factor_of("high")
    (2, 4)
    """
    if resolution not in FACTORS:
        raise ParameterError(f"resolution must be one of {', '.join(FACTORS)} but is '{resolution}'.")
    return FACTORS[resolution]


def dilated(
    model: nn.Module,
    factor: int,
    *,
    feature_layer: str,
    input_size: tuple[int, int],
    x: Tensor | None = None,
    tokens: TokenGrid | None = None,
) -> nn.Module:
    """A copy of a CNN whose last strides are dilation, so that its feature map is `factor` times finer.

    Args:
        model: a CNN, which stays as it is.
        factor: 2, 4, 8; 1 is a plain copy.
        feature_layer: the layer whose output becomes finer.
        input_size: height and width of the image to check with where there is no `x`.
        x: images (N, C, H, W) to check with; None is noise.
        tokens: how the features lie, for a network whose maps have their channels last.

    Raises:
        ParameterError: if the strides before the layer do not make that factor.
        NotApplicableError: for a network that does not become finer by dilation, with what stands in the way.
    """
    made = copied(model)
    dilate(made, factor, noise(model, input_size) if x is None else x, feature_layer=feature_layer, tokens=tokens)
    return made


def dilate(
    model: nn.Module,
    factor: int,
    x: Tensor,
    *,
    feature_layer: str = "",
    kind: str = "",
    tokens: TokenGrid | None = None,
) -> None:
    """Make the feature map of a network finer in place; names of layers and weights stay the same.

    That the old cells have the values of before is checked. A network that is refused may be left half changed.

    Args:
        model: a CNN, or the part of one that makes its features.
        factor: as for `dilated`, as are the errors.
        x: images (N, C, H, W) to check with.
        feature_layer: the layer whose output becomes finer; empty is the model itself.
        kind: how messages call the model.
        tokens: as for `dilated`.
    """
    if factor == 1:
        return
    kind = kind or type(model).__name__
    features = partial(features_of, feature_layer=feature_layer, tokens=tokens)
    before, original = features(model, x=x), copied(model)
    units = _units(model, feature_layer, x, kind)
    rates = _rates(units, factor, before.shape[2], kind)
    for name, unit in units.items():
        rate = rates(unit.before)
        stride = unit.stride if unit.before in rates.removed else 1
        first = rates.first[unit.before] if stride > 1 else 0
        if rate * stride > 1:
            spread(model.get_submodule(name), rate, stride, f"{kind}: layer '{name}'", first=first)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where a traced network tells of what is told below
            after = features(model, x=x)
    except XattnError:
        raise
    except Exception as error:  # whatever foreign code raises
        raise NotApplicableError(
            f"{kind} does not run with its last strides as dilation ({reason_of(error)[:200]}); use resolution low."
        ) from None
    if after.shape[2:] != tuple(factor * side for side in before.shape[2:]):
        raise NotApplicableError(
            f"{kind}: with dilation its map is {after.shape[-2]}x{after.shape[-1]} instead of "
            f"{factor * before.shape[-2]}x{factor * before.shape[-1]}; it lowers the resolution in a way that no "
            "stride shows. Use resolution low."
        )

    def difference(old: nn.Module, new: nn.Module, x: Tensor) -> float:
        return apart(features(old, x=x), features(new, x=x), factor, old_cells(new))

    found = but_for_rounding(apart(before, after, factor, old_cells(model)), difference, original, model, x)
    if not found <= SAME:
        raise NotApplicableError(
            f"{kind}: with dilation its old cells differ by {found:.1e} of the spread of its features, so it would be "
            "another network. Use resolution low."
        )


def apart(old: Tensor, new: Tensor, factor: int, cells: slice) -> float:
    """How far features (N, C, h, w) are from the old cells of a finer map, in shares of their spread."""
    kept = new[:, :, cells.start :: factor, cells.start :: factor]
    if kept.shape != old.shape:
        return math.inf
    return float((kept - old).abs().max()) / max(float(old.max() - old.min()), 1e-12)


def but_for_rounding(found: float, measure: Callable[..., float], *things: Any) -> float:
    """A difference that a deep network may make of rounding: if it is too large, that in double precision instead.

    Args:
        found: the difference, as a share of a spread; where it is above a tenth the numbers mean nothing, and it stays.
        measure: gives the difference.
        things: what it takes, networks and tensors, of which copies are used.
    """
    if found <= SAME or not found <= _ROUNDED:
        return found
    try:
        return min(
            found,
            measure(*(thing.double() if isinstance(thing, Tensor) else copied(thing).double() for thing in things)),
        )
    except Exception:  # a network that does not run in that precision
        return found


# -------------------------------------------------------------------------------------------------- what a pass shows


@dataclass
class _Unit:
    """A layer that looks at more than one cell at a time.

    Args:
        before: height of its input in cells.
        stride: how many of them make a cell of its output.
        displacement: of what it reads, as `displacement` says.
    """

    before: int
    stride: int
    displacement: float | None


@dataclass
class _Seen:
    """What one pass showed of the layers by name, in the order in which they ended.

    Args:
        grids: cells of their input and, if it is a map, of their output.
        direct: the first function they call themselves that may look at several cells.
        commutes: those that do not after all.
        strides: of those whose output has other cells than their input.
        last: those that have their channels last.
    """

    grids: dict[str, tuple[tuple[int, int], tuple[int, int] | None]] = field(default_factory=dict)
    direct: dict[str, str] = field(default_factory=dict)
    commutes: set[str] = field(default_factory=set)
    strides: dict[str, int] = field(default_factory=dict)
    last: set[str] = field(default_factory=set)


class _Watch(Calls):
    """Notes which module makes each call that is not position by position."""

    def __init__(self, seen: _Seen, stack: list[str]) -> None:
        super().__init__()
        self.seen, self.stack = seen, stack
        self.active = True

    def handle(self, call: Call) -> Any:
        """Run it and note it."""
        result = call.run(*call.args[:1])
        if self.stack and isinstance(result, Tensor) and not _by_position(call, result):
            self.seen.direct.setdefault(self.stack[-1], call.name)
        return result


def _by_position(call: Call, result: Tensor) -> bool:
    """Whether each cell of the result depends on the same cell of the arguments alone, as far as the call shows it."""
    given = [t for t in call.tensors if t.ndim >= 4 and not isinstance(t, nn.Parameter)]
    if not given or call.kind in _BY_POSITION:
        return True
    if call.kind is Kind.CONV:
        weight = call.args[1] if len(call.args) > 1 else call.kwargs["weight"]
        return weight.shape[2:].numel() == 1 and result.shape[2:] == given[0].shape[2:]
    if call.name == "layer_norm":
        return len(call.arguments["normalized_shape"]) == 1
    if call.kind in (Kind.MOVE, Kind.JOIN):
        # Channels that are put together lie in the last dimension where they come last.
        return (
            call.name in _TURNS or result.shape[-2:] == given[0].shape[-2:] or result.shape[:-1] == given[0].shape[:-1]
        )
    return False


def _units(model: nn.Module, feature_layer: str, x: Tensor, kind: str) -> dict[str, _Unit]:
    """Run a model up to its features and find the layers that look at several cells, in the order of their calls."""
    return _choose(model, _watched(model, feature_layer, x), feature_layer, kind)


def _watched(model: nn.Module, feature_layer: str, x: Tensor) -> _Seen:
    """What one pass of a model shows of its layers up to its features."""
    seen, stack = _Seen(), [""]
    watch = _Watch(seen, stack)
    handles = []

    def enter(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if watch.active:  # not while a layer is tried alone
                stack.append(name)

        return hook

    def leave(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if stack[-1] == name:
                stack.pop()
            first = next((t for t in inputs if isinstance(t, Tensor) and t.ndim == 4), None)
            if first is None or not watch.active:
                return
            made = output[0] if isinstance(output, (tuple, list)) and output else output
            grid = _grid(first), _grid(made) if isinstance(made, Tensor) and made.ndim == 4 else None
            watch.active = False
            asked = name in seen.direct or any(_holds(name, inner) for inner in seen.last)
            if grid[1] is not None and asked and not native(module) and _channels_last(module, first):
                seen.last.add(name)
                grid = grid[0], None  # what is run on interleaved grids is a layer around it then
            seen.grids.setdefault(name, grid)
            if grid[1] is not None and not native(module):
                if grid[0] != grid[1]:
                    seen.strides[name] = stride_of(module, first, grid[1][0])
                elif name in seen.direct and _commutes(module, first):
                    seen.commutes.add(name)
            watch.active = name != feature_layer

        return hook

    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(in_this_thread(enter(name))))
                handles.append(module.register_forward_hook(in_this_thread(leave(name))))
        with evaluating(model), torch.no_grad(), watch:
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _grid(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _alone(module: nn.Module, x: Tensor) -> Tensor | None:
    """What a layer gives for another map, without its hooks; None where it refuses it or gives no map."""
    hooks, module._forward_hooks = module._forward_hooks, type(module._forward_hooks)()
    try:
        made = module.forward(x)
    except Exception:  # whatever foreign code raises
        return None
    finally:
        module._forward_hooks = hooks
    made = made[0] if isinstance(made, (tuple, list)) and made else made
    return made if isinstance(made, Tensor) and made.ndim == 4 else None


def _channels_last(module: nn.Module, x: Tensor) -> bool:
    """Whether a layer reads (N, h, w, C): it takes a map of more cells that way alone."""
    if _alone(module, x.repeat(1, 1, 2, 2)) is not None:
        return False
    larger = _alone(module, x.repeat(1, 2, 2, 1))
    return larger is not None and larger.shape[1] > x.shape[1]


def _commutes(module: nn.Module, x: Tensor) -> bool:
    """Whether a layer gives the same on every second cell alone: then it works position by position.

    On those from the first and on those from the second one, as a layer that looks at a single cell would not show
    where that is among them; and on a map whose cells have weights of their own, as one that is about the same all
    over would hide what a layer takes from the other cells.
    """
    h, w = x.shape[2:]
    if min(h, w) < 2:
        return False
    weights = torch.rand(h, w, generator=torch.Generator().manual_seed(0))
    varied = x * (0.5 + weights).to(x.device, x.dtype)
    output = _alone(module, varied.clone())
    for first in (0, 1):
        fewer = _alone(module, varied[:, :, first::2, first::2].contiguous())
        if fewer is None or output is None or fewer.shape != (wanted := output[:, :, first::2, first::2]).shape:
            return False
        if not torch.allclose(fewer, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())):
            return False
    return True


def stride_of(module: nn.Module, x: Tensor, made: int) -> int:
    """The stride of a layer: how many more cells of a larger map give one cell more."""
    larger = _alone(module, x.repeat(1, 1, 2, 2))
    more = 0 if larger is None else larger.shape[2] - made
    return max(round(x.shape[2] / (more or made)), 1)


def _choose(model: nn.Module, seen: _Seen, feature_layer: str, kind: str) -> dict[str, _Unit]:
    """For each noted call the smallest layer around it that turns a map into a map."""
    chosen: set[str] = set()
    for name, function in seen.direct.items():
        if name in seen.commutes:
            continue
        inner = name
        while inner and not _maps_to_map(seen.grids.get(inner)) and not _holds(inner, feature_layer):
            inner = inner.rpartition(".")[0]
        if not inner or _holds(inner, feature_layer):
            where = f"layer '{inner}'" if inner else "its own forward"
            raise NotApplicableError(
                f"{kind} cannot be made finer: {where} calls {function} between its layers, which looks at several "
                "cells at once. Use resolution low."
            )
        chosen.add(inner)
    units: dict[str, _Unit] = {}
    for name, (before, after) in seen.grids.items():
        if name in chosen and after is not None and not any(_holds(other, name) for other in chosen):
            module = model.get_submodule(name)
            own = pair(module.stride)[0] if native(module) else seen.strides.get(name, 1)
            units[name] = _Unit(before[0], own, displacement(module, before[0]))
    return units


def _holds(outer: str, inner: str) -> bool:
    """Whether a layer is around another one, by their names."""
    return inner != outer and (not outer or inner.startswith(f"{outer}."))


def _maps_to_map(grid: tuple[tuple[int, int], tuple[int, int] | None] | None) -> bool:
    """Whether an output is a map still, and not what is left of one by pooling all of it."""
    return grid is not None and grid[1] is not None and (max(grid[1]) > 1 or max(grid[0]) == 1)


@dataclass
class _Rates:
    """The rate at which a layer works, by the cells that its input had before.

    Args:
        removed: strides by the cells of the inputs of their layers.
        first: new cells before the first old one by the same, at the rate of these layers.
    """

    removed: dict[int, int]
    first: dict[int, int]

    def __call__(self, cells: int) -> int:
        """The product of the removed strides that lie before it."""
        rate = 1
        for before, stride in self.removed.items():
            rate *= stride if before > cells else 1
        return rate


def _rates(units: dict[str, _Unit], factor: int, cells: int, kind: str) -> _Rates:
    """Choose the last strides whose product is the factor, for a map of so many cells in height."""
    steps: dict[int, int] = {}
    for unit in units.values():
        if unit.stride > 1:
            steps[unit.before] = max(unit.stride, steps.get(unit.before, 1))
    removed = _removed(steps, factor)
    if removed is None:
        strides = ", ".join(f"{stride} at {before} cells" for before, stride in sorted(steps.items())) or "none"
        others = [
            name for name, other in FACTORS.items() if name.startswith("x") and _removed(steps, other) is not None
        ]
        raise ParameterError(
            f"{kind}: its strides (from the last one back: {strides}) do not make a map that is {factor} times finer; "
            f"use resolution low{''.join(f', or try {other}' for other in others[:1])}."
        )
    return _Rates(removed, _first(units, removed, cells))


def _removed(steps: dict[int, int], factor: int) -> dict[int, int] | None:
    """Of strides by the cells of the inputs of their layers the last ones whose product is a factor."""
    removed: dict[int, int] = {}
    for before, stride in sorted(steps.items()):
        if factor % stride:
            break
        removed[before] = stride
        factor //= stride
    return removed if factor == 1 else None


def _first(units: dict[str, _Unit], removed: dict[int, int], cells: int) -> dict[int, int]:
    """How many new cells come before the first old one at each removed stride.

    Together as many as the layers look on; and where the new map has more cells than the one that the strides began
    with, or fewer, since these do not divide it, its middle stays where that of the image is.
    """
    factor = math.prod(removed.values())
    further = _middle(units, removed) + (factor * cells - max(removed)) / 2
    place = min(max(math.floor(further + 0.5), 0), factor - 1)
    first, rate = {}, 1
    for before, stride in sorted(removed.items(), reverse=True):
        first[before] = place // rate % stride
        rate *= stride
    return first


def _middle(units: dict[str, _Unit], strides: dict[int, int]) -> float:
    """How far the layers of some strides look on, in cells of the first of them.

    What several layers do with the same map, such as a block and its shortcut, counts by its mean.
    """
    rate, middle = 1, 0.0
    for before, stride in sorted(strides.items(), reverse=True):
        found = [u.displacement for u in units.values() if u.before == before and u.stride > 1]
        known = [d for d in found if d is not None]
        middle += rate * sum(known) / max(len(known), 1)
        rate *= stride
    return middle


def looks_at(model: nn.Module, x: Tensor) -> tuple[int, float]:
    """How large the cells of a network's map are, and how far on the middle of what the first one reads lies.

    By kernel and padding of the layers with strides; where these do not make its resolution, by how it grows with the
    image, and as if each cell were read alone.

    Args:
        model: the part of a network that makes its features.
        x: images (N, C, H, W).

    Returns:
        Both in pixels.
    """
    strided: dict[str, _Unit] = {}
    for name, ((before, _), after) in _watched(model, "", x).grids.items():
        module = model.get_submodule(name)
        further = displacement(module, before)
        if after is not None and further is not None and (stride := pair(module.stride)[0]) > 1:
            strided[name] = _Unit(before, stride, further)
    # Beside the way that leads to the map others may lower the resolution at once, and further.
    strides = {
        at: min(u.stride for u in strided.values() if u.before == at) for at in {u.before for u in strided.values()}
    }
    middle = _middle({n: u for n, u in strided.items() if u.stride == strides[u.before]}, strides)
    rate = math.prod(strides.values())
    grown = stride_of(model, x, features_of(model, "", x).shape[2])  # about, where there are few cells
    return (rate, middle) if abs(rate - grown) <= 0.25 * grown else (grown, (grown - 1) / 2)
