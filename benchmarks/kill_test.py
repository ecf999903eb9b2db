"""Kill a benchmark at random moments, go on, and compare its table with that of an undisturbed run, byte for byte.

    python benchmarks/kill_test.py                                # all methods and metrics, embedded network, 20 kills
    python benchmarks/kill_test.py run.toml --kills 4 --processes 2

Every second kill waits for a part file to be under way, since most of the time none is. Measured costs are no part of
the table. Exit status 1 if the tables differ.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many for each run, and none of them lost in a fork

import pyarrow.csv as pa_csv
import torch

from xattn.benchmark.config import Config
from xattn.benchmark.run import run
from xattn.benchmark.store import SCHEMA, Store

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
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = Config.read(given.config, ["run.device=cpu"])
    with tempfile.TemporaryDirectory() as home:
        whole, broken = Path(home) / "whole", Path(home) / "broken"
        began = time.monotonic()
        wait([start(config, whole)])
        seconds = time.monotonic() - began
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
