"""The scores of a run, read from its folder and nothing else: arrays of images by methods, or a data frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from xattn.benchmark.schemas import Manifest
from xattn.benchmark.spill import Spill, codes_of, outside, texts_of
from xattn.benchmark.store import LADDER, PREDICTION, READING, REFUSED, RESERVED, SCORER, STATUS, Store
from xattn.errors import DataError, XattnError
from xattn.explainer import Family
from xattn.explainers import explainers
from xattn.functional.statistics import LEVEL, Array, bootstrap_means
from xattn.labels import Label
from xattn.metric import HIGHER, LOWER, NEITHER, Direction
from xattn.metrics import metrics as known_metrics
from xattn.places import own

ARROWS = {HIGHER: "↑", LOWER: "↓", NEITHER: ""}
_LONGEST = 80  # characters of a name that is shown
Cost = dict[str, float | None]
"""Seconds, forward and backward passes and peak memory of a method for one image, by name."""


@dataclass(frozen=True)
class Entry:
    """A method on a model."""

    model: str
    method: str

    @property
    def family(self) -> Family | None:
        """Kind of the method; None for one that is not known here."""
        try:
            return explainers.parse(self.method).family
        except XattnError:
            return None

    @property
    def control(self) -> bool:
        """What any method has to beat."""
        return self.family is Family.CONTROL

    @property
    def blind(self) -> bool:
        """A control that knows nothing of the model."""
        return self.control and not explainers.parse(self.method).grad


@dataclass(frozen=True)
class Column:
    """One value that a metric gives."""

    metric: str
    name: str
    direction: Direction
    family: str = ""
    pooled: bool = False
    only: bool = False  # the metric gives no other
    counted: bool = False  # says nothing by itself: the metric makes a value of it for a whole data set
    grid: str = ""  # on which maps were ranked: a number of cells, "common", "map", "pixels"; empty where none was
    earlier: bool = False  # of a version whose labels did not tell the grid, which was that of the pixels

    @property
    def matched(self) -> bool:
        """Whether methods can be compared by it: no metric that ranks cells, or one that does so on one coarse grid."""
        return self.grid not in ("map", "pixels")

    @property
    def label(self) -> Label:
        """The metric's label, under the name that tables give the column; the common grid is not told."""
        base, settings = Label.parse(self.metric).name, Label.parse(self.metric).settings
        parts = [part for part in settings.split(",") if part and part != "grid=common"]
        settings = ",".join([*parts, "grid=pixels"] if self.earlier else parts)
        alone = self.name if self.pooled else base if self.only else ""
        own = alone or (self.name if self.name.endswith(base) or self.name.startswith(base) else f"{base}.{self.name}")
        return Label(own, settings)

    @property
    def base(self) -> str:
        """Name of the metric, without its parameters."""
        return Label.parse(self.metric).name

    @property
    def title(self) -> str:
        """How tables call it: the metric, its parameters, and which of its columns."""
        return shortened(self.label.short)

    @property
    def arrow(self) -> str:
        """Title and which way is better."""
        return f"{self.title} {ARROWS[self.direction]}".strip()

    @property
    def sign(self) -> int:
        """Turns values so that higher is better."""
        return -1 if self.direction is LOWER else 1


