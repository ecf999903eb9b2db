"""Whether the cells of a layer lie on the image as it was given: a model may crop, pad, mirror or warp it first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from xattn.inspection.findings import Findings
from xattn.inspection.layouts import Layout, answer, deviation
from xattn.inspection.probing import Call, DroppedError
from xattn.spec import CONTRADICTED, Evidence, in_rows

_KEPT = 0.95  # share of a side that a crop may leave without being told
_PADDED = 0.1  # share of a side, and number of pixels, from which on padding is no margin of a convolution
_PADDED_PX = 8
_ELSEWHERE = 0.8  # answer of another quarter from which on the place that was changed lies there
_SURE = 5.0  # standard deviations by which that quarter must answer more than the right one
_IN_PLACE = 0.9  # answer of the place itself from which on what was put in another order was put back
_ORDERED = "is put in another order"
_PADDING = ("ConstantPad", "ReflectionPad", "ReplicationPad")
_MIXING = ("Convolution", "Addmm", "Mm", "Bmm", "Linear", "Mkldnn", "Cudnn")  # behind these there is no image any more


def check_place(facts: Findings, call: Call, layout: Layout) -> None:
    """Whether the cells of the layer to read lie on the image as it was given."""
    why = None if call.node is None else cut(call.node, facts.size)
    if why == _ORDERED and layout.answer >= _IN_PLACE:  # and back again
        why = None
    if why is None and layout.answer < 0.5 and (change := facts.change(call)) is not None:
        why = "is mirrored or turned" if turned(_cells(change, layout)) else None
    if why is None:
        return
    facts.evidence["layout"] = Evidence(CONTRADICTED, f"the image {why} inside of the model")
    facts.warnings.append(
        f"the image {why} before '{call.name}', so that its cells lie elsewhere than the map shows them; do so before "
        "the model and explain the part of it that follows, or use a method that reads no layer, such as occlusion"
    )


def _cells(change: Tensor, layout: Layout) -> Tensor:
    """The change of each cell (h, w) in a layout, of that of each value, (C, h, w), (h, w, C) or (T, C)."""
    tokens = layout.tokens
    if tokens is None or tokens.channels_last:
        return change.sum(0 if tokens is None else 2)
    each = change.flatten(0, -2).sum(1)
    return in_rows(each[None, tokens.prefix : len(each) - tokens.suffix, None], layout.grid, tokens.blocks)[0, :, :, 0]


def cut(node: Any, size: tuple[int, int]) -> str | None:
    """How a model changes the part of the image that it sees, before its first layer, on all ways to a node.

    Args:
        node: of autograd, that made the output of a layer.
        size: height and width of the image.

    Returns:
        `is cut to its rows 8 to 40 of 48 (67%)`, `is padded by 16 rows`, `is warped`; None where it is seen whole.
    """
    crops: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    others: list[str] = []
    walk = _Walk(node)
    for current in walk:
        variable = getattr(current, "variable", None)
        if variable is not None:
            if not isinstance(variable, nn.Parameter):
                return None  # a way from the image that meets neither
            continue
        name = type(current).__name__
        if name.startswith("Slice") and (kept := _crop(current, size)) is not None and _of_image(current):
            crops[kept[0]].append(kept[1:])
        elif name.startswith(_PADDING) and (margin := _margin(current, size)) and _of_image(current):
            others.append(margin)
        elif (moved := _moved(current, size)) and _of_image(current):
            others.append(moved)
        elif name.startswith("GridSampler") and _of_image(current.next_functions[0][0]):
            others.append("is warped")
        elif name.startswith("Fft") and _of_image(current):
            others.append("is turned into frequencies")
        else:
            walk.on(current)
    for side, ranges in crops.items():
        if ranges and (seen := len(set().union(*(range(*r) for r in ranges)))) < _KEPT * size[side]:
            low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
            what = ("rows", "columns")[side]
            return f"is cut to its {what} {low} to {high} of {size[side]} ({seen / size[side]:.0%})"
    return others[0] if others else None


def _crop(node: Any, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """Side (0 or 1), start and end of what a slice of an image keeps; None where it keeps all or is of no image."""
    shape = tuple(node._saved_self_sym_sizes)
    side = _signed(node._saved_dim) % len(shape) - (len(shape) - 2)
    if len(shape) < 3 or side not in (0, 1) or shape[-2:][side] != size[side] or node._saved_step != 1:
        return None
    given = (None if at is None else _signed(at) for at in (node._saved_start, node._saved_end))
    start, end, _ = slice(*given).indices(size[side])
    return (side, start, end) if end - start < _KEPT * size[side] else None


def _moved(node: Any, size: tuple[int, int]) -> str | None:
    """How an operation lays an image anew: in a larger one, beside others or itself, or its places in another order."""
    name = type(node).__name__
    if name == "CopySlices":
        return _laid_in(node, size)
    if name.startswith("Cat"):
        return _joined(node, size)
    if name.startswith("Repeat") and not name.startswith("RepeatInterleave"):
        return "is repeated" if max(node._saved_repeats[-2:]) > 1 else None
    return _ordered(node) if name.startswith("Index") else None


def _shape(node: Any) -> tuple[int, ...]:
    """Of what a node of autograd made."""
    return tuple(node._input_metadata[0].shape)


def _more(added: int, side: int, size: tuple[int, int]) -> bool:
    """Whether so many rows (side 0) or columns are no margin of a convolution."""
    return added >= max(_PADDED_PX, _PADDED * size[side])


def _laid_in(node: Any, size: tuple[int, int]) -> str | None:
    """Whether an image was written into a part of a larger one, as by `canvas[:, :, :h, :w] = image`."""
    whole, parts = _shape(node), []
    while type(node).__name__ == "CopySlices":
        *below, (source, _) = node.next_functions
        if source is not None:
            part = _shape(source)
            if len(part) == len(whole) or (len(part) == len(whole) - 1 and part[0] == whole[-3]):
                parts.append(part[-2:])
        node = below[0][0] if below else None
    if not parts or (node is not None and not isinstance(getattr(node, "variable", None), nn.Parameter)):
        return None  # what is written into is an image itself
    added = [whole[-2:][side] - max(part[side] for part in parts) for side in (0, 1)]
    if any(_more(added[side], side, size) for side in (0, 1)):
        return f"is laid into a larger one, by {added[0]} rows and {added[1]} columns,"
    return None


def _joined(node: Any, size: tuple[int, int]) -> str | None:
    """Whether an image is joined with others that are no part of it, or with itself, along its rows or columns."""
    shape = _shape(node)
    side = _signed(node._saved_dim) % len(shape) - (len(shape) - 2)
    if len(shape) < 3 or side not in (0, 1):
        return None
    inputs = [following for following, _ in node.next_functions if following is not None]
    if len([1 for each in inputs if _shape(each)[-2:] == size]) > 1:
        return "is laid beside itself"
    if len(inputs) == 1 and _more(added := shape[-2:][side] - _shape(inputs[0])[-2:][side], side, size):
        return f"is padded by {added} {('rows', 'columns')[side]}"
    return None


def _ordered(node: Any) -> str | None:
    """Whether rows, columns or patches of an image are put in another order; that of its channels does not matter."""
    sizes = tuple(node._saved_self_sym_sizes)
    try:
        if hasattr(node, "_saved_indices"):
            given = {at: index for at, index in enumerate(node._saved_indices) if index is not None}
        else:
            given = {_signed(node._saved_dim) % len(sizes): node._saved_index}
    except DroppedError:
        return None
    for at, index in given.items():
        places = at > 1 if len(sizes) == 4 else at > 0
        if places and index.ndim == 1 and not index.is_floating_point() and bool((index.diff() < 0).any()):
            return _ORDERED
    return None


def _signed(number: int) -> int:
    """What autograd shows as an unsigned number."""
    return number - 2**64 if number >= 2**63 else number


def _margin(node: Any, size: tuple[int, int]) -> str | None:
    """What a padding of an image adds, or a negative one takes away, where it is much."""
    given = [_signed(p) for p in (node._saved_pad if hasattr(node, "_saved_pad") else node._saved_padding)]
    left, right, top, bottom = (*given, 0, 0, 0, 0)[:4]
    for side, (before, behind) in ((1, (left, right)), (0, (top, bottom))):
        if max(abs(before), abs(behind)) >= max(_PADDED_PX, _PADDED * size[side]):
            added, what = before + behind, ("rows", "columns")[side]
            return f"is padded by {added} {what}" if added > 0 else f"loses {-added} of its {size[side]} {what}"
    return None


def _of_image(node: Any) -> bool:
    """Whether what a node reads, or gives where it is the first one, is the image and not made of it by layers."""
    walk = _Walk(node)
    for current in walk:
        if type(current).__name__.startswith(_MIXING):
            return False
        walk.on(current)
    return True


class _Walk:
    """Nodes of autograd's graph, each once, from one node towards the image, as far as `on` asks for it."""

    def __init__(self, node: Any) -> None:
        self._visited: set[Any] = set()
        self._waiting = [node]

    def __iter__(self) -> Iterator[Any]:
        while self._waiting:
            current = self._waiting.pop()
            if current is not None and current not in self._visited:
                self._visited.add(current)
                yield current

    def on(self, node: Any) -> None:
        """Go on to what a node reads."""
        self._waiting.extend(following for following, _ in node.next_functions)


def turned(change: Tensor) -> bool:
    """Whether the cells (h, w) answer in another quarter than the place that was changed, as in a mirror or a turn.

    The place lies on the diagonal from the upper right. A transposition and turns move it where a mirror does, and are
    found by the mirrors alone; a mirror at that diagonal leaves it where it is, and is not found.

    >>> import torch
    >>> change = torch.zeros(16, 16)
    >>> change[2:6, 10:14] = 1  # where the image was changed
    >>> turned(change), turned(change.flip(1)), turned(change.T), turned(change.rot90())
    (False, True, True, True)
    >>> turned(change.T.flip(0, 1))
    False
    """
    grid = (change.shape[0], change.shape[1])
    plain = answer(change, grid)
    others = [answer(change.flip(dims), grid) for dims in ((0,), (1,), (0, 1))] if plain < 0.5 else [0.0]
    return max(others) >= _ELSEWHERE and max(others) - plain > _SURE * deviation(grid)
