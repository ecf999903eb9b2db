"""Measure functions against each other: interleaved rounds, medians and quartiles, peak memory, one JSON file a run.

Other processes, clock frequency and caches change within seconds, so each round calls every case once, in an order
that rotates, and ratios are taken within a round. Processor time (of all threads of this process) is reported beside
wall time: on a busy machine it is the steadier of the two.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_quiet = False


def quiet_allocator() -> None:
    """Let the C library keep freed memory instead of giving it back to the system.

    By default large tensors are mapped anew at each allocation, and page faults are a cost of every temporary tensor,
    up to seconds a batch and very unsteady. Where there is no glibc nothing happens; the environment says so.
    """
    global _quiet
    try:
        libc = ctypes.CDLL("libc.so.6")
        trim, most_maps = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        _quiet = bool(libc.mallopt(trim, -1)) and bool(libc.mallopt(most_maps, 0))
    except (OSError, AttributeError):
        _quiet = False


def synchronize(device: str | torch.device = "cpu") -> None:
    """Wait until the device has finished."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    reference: str | None = None,
    *,
    rounds: int = 7,
    warmup: int = 1,
    inner: int = 1,
    device: str | torch.device = "cpu",
) -> dict[str, dict[str, float]]:
    """Time the cases in turn.

    Args:
        cases: functions by name; what they return is dropped at once.
        reference: the case that ratios are taken to; the first one if None.
        rounds: how many times each is measured.
        warmup: calls of each before that.
        inner: calls per measurement, for functions of less than a millisecond.
        device: synchronized before and after each measurement.

    Returns:
        By name: median `seconds` and `cpu_seconds`; median `ratio` of wall times to the reference of the same round
        with its quartiles `q25` and `q75`; and likewise `cpu_ratio`, `cpu_q25` and `cpu_q75` of processor times, with
        the least one, `cpu_least`.
    """
    names = list(cases)
    reference = reference or names[0]
    for name in names * warmup:
        cases[name]()
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            synchronize(device)
            w, c = time.perf_counter(), time.process_time()
            for _ in range(inner):
                cases[name]()
            synchronize(device)
            wall[name].append((time.perf_counter() - w) / inner)
            cpu[name].append((time.process_time() - c) / inner)
    table = {}
    for name in names:
        low, ratio, high = _quartiles([a / b for a, b in zip(wall[name], wall[reference], strict=True)])
        cpu_low, cpu_ratio, cpu_high = _quartiles(
            [a / max(b, 1e-9) for a, b in zip(cpu[name], cpu[reference], strict=True)]
        )
        table[name] = {
            "seconds": statistics.median(wall[name]),
            "ratio": ratio,
            "q25": low,
            "q75": high,
            "cpu_seconds": statistics.median(cpu[name]),
            "cpu_least": min(cpu[name]),
            "cpu_ratio": cpu_ratio,
            "cpu_q25": cpu_low,
            "cpu_q75": cpu_high,
            "rounds": rounds,
        }
    return table


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (*values,) * 3
    return low, middle, high


def peak_bytes(function: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Most memory that tensors take at a time during a call, beyond what there is before it.

    On the CPU the profiler reports each allocation and release of torch's allocator; their running sum is exact and
    does not depend on other processes or on what the C library keeps. Results count until they are released.
    """
    if torch.device(device).type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def environment(device: str | torch.device = "cpu", *packages: str) -> dict[str, Any]:
    """Device, versions (of torch and other distributions), threads, load and time of a run."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _processor()
    versions = {"python": platform.python_version()}
    for package in ("torch", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_1min": round(os.getloadavg()[0], 2),
        "quiet_allocator": _quiet,
        "versions": versions,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    """Floats of four digits, for JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write(name: str, content: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write the results of a run as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(_plain(content), indent=1) + "\n")
    return path
