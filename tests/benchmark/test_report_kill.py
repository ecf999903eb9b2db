"""A report that is killed at any operation on files leaves whole files and no others."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from xattn.benchmark import figures
from xattn.benchmark.store import Row, Store
from xattn.pages.report import full_report

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
_KILLED = 77


def files(folder: Path) -> dict[str, bytes]:
    """What a reader sees: temporary files begin with a dot."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def killed_report(run: Path, out: Path, at: int) -> bool:
    """Make a report in a process that ends before its `at`-th operation, without clean-up; whether it came so far."""
    child = os.fork()
    if child == 0:
        left = at

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.link"):
                left -= 1
                if left < 0:
                    os._exit(_KILLED)

        try:
            sys.addaudithook(count)
            full_report(run, out, resamples=3, count=0)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, _KILLED)
    return status == _KILLED


def test_a_report_is_killed_before_each_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FORMATS", ("png",))
    rows = [
        Row("d", "m", str(i), 0, method, metric, metric, 0.1 * i + 0.2 * (method == "gradcam"))
        for i in range(5)
        for method in ("gradcam", "random")
        for metric in ("gini",)
    ]
    Store(tmp_path / "run").write("d", "m", 0, rows, {("gradcam", "gini"): 5})
    full_report(tmp_path / "run", tmp_path / "whole", resamples=3, count=0)
    whole = files(tmp_path / "whole")
    assert {"report.html", "report.md", "d-m/leaderboard.csv", "d-m/scores.tex"} <= set(whole)
    out = tmp_path / "out"
    at = 0
    while killed_report(tmp_path / "run", out, at):
        seen = files(out) if out.exists() else {}
        assert {name: whole[name] for name in seen} == seen  # whole, and nothing that is no part of a report
        at += 1
        if at % 7:
            shutil.rmtree(out, ignore_errors=True)  # at times the next begins on what a killed one left
    assert at > 20
    assert files(out) == whole
