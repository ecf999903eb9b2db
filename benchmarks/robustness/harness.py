"""Run a case in a forked process under limits, and judge what it did."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.robustness.cases import CANARY, REFUSED, Call, Outcome, makers

SECONDS = 60.0  # of computing
_IDLE_S = 20.0  # without computing: it waits for something that never comes
MEMORY_MB = 1024  # above what the imports take
LINE = 2_000  # characters of a line, colours of rich aside
_HARD_LIMIT_MB = 4096  # of addresses above the imports: an allocation beyond it fails at once
_HARMFUL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_MODULES = (
    "torch", "torchvision", "timm", "matplotlib.pyplot", "pyarrow.parquet", "scipy.stats", "rich.table", "pydantic",
    "lightning.fabric", "jinja2", "xattn.cli", "xattn.models", "xattn.explainers", "xattn.metrics",
    "xattn.pages.report", "xattn.training.loop", *(f"xattn.cli.{name}" for name in (
        "explain", "compare", "doctor", "train", "evaluate", "benchmark", "report", "catalog")),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    Args:
        kind: of input.
        number: of the case in its kind.
        name: what was tried.
        argv: arguments of the command.
        status: exit status, or minus the signal.
        faults: what is wrong; empty if nothing is.
        seconds: that it took.
        peak_mb: memory above the imports.
        message: the end of what it printed to stderr.
    """

    kind: str
    number: int
    name: str
    argv: tuple[str, ...]
    status: int
    faults: tuple[str, ...]
    seconds: float
    peak_mb: float
    message: str


def load() -> None:
    """Import what the commands need, so that a forked case starts at once; computes nothing, as threads do not fork."""
    import torch

    from benchmarks.robustness import stock

    torch.set_num_threads(1)
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # a command says itself what it lacks
    for name in ("explainers", "metrics", "models", "data.datasets"):
        package, _, registry = name.rpartition(".")
        getattr(importlib.import_module(f"xattn.{package or name}"), registry).names()  # imports what is registered
    stock.folder()


def run_case(kind: str, seed: int, number: int, *, seconds: float = SECONDS, keep: Path | None = None) -> Verdict:
    """Make and try one case in a process of its own.

    Args:
        kind: one of `KINDS`.
        seed: of the cases.
        number: of the case.
        seconds: of computing after which it is ended, as it is when it waits for long.
        keep: folder for its files, which stay; None for a temporary one.
    """
    home = Path(tempfile.mkdtemp(prefix="robustness-")) if keep is None else keep
    (home / "case").mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(kind, seed, number, home)
    status, usage, hung = _wait(pid, seconds)
    took = time.monotonic() - began
    try:
        about = json.loads((home / "about.json").read_text()) if (home / "about.json").exists() else {}
        texts = {}
        for name in ("stdout", "stderr"):
            path = home / name
            data = path.read_bytes()[:4_000_000] if path.exists() else b""
            texts[name] = data.decode("utf-8", "backslashreplace")
        outcome = Outcome(status, **texts)
        peak = usage.ru_maxrss / 1024 - about.get("base_mb", 0.0)
        faults = [*_judge(outcome, about, peak, hung), *about.get("faults", ())]
        if "argv" not in about:
            faults = [f"the case itself failed: {texts['stderr'][-300:]}"]
    finally:
        if keep is None:
            shutil.rmtree(home, ignore_errors=True)
    message = next((line for line in reversed(outcome.stderr.splitlines()) if line.strip()), "")
    return Verdict(
        kind, number, about.get("name", ""), tuple(about.get("argv", ())), status, tuple(faults), round(took, 2),
        round(max(peak, 0.0)), message[:400],
    )  # fmt: skip


