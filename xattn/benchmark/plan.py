"""What a run consists of: every data set, model, method and metric opened and checked before anything is scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from xattn.benchmark.config import Config, DataEntry, MetricEntry, ModelEntry, collect, expand
from xattn.benchmark.ladder import Rung, rungs
from xattn.benchmark.store import PREDICTION, SCORER, STATUS, Pair
from xattn.data.dataset import Dataset
from xattn.data.mosaic import Mosaic, mosaic_spec
from xattn.data.opening import NoPartError, open_dataset
from xattn.data.sample import Batch, Sample, collate
from xattn.device import find_device
from xattn.errors import DataError, ParameterError
from xattn.explainer import Explainer
from xattn.explainers import applicable, resolve
from xattn.inspection import infer_spec
from xattn.labels import label_of
from xattn.metric import Metric
from xattn.metrics import metrics as known_metrics
from xattn.metrics.perturbation import PerturbationMetric
from xattn.models import create_model
from xattn.models.checkpoint import digest_of
from xattn.models.header import read_header
from xattn.spec import ModelSpec
from xattn.trace import place_of, record

CONTROLS = ("random", "center", "edges", "pooled-gradient")
_EXPLAIN_AGAIN = ("robustness", "sanity")


@dataclass(frozen=True, eq=False)
class Cell:
    """One model on one data set: what is to be scored there.

    Args:
        data: entry of the configuration.
        model: entry of the configuration.
        dataset: the opened data set.
        indices: the images of the sample, in its order.
        methods: by their label.
        left_out: reason by name for each method that the model cannot have.
        metrics: by their label.
        counts: images that each metric (and `status`, `prediction`) is to be scored on.
        without: names and labels of the methods that a metric does not score.
        limits: images that a method is scored on at most, by its label.
        digest: of the weights of the model.
        objects: the images have masks or boxes.
        built: the model, on its device, with the facts about it, where it is at hand rather than made by its name.
        scorer_digest: of the weights of its scorer; empty without one.
        scorer_file: what the file of the scorer says of it.
    """

    data: DataEntry
    model: ModelEntry
    dataset: Dataset
    indices: tuple[int, ...]
    methods: dict[str, Explainer]
    left_out: dict[str, str]
    metrics: dict[str, Metric]
    counts: dict[str, int]
    without: dict[str, frozenset[str]]
    limits: dict[str, int]
    digest: str
    objects: bool
    built: tuple[nn.Module, ModelSpec] | None = None
    scorer_digest: str = ""
    scorer_file: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.data.name} x {self.model.title}"

    def pairs(self) -> list[Pair]:
        """All (method, metric) that are wanted."""
        scored = [
            (label, metric)
            for metric in (STATUS, *self.metrics)
            for label, method in self.methods.items()
            if self.without.get(metric, frozenset()).isdisjoint((label, method.name))
            # Of a degraded map nothing is known that a metric could find which explains again.
            and not (isinstance(method, Rung) and metric != STATUS and self.metrics[metric].family in _EXPLAIN_AGAIN)
        ]
        return [("", PREDICTION), *([("", SCORER)] if self.scorer_digest else []), *scored]

    def count(self, pair: Pair) -> int:
        """Images that a method is to be scored on by a metric."""
        method, metric = pair
        return min(self.counts[metric], self.limits.get(method, self.counts[metric]))

    def load(self, device: torch.device | str) -> tuple[nn.Module, ModelSpec]:
        """The model on a device with the facts about it."""
        model, spec = build_model(self.model, device) if self.built is None else self.built
        return model, mosaic_spec(spec, self.data.mosaic) if self.data.mosaic else spec

    def load_scorer(self, device: torch.device | str) -> nn.Module | None:
        """The scorer on a device, where there is one."""
        return build_scorer(self.model, device)[0] if self.model.scorer else None


def build_model(entry: ModelEntry, device: torch.device | str = "cpu") -> tuple[nn.Module, ModelSpec]:
    """The model of an entry on a device, in evaluation mode, with the facts about it."""
    options: dict[str, Any] = {"head": entry.head} if entry.head else {}
    if entry.resolution != "low":
        options["resolution"] = entry.resolution
    model = create_model(expand(entry.name), weights=entry.weights and expand(entry.weights), **options)
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        spec = infer_spec(model, name=entry.title)
    return model.eval().to(device), spec


def build_scorer(entry: ModelEntry, device: torch.device | str = "cpu") -> tuple[nn.Module, dict[str, str]]:
    """The scorer of an entry on a device, in evaluation mode, with what its file says of it."""
    path = expand(entry.scorer or "")
    header = read_header(path)
    model = create_model(path) if header.architecture else create_model(expand(entry.name), weights=path)
    held = header.extra.get("held_out", {})
    cells = header.extra.get("recipe", {}).get("augment", {})
    facts = {**{k: v for k, v in held.items() if k == "held_out_accuracy"}}
    facts |= {key: value for key, value in cells.items() if key.startswith("removal")}
    return model.eval().to(device), {key: str(value) for key, value in facts.items()}


def misfit_of(scorer: nn.Module, model: nn.Module, spec: ModelSpec, entry: ModelEntry) -> str | None:
    """Why a network is no copy of a model that could judge its images; None if it may be one."""
    theirs = getattr(scorer, "spec", None)
    who = f"the scorer '{entry.scorer}' of {entry.title}"
    if isinstance(theirs, ModelSpec):
        for name in ("input_size", "mean", "std"):
            if getattr(theirs, name) != getattr(spec, name):
                return f"{who} has {name} {getattr(theirs, name)} but the model has {getattr(spec, name)}"
    shapes = []
    for network in (scorer, model):
        device, dtype = place_of(network)
        pixels = torch.zeros(1, len(spec.mean or (0, 0, 0)), *spec.input_size, device=device, dtype=dtype)
        shapes.append(tuple(record(network, pixels, spec=spec, grad=False).logits.shape))
    return None if shapes[0] == shapes[1] else f"{who} has {shapes[0][1]} classes but the model has {shapes[1][1]}"


def twins(metrics: Mapping[str, tuple[Metric, MetricEntry]]) -> dict[str, tuple[Metric, MetricEntry]]:
    """Metrics by their label, and beside each that scores changed images the same one with the scorer."""
    both: dict[str, tuple[Metric, MetricEntry]] = {}
    for label, (metric, entry) in metrics.items():
        both[label] = (metric, entry)
        if isinstance(metric, PerturbationMetric):
            try:
                twin = dataclasses.replace(metric, scorer="in-domain")
            except ParameterError:  # a preset of a paper
                continue
            both.setdefault(label_of(twin), (twin, entry))
    return both


def own_metrics(
    metrics: Mapping[str, tuple[Metric, MetricEntry]], entry: ModelEntry
) -> dict[str, tuple[Metric, MetricEntry]]:
    """The metrics that a model can have: those with a scorer only where it has one, and then all of them."""
    if entry.scorer:
        return twins(metrics)
    return {label: both for label, both in metrics.items() if getattr(both[0], "scorer", "model") == "model"}


def plan(config: Config, built: Mapping[str, tuple[nn.Module, ModelSpec]] | None = None) -> list[Cell]:
    """Open everything and check it, before a single score is computed.

    Args:
        config: the run.
        built: models that are at hand, with the facts about them, by their title; the others are made by their name.

    Raises:
        ParameterError: with all faults in one message.
    """
    faults: list[str] = []
    collect(faults, lambda: find_device(config.run.device, "run.device"))
    for name in [m.name for m in (*config.metrics, *(m for d in config.data for m in d.metrics))]:
        if "scorer=in-domain" in name and not any(entry.scorer for entry in config.models):
            faults.append(
                f"metric '{name}' needs a scorer and no model has one; set models.0.scorer to its weights file"
            )
    names = [*config.methods, *(CONTROLS if config.run.controls else ())]
    methods = collect(faults, lambda: resolve(names)) or []
    ladder = collect(faults, lambda: rungs(config.ladder)) or []
    opened = {data.name: collect(faults, lambda data=data: _open(data)) for data in config.data}
    method_limits = {name: limit for text, limit in config.limits.items() for name in _names([text], faults)}
    chosen = {data.name: _chosen_metrics(data, config, opened[data.name], faults) for data in config.data}
    cells = []
    for entry in config.models:
        there = (built or {}).get(entry.title)
        made = there or collect(faults, lambda entry=entry: build_model(entry))
        own = collect(faults, lambda entry=entry: resolve(_with_controls(entry, config))) if entry.methods else methods
        own = None if own is None else [*own, *ladder]
        if made is None or own is None:
            continue
        model, spec = made
        digest = digest_of(model)
        scorer, about = (
            collect(faults, lambda entry=entry: build_scorer(entry)) or (None, {}) if entry.scorer else (None, {})
        )
        if scorer is not None and (misfit := misfit_of(scorer, model, spec, entry)):
            faults.append(misfit)
        reasons = {label_of(m): applicable(m, spec) for m in own}
        for data in config.data:
            dataset = opened[data.name]
            if dataset is None:
                continue
            if data.mosaic:
                dataset = collect(faults, lambda d=data, s=spec, o=dataset: _mosaic(d, o, s, config.run.seed))
                if dataset is None:
                    continue
            indices = sample_of(len(dataset), data.limit, config.run.seed)
            entries = own_metrics(chosen[data.name], entry)
            counts = {STATUS: len(indices), PREDICTION: len(indices), SCORER: len(indices)}
            counts |= {label: min(entry.limit or len(indices), len(indices)) for label, (_, entry) in entries.items()}
            cell = Cell(
                data=data,
                model=entry,
                dataset=dataset,
                indices=indices,
                methods={label_of(m): m for m in own if reasons[label_of(m)] is None},
                left_out={label: reason for label, reason in reasons.items() if reason is not None},
                metrics={label: metric for label, (metric, _) in entries.items()},
                counts=counts,
                limits={
                    label_of(m): limit
                    for m in own
                    if (limit := method_limits.get(label_of(m), method_limits.get(m.name, 0)))
                },
                without={label: frozenset(_names(entry.without, faults)) for label, (_, entry) in entries.items()},
                digest=digest,
                scorer_digest="" if scorer is None else digest_of(scorer),
                scorer_file=about,
                objects=bool(data.mosaic) or "masks" in _known(opened[data.name]),
                built=there,
            )
            cells.append(cell)
            faults.extend(_misfits(cell, model, mosaic_spec(spec, data.mosaic) if data.mosaic else spec, config))
    if faults:
        raise ParameterError(f"the benchmark cannot run: {'; '.join(dict.fromkeys(faults))}.")
    return cells


def _names(methods: Sequence[str], faults: list[str]) -> Iterator[str]:
    """Methods by their registered name, or by the label that tables give them."""
    for text in methods:
        known = collect(faults, lambda text=text: resolve(text)) or []
        yield from (label_of(method) if ":" in text else method.name for method in known)


def _open(data: DataEntry) -> Dataset:
    """The part to test on, unless another one is named; all of a data set without parts."""
    source = expand(data.source)
    if data.split is not None:
        return open_dataset(source, data.split)
    try:
        return open_dataset(source, "val")
    except NoPartError:
        return open_dataset(source)


def _mosaic(data: DataEntry, dataset: Dataset, spec: ModelSpec, seed: int) -> Mosaic:
    if spec.input_size[0] != spec.input_size[1]:
        raise ParameterError(f"{data.name}: mosaics are square, the input of {spec.name} is not")
    return Mosaic(dataset, grid=data.mosaic, cell_px=spec.input_size[0], seed=seed)


def _with_controls(entry: ModelEntry, config: Config) -> list[str]:
    return [*entry.methods, *(CONTROLS if config.run.controls else ())]


def _chosen_metrics(
    data: DataEntry, config: Config, dataset: Dataset | None, faults: list[str]
) -> dict[str, tuple[Metric, MetricEntry]]:
    """Metrics for a data set by their label, with their entries; adds to `faults` what it lacks for them."""
    there = set() if dataset is None else _known(dataset)
    there |= {"masks", "boxes", "mosaic"} if data.mosaic else set()
    if dataset is not None and len(dataset) == 0:
        faults.append(f"data set {data.name} is empty")
    chosen: dict[str, tuple[Metric, MetricEntry]] = {}
    entries: Sequence[MetricEntry] = data.metrics or config.metrics
    for entry in entries:
        metric = None if entry.name == "all" else collect(faults, lambda entry=entry: known_metrics.parse(entry.name))
        if metric is None:
            continue
        if label_of(metric) in chosen:
            faults.append(f"metric '{entry.name}' is there twice as {label_of(metric)}")
        chosen[label_of(metric)] = (metric, entry)
        if dataset is not None and (absent := metric.needs - there):
            hint = "; set mosaic = 2 for it" if "mosaic" in absent else ""
            faults.append(f"metric {metric.name} needs {' and '.join(sorted(absent))}, {data.name} has none{hint}")
    for entry in entries:
        for name in known_metrics.names() if entry.name == "all" else ():
            metric = known_metrics.create(name)
            if metric.needs <= there:
                chosen.setdefault(label_of(metric), (metric, entry))
    return chosen


def _known(dataset: Dataset) -> set[str]:
    """What the first images say about objects: of `masks`, `boxes` and `scenes`."""
    for index in range(min(len(dataset), 8)):
        try:
            first = dataset[index]
        except (DataError, OSError):
            continue  # told when its turn comes
        known = set() if first.scene is None else {"scenes"}
        # A box is a mask, if a coarse one.
        return known if first.boxes is None and first.mask is None else known | {"masks", "boxes"}
    return set()


def _misfits(cell: Cell, model: nn.Module, spec: ModelSpec, config: Config) -> Iterator[str]:
    """What one image through the model tells: that it cannot run, or that its classes are not those of the data."""
    faults: list[str] = []
    batch = None
    for index in cell.indices[:8]:
        batch = collect(faults, lambda index=index: read_batch(cell, [index], spec)[0])
        if batch is not None or faults:
            break
    if batch is not None:
        x = batch.x
        try:
            trace = collect(faults, lambda: record(model, x, spec=spec, grad=False))
        except RuntimeError as error:
            trace = None
            faults.append(f"{cell.model.title} fails on images {tuple(x.shape)} of {cell.data.name} ({error})")
        classes = 0 if trace is None else max(2, trace.logits.shape[1])
        if classes and by_label(cell, config) and classes != len(cell.dataset.classes):
            faults.append(
                f"{cell.model.title} has {classes} classes but {cell.data.name} has {len(cell.dataset.classes)}, so "
                "labels do not mean the same"
                + ("" if cell.data.mosaic else '; set run.target = "predicted", which needs no labels')
            )
    yield from faults


def by_label(cell: Cell, config: Config) -> bool:
    """Whether the label is explained, and not the class that is predicted."""
    return config.run.target == "label" or bool(cell.data.mosaic)


def read_batch(cell: Cell, indices: Sequence[int], spec: ModelSpec) -> tuple[Batch | None, dict[int, str]]:
    """A batch of the images that can be read, and for each place in `indices` whose image cannot, the reason."""
    samples: list[Sample] = []
    bad = {}
    for i, index in enumerate(indices):
        try:
            sample = cell.dataset[index]
            if not isinstance(sample.id, str):
                raise DataError(f"the name of image {index} is a {type(sample.id).__name__}, expected a text.")
            samples.append(sample)
        except (DataError, OSError) as error:
            bad[i] = " ".join(str(error).split())
    if not samples:
        return None, bad
    batch = collate(samples, spec, fit=cell.data.fit)
    if cell.objects and batch.masks is None and batch.boxes is None:
        # None of these images has a box where others have: an empty one, as in a batch with the others.
        batch = dataclasses.replace(batch, boxes=tuple(torch.zeros(0, 4) for _ in samples))
    return batch, bad


def sample_of(size: int, limit: int, seed: int) -> tuple[int, ...]:
    """A seeded sample without repetition; a larger limit only adds to it."""
    order = np.random.default_rng(np.random.SeedSequence([seed, size])).permutation(size)
    return tuple(order[: limit or size].tolist())
