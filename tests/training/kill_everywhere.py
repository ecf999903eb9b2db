"""Kill a training at each operation on the files of its folder, go on, and compare: run as a process of its own.

It imports everything once and forks a child for each training, so that none inherits the threads of another one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.fabric  # noqa: F401  here, so that no child has to import it
import torch

from xattn.data import datasets
from xattn.models import models
from xattn.models.checkpoint import read_state
from xattn.training import loop
from xattn.training.recipe import Recipe

_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.link")


def child(work: Callable[[], None]) -> int:
    """Status of a forked child that does the work, negative for a signal."""
    process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    _, status = os.waitpid(process, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def count(out: Path, limit: int, note: Path) -> None:
    """Count operations on files of the folder from now on, and die before number `limit`; 0 never dies."""
    done = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event not in _EVENTS or not str(arguments[0]).startswith(str(out)):
            return
        if event == "open" and not str(arguments[1] or "").strip("rb") and not (arguments[2] or 0) & os.O_WRONLY:
            return  # reading
        done += 1
        if done == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        if not limit:
            note.write_text(str(done))

    sys.addaudithook(hook)


def main() -> None:
    """Arguments: recipe, folder for the runs, first operation, step between operations; prints a summary as JSON."""
    recipe_file, root, first, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

    def train(out: Path, limit: int | None) -> Callable[[], None]:
        def work() -> None:
            torch.set_num_threads(1)
            if limit is not None:
                count(out, limit, root / "operations")
            loop.train(Recipe.read(recipe_file, [f"run.out={json.dumps(str(out))}"]))

        return work

    datasets.names()
    models.names()
    whole = root / "whole"
    if child(train(whole, 0)):
        raise SystemExit("the undisturbed run failed")
    number = int((root / "operations").read_text())
    expected = {name: read_state(whole / name) for name in ("best.safetensors", "last.safetensors")}
    result: dict[str, Any] = {"operations": number, "killed": 0, "failed": [], "different": []}
    for limit in range(first, number + 1, step):
        out = root / f"killed-{limit}"
        result["killed"] += child(train(out, limit)) == -signal.SIGKILL
        if child(train(out, None)):
            result["failed"].append(limit)
            continue
        for name, tensors in expected.items():
            again = read_state(out / name)
            if again.keys() != tensors.keys() or not all(torch.equal(again[k], t) for k, t in tensors.items()):
                result["different"].append([limit, name])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