def _wait(pid: int, seconds: float) -> tuple[int, resource.struct_rusage, bool]:
    """Status of a process, what it used, and whether it had to be ended."""
    descriptor = os.pidfd_open(pid)
    used, since, hung = 0.0, time.monotonic(), False
    while not hung and not select.select([descriptor], [], [], 0.5)[0]:
        now = _processor_s(pid)
        if now > used:
            used, since = now, time.monotonic()
        hung = used > seconds or time.monotonic() - since > _IDLE_S
    os.close(descriptor)
    if hung:
        os.kill(pid, signal.SIGKILL)
    _, raw, usage = os.wait4(pid, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # processes that it started
    return os.waitstatus_to_exitcode(raw), usage, hung


def _child(kind: str, seed: int, number: int, home: Path) -> None:
    """Make the files, call, check, and end; never returns."""
    code = 70
    try:
        os.setsid()
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = _stream(1), _stream(2)
        warnings.resetwarnings()
        os.chdir(home / "case")
        known = makers(kind)
        rng = random.Random(f"{kind}/{seed}/{number}")
        maker = known[number % len(known)]
        call = maker(rng, home / "case")
        name = f"{maker.__name__}: {call.name}" if call.name else maker.__name__
        about: dict[str, Any] = {"name": name[:200], "argv": list(call.argv), "statuses": sorted(call.statuses)}
        about["base_mb"] = _resident_mb()
        (home / "about.json").write_text(json.dumps(about))
        os.environ.update(call.env)
        _limit_addresses()
        code = _attempt(call)
        sys.stdout.flush()
        sys.stderr.flush()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        about["faults"] = _checked(call, home, code)
        (home / "about.json").write_text(json.dumps(about))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code & 0xFF)


def _stream(descriptor: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), "utf-8", "surrogateescape", line_buffering=True)


def _attempt(call: Call) -> int:
    """Exit status of the call; a traceback as the interpreter would print it."""
    from xattn.cli import app
    from xattn.errors import XattnError

    sys.argv = ["xattn", *call.argv]
    try:
        if call.function is not None:
            call.function()
        else:
            app(list(call.argv), prog_name="xattn")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except XattnError as error:
        if call.function is None:
            traceback.print_exc()
            return 1
        print(
            f"xattn: {error!s:.1500}".replace("\n", " ").encode("ascii", "backslashreplace").decode(), file=sys.stderr
        )
        return REFUSED
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _checked(call: Call, home: Path, code: int) -> list[str]:
    """What the case's own check says, and whether something ran."""
    outcome = Outcome(
        code, (home / "stdout").read_text("utf-8", "replace"), (home / "stderr").read_text("utf-8", "replace")
    )
    faults = [f"RAN what was to be read: {path.name}" for path in home.rglob(f"{CANARY}*")]
    if call.check is not None and code in call.statuses:
        complaint = call.check(home / "case", outcome)
        faults += [complaint] if complaint else []
    return faults


def _judge(outcome: Outcome, about: dict[str, Any], peak_mb: float, hung: bool) -> list[str]:
    """What is wrong with what a call did."""
    faults = []
    statuses = about.get("statuses", [])
    if hung:
        faults.append("hang")
    elif outcome.status < 0:
        faults.append(f"signal {-outcome.status}")
    elif "Traceback (most recent call last)" in outcome.stderr:
        faults.append(f"traceback {_culprit(outcome.stderr)}")
    elif outcome.status not in statuses:
        faults.append(f"status {outcome.status}, expected {' or '.join(str(s) for s in statuses)}")
    else:
        faults += _judge_text(outcome)
    if peak_mb > MEMORY_MB:
        faults.append(f"{peak_mb:.0f} MB")
    return faults


def _judge_text(outcome: Outcome) -> list[str]:
    """What is wrong with what a call printed."""
    faults = []
    for where, text in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
        if found := _HARMFUL.search(text):
            faults.append(f"control character {found[0]!r} in {where}")
        longest = max(map(len, text.splitlines()), default=0)
        if longest > LINE and not (where == "stdout" and text.startswith("{")):  # not JSON
            faults.append(f"line of {longest} characters in {where}")
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("xattn: ") and not line.startswith("xattn: warning")]
    if outcome.status == REFUSED and not errors:
        faults.append("refused without a line")
    if outcome.status == REFUSED and [n for n in lines if not n.startswith(("xattn: ", "warning"))]:
        faults.append(f"{len(lines)} lines, not all of them xattn's")
    return faults


def _culprit(stderr: str) -> str:
    """The last line of xattn in a traceback, and the error."""
    places = re.findall(r'File "[^"]*?(xattn/[^"]+)", line (\d+)', stderr)
    last = next((line for line in reversed(stderr.splitlines()) if line and not line[0].isspace()), "")
    return f"{':'.join(places[-1]) if places else ''} {last[:160]}"


def _processor_s(pid: int) -> float:
    """Seconds that a process has computed; a busy machine does not lengthen them."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _limit_addresses() -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = taken + _HARD_LIMIT_MB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
