"""The contract of an engine: what has a run's blocks scored, by one process or by many."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from xattn.benchmark.config import Config
from xattn.benchmark.costs import write_costs
from xattn.benchmark.plan import Cell, plan
from xattn.benchmark.run import Progress, Summary, run
from xattn.benchmark.store import Store
from xattn.device import find_device
from xattn.errors import ParameterError
from xattn.schema import check_fields


@dataclass(frozen=True)
class Job:
    """A run that other processes and machines can take part in: it holds no model and no data.

    Args:
        config: the run.
        out: where the scores are and go; for other machines a place that all of them see.
    """

    config: Config
    out: str

    def share(
        self, rank: int, world: int, cells: Sequence[Cell] | None = None, progress: Progress | None = None
    ) -> Summary:
        """Score what is left of blocks `rank`, `rank + world`, ... of every cell; the first one measures costs too."""
        cells = plan(self.config) if cells is None else cells
        summary = run(self.config, self.out, rank=rank, world=world, cells=cells, progress=progress)
        if rank == 0:
            self.costs(cells)
        return summary

    def costs(self, cells: Sequence[Cell]) -> None:
        """Measure what methods cost that is not known yet."""
        write_costs(Store(self.out), cells, find_device(self.config.run.device, "run.device"))


class Engine(ABC):
    """Has the blocks of a run scored; a frozen dataclass, whose fields are its parameters.

    Every engine does the same: what is left of a run is told by the parts that are stored, and a part belongs to one
    block. So engines may follow each other on one run, and the table is the same.
    """

    name: ClassVar[str] = ""
    launched: ClassVar[bool] = False
    """Started once for each process, by a launcher that ends all when one of them fails."""

    def __post_init__(self) -> None:
        check_fields(self, f"engine {self.name}")

    def part(self, shard: str | None) -> tuple[int, int]:
        """Which part of how many this process is; the only one, where the engine itself hands out the work.

        Raises:
            ParameterError: for a `--shard` that the engine has no use for.
        """
        if shard is not None:
            raise ParameterError(
                f"--shard: engine {self.name} shares out the work itself; leave --shard or --engine out."
            )
        return 0, 1

    @abstractmethod
    def run(self, job: Job, cells: Sequence[Cell], part: tuple[int, int], progress: Progress | None = None) -> Summary:
        """Score what is not there yet.

        Args:
            job: the run.
            cells: result of `plan` for it.
            part: result of `part`.
            progress: called with the work done, the work in all and what it is.
        """


def part_of(text: str, option: str) -> tuple[int, int]:
    """Number of this process and of all, from `i/n`.

    >>> part_of("0/4", "--shard")
    (0, 4)

    Raises:
        ParameterError: if the text is not i/n with 0 <= i < n.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ParameterError(f"{option}: expected i/n with i from 0 to n - 1, as 0/4, but got '{text}'.")
    return int(match[1]), int(match[2])
