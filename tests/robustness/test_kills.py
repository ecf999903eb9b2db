"""Runs that are killed before a file operation and called again give what undisturbed ones give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVERY = {"benchmark": 12, "train": 21, "report": 110}  # from one kill to the next: all are for `kills.py` alone


@pytest.mark.slow
def test_killed_at_a_file_operation() -> None:
    script = ROOT / "benchmarks" / "robustness" / "kills.py"
    every = [word for what, n in EVERY.items() for word in (f"--{what}", str(n))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, str(script), *every], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for what in EVERY:
        assert f"{what}: " in ended.stdout
