"""Some bad inputs of each kind, at a fixed seed: `benchmarks/robustness/fuzz.py` tries many more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SEED = 0
COUNTS = {
    "images": 10,
    "names": 12,
    "weights": 14,
    "recipes": 12,
    "configurations": 10,
    "results": 7,
    "datasets": 10,
    "parameters": 16,
    "options": 12,
    "hostile": 10,
}


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """A process without threads, which can fork one for each case."""
    words = [sys.executable, str(ROOT / "benchmarks" / "robustness" / "fuzz.py"), "--serve", "--seconds", "60"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def tried(server: subprocess.Popen[str], kind: str, count: int) -> dict[str, Any]:
    """What came of the first cases of a kind."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(f"{kind} {SEED} {count}\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


@pytest.mark.parametrize("kind", COUNTS)
def test_bad_input_is_read_or_refused_in_one_line(server: subprocess.Popen[str], kind: str) -> None:
    result = tried(server, kind, COUNTS[kind])
    assert result["tried"] == COUNTS[kind]
    assert result["refused"] + result["read"] + result["wrong"] == COUNTS[kind]
    wrong = [f"{case['name']}: {'; '.join(case['faults'])}\n  {case['repeat']}" for case in result["cases"]]
    assert not wrong, "\n".join(wrong)
