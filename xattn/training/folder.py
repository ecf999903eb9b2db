"""The folder of a run: names of its files, how they are written, and whether a run in it can go on."""

from __future__ import annotations

import csv
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from xattn.errors import CheckpointError
from xattn.files import whole_file
from xattn.training.checkpoint import SavedRun, load_run
from xattn.training.recipe import Recipe

LAST, BEST, LOG, RECIPE, RUN = "last.safetensors", "best.safetensors", "log.csv", "recipe.toml", "run.json"
# Keys that may differ when a run goes on.
_FREE = {("run", key) for key in ("out", "accelerator", "devices", "strategy", "tensorboard")} | {
    ("distill", "factory")
}


def find_run(out: Path, recipe: Recipe) -> SavedRun | None:
    """The state of an earlier call with the same recipe; None if there was none.

    Raises:
        CheckpointError: if the folder holds a run with another recipe, or lacks a file of its run.
    """
    path, best = out / LAST, out / BEST
    if not path.is_file():
        if best.exists():  # the state is written before the first epoch, so it was there
            raise CheckpointError(
                f"'{out}' has {BEST} but lacks {LAST}, without which its run cannot go on; put it back, "
                "choose another folder, or start anew with --fresh."
            )
        return None
    saved = load_run(path)
    if saved.progress.best_epoch and not best.is_file():
        raise CheckpointError(
            f"'{out}' lacks {BEST} of epoch {saved.progress.best_epoch}, which is past; put it back, choose "
            "another folder, or start anew with --fresh."
        )
    mine, theirs, usual = (
        _comparable(r) for r in (recipe.model_dump(mode="json"), saved.recipe, Recipe().model_dump(mode="json"))
    )
    for section, content in mine.items():
        for key, value in content.items():
            other = theirs.get(section, {}).get(key, usual[section][key])  # keys that are newer than the run
            if value != other:
                raise CheckpointError(
                    f"'{out}' holds a run with {section}.{key} = {other!r} but the recipe says {value!r}; "
                    "choose another folder, or start anew with --fresh."
                )
    return saved


def _comparable(recipe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A recipe without what does not decide the result."""
    return {
        section: {key: value for key, value in content.items() if (section, key) not in _FREE}
        for section, content in recipe.items()
    }


def processor_name() -> str:
    """The name of the processor or the graphics card that does the work, as the system gives it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return platform.processor() or platform.machine()


def version_of(package: str) -> str:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def write_text(path: Path, text: str) -> None:
    """Replace a file in one move."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_log(path: Path, history: list[dict[str, float]]) -> None:
    """The log as CSV, whole: so it fits the state however often the run was interrupted."""
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(history[0]), lineterminator="\n")
        writer.writeheader()
        for row in history:
            writer.writerow({k: int(v) if k in ("epoch", "image_size") else f"{v:.6g}" for k, v in row.items()})
