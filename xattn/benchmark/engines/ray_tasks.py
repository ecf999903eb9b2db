"""Ray: one task a block, handed out as workers get free, and again when a worker dies."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

from xattn.benchmark.config import Config
from xattn.benchmark.engine import Engine, Job
from xattn.benchmark.engines import engines
from xattn.benchmark.plan import Cell, plan
from xattn.benchmark.run import Progress, Scoring, Summary, begin, left, left_of
from xattn.benchmark.store import Store
from xattn.errors import DataError, ParameterError, XattnError, needs
from xattn.schema import Range

_AHEAD = 4  # tasks that wait, for each processor of the cluster: Ray need not hold all at once
_STORE_BYTES = 10**8  # of Ray's own object store on one machine; blocks go through the file system


@engines.register("ray")
@dataclass(frozen=True)
class Ray(Engine):
    """One task of Ray a block: quick workers take more of them, and the task of a worker that dies goes to another.

    Args:
        workers: processes of this machine; 0 for one a processor. A cluster has its own number.
        address: of a cluster, as `auto` or `ray://host:10001`; None starts one on this machine for the run.
        cpus: processors that a task takes.
        gpus: that a task takes, also a part of one.
        retries: how often a block is tried again whose worker has died.
    """

    workers: Annotated[int, Range(0)] = 0
    address: str | None = None
    cpus: Annotated[float, Range(0)] = 1.0
    gpus: Annotated[float, Range(0)] = 0.0
    retries: Annotated[int, Range(0)] = 3

    def run(self, job: Job, cells: Sequence[Cell], part: tuple[int, int], progress: Progress | None = None) -> Summary:
        """See `Engine.run`."""
        needs("ray", "engine ray")
        import ray

        store = Store(job.out)
        begin(store, job.config, cells)
        work = left(store, job.config, cells)
        ours = not ray.is_initialized()
        if ours:
            self._connect(ray)
        try:
            return self._score(ray, job, cells, [(cells.index(w.cell), w.block, w.size) for w in work], progress)
        finally:
            if ours:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self.address is None:
            options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
            options |= {"num_cpus": self.workers} if self.workers else {}
        try:
            ray.init(self.address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ParameterError(f"engine ray: no cluster at address={self.address} ({error}).") from None

    def _score(
        self, ray: Any, job: Job, cells: Sequence[Cell], blocks: Sequence[tuple[int, int, float]], progress: Any
    ) -> Summary:
        summary = Summary()
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": self.retries}
        score, costs = (ray.remote(**options)(task) for task in (score_block, measure_costs))
        total, finished = sum(size for *_, size in blocks), 0.0
        most = _AHEAD * max(1, round(ray.cluster_resources().get("CPU", 1)))
        # Blocks of one cell follow each other, so that workers seldom change the model that they hold.
        rest = iter(blocks)
        waiting: dict[Any, tuple[str, float]] = {}
        while True:
            for cell, block, size in itertools.islice(rest, most - len(waiting)):
                waiting[score.remote(job, cell, block)] = cells[cell].name, size
            if not waiting:
                break
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            name, size = waiting.pop(ready)
            rows = self._got(ray, ready, name)
            summary.blocks += rows is not None
            summary.rows += rows or 0
            finished += size
            if progress is not None:
                progress(finished, total, name)
        self._got(ray, costs.remote(job), "the costs")  # alone, as what else runs would be in the times
        return summary

    def _got(self, ray: Any, task: Any, name: str) -> Any:
        """What a task returns, or its error."""
        try:
            return ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, (XattnError, OSError)):
                raise error.cause from None
            raise
        except ray.exceptions.WorkerCrashedError:
            raise DataError(
                f"{name}: the worker of a task has died {self.retries + 1} times; what is stored stays. A smaller "
                "run.batch takes less memory, and the same command goes on."
            ) from None


def score_block(job: Job, cell: int, block: int) -> int | None:
    """Score what is left of one block; the number of rows, or None if a worker that has died since had stored it."""
    cells, scoring = _here(job)
    work = left_of(scoring.store, job.config, cells[cell], range(block, block + 1))
    return scoring.score(work).rows if work else None


def measure_costs(job: Job) -> None:
    """Measure what methods cost that is not known yet."""
    job.costs(_here(job)[0])


@lru_cache(maxsize=1)
def _of(config: str, out: str) -> tuple[list[Cell], Scoring]:
    """The cells of a run and what scores them, kept by the worker from one block to the next."""
    settings = Config.model_validate_json(config)
    return plan(settings), Scoring(settings, Store(out))


def _here(job: Job) -> tuple[list[Cell], Scoring]:
    return _of(job.config.model_dump_json(), job.out)
