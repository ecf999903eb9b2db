"""How the values of a layer lie on the image, found by lighting: a place is changed, and its cells must answer most."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from xattn.spec import TokenGrid, in_rows

_MOST_EXTRA = 16  # tokens that are no cells: class, distillation and register tokens
_ASPECT = 1.25  # how far the shape of a grid may be from that of the image
_LOWEST = 0.6  # share of pairs (lit cell, dark cell) in which the lit one must answer more
_LOWEST_OF_TOKENS = 0.75  # likewise of tokens, for which many layouts are tried
_BLANK = 0.52  # no reading in which the lit place answers more
_CLEARLY = 0.1  # by how much one layout must be better than a plainer one to be believed against it
_FEW = 9  # cells that are too few to prove a layout that others had before
_BETTER = 0.005  # likewise of extra tokens behind the grid, against those before it

# The place that is lit, as shares of height and width: off the middle and off the diagonal, so that rows and columns
# that are exchanged or mirrored are noticed.
_TOP, _BOTTOM, _LEFT, _RIGHT = 1 / 8, 3 / 8, 5 / 8, 7 / 8


@dataclass(frozen=True)
class Layout:
    """One way to read a tensor as a map, and how well the lit place answers in it.

    Args:
        tokens: how tokens lie; None is a feature map (N, C, h, w).
        grid: rows and columns.
        answer: share of pairs (lit cell, dark cell) in which the lit cell changed more; 0.5 is chance.
        typed: a convolution gave it, which has no other layout.
        blank: no cell answers more than others in any reading, or there are too few, so that nothing can be told.
    """

    tokens: TokenGrid | None
    grid: tuple[int, int]
    answer: float
    typed: bool = False
    blank: bool = False

    @property
    def proved(self) -> bool:
        """Whether the lit place answers most, or no other layout is possible."""
        several = self.tokens is not None and not self.tokens.channels_last
        return self.typed or self.answer >= (_LOWEST_OF_TOKENS if several else _LOWEST)

    def __str__(self) -> str:
        if self.typed:
            return f"{self.grid[0]}x{self.grid[1]}, as the convolution gives it"
        return f"{self.grid[0]}x{self.grid[1]}, lit cells answer more in {self.answer:.0%} of pairs"


def lit(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W) with other content in one place."""
    h, w = x.shape[-2:]
    top, bottom = int(h * _TOP), max(int(h * _BOTTOM), int(h * _TOP) + 1)
    left, right = int(w * _LEFT), max(int(w * _RIGHT), int(w * _LEFT) + 1)
    noise = torch.randn(1, *x.shape[1:-2], bottom - top, right - left, generator=generator)
    changed = x.clone()
    spread = float(x.float().std()) or 1.0
    changed[..., top:bottom, left:right] += 2 * spread * noise.to(x)
    return changed


@functools.lru_cache(maxsize=256)
def lit_cells(grid: tuple[int, int]) -> Tensor:
    """The cells (h, w) of a grid that lie in the lit place for the most part: bool, at least one."""

    def overlap(cells: int, low: float, high: float) -> Tensor:
        edges = torch.arange(cells + 1, dtype=torch.float64) / cells
        return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * cells

    share = overlap(grid[0], _TOP, _BOTTOM)[:, None] * overlap(grid[1], _LEFT, _RIGHT)
    return share >= 0.5 * share.max()


def answer(change: Tensor, grid: tuple[int, int]) -> float:
    """Share of pairs (lit cell, dark cell) of a map of changes (h, w) in which the lit one is larger, ties half.

    >>> change = torch.zeros(4, 4)
    >>> change[1, 3] = 1
    >>> answer(change, (4, 4)) > 0.5, answer(change.T, (4, 4)) < 0.5
    (True, True)
    """
    places = lit_cells(grid).numpy()
    # Of so few values numpy's functions take a fifth of torch's time.
    values = change.detach().cpu().double().numpy()
    inside, outside = values[places], np.sort(values[~places])
    if not len(inside) or not len(outside):
        return 0.5
    below, upto = (np.searchsorted(outside, inside, side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(outside)))


