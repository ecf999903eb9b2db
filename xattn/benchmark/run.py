"""Scoring: every method by every metric on every image, block by block, so that a run can stop anywhere and go on."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xattn.benchmark.config import Config, DataEntry, MetricEntry, ModelEntry, collect, expand
from xattn.benchmark.store import Pair, Row, Store, missing
from xattn.data.dataset import Batch, Dataset, Sample, collate
from xattn.data.mosaic import Mosaic, mosaic_spec
from xattn.data.opening import open_dataset
from xattn.device import find_device
from xattn.errors import DataError, ParameterError, XattnError
from xattn.explainer import Explainer
from xattn.explainers import applicable, resolve
from xattn.explaining import record_for
from xattn.explanation import OK, Explanation
from xattn.files import whole_file
from xattn.inspection import infer_spec
from xattn.labels import label_of
from xattn.metric import Metric
from xattn.metrics import metrics as known_metrics
from xattn.models import create_model
from xattn.models.fast import fast_copy
from xattn.score import probabilities
from xattn.spec import ModelSpec
from xattn.trace import Trace, record

CONTROLS = ("random", "center", "edges")
STATUS, PREDICTION, READING = "status", "prediction", "reading"
REFUSED = "refused: "
_DEAR = 50  # how much more work a metric is taken to be that runs the model; for the progress alone
_CHEAP = ("complexity", "localization")


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
        ]
        return [("", PREDICTION), *scored]

    def count(self, pair: Pair) -> int:
        """Images that a method is to be scored on by a metric."""
        method, metric = pair
        return min(self.counts[metric], self.limits.get(method, self.counts[metric]))

    def load(self, device: torch.device | str) -> tuple[nn.Module, ModelSpec]:
        """The model on a device with the facts about it."""
        model, spec = build_model(self.model, device)
        return model, mosaic_spec(spec, self.data.mosaic) if self.data.mosaic else spec


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


def digest_of(model: nn.Module) -> str:
    """A short number for the weights."""
    state = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def plan(config: Config) -> list[Cell]:
    """Open everything and check it, before a single score is computed.

    Raises:
        ParameterError: with all faults in one message.
    """
    faults: list[str] = []
    collect(faults, lambda: find_device(config.run.device, "run.device"))
    names = [*config.methods, *(CONTROLS if config.run.controls else ())]
    methods = collect(faults, lambda: resolve(names)) or []
    opened = {data.name: collect(faults, lambda data=data: _open(data)) for data in config.data}
    dearest = {name: limit for text, limit in config.limits.items() for name in _names([text], faults)}
    chosen = {data.name: _chosen_metrics(data, config, opened[data.name], faults) for data in config.data}
    cells = []
    for entry in config.models:
        built = collect(faults, lambda entry=entry: build_model(entry))
        own = collect(faults, lambda entry=entry: resolve(_with_controls(entry, config))) if entry.methods else methods
        if built is None or own is None:
            continue
        model, spec = built
        digest = digest_of(model)
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
            limits = chosen[data.name]
            counts = {STATUS: len(indices), PREDICTION: len(indices)}
            counts |= {label: min(entry.limit or len(indices), len(indices)) for label, (_, entry) in limits.items()}
            cell = Cell(
                data=data,
                model=entry,
                dataset=dataset,
                indices=indices,
                methods={label_of(m): m for m in own if reasons[label_of(m)] is None},
                left_out={label: reason for label, reason in reasons.items() if reason is not None},
                metrics={label: metric for label, (metric, _) in limits.items()},
                counts=counts,
                limits={
                    label: limit
                    for label, method in ((label_of(m), m) for m in own)
                    if (limit := dearest.get(label, dearest.get(method.name, 0)))
                },
                without={label: frozenset(_names(entry.without, faults)) for label, (_, entry) in limits.items()},
                digest=digest,
                objects=bool(data.mosaic) or bool(_known(opened[data.name])),
            )
            cells.append(cell)
            faults.extend(_misfits(cell, model, mosaic_spec(spec, data.mosaic) if data.mosaic else spec, config))
    if faults:
        raise ParameterError(f"the benchmark cannot run: {'; '.join(dict.fromkeys(faults))}.")
    return cells


def _names(methods: Sequence[str], faults: list[str]) -> Iterator[str]:
    """Methods by their registered name, or by the label that tables give them."""
    for text in methods:
        found = collect(faults, lambda text=text: resolve(text)) or []
        yield from (label_of(method) if ":" in text else method.name for method in found)


def _open(data: DataEntry) -> Dataset:
    """The part to test on, unless another one is named; all of a data set without parts."""
    source = expand(data.source)
    if data.split is not None:
        return open_dataset(source, data.split)
    try:
        return open_dataset(source, "val")
    except XattnError:
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
    found: dict[str, tuple[Metric, MetricEntry]] = {}
    entries: Sequence[MetricEntry] = data.metrics or config.metrics
    for entry in entries:
        metric = None if entry.name == "all" else collect(faults, lambda entry=entry: known_metrics.parse(entry.name))
        if metric is None:
            continue
        if label_of(metric) in found:
            faults.append(f"metric '{entry.name}' is there twice as {label_of(metric)}")
        found[label_of(metric)] = (metric, entry)
        if dataset is not None and (absent := metric.needs - there):
            hint = "; set mosaic = 2 for it" if "mosaic" in absent else ""
            faults.append(f"metric {metric.name} needs {' and '.join(sorted(absent))}, {data.name} has none{hint}")
    for entry in entries:
        for name in known_metrics.names() if entry.name == "all" else ():
            metric = known_metrics.create(name)
            if metric.needs <= there:
                found.setdefault(label_of(metric), (metric, entry))
    return found


def _known(dataset: Dataset) -> set[str]:
    """What the first images say about objects: of `masks` and `boxes`."""
    for index in range(min(len(dataset), 8)):
        try:
            first = dataset[index]
        except (DataError, OSError):
            continue  # told when its turn comes
        if first.boxes is not None:
            return {"masks", "boxes"}  # a box is a mask, if a coarse one
        return {"masks", "boxes"} if first.mask is not None else set()
    return set()


def _misfits(cell: Cell, model: nn.Module, spec: ModelSpec, config: Config) -> Iterator[str]:
    """What one image through the model tells: that it cannot run, or that its classes are not those of the data."""
    faults: list[str] = []
    batch = None
    for index in cell.indices[:8]:
        batch = collect(faults, lambda index=index: _read(cell, [index], spec)[0])
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
        if classes and _by_label(cell, config) and classes != len(cell.dataset.classes):
            faults.append(
                f"{cell.model.title} has {classes} classes but {cell.data.name} has {len(cell.dataset.classes)}, so "
                "labels do not mean the same"
                + ("" if cell.data.mosaic else '; set run.target = "predicted", which needs no labels')
            )
    yield from faults


def _by_label(cell: Cell, config: Config) -> bool:
    return config.run.target == "label" or bool(cell.data.mosaic)


def sample_of(size: int, limit: int, seed: int) -> tuple[int, ...]:
    """A seeded sample without repetition; a larger limit only adds to it."""
    order = np.random.default_rng(np.random.SeedSequence([seed, size])).permutation(size)
    return tuple(order[: limit or size].tolist())


def shard(text: str | None = None) -> tuple[int, int]:
    """Number of this process and of all, from `i/n` or what `torchrun` and `fabric run` set.

    >>> shard("0/4")
    (0, 4)

    Raises:
        ParameterError: if the text is not i/n with 0 <= i < n.
    """
    if text is None:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    rank, _, world = text.partition("/")
    if not (rank.isdigit() and world.isdigit() and int(rank) < int(world)):
        raise ParameterError(f"--shard: expected i/n with i from 0 to n - 1, as 0/4, but got '{text}'.")
    return int(rank), int(world)


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


def check_manifest(folder: Path, config: Config, cells: Sequence[Cell], device: torch.device) -> None:
    """Write what the scores depend on beside them; refuse a folder whose scores depend on something else.

    More methods, metrics, images, data sets and models may come later, and from other machines, which are noted.

    Raises:
        ParameterError: with the difference.
    """
    path = folder / "manifest.json"
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
            f"'{folder}' holds scores of another run: {'; '.join(changed)}. Use another --out, or change it back."
        )
    merged = {**new, "data": {**old["data"], **new["data"]}, "models": {**old["models"], **new["models"]}}
    if environment not in known:
        environments = [*environments, begun]
    if merged != old or kept.get("config") != settings or environments != kept["environments"]:
        _replace(path, {"identity": merged, "config": settings, "environments": environments})


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


def _replace(path: Path, content: Any) -> None:
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


@dataclass
class Summary:
    """What a call of `run` did.

    Args:
        blocks: parts written.
        rows: scores in them.
    """

    blocks: int = 0
    rows: int = 0


def run(
    config: Config,
    folder: str | Path,
    *,
    rank: int = 0,
    world: int = 1,
    cells: Sequence[Cell] | None = None,
    progress: Callable[[float, float, str], None] | None = None,
) -> Summary:
    """Score what is not there yet: blocks `rank`, `rank + world`, ... of every cell.

    Args:
        config: the run.
        folder: where the scores are and go.
        rank: number of this process.
        world: number of processes.
        cells: result of `plan`, if it was made before.
        progress: called with the work done and the work in all, of this process, and the name of the cell.

    Raises:
        ParameterError: for a configuration that cannot run or does not fit the folder.
    """
    cells = plan(config) if cells is None else cells
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    device = find_device(config.run.device, "run.device")
    check_manifest(folder, config, cells, device)
    store = Store(folder)
    store.clear_leftovers()
    summary = Summary()
    work: list[tuple[Cell, int, dict[Pair, int]]] = []
    for cell in cells:
        done = store.done(cell.data.name, cell.model.title)
        for block in range(-(-len(cell.indices) // config.run.block))[rank::world]:
            if todo := _todo(cell, block, config.run.block, done.get(block, {})):
                work.append((cell, block, todo))
    total = sum(_work(cell, todo) for cell, _, todo in work)
    finished = 0.0
    loaded: Loaded | None = None
    for cell, block, todo in work:
        if loaded is None or loaded.cell is not cell:
            loaded = Loaded.load(cell, device, fast=config.run.fast)
        rows: list[Row] = []
        for some, wanted in _score_block(loaded, block, todo, config):
            rows += some
            finished += wanted
            if progress is not None:
                progress(finished, total, cell.name)
        store.write(cell.data.name, cell.model.title, block, rows, todo)
        summary.blocks += 1
        summary.rows += len(rows)
    return summary


def _work(cell: Cell, todo: dict[Pair, int]) -> float:
    """Roughly how long a list of pairs takes, in the time of a cheap one on one image."""
    return float(sum(count * _weight(cell, metric) for (_, metric), count in todo.items()))


def _weight(cell: Cell, metric: str) -> int:
    found = cell.metrics.get(metric)
    return 1 if found is None or found.family in _CHEAP else _DEAR


def _todo(cell: Cell, block: int, size: int, done: dict[Pair, int]) -> dict[Pair, int]:
    """Pairs to score in a block, with the number of its images."""
    inside = _inside(cell, block, size)
    return {pair: inside[pair] for pair in missing(inside, done) if inside[pair] > 0}


def _inside(cell: Cell, block: int, size: int) -> dict[Pair, int]:
    """How many images of a block each pair is to be scored on."""
    return {pair: min(max(cell.count(pair) - block * size, 0), size) for pair in cell.pairs()}


@dataclass(frozen=True, eq=False)
class Loaded:
    """A cell with its model on the device.

    Args:
        cell: what is scored.
        model: the network.
        spec: facts about it.
        scoring: a cheaper copy that scores perturbed images, or None.
    """

    cell: Cell
    model: nn.Module
    spec: ModelSpec
    scoring: nn.Module | None

    @classmethod
    def load(cls, cell: Cell, device: torch.device, *, fast: bool) -> Loaded:
        """Build the model."""
        model, spec = cell.load(device)
        return cls(cell, model, spec, fast_copy(model, spec) if fast else None)


def _score_block(
    loaded: Loaded, block: int, todo: dict[Pair, int], config: Config
) -> Iterator[tuple[list[Row], float]]:
    """Rows of each batch of a block, with the work that it was."""
    cell, spec = loaded.cell, loaded.spec
    size = config.run.block
    indices = cell.indices[block * size : (block + 1) * size]
    # Batches end where a metric's share of the images ends, so that each has one list of metrics. They are the same
    # whatever was done before, so that scores are.
    longest = max(todo.values())
    edges = {0, *_inside(cell, block, size).values(), *range(0, longest, config.run.batch), longest}
    starts = sorted(edge for edge in edges if edge <= longest)
    for first, last in itertools.pairwise(starts):
        wanted = [pair for pair, count in todo.items() if count >= last]
        batch, bad = _read(cell, indices[first:last], spec)
        rows = [
            Row(cell.data.name, cell.model.title, image, -1, "", READING, "error", float("nan"), reason)
            for image, reason in bad
        ]
        if batch is not None:
            rows += _score_batch(loaded, batch, wanted, config)
        yield rows, _work(cell, dict.fromkeys(wanted, last - first))


def _read(cell: Cell, indices: Sequence[int], spec: ModelSpec) -> tuple[Batch | None, list[tuple[str, str]]]:
    """A batch of the images that can be read, and the others with the reason."""
    samples: list[Sample] = []
    bad = []
    for index in indices:
        try:
            samples.append(cell.dataset[index])
        except (DataError, OSError) as error:
            bad.append((f"#{index}", " ".join(str(error).split())))
    if not samples:
        return None, bad
    batch = collate(samples, spec, fit=cell.data.fit)
    if cell.objects and batch.masks is None and batch.boxes is None:
        # None of these images has a box where others have: an empty one, as in a batch with the others.
        batch = dataclasses.replace(batch, boxes=tuple(torch.zeros(0, 4) for _ in samples))
    return batch, bad


Watch = Callable[[str], AbstractContextManager[None]]


def _score_batch(
    loaded: Loaded,
    batch: Batch,
    wanted: Sequence[Pair],
    config: Config,
    watch: Watch = lambda _: nullcontext(),
) -> list[Row]:
    cell, model, spec = loaded.cell, loaded.model, loaded.spec
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batch = batch.to(device)
    methods = {name: cell.methods[name] for name in dict.fromkeys(m for m, _ in wanted if m)}
    seeds = [seed_of(config.run.seed, image) for image in batch.ids]
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.run.precision)
    rows: list[Row] = []
    with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
        with watch(STATUS):
            trace = record_for(
                model,
                batch.x,
                methods.values(),
                batch.target if _by_label(cell, config) else None,
                spec=spec,
                score=config.run.score,
                seeds=seeds,
                scoring=loaded.scoring,
            )
            explanations, refused = _explanations(methods, trace)
        targets = trace.target.tolist()

        def add(method: str, metric: str, column: str, values: Tensor, notes: Sequence[str] = ()) -> None:
            for i, value in enumerate(values.double().tolist()):
                note = notes[i] if notes else ""
                place = (cell.data.name, cell.model.title, batch.ids[i], targets[i])
                rows.append(Row(*place, method, metric, column, value, note))

        if ("", PREDICTION) in wanted:
            _add_prediction(add, trace, batch, cell)
        for name in methods:
            if (name, STATUS) not in wanted:
                continue
            state = refused.get(name) or explanations[name].status
            add(name, STATUS, "ok", torch.tensor([float(s == OK) for s in state]), state)
        for label, metric in cell.metrics.items():
            names = [name for name in explanations if (name, label) in wanted]
            if not names:
                continue
            with watch(label):
                scored, reason = _measured(metric, [explanations[name] for name in names], trace, batch)
            for name, columns in zip(names, scored, strict=True):
                for column, values in columns.items():
                    add(name, label, column, values, [reason] * len(batch) if reason else ())
    return rows


def _explanations(
    methods: dict[str, Explainer], trace: Trace
) -> tuple[dict[str, Explanation], dict[str, tuple[str, ...]]]:
    """Maps of the methods, and for those that refuse the images the reason as their status."""
    found, refused = {}, {}
    for name, method in methods.items():
        try:
            found[name] = method.explanation(trace)
        except XattnError as error:
            refused[name] = (f"{REFUSED}{error}",) * len(trace.x)
    return found, refused


def _measured(
    metric: Metric, explanations: Sequence[Explanation], trace: Trace, batch: Batch
) -> tuple[list[dict[str, Tensor]], str]:
    """The columns of each explanation, or NaN with the reason where a metric refuses the images."""
    try:
        return metric.measure_many(explanations, trace, batch), ""
    except XattnError as error:
        nothing = torch.full((len(batch),), float("nan"))
        return [dict.fromkeys(metric.columns, nothing) for _ in explanations], f"{REFUSED}{error}"


def _add_prediction(add: Callable[..., None], trace: Trace, batch: Batch, cell: Cell) -> None:
    chance = probabilities(trace.logits)
    add("", PREDICTION, "probability", chance.gather(1, trace.target[:, None])[:, 0])
    right = (chance.argmax(1) == batch.target).double()
    # Labels of a data set with other classes say nothing about the prediction.
    add("", PREDICTION, "correct", right if chance.shape[1] == len(cell.dataset.classes) else right * float("nan"))
    masks = batch.object_masks() if cell.objects else None
    if masks is not None:
        share = masks.flatten(1).double().mean(1)
        add("", PREDICTION, "object_share", share.masked_fill(share == 0, float("nan")))


def seed_of(seed: int, image: str) -> int:
    """The number from which everything random about an image comes."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{image}".encode(), digest_size=7).digest(), "little")