class Scores:
    """All scores of a run; `names` are those of the images, by their number.

    The parts are read once, one block at a time. What is not needed until a column is asked for goes to a temporary
    file, so that memory depends on how many images there are and not on how many methods and metrics.

    Args:
        folder: where the run is.

    Raises:
        DataError: if there are no scores.
    """

    def __init__(self, folder: str | Path) -> None:
        self.store = Store(folder)
        self.folder = self.store.folder
        for path in self.store.files():
            own(path, self.folder)
        self._spill = Spill()
        self._refused: dict[tuple[str, str], tuple[tuple[str, str], str]] = {}
        self._unreadable: dict[tuple[str, str], tuple[str, str]] = {}
        for table in self.store.blocks():
            self._spill.add(table)
            self._note(table)
        self.rows = self._spill.rows
        self.names = self._spill.names
        self.images = len(self.names)
        self._keys = sorted(self._spill.keys)
        self._last: Any = None  # numbers of images, which most columns share
        self._last_list: list[int] = []
        self.datasets = list(dict.fromkeys(key[0] for key in self._keys))

    def _note(self, table: Any) -> None:
        """Keep why methods refused and images could not be read; of several reasons the last in the order of rows."""
        metrics, notes = np.array(texts_of(table, "metric")), texts_of(table, "note")
        metric = metrics[codes_of(table, "metric")]
        refused = np.array([note.startswith(REFUSED) for note in notes])[codes_of(table, "note")]
        places = np.flatnonzero((metric == STATUS) & refused | (metric == READING))
        for row in table.take(places).to_pylist():
            if row["metric"] == STATUS:
                reason = (row["dataset"], row["image"]), row["note"].removeprefix(REFUSED)
                key = row["model"], row["method"]
                self._refused[key] = max(reason, self._refused.get(key, reason))
            else:
                fault = row["model"], row["note"]
                image = row["dataset"], row["image"]
                self._unreadable[image] = max(fault, self._unreadable.get(image, fault))

    def frame(self) -> Any:
        """All scores in memory as a data frame, one row each: of pandas, or of polars where pandas is not installed.

        Columns are `dataset`, `model`, `image`, `target`, `method`, `metric`, `column`, `value` and `note`.

        Raises:
            DataError: if neither is installed.
        """
        table = self.store.table()
        try:
            return table.to_pandas(use_threads=False)
        except ImportError:
            pass
        try:
            return import_module("polars").from_arrow(table)
        except ImportError:
            raise DataError("a data frame needs pandas or polars: pip install pandas") from None

    def models(self, dataset: str) -> list[str]:
        """Models that were scored on a data set, in the order of the configuration."""
        models = list(dict.fromkeys(key[1] for key in self._keys if key[0] == dataset))
        order = [entry.title for entry in self.manifest.config.models] if self.manifest.config else []
        return sorted(models, key=lambda model: (order.index(model) if model in order else len(order), model))

    @cached_property
    def manifest(self) -> Manifest:
        """What the run wrote about itself."""
        own(self.store.manifest, self.folder)
        return self.store.read_manifest()

    def entries(self, dataset: str, model: str) -> list[Entry]:
        """Methods with at least one score on a model."""
        methods = dict.fromkeys(k[2] for k in self._keys if k[:2] == (dataset, model) and k[3] not in RESERVED)
        return [Entry(model, method) for method in methods if not _is_rung(method)]

    def rungs(self, dataset: str, model: str) -> list[Entry]:
        """Degraded maps with at least one score, as the configuration's `ladder` asks for them."""
        methods = dict.fromkeys(k[2] for k in self._keys if k[:2] == (dataset, model) and _is_rung(k[2]))
        return [Entry(model, method) for method in methods]

    def columns(self, dataset: str, entries: Sequence[Entry]) -> list[Column]:
        """Everything that was measured of some entries."""
        models = {entry.model for entry in entries}
        measured = dict.fromkeys((k[3], k[4]) for k in self._keys if k[0] == dataset and k[1] in models and k[2])
        return [_column(metric, name) for metric, name in measured if metric != STATUS]

    def values(self, dataset: str, entries: Sequence[Entry], metric: str, column: str) -> tuple[Array, list[int]]:
        """Values (N, M) on the images where any of the entries was scored, and the numbers of these images."""
        found = [self._spill.read(dataset, e.model, e.method, metric, column) for e in entries]
        images = np.unique(np.concatenate([images for images, _ in found])) if found else np.zeros(0, np.int64)
        values = outside((len(images), len(entries)))
        for j, (own_images, own_values) in enumerate(found):
            values[np.searchsorted(images, own_images), j] = own_values
        if not np.array_equal(images, self._last):
            self._last, self._last_list = images, images.tolist()
        return values, self._last_list

    def share(self, dataset: str, entry: Entry) -> float:
        """Coverage: share of the images whose map is fine."""
        _, values = self._spill.read(dataset, entry.model, entry.method, STATUS, "ok")
        return float(values.mean()) if len(values) else math.nan

    def prediction(self, dataset: str, model: str, column: str) -> dict[int, float]:
        """A fact about each image, by the image's number: `correct`, `probability` or `object_share`."""
        images, values = self._spill.read(dataset, model, "", PREDICTION, column)
        return dict(zip(images.tolist(), values.tolist(), strict=True))

    def scorer(self, dataset: str, model: str) -> str:
        """In a sentence what the scorer of a model loses on whole images; empty without one."""
        right, judged = (self._spill.read(dataset, model, "", kind, "correct") for kind in (PREDICTION, SCORER))
        alike = self._spill.read(dataset, model, "", SCORER, "agrees")
        if not len(alike[1]):
            return ""
        count = len(alike[1])
        text = f"The scorer of {model} predicts the same class on {alike[1].mean():.1%} of {count:,} whole images"
        _, first, second = np.intersect1d(right[0], judged[0], return_indices=True)
        was, now = right[1][first], judged[1][second]
        if not len(was) or np.isnan([*was, *now]).any():
            return text
        loss = bootstrap_means((was - now)[:, None], 1000)[:, 0]
        low, high = np.quantile(loss, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        lost = f"loses {100 * (was.mean() - now.mean()):.1f} points [{100 * low:.1f}, {100 * high:.1f}]"
        return f"{text} and {lost} of an accuracy of {was.mean():.1%}"

    def costs(self, dataset: str, model: str) -> dict[str, Cost]:
        """What methods cost alone, where it was measured."""
        own(self.store.costs(dataset, model), self.folder)
        return {name: cost.model_dump() for name, cost in self.store.read_costs(dataset, model).methods.items()}

    def refused(self) -> dict[tuple[str, str], str]:
        """Reason for each (model, method) that refused images."""
        return {key: note for key, (_, note) in self._refused.items()}

    def unreadable(self) -> dict[tuple[str, str], str]:
        """Reason for each (data set, image) that could not be read."""
        return {key: note for key, (_, note) in self._unreadable.items()}


def _is_rung(method: str) -> bool:
    return Label.parse(method).name == LADDER


def _column(metric: str, name: str) -> Column:
    try:
        known = known_metrics.parse(metric)
    except XattnError:  # of another distribution that is not installed here, or with a parameter of another version
        return Column(metric, name, NEITHER)
    direction = known.columns.get(name, NEITHER)
    grid = str(getattr(known, "grid", ""))
    earlier = grid == "common" and "grid=" not in metric
    return Column(
        metric,
        name,
        direction,
        known.family,
        only=len(known.columns) == 1,
        counted=bool(known.pooled) and direction is NEITHER,
        grid="pixels" if earlier else grid,
        earlier=earlier,
    )


def shortened(text: str, longest: int = _LONGEST) -> str:
    """A name that is shown: one line, cut in the middle where it is long.

    >>> shortened("a" * 10**5, 9)
    'aaaa…aaaa'
    """
    plain = "".join(c if c.isprintable() else "�" for c in text)
    half = (longest - 1) // 2
    return plain if len(plain) <= longest else f"{plain[:half]}…{plain[-half:]}"
