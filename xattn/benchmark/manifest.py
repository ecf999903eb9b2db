"""What scores depend on, written beside them: two runs in one folder must agree in it."""

from __future__ import annotations

import datetime
import hashlib
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from xattn.benchmark.config import Config, DataEntry
from xattn.benchmark.plan import Cell
from xattn.benchmark.schemas import DataIdentity, Environment, Identity, Manifest, ModelIdentity, RunIdentity
from xattn.benchmark.store import Store
from xattn.data.dataset import Dataset
from xattn.data.mosaic import Mosaic
from xattn.errors import ParameterError


def identity_of(config: Config, cells: Sequence[Cell], known: Identity | None = None) -> Identity:
    """What the scores of a run depend on, other than methods and metrics.

    Args:
        config: the run.
        cells: what it consists of.
        known: an earlier one. Where sizes and times of all files are those that it names, none is read.
    """
    before = known.data if known is not None else {}
    opened = {c.data.name: (c.data, c.dataset.dataset if isinstance(c.dataset, Mosaic) else c.dataset) for c in cells}
    return Identity(
        run=RunIdentity(**{name: getattr(config.run, name) for name in RunIdentity.model_fields}),
        data={name: _data_identity(*entry, before.get(name)) for name, entry in opened.items()},
        models={c.model.title: _model_identity(c, known) for c in cells},
    )


def _model_identity(cell: Cell, known: Identity | None) -> ModelIdentity:
    """A scorer may come later, and stay away for a while; scores that were made with it still depend on it."""
    before = known.models.get(cell.model.title) if known is not None else None
    if not cell.scorer_digest and before is not None:
        return ModelIdentity(weights=cell.digest, scorer=before.scorer, scorer_file=before.scorer_file)
    return ModelIdentity(weights=cell.digest, scorer=cell.scorer_digest, scorer_file=dict(cell.scorer_file))


def _data_identity(entry: DataEntry, dataset: Dataset, before: DataIdentity | None) -> DataIdentity:
    files = dataset.fingerprint()
    same = before is not None and before.content and before.files == files
    return DataIdentity(
        split=entry.split,
        fit=entry.fit,
        mosaic=entry.mosaic,
        images=len(dataset),
        labels=hashlib.blake2b(np.ascontiguousarray(dataset.labels).tobytes(), digest_size=8).hexdigest(),
        content=before.content if before is not None and same else dataset.fingerprint(content=True),
        files=files,
    )


def check_manifest(store: Store, config: Config, cells: Sequence[Cell], device: torch.device) -> None:
    """Write what the scores depend on beside them; refuse a folder whose scores depend on something else.

    More methods, metrics, images, data sets and models may come later, and from other machines, which are noted.

    Raises:
        ParameterError: with the difference.
        DataError: if the manifest is damaged.
    """
    new, environment = identity_of(config, cells, store.read_manifest().identity), _environment(device)
    if store.create_manifest(Manifest(identity=new, config=config, environments=(environment,))):
        return
    kept = store.read_manifest()
    old = kept.identity
    if old is None:
        raise ParameterError(f"'{store.manifest}' is damaged (it has no identity); use another --out.")
    if changed := _differences(old, new):
        raise ParameterError(
            f"'{store.folder}' holds scores of another run: {'; '.join(changed)}. Use another --out, or change it back."
        )
    known = any(e.model_copy(update={"started": environment.started}) == environment for e in kept.environments)
    merged = Manifest(
        identity=Identity(run=new.run, data={**old.data, **new.data}, models={**old.models, **new.models}),
        config=config,
        environments=kept.environments if known else (*kept.environments, environment),
    )
    if merged != kept.model_copy(update={"digest": ""}):
        store.replace_manifest(merged)


def _differences(old: Identity, new: Identity) -> list[str]:
    """What does not agree; the content of files that earlier versions did not look at may be anything."""
    changed = [
        f"run.{name} was {getattr(old.run, name)} and is {value}"
        for name, value in new.run
        if getattr(old.run, name) != value
    ]
    for before, after in ((old.data, new.data), (old.models, new.models)):
        for title in sorted(before.keys() & after.keys()):
            differs = [(name, getattr(before[title], name), value) for name, value in after[title]]
            changed += [
                f"the files of {title} have changed"
                if name == "content"
                else f"{name} of {title} was {was} and is {now}"
                for name, was, now in differs
                if was != now and name not in ("files", "scorer_file") and (name not in ("content", "scorer") or was)
            ]
    return changed


def _environment(device: torch.device) -> Environment:
    return Environment(
        versions={name: _version(name) for name in ("xattn", "torch", "torchvision", "numpy")},
        commit=_commit(),
        device=device_name(device),
        threads=torch.get_num_threads(),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def device_name(device: torch.device) -> str:
    """The name of a device for those who read it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the sources that run, with a mark if they were changed; None for an installed package."""
    home = Path(__file__).resolve().parents[2]
    if not (home / ".git").exists():
        return None
    try:
        words = ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