@dataclass
class Cost:
    """What one part of the work of a cell is.

    Args:
        images: that it is done on.
        seconds: per image.
        passes: images that go through the model, per image.
    """

    images: int
    seconds: float = 0.0
    passes: float = 0.0


def estimate(cell: Cell, config: Config, images: int = 2) -> dict[str, Cost]:
    """What the maps (`status`) and each metric of a cell take, from a probe on a few images.

    Metrics share what they can, as in a run: a curve counts for the first metric that reads it.

    Raises:
        DataError: if none of the first images can be read.
    """
    device = find_device(config.run.device, "run.device")
    loaded = Loaded.load(cell, device, fast=config.run.fast)
    batch, _ = _read(cell, cell.indices[: max(images, 8)], loaded.spec)
    if batch is None:
        raise DataError(f"{cell.data.name}: none of the first images can be read.")
    batch = batch[:images]
    costs: dict[str, Cost] = {}
    passes = 0

    def count(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal passes
        passes += len(inputs[0])

    @contextmanager
    def watch(label: str) -> Iterator[None]:
        before, start = passes, time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = (time.perf_counter() - start) / len(batch)
        costs[label] = Cost(cell.counts[label], seconds, (passes - before) / len(batch))

    networks = [loaded.model] if loaded.scoring is None else [loaded.model, loaded.scoring]
    handles = [network.register_forward_pre_hook(count) for network in networks]
    try:
        start = time.perf_counter()
        _score_batch(loaded, batch, cell.pairs(), config, watch)
        if time.perf_counter() - start < _LONG_PROBE_S:  # the first time holds imports and kernels to choose
            _score_batch(loaded, batch, cell.pairs(), config, watch)
    finally:
        for handle in handles:
            handle.remove()
    return costs


_LONG_PROBE_S = 60.0


def costs_path(folder: str | Path, cell: Cell) -> Path:
    """Where the costs of the methods of a cell are."""
    return Path(folder) / "costs" / f"{Store(folder).cell(cell.data.name, cell.model.title).name}.json"


def write_costs(folder: str | Path, cells: Sequence[Cell], device: torch.device) -> None:
    """Measure what the methods of each cell cost alone, and write it beside the scores; what is there stays."""
    for cell in cells:
        path = costs_path(folder, cell)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))["methods"]
        except (OSError, ValueError, KeyError):
            kept = {}
        lacking = {name: method for name, method in cell.methods.items() if name not in kept}
        if not lacking:
            continue
        found = measure_costs(dataclasses.replace(cell, methods=lacking), device)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"dataset": cell.data.name, "model": cell.model.title, "threads": torch.get_num_threads()}
        about["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        _replace(path, {**about, "methods": {**kept, **found}})


def measure_costs(
    cell: Cell, device: torch.device | str, batch: int = 8, repeats: int = 3
) -> dict[str, dict[str, float | None]]:
    """What each method costs alone: seconds per image (median), forward and backward passes, peak memory on CUDA.

    Args:
        cell: the first images of its sample are explained.
        device: where.
        batch: images at a time.
        repeats: after one to warm up.

    Raises:
        DataError: if none of the images can be read.
    """
    model, spec = cell.load(device)
    found, _ = _read(cell, cell.indices[:batch], spec)
    if found is None:
        raise DataError(f"{cell.data.name}: none of the first {batch} images can be read.")
    x = found.x.to(device)
    cuda = torch.device(device).type == "cuda"
    costs: dict[str, dict[str, float | None]] = {}
    for name, method in cell.methods.items():
        times = []
        trace: Trace | None = None
        for _ in range(repeats + 1):
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            try:
                trace = record_for(model, x, [method], spec=spec)
                method.explanation(trace)
            except XattnError:
                break
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        if len(times) > 1 and trace is not None:
            costs[name] = {
                "seconds": float(np.median(times[1:])) / len(x),
                "forwards": float(trace.forwards),
                "backwards": float(trace.backwards),
                "peak_mb": torch.cuda.max_memory_allocated() / 2**20 / len(x) if cuda else None,
            }
    return costs
