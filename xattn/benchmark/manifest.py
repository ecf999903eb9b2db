"""What scores depend on, written beside them: two runs in one folder must agree in it."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xattn.benchmark.config import Config
from xattn.benchmark.plan import Cell
from xattn.benchmark.store import Store
from xattn.data.dataset import Dataset
from xattn.errors import ParameterError
from xattn.files import whole_file


def identity(config: Config, cells: Sequence[Cell]) -> dict[str, Any]:
    """What scores depend on, other than methods and metrics: two runs in one folder must agree in it."""
    run = config.run
    return {
        "run": {name: getattr(run, name) for name in ("seed", "target", "score", "block", "precision", "fast")},
        "data": {
            c.data.name: {
                "split": c.data.split, "fit": c.data.fit, "mosaic": c.data.mosaic, "images": len(c.dataset),
                "labels": _labels(c.dataset),
            }
            for c in cells
        },
        "models": {c.model.title: {"weights": c.digest} for c in cells},
    }  # fmt: skip


def _labels(dataset: Dataset) -> str:
    return hashlib.blake2b(np.ascontiguousarray(dataset.labels).tobytes(), digest_size=8).hexdigest()


def check_manifest(store: Store, config: Config, cells: Sequence[Cell], device: torch.device) -> None:
    """Write what the scores depend on beside them; refuse a folder whose scores depend on something else.

    More methods, metrics, images, data sets and models may come later, and from other machines, which are noted.

    Raises:
        ParameterError: with the difference.
    """
    path = store.manifest
    new = identity(config, cells)
    settings = config.model_dump(mode="json")
    environment = {
        "versions": {name: _version(name) for name in ("xattn", "torch", "torchvision", "numpy")},
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
    }
    begun = {**environment, "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    if _create(path, {"identity": new, "config": settings, "environments": [begun]}):
        return
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        old, environments = kept["identity"], kept["environments"]
        known = [{name: e.get(name) for name in environment} for e in environments]
        changed = [
            f"run.{k} was {old['run'].get(k)} and is {v}"
            for k, v in new["run"].items()
            if old["run"].get(k, False if k == "fast" else None) != v
        ]
        for kind in ("data", "models"):
            for name in sorted(new[kind].keys() & old[kind].keys()):
                differs = [k for k, v in new[kind][name].items() if old[kind][name].get(k) != v]
                changed += [f"{k} of {name} was {old[kind][name].get(k)} and is {new[kind][name][k]}" for k in differs]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParameterError(f"'{path}' is damaged ({error}); use another --out.") from None
    if changed:
        raise ParameterError(
            f"'{store.folder}' holds scores of another run: {'; '.join(changed)}. Use another --out, or change it back."
        )
    merged = {**new, "data": {**old["data"], **new["data"]}, "models": {**old["models"], **new["models"]}}
    if environment not in known:
        environments = [*environments, begun]
    if merged != old or kept.get("config") != settings or environments != kept["environments"]:
        replace_json(path, {"identity": merged, "config": settings, "environments": environments})


def _create(path: Path, content: Any) -> bool:
    """Write a JSON file unless it is there, whole or not at all; whether it was written."""
    if path.exists():
        return False
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    try:
        os.link(temporary, path)  # of two processes that start together one comes first
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def replace_json(path: Path, content: Any) -> None:
    """Write a JSON file in place of what is there."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the sources that run, with a mark if they were changed; None for an installed package."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        words = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        found = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
