"""A small run for the tests: a seeded network on synthetic images."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pa_csv

from xattn.benchmark.config import Config
from xattn.benchmark.schemas import Costs, Environment, Manifest, MethodCost
from xattn.benchmark.store import SCHEMA, Row, Store
from xattn.labels import label_of
from xattn.metric import LOWER
from xattn.metrics import metrics as known

METHODS = ("brnpa", "gradcam", "saliency", "guided-backprop", "eigencam")

SMALL: dict[str, Any] = {
    "data": [{"source": "synthetic:length=22", "label": "shapes"}],
    "models": [{"name": "tests.cli.models:cnn", "label": "cnn"}],
    "methods": ["gradcam", "saliency", "brnpa"],
    "metrics": ["sparsity", "pointing_game", {"name": "deletion:steps=8", "limit": 13}],
    "run": {"block": 8, "batch": 4, "device": "cpu"},
}


def small(**changes: Any) -> Config:
    """The small run with other values: a section's keys are merged, `data` and `models` apply to the first entry."""
    values = copy.deepcopy(SMALL)
    for key, value in changes.items():
        if key == "run":
            values["run"].update(value)
        elif key in ("data", "models") and isinstance(value, dict):
            values[key][0].update(value)
        else:
            values[key] = value
    return Config.build(values)


def table(folder: str | Path) -> bytes:
    """All scores of a run as CSV."""
    stream = io.BytesIO()
    pa_csv.write_csv(Store(folder).table().cast(SCHEMA), stream)
    return stream.getvalue()


def rows(folder: Path) -> list[Row]:
    """All scores of a run."""
    return [Row(**values) for values in Store(folder).table().to_pylist()]


def differ(a: Path, b: Path, tolerance: float) -> list[tuple[Row, Row]]:
    """Rows that are not the same in two runs: texts exactly, values within a tolerance."""
    first, second = rows(a), rows(b)
    assert len(first) == len(second)
    return [
        (x, y)
        for x, y in zip(first, second, strict=True)
        if (x.dataset, x.model, x.image, x.target, x.method, x.metric, x.column, x.note)
        != (y.dataset, y.model, y.image, y.target, y.method, y.metric, y.column, y.note)
        or not (math.isclose(x.value, y.value, rel_tol=tolerance, abs_tol=tolerance) or x.value != x.value != y.value)
    ]


def made_up(
    folder: Path, *, images: int = 40, models: Sequence[str] = ("cnn",), metrics: Sequence[str] = (), seed: int = 0
) -> Path:
    """A run whose scores are drawn rather than computed: method `i` of `methods` is better than `i + 1`."""
    rng = np.random.default_rng(seed)
    methods = [*METHODS, "random", "center", "edges"]
    names = metrics or ("insertion", "deletion", "energy_pointing_game", "max_box_accuracy", "sparsity", "curves")
    chosen = [label_of(known.parse(name)) for name in names]
    sizes = rng.uniform(0.02, 1, images)
    ids = [f"image-{i:03d}" for i in range(images)]
    for m, model in enumerate(models):
        found = []
        for j, method in enumerate(methods):
            fine = rng.uniform(size=images) > 0.02
            for i, image in enumerate(ids):
                found.append(
                    Row("shapes", model, image, 0, method, "status", "ok", float(fine[i]), "ok" if fine[i] else "nan")
                )
            for label in chosen:
                metric = known.parse(label)
                shift = np.random.default_rng([seed, sum(map(ord, metric.name))]).normal(0, 0.04, len(methods))[j]
                for c, (column, direction) in enumerate(metric.columns.items()):
                    good = 0.75 - 0.03 * j - 0.05 * m + shift - 0.1 * c / len(metric.columns)
                    values = np.clip(rng.normal(good, 0.12, images) - 0.2 * (1 - sizes), 0.01, 1)
                    values = 1 - values if direction is LOWER else values
                    values = values * 20 if column == "sparsity" else values
                    values = np.where(fine, values, np.nan)
                    found += [
                        Row("shapes", model, n, 0, method, label, column, float(v))
                        for n, v in zip(ids, values, strict=True)
                    ]
        for i, image in enumerate(ids):
            found.append(Row("shapes", model, image, 0, "", "prediction", "object_share", float(sizes[i])))
            found.append(Row("shapes", model, image, 0, "", "prediction", "correct", float(i % 3 > 0)))
        Store(folder).write("shapes", model, 0, found, {(n, c): images for n in methods for c in chosen})
        costs = {
            n: MethodCost(seconds=0.001 * 1.6**j, forwards=1.0, backwards=float(j % 2)) for j, n in enumerate(methods)
        }
        Store(folder).write_costs("shapes", model, Costs(methods=costs))
    config = Config.build({**SMALL, "models": [{"name": model} for model in models]})
    where = Environment(versions={"torch": "2"}, commit="abc", device="cpu", threads=1)
    Store(folder).replace_manifest(Manifest(config=config, environments=(where,)))
    return folder
