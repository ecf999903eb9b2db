"""This process: all blocks, or the part that `--shard` names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from xattn.benchmark.engine import Engine, Job, part_of
from xattn.benchmark.engines import engines
from xattn.benchmark.plan import Cell
from xattn.benchmark.run import Progress, Summary
from xattn.errors import ParameterError


@engines.register("local")
@dataclass(frozen=True)
class Local(Engine):
    """This process alone; `--shard I/N` makes it one of several that somebody starts."""

    def part(self, shard: str | None) -> tuple[int, int]:
        """See `Engine.part`."""
        return part_of("0/1" if shard is None else shard, "--shard")

    def run(self, job: Job, cells: Sequence[Cell], part: tuple[int, int], progress: Progress | None = None) -> Summary:
        """See `Engine.run`."""
        return job.share(*part, cells, progress)


@engines.register("torchrun")
@dataclass(frozen=True)
class Torchrun(Local):
    """One of the processes that `torchrun` or `fabric run` has started: the environment says which one."""

    launched: ClassVar[bool] = True

    def part(self, shard: str | None) -> tuple[int, int]:
        """See `Engine.part`."""
        if shard is not None:
            return super().part(shard)
        if "RANK" not in os.environ:
            raise ParameterError(
                "engine torchrun: RANK is not in the environment; start it as torchrun --nproc-per-node 4 -m xattn "
                "benchmark RUN.toml --out DIR."
            )
        rank, world = os.environ["RANK"], os.environ.get("WORLD_SIZE", "1")
        return part_of(f"{rank}/{world}", "RANK/WORLD_SIZE of the environment")
