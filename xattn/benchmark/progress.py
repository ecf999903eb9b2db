"""How far a run is, whoever works on it: read from the parts that are stored, which all processes share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from xattn import places
from xattn.benchmark.config import Config
from xattn.benchmark.plan import Cell
from xattn.benchmark.run import Work, all_of, blocks_of, left_of
from xattn.benchmark.store import Store

_RECENT = 20  # parts by whose times the pace is judged


@dataclass(frozen=True)
class Done:
    """How far one cell, or one share of it, is.

    Args:
        name: of the cell.
        blocks: in all.
        whole: blocks of which everything is stored.
        begun: blocks of which something is stored and something is missing.
        work: in all, in the time of a cheap score of one image.
        left: of it.
    """

    name: str
    blocks: int
    whole: int
    begun: int
    work: float
    left: float

    @property
    def share(self) -> float:
        """Share of the work that is done."""
        return 1 - self.left / self.work if self.work else 1.0


@dataclass(frozen=True)
class Pace:
    """When parts appeared.

    Args:
        parts: how many are stored.
        age_s: since the last one; None without one, or where the file system tells no times.
        each_s: between two of the last ones, on average over all that write; None for fewer than two.
    """

    parts: int
    age_s: float | None
    each_s: float | None

    @property
    def stopped(self) -> bool:
        """Whether nobody seems to be at work any more: the last part is ten times as old as parts are apart."""
        return self.age_s is not None and self.each_s is not None and self.age_s > max(10 * self.each_s, 60.0)


def done_of(store: Store, config: Config, cell: Cell, world: int = 1) -> list[Done]:
    """How far each share of a cell is, of so many."""
    blocks = blocks_of(cell, config)
    left = {work.block: work for work in left_of(store, config, cell, range(blocks))}
    shares = []
    for rank in range(world):
        own = range(blocks)[rank::world]
        whole = [Work(cell, block, all_of(cell, config, block)) for block in own]
        rest = [left[block] for block in own if block in left]
        begun = sum(work.todo != all_of(cell, config, work.block) for work in rest)
        sizes = sum(work.size for work in whole), sum(work.size for work in rest)
        shares.append(Done(cell.name, len(own), len(own) - len(rest), begun, *sizes))
    return shares


def sum_of(name: str, some: Sequence[Done]) -> Done:
    """Several together."""
    fields = ("blocks", "whole", "begun", "work", "left")
    return Done(name, *(sum(getattr(one, field) for one in some) for field in fields))


def pace_of(store: Store, now: float | None = None) -> Pace:
    """When the last parts appeared, on whatever machine."""
    parts = store.parts()
    times = sorted(t for path in parts if (t := places.modified(path)) is not None)
    recent = times[-_RECENT:]
    now = time.time() if now is None else now
    each = (recent[-1] - recent[0]) / (len(recent) - 1) if len(recent) > 1 else None
    return Pace(len(parts), max(now - recent[-1], 0.0) if recent else None, each)
