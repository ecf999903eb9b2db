"""What methods and metrics cost: estimated before a run, measured beside its scores."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from xattn.benchmark.config import Config
from xattn.benchmark.ladder import Rung
from xattn.benchmark.manifest import device_name
from xattn.benchmark.plan import Cell, read_batch
from xattn.benchmark.run import Loaded, score_batch
from xattn.benchmark.schemas import Costs, MethodCost
from xattn.benchmark.store import Store
from xattn.device import find_device
from xattn.errors import DataError, XattnError
from xattn.explaining import record_for
from xattn.trace import Trace

_LONG_PROBE_S = 60.0


@dataclass
class Cost:
    """What one part of the work of a cell is.

    Args:
        images: that it is done on.
        seconds: per image.
        passes: images that go through the model, per image.
    """

    images: int
    seconds: float = 0.0
    passes: float = 0.0


def estimate(cell: Cell, config: Config, images: int = 2) -> dict[str, Cost]:
    """What the maps (`status`) and each metric of a cell take, from a probe on a few images.

    Metrics share what they can, as in a run: a curve counts for the first metric that reads it.

    Raises:
        DataError: if none of the first images can be read.
    """
    device = find_device(config.run.device, "run.device")
    loaded = Loaded.load(cell, device, fast=config.run.fast)
    batch, _ = read_batch(cell, cell.indices[: max(images, 8)], loaded.spec)
    if batch is None:
        raise DataError(f"{cell.data.name}: none of the first images can be read.")
    batch = batch[:images]
    costs: dict[str, Cost] = {}
    passes = 0

    def count(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal passes
        passes += len(inputs[0])

    @contextmanager
    def watch(label: str) -> Iterator[None]:
        before, start = passes, time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = (time.perf_counter() - start) / len(batch)
        costs[label] = Cost(cell.counts[label], seconds, (passes - before) / len(batch))

    networks = [n for n in (loaded.model, loaded.scoring, loaded.scorer) if n is not None]
    handles = [network.register_forward_pre_hook(count) for network in networks]
    try:
        start = time.perf_counter()
        wanted = dict.fromkeys(cell.pairs(), len(batch))
        score_batch(loaded, batch, wanted, config, watch)
        if time.perf_counter() - start < _LONG_PROBE_S:  # the first time holds imports and kernels to choose
            score_batch(loaded, batch, wanted, config, watch)
    finally:
        for handle in handles:
            handle.remove()
    return costs


def write_costs(store: Store, cells: Sequence[Cell], device: torch.device) -> None:
    """Measure what the methods of each cell cost alone, and write it beside the scores; what is there stays."""
    for cell in cells:
        kept = store.read_costs(cell.data.name, cell.model.title).methods
        lacking = {n: method for n, method in cell.methods.items() if n not in kept and not isinstance(method, Rung)}
        if not lacking:
            continue
        new = measure_costs(dataclasses.replace(cell, methods=lacking), device)
        costs = Costs(
            dataset=cell.data.name,
            model=cell.model.title,
            threads=torch.get_num_threads(),
            device=device_name(device),
            methods={**kept, **new},
        )
        store.write_costs(cell.data.name, cell.model.title, costs)


def measure_costs(cell: Cell, device: torch.device | str, batch: int = 8, repeats: int = 3) -> dict[str, MethodCost]:
    """What each method costs alone: seconds per image (median), forward and backward passes, peak memory on CUDA.

    Seconds of a CPU are those of the processor, of all threads together: what else the machine does is not counted.
    A method that refuses the images is left out.

    Args:
        cell: the first images of its sample are explained.
        device: where.
        batch: images at a time.
        repeats: after one to warm up.

    Raises:
        DataError: if none of the images can be read.
    """
    return dict(measured(cell, device, batch, repeats))


def measured(
    cell: Cell, device: torch.device | str, batch: int = 8, repeats: int = 3
) -> Iterator[tuple[str, MethodCost]]:
    """The same, one method after the other, for whoever may have to stop amid them."""
    model, spec = cell.load(device)
    images, _ = read_batch(cell, cell.indices[:batch], spec)
    if images is None:
        raise DataError(f"{cell.data.name}: none of the first {batch} images can be read.")
    x = images.x.to(device)
    kind = torch.device(device).type
    cuda = kind == "cuda"
    clock = time.process_time if kind == "cpu" else time.perf_counter
    for name, method in cell.methods.items():
        times = []
        trace: Trace | None = None
        for _ in range(repeats + 1):
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            start = clock()
            try:
                trace = record_for(model, x, [method], spec=spec)
                method.explanation(trace)
            except XattnError:
                break
            if cuda:
                torch.cuda.synchronize()
            times.append(clock() - start)
        if len(times) > 1 and trace is not None:
            yield (
                name,
                MethodCost(
                    seconds=float(np.median(times[1:])) / len(x),
                    forwards=float(trace.forwards),
                    backwards=float(trace.backwards),
                    peak_mb=torch.cuda.max_memory_allocated() / 2**20 / len(x) if cuda else None,
                ),
            )
