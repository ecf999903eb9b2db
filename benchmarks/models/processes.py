"""A row from a process of its own: what a network may take, and whatever it raises, ends that process alone."""

from __future__ import annotations

import json
import os
import resource
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def alone(name: str, make: Callable[[], dict[str, Any]], limit: int) -> dict[str, Any]:
    """The row that a function makes in a process of its own, which is ended after so many seconds.

    Args:
        name: of the row, where there is no other.
        make: the function, with one thread and without warnings.
        limit: seconds of processor time.

    Returns:
        The row; `name` and `failed`, the reason, where there is none.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
            torch.set_num_threads(1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row = make()
        except BaseException as error:  # the process must answer
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            row = {"name": name, "failed": f"{type(error).__name__}: {short(error)} ({place})"}
        with os.fdopen(writing, "w") as pipe:
            json.dump(row, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"name": name, "failed": f"no answer within {limit} s of processor time"}


def as_lines(rows: dict[str, dict[str, Any]]) -> str:
    """Rows by name as JSON, one a line, in the order of the names: a row that changes is a line that changes."""
    return "[\n" + ",\n".join(json.dumps(rows[name], ensure_ascii=False) for name in sorted(rows)) + "\n]"


def short(error: object) -> str:
    """A message in one line."""
    return " ".join(str(error).split())[:240]
