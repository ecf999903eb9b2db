"""Kill a benchmark at random moments, go on, and compare its table with that of an undisturbed run, byte for byte.

    python benchmarks/kill_test.py                                # all methods and metrics, embedded network, 20 kills
    python benchmarks/kill_test.py run.toml --kills 4 --processes 2
    python benchmarks/kill_test.py run.toml --operations          # before each single file operation instead

Every second kill waits for a part file to be under way, since most of the time none is. Measured costs are no part of
the table. Exit status 1 if the tables differ.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many for each run, and none of them lost in a fork

import pyarrow.csv as pa_csv
import torch

from xattn.benchmark.config import Config
from xattn.benchmark.costs import write_costs
from xattn.benchmark.plan import Cell, plan
from xattn.benchmark.run import run
from xattn.benchmark.store import SCHEMA, Store

KILLED = 77
OPERATIONS = ("open", "link", "replace", "rename", "unlink", "mkdir", "fsync", "truncate")
SMALL = Path(__file__).parent / "configs" / "small.toml"


def start(config: Config, folder: Path, rank: int = 0, world: int = 1) -> int:
    """Run in a process of its own; its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        run(config, folder, rank=rank, world=world)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def killed_at(number: int, config: Config, folder: Path, cells: list[Cell]) -> bool:
    """Run in a process that ends, as if killed, before its file operation of that number; whether it got there."""
    pid = os.fork()
    if pid:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code not in (0, KILLED):
            sys.exit(f"a run that was to be killed at operation {number} ended with status {code}")
        return code == KILLED
    count = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os._exit(KILLED)
            return operation(*args, **options)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    io.open = counted(io.open)  # type: ignore[assignment]  # by which pathlib opens
    try:
        run(config, folder, cells=cells)
        write_costs(Store(folder), cells, torch.device("cpu"))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def at_each_operation(config: Config, home: Path, whole: Path) -> int:
    """Kill a run before each of its file operations, go on, and compare; the number of operations."""
    cells = plan(config)
    expected = table(whole)
    for number in itertools.count(1):
        folder = home / str(number)
        if not killed_at(number, config, folder, cells):
            return number - 1
        run(config, folder, cells=cells)
        write_costs(Store(folder), cells, torch.device("cpu"))
        if table(folder) != expected:
            sys.exit(f"killed at operation {number}: DIFFERENT tables")
        for cell in cells:
            if set(Store(folder).read_costs(cell.data.name, cell.model.title).methods) != set(cell.methods):
                sys.exit(f"killed at operation {number}: the costs are not whole")
        shutil.rmtree(folder)
    raise AssertionError


def ended(pids: list[int]) -> dict[int, int]:
    """Status of those processes that have ended."""
    found = {}
    for pid in pids:
        got, status = os.waitpid(pid, os.WNOHANG)
        if got:
            found[pid] = os.waitstatus_to_exitcode(status)
    return found


def wait(pids: list[int]) -> None:
    """Wait until all have ended well."""
    for pid in pids:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            sys.exit(f"a run ended with status {code}")


def disturbed(
    config: Config, folder: Path, kills: int, processes: int, seconds: float, rng: random.Random
) -> dict[str, int]:
    """Start the run over and over, killing it each time, until there were enough kills; then let it end."""
    done = {"kills": 0, "while_writing": 0, "rounds": 1}
    before: set[str] = set()  # temporary files of killed processes stay
    while done["kills"] < kills:
        pids = [start(config, folder, rank, processes) for rank in range(processes)]
        waits_for_file = done["kills"] % 2 == 1
        limit = time.monotonic() + (seconds if waits_for_file else rng.uniform(0, seconds / 4))
        codes: dict[int, int] = {}
        caught = False
        while time.monotonic() < limit and len(codes) < len(pids) and not caught:
            now = {path.name for path in folder.glob("parts/*/.xattn-*")}
            caught = waits_for_file and bool(now - before)
            before |= now
            codes |= ended([pid for pid in pids if pid not in codes])
            if any(codes.values()):
                sys.exit("a run that was not killed failed")
            if not caught:
                time.sleep(0.0005)
        alive = [pid for pid in pids if pid not in codes]
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        for pid in alive:
            os.waitpid(pid, 0)
        done["kills"] += bool(alive)
        done["while_writing"] += caught and bool(alive)
        if not alive and done["kills"] < kills:  # it was complete before it could be killed often enough
            shutil.rmtree(folder)
            before = set()
            done["rounds"] += 1
    wait([start(config, folder, rank, processes) for rank in range(processes)])
    return done


def table(folder: Path) -> bytes:
    """The scores as CSV."""
    stream = io.BytesIO()
    pa_csv.write_csv(Store(folder).table().cast(SCHEMA), stream)
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=SMALL)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--operations", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = Config.read(given.config, ["run.device=cpu"])
    with tempfile.TemporaryDirectory() as home:
        whole, broken = Path(home) / "whole", Path(home) / "broken"
        began = time.monotonic()
        wait([start(config, whole)])
        seconds = time.monotonic() - began
        if given.operations:
            count = at_each_operation(config, Path(home), whole)
            print(f"killed before each of {count} file operations: the same tables")
            return
        done = disturbed(config, broken, given.kills, given.processes, seconds, random.Random(given.seed))
        same = table(whole) == table(broken)
        rows = Store(whole).table().num_rows
    print(
        f"{done['kills']} kills ({done['while_writing']} while a file was written), {done['rounds']} rounds of "
        f"{seconds:.1f} s, {given.processes} processes, {rows:,} rows: {'the same' if same else 'DIFFERENT'} tables"
    )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
