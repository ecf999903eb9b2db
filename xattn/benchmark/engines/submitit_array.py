"""A job array of Slurm, by submitit; its executor for one machine runs the same without Slurm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from xattn.benchmark.engine import Engine, Job
from xattn.benchmark.engines import engines
from xattn.benchmark.plan import Cell
from xattn.benchmark.run import Progress, Summary, begin, left
from xattn.benchmark.store import Store
from xattn.errors import DataError, ParameterError, needs
from xattn.places import is_remote
from xattn.schema import Range

_POLL_S = 1.0
_LOGS = "xattn-jobs"


class Share:
    """One task of the array. When Slurm takes its time or machine away, submitit submits it again, and it goes on.

    Args:
        job: the run.
        rank: which part.
        world: of how many.
    """

    def __init__(self, job: Job, rank: int, world: int) -> None:
        self.job, self.rank, self.world = job, rank, world

    def __call__(self) -> Summary:
        """Score what is left of the part."""
        return self.job.share(self.rank, self.world)

    def checkpoint(self) -> Any:
        """What submitit submits in its place: the same, since what is done is stored."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@engines.register("submitit")
@dataclass(frozen=True)
class Submitit(Engine):
    """A Slurm array of `workers` tasks, submitted and waited for; each takes its share of the blocks.

    Args:
        workers: tasks of the array.
        cluster: `slurm`, or `local` for processes of this machine.
        partition: of Slurm; None for its default.
        minutes: after which a task is ended, and submitted again.
        cpus: processors of a task.
        gpus: of a task.
        memory_gb: of a task.
        logs: folder for the logs of the tasks, which all machines see; None for `xattn-jobs` beside the scores.
    """

    workers: Annotated[int, Range(1)] = 4
    cluster: Literal["slurm", "local"] = "slurm"
    partition: str | None = None
    minutes: Annotated[int, Range(1)] = 1440
    cpus: Annotated[int, Range(1)] = 1
    gpus: Annotated[int, Range(0)] = 0
    memory_gb: Annotated[int, Range(1)] = 8
    logs: str | None = None

    def run(self, job: Job, cells: Sequence[Cell], part: tuple[int, int], progress: Progress | None = None) -> Summary:
        """See `Engine.run`."""
        store = Store(job.out)
        begin(store, job.config, cells)
        before, total = len(store.parts()), len(left(store, job.config, cells))
        jobs = self._submit(job, store)
        try:
            while not all(one.done() for one in jobs):
                if progress is not None:
                    progress(len(store.parts()) - before, total, f"{self.workers} tasks of {self.cluster}")
                time.sleep(_POLL_S)
        except BaseException:
            for one in jobs:
                one.cancel(check=False)
            raise
        summary = Summary()
        failed = [one for one in jobs if one.exception() is not None]
        for one in jobs:
            if one not in failed:
                summary.blocks += one.result().blocks
                summary.rows += one.result().rows
        if failed:
            reason = _reason(str(failed[0].exception()))
            raise DataError(
                f"{len(failed)} of {len(jobs)} tasks failed; the first, {failed[0].job_id}, with: {reason}. Its log is "
                f"'{failed[0].paths.stderr}'; what is stored stays, and the same command goes on."
            )
        return summary

    def _submit(self, job: Job, store: Store) -> list[Any]:
        needs("submitit", "engine submitit")
        import submitit

        beside = Path.cwd() if is_remote(store.folder) else store.folder
        try:
            executor = submitit.AutoExecutor(self.logs or beside / _LOGS, cluster=self.cluster)
        except RuntimeError as error:
            raise ParameterError(f"engine submitit: {error}; on one machine say cluster=local.") from None
        executor.update_parameters(
            name="xattn", timeout_min=self.minutes, cpus_per_task=self.cpus, gpus_per_node=self.gpus,
            mem_gb=self.memory_gb,
        )  # fmt: skip
        if self.cluster == "slurm" and self.partition is not None:
            executor.update_parameters(slurm_partition=self.partition)
        with executor.batch():
            return [executor.submit(Share(job, rank, self.workers)) for rank in range(self.workers)]


def _reason(message: str) -> str:
    """The last line of the traceback in a message of submitit, which stands between lines of hyphens."""
    _, _, inside = message.partition("\n---")
    trace = inside.partition("\n---")[0].strip("-").strip() or message.strip()
    return trace.split("\n")[-1].strip()
