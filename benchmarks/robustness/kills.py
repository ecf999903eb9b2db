"""Kill a benchmark, a training and a report before each of their file operations, go on, and compare the results.

    python benchmarks/robustness/kills.py                       # every operation of all three
    python benchmarks/robustness/kills.py --benchmark 3 --train 5 --report 0    # every third, every fifth, none

A file operation is what changes the folder of the run: a file opened to write, a rename, a link, a removal, a new
folder. The result of a run that was killed and called again must be that of an undisturbed one: all scores, all
weights, all tables. Exit status 1 if one is not, or if the second call fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.robustness import stock
from benchmarks.robustness.cases import write_toml
from benchmarks.robustness.harness import load
from benchmarks.robustness.weights import QUICK

TRAIN = ("train", "--data", "synthetic:length=16,size=32", "--backbone", "tiny-cnn", *QUICK, "--epochs", "2")
COMMANDS = {
    "benchmark": ("benchmark", "c.toml", "--out", "run", "-q"),
    "train": TRAIN,
    "report": ("report", "run", "--out", "rep", *stock.BRIEF),
}
RESULTS = {"benchmark": "run", "train": "r", "report": "rep"}  # folder whose operations count
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = ("os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.truncate")


def prepare(what: str, home: Path) -> None:
    """The files that a command starts from."""
    home.mkdir()
    if what == "benchmark":
        write_toml(home / "c.toml", stock.configuration(str(stock.folder() / "data")))
    if what == "report":
        shutil.copytree(stock.folder() / "run", home / "run")


def call(what: str, home: Path, *, kill_at: int | None = None) -> tuple[int, list[str]]:
    """Run a command in a forked process that dies before its n-th file operation; its status and its operations."""
    log = home.parent / f"{home.name}.log"
    log.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.chdir(home)
            for descriptor in (1, 2):
                os.dup2(os.open(home.parent / f"{home.name}.{descriptor}", os.O_WRONLY | os.O_CREAT), descriptor)
            sys.addaudithook(_watch(home / RESULTS[what], log, kill_at))
            code = _run(COMMANDS[what])
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, log.read_text().splitlines() if log.exists() else []


def _run(argv: tuple[str, ...]) -> int:
    from xattn.cli import app

    try:
        app(list(argv), prog_name="xattn")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def _watch(folder: Path, log: Path, kill_at: int | None) -> Any:
    """An audit hook that notes each change inside a folder, and ends the process before one of them."""
    count = 0
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            if not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
                return
        elif event not in _CHANGES:
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        text = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 (a Path's own would be an event)
        if not text.startswith(str(folder)):
            return
        os.write(descriptor, f"{event} {text.removeprefix(str(folder))}\n".encode("utf-8", "replace"))
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    return hook


def result(what: str, home: Path) -> str:
    """A digest of what a command is for, times and dates aside; made in a forked process, since threads do not fork."""
    target = home.parent / f"{home.name}.digest"
    pid = os.fork()
    if pid == 0:
        target.write_text(hashlib.blake2b(b"".join(_contents(what, home))).hexdigest())
        os._exit(0)
    os.waitpid(pid, 0)
    return target.read_text() if target.exists() else "none"


def _contents(what: str, home: Path) -> list[bytes]:
    if what == "train":
        from safetensors.torch import load_file

        state = load_file(home / "r" / "best.safetensors")
        return [name.encode() + state[name].numpy().tobytes() for name in sorted(state)]
    if what == "report":
        tables = sorted(p for p in (home / "rep").rglob("*.csv") if not p.name.startswith("."))  # none half written
        return [str(p.relative_to(home)).encode() + p.read_bytes() for p in tables]
    import pyarrow.parquet as pq

    rows = [
        json.dumps(row, sort_keys=True)
        for path in sorted((home / "run").glob("parts/*/block-*.parquet"))
        for row in pq.read_table(path, partitioning=None).to_pylist()
    ]
    return [row.encode() for row in sorted(set(rows))]


def kills(what: str, every: int) -> dict[str, Any]:
    """Kill before every n-th operation and go on; how many kills, and which of them changed the result."""
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        home = Path(folder)
        prepare(what, home / "whole")
        status, operations = call(what, home / "whole")
        if status:
            raise RuntimeError(f"{what} ended with status {status}: {(home / 'whole.2').read_text()[-500:]}")
        expected = result(what, home / "whole")
        wrong = []
        numbers = range(every // 2, len(operations), every)
        for number in numbers:
            broken = home / f"broken-{number}"
            prepare(what, broken)
            status, _ = call(what, broken, kill_at=number)
            if status != -signal.SIGKILL:
                wrong.append(f"{operations[number]}: was not killed but ended with status {status}")
                continue
            status, _ = call(what, broken)
            if status:
                said = (home / f"{broken.name}.2").read_text()[-300:]
                wrong.append(f"{operations[number]}: the second call ended with status {status}: {said}")
            elif result(what, broken) != expected:
                wrong.append(f"{operations[number]}: another result")
            shutil.rmtree(broken)
        return {"operations": len(operations), "kills": len(numbers), "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for what in COMMANDS:
        parser.add_argument(f"--{what}", type=int, metavar="N", help="only before every N-th operation; 0 for none")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    given = parser.parse_args()
    load()
    results = {}
    for what in COMMANDS:
        every = getattr(given, what)
        if every == 0:
            continue
        results[what] = kills(what, every or 1)
        print(f"{what}: {results[what]['kills']} kills, {results[what]['operations']} file operations", flush=True)
        for line in results[what]["wrong"]:
            print(f"  {line}", flush=True)
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(any(found["wrong"] for found in results.values()))


if __name__ == "__main__":
    main()