def _grids(count: int, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Grids of `count` cells of nearly the shape of the image, or of one row in images of any shape."""
    for h in range(1, count + 1):
        if count % h == 0:
            w = count // h
            if abs(math.log(h / w) - math.log(size[0] / size[1])) <= math.log(_ASPECT) + 1 / max(min(h, w), 1) / 4:
                yield h, w


def _patch(grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    return max(size[0] // grid[0], 1), max(size[1] // grid[1], 1)


def _orders(grid: tuple[int, int]) -> Iterator[tuple[int, ...]]:
    """Orders in which tokens may come: row by row, by windows, by windows of windows."""
    yield ()
    common = math.gcd(*grid)
    sides = [s for s in range(2, max(grid)) if common % s == 0]
    for side in sides:
        yield (side,)
        chain = [side]
        while chain[-1] % 2 == 0 and chain[-1] > 2:
            chain.append(chain[-1] // 2)
            yield tuple(chain)


def readings(change: Tensor, size: tuple[int, int], seen: Collection[tuple[int, int]] = ()) -> list[Layout]:
    """All ways in which the squared changes of one image, (A, B, C) or (A, B), can be read as a map.

    Args:
        change: squared change of every value of the layer.
        size: of the image.
        seen: grids of the maps that came before, such as that of the patches.

    Returns:
        The plainest first: feature map, channels last, tokens row by row, tokens by blocks; but channels last before a
        map whose grid none had before, if they lie on one that others had.
    """
    if change.ndim == 3:
        tokens = _tokens(change.flatten(0, 1).sum(1), size, seen, change.shape[:2])
        maps = sorted(_maps(change, size), key=lambda r: r.grid not in seen)
        return [*maps, *sorted(tokens, key=lambda r: _oddness(r, size, seen))]
    return sorted(_tokens(change.sum(1), size, seen, None), key=lambda r: _oddness(r, size, seen))


def _maps(change: Tensor, size: tuple[int, int]) -> Iterator[Layout]:
    first, last = (change.shape[1], change.shape[2]), (change.shape[0], change.shape[1])
    if first[0] * first[1] > 1:
        yield Layout(None, first, answer(change.sum(0), first))
    if last[0] * last[1] > 1:
        yield Layout(TokenGrid(patch=_patch(last, size), channels_last=True), last, answer(change.sum(2), last))


def _tokens(
    change: Tensor, size: tuple[int, int], seen: Collection[tuple[int, int]], blocked: torch.Size | None
) -> Iterator[Layout]:
    """Readings of one change per token (T,); only those in blocks of that size if `blocked` is (blocks, tokens).

    Tokens that fill a grid of the maps before have none beside it: by luck one of many other readings answers well.
    """
    total = len(change)
    filled = any(h * w == total for h, w in seen)
    for extra in range(_MOST_EXTRA + 1 if blocked is None and not filled else 1):
        count = total - extra
        known = [g for g in seen if g[0] * g[1] == count]
        for grid in known if filled else dict.fromkeys([*known, *_grids(count, size)]):
            # Few cells behind many other tokens make a grid of any number; only one that a map had is believed.
            if count < 2 or (2 * extra > count and grid not in seen):
                continue
            for blocks in _orders(grid):
                if blocked is not None and (not blocks or blocks[0] ** 2 != blocked[1]):
                    continue
                for prefix in dict.fromkeys((extra, 0)):
                    body = change[prefix : total - (extra - prefix)]
                    shown = in_rows(body[None, :, None], grid, blocks)[0, :, :, 0]
                    tokens = TokenGrid(patch=_patch(grid, size), prefix=prefix, suffix=extra - prefix, blocks=blocks)
                    yield Layout(tokens, grid, answer(shown, grid))


def _oddness(layout: Layout, size: tuple[int, int], seen: Collection[tuple[int, int]]) -> tuple[bool, int, int]:
    """What makes a reading less plain: blocks, a grid that no map had and that patches do not make, extra tokens."""
    tokens, (h, w) = layout.tokens, layout.grid
    if tokens is None:
        return False, 0, 0
    divides = size[0] % h == 0 and size[1] % w == 0
    square = divides and size[0] // h == size[1] // w
    misfit = 0 if layout.grid in seen else 1 if square else 2 if divides else 3
    return bool(tokens.blocks), misfit, tokens.prefix + tokens.suffix


# What gives (N, C, h, w) by definition.
CONVOLUTIONS = (
    nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d,
    nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.MaxPool3d, nn.AvgPool3d,
)  # fmt: skip
# What gives steps in time, which are no cells: columns or rows of the image at best.
RECURRENT = (nn.RNNBase,)
# What gives such steps behind the channels, (N, C, L), whatever grid C might make.
ALONG = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d)


def layout_of(
    change: Tensor,
    size: tuple[int, int],
    typed: bool = False,
    seen: Collection[tuple[int, int]] = (),
    *,
    cube: bool = False,
) -> Layout | None:
    """The layout of a layer from the squared change of its output for one image, (C, h, w), (h, w, C) or (T, C).

    The plainest reading wins unless another one answers clearly better.

    Args:
        change: squared change of every value.
        size: of the image.
        typed: a convolution gave it, so that (N, C, h, w) is the only reading.
        seen: grids of the maps that came before.
        cube: it may have its channels last all the same, if the lit place clearly says so.

    Returns:
        None if nothing that the layer gives is a map of more than one cell.
    """
    if change.ndim not in (2, 3) or not change.numel():
        return None
    known = readings(change, size, seen)
    if typed:
        first = next((replace(r, typed=True) for r in known if r.tokens is None), None)
        last = next((r for r in known if r.tokens is not None and r.tokens.channels_last), None)
        if not cube or first is None or last is None or not last.proved:
            return first
        return last if last.answer > first.answer + max(_CLEARLY, _luck(last.grid)) else first
    if not known or (change.ndim == 2 and _is_sequence(change.sum(1), known, seen)):
        return None
    usual = [r for r in known if _usual(r, size, seen)]
    if any(r.tokens is not None and r.tokens.channels_last and r.grid in seen for r in usual):
        usual = [r for r in usual if r.tokens is not None or r.grid in seen]
    plain = max((r.answer for r in usual), default=0.0)
    known = [r for r in known if r in usual or not plain or r.answer > plain + max(_CLEARLY, _luck(r.grid))]
    best = max(known, key=lambda r: r.answer)
    if best.answer <= _BLANK:
        return replace(known[0], blank=True)
    plainest = next(r for r in known if r.answer >= best.answer - _CLEARLY)
    # Extra tokens before or behind the grid move all cells by a few: the better of the two, if it is better at all.
    alike = [r for r in known if r.grid == plainest.grid and _blocks(r) == _blocks(plainest)]
    best = max(alike, key=lambda r: r.answer)
    chosen = plainest if plainest.answer >= best.answer - _BETTER else best
    few = chosen.grid[0] * chosen.grid[1] <= _FEW and (chosen.tokens is None or chosen.grid in seen)
    return replace(chosen, blank=True) if few and not chosen.proved else chosen


def _usual(layout: Layout, size: tuple[int, int], seen: Collection[tuple[int, int]]) -> bool:
    """Whether a reading is a map, or tokens row by row on a grid that a map had or that they fill in square patches."""
    blocked, misfit, extra = _oddness(layout, size, seen)
    return not blocked and (misfit == 0 or (misfit == 1 and not extra))


def deviation(grid: tuple[int, int]) -> float:
    """Standard deviation of the answer of a grid whose cells change at random."""
    lit_ones = int(lit_cells(grid).sum())
    dark = grid[0] * grid[1] - lit_ones
    return math.sqrt((lit_ones + dark + 1) / (12 * max(lit_ones * dark, 1)))


def _luck(grid: tuple[int, int]) -> float:
    """What a grid whose cells change at random may answer more than another: 1.5 standard deviations, 2.5 of few."""
    return deviation(grid) * (1.5 if grid[0] * grid[1] > 5 * _FEW else 2.5)


def _is_sequence(change: Tensor, known: Sequence[Layout], seen: Collection[tuple[int, int]]) -> bool:
    """Whether steps (T,) answer as the columns or the rows of the image do, as those of recurrent layers.

    As many steps as a map before has columns or rows are believed to be these, unless they also make such a map or
    answer better as one whose patches were merged.
    """
    steps = len(change)
    sides = {side for grid in seen for side in grid}
    rivals = [r.answer for r in known]
    if steps in sides and not any(r.grid in seen for r in known):
        merged = {(h // k, w // k) for h, w in seen for k in (2, 4, 8) if h % k == w % k == 0}
        rivals = [r.answer for r in known if r.grid in merged and _plain(r)]
    columns, rows = answer(change[None], (1, steps)), answer(change[:, None], (steps, 1))
    return max(columns, rows) >= max([*rivals, _LOWEST_OF_TOKENS])


def _plain(layout: Layout) -> bool:
    """Whether tokens come row by row with none beside the grid."""
    tokens = layout.tokens
    return tokens is not None and not (tokens.blocks or tokens.prefix or tokens.suffix)


def _blocks(layout: Layout) -> tuple[int, ...] | None:
    return None if layout.tokens is None or layout.tokens.channels_last else layout.tokens.blocks
