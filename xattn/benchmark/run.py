"""Scoring: every method by every metric on every image, block by block, so that a run can stop anywhere and go on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from xattn.benchmark.config import Config
from xattn.benchmark.manifest import check_manifest
from xattn.benchmark.plan import Cell, by_label, plan, read_batch
from xattn.benchmark.store import PREDICTION, READING, REFUSED, SCORER, STATUS, Pair, Row, Store, missing
from xattn.data.sample import Batch
from xattn.device import at_precision, find_device
from xattn.errors import XattnError
from xattn.explainer import Explainer
from xattn.explaining import record_for
from xattn.explanation import OK, Explanation
from xattn.metric import Metric
from xattn.metrics.perturbation import in_domain
from xattn.models.fast import fast_copy
from xattn.spec import ModelSpec
from xattn.trace import Trace, place_of

Key = TypeVar("Key")
Watch = Callable[[str], AbstractContextManager[None]]
_EXPENSIVE = 50  # how much more work a metric is taken to be that runs the model; for the progress alone
_CHEAP = ("complexity", "localization")


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
    store = Store(folder)
    store.folder.mkdir(parents=True, exist_ok=True)
    device = find_device(config.run.device, "run.device")
    check_manifest(store, config, cells, device)
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
    known = cell.metrics.get(metric)
    return 1 if known is None or known.family in _CHEAP else _EXPENSIVE


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
        scorer: a copy that was fine-tuned to images that lack cells, or None.
    """

    cell: Cell
    model: nn.Module
    spec: ModelSpec
    scoring: nn.Module | None
    scorer: nn.Module | None = None

    @classmethod
    def load(cls, cell: Cell, device: torch.device, *, fast: bool) -> Loaded:
        """Build the model."""
        model, spec = cell.load(device)
        scorer = cell.load_scorer(device)
        if fast and scorer is not None:
            scorer = fast_copy(scorer, spec)
        return cls(cell, model, spec, fast_copy(model, spec) if fast else None, scorer)


def _score_block(
    loaded: Loaded, block: int, todo: dict[Pair, int], config: Config
) -> Iterator[tuple[list[Row], float]]:
    """Rows of each batch of a block, with the work that it was."""
    cell, size = loaded.cell, config.run.block
    indices = cell.indices[block * size : (block + 1) * size]
    # Batches are cut at the same places whatever is left to do and wherever the share of a metric ends, and scored
    # whole: kernels add in an order that depends on the number of images, and the same images give the same bits.
    for first in range(0, max(todo.values()), config.run.batch):
        wanted = {pair: min(count - first, config.run.batch) for pair, count in todo.items() if count > first}
        batch, bad = read_batch(cell, indices[first : first + config.run.batch], loaded.spec)
        rows = [
            Row(cell.data.name, cell.model.title, f"#{indices[first + i]}", -1, "", READING, "error", math.nan, reason)
            for i, reason in bad.items()
            if i < max(wanted.values())
        ]
        if batch is not None:
            readable = {pair: count - sum(i < count for i in bad) for pair, count in wanted.items()}
            rows += score_batch(loaded, batch, {pair: count for pair, count in readable.items() if count}, config)
        yield rows, _work(cell, wanted)


def score_batch(
    loaded: Loaded,
    batch: Batch,
    wanted: Mapping[Pair, int],
    config: Config,
    watch: Watch = lambda _: nullcontext(),
) -> list[Row]:
    """Rows of some pairs on a batch.

    Args:
        loaded: the cell with its model.
        batch: images as the model sees them.
        wanted: of how many images, the first ones, rows are wanted for each pair (method, metric).
        config: the run.
        watch: entered with the name of each metric, and with `status` for the maps.
    """
    cell = loaded.cell
    device = place_of(loaded.model)[0]
    batch = batch.to(device)
    methods = {name: cell.methods[name] for name in dict.fromkeys(m for m, _ in wanted if m)}
    rows: list[Row] = []
    with at_precision(config.run.precision, device):
        with watch(STATUS):
            trace, explanations, refused = explain_batch(loaded, batch, methods, config)
        targets = trace.target.tolist()

        def add(method: str, metric: str, column: str, values: Tensor, notes: Sequence[str] = ()) -> None:
            for i, value in enumerate(values[: wanted[method, metric]].double().tolist()):
                about = (cell.data.name, cell.model.title, batch.ids[i], targets[i])
                rows.append(Row(*about, method, metric, column, value, notes[i] if notes else ""))

        if ("", PREDICTION) in wanted:
            _add_prediction(add, trace, batch, cell)
        if ("", SCORER) in wanted:
            judged, own = (t.probabilities for t in (in_domain(trace, SCORER), trace))
            known = own.shape[1] == len(cell.dataset.classes)
            judged, own = judged.argmax(1), own.argmax(1)
            add("", SCORER, "correct", (judged == batch.target).double() if known else judged * float("nan"))
            add("", SCORER, "agrees", (judged == own).double())
        for name in methods:
            if (name, STATUS) not in wanted:
                continue
            state = [f"{REFUSED}{refused[name]}"] * len(batch) if name in refused else explanations[name].status
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


def explain_batch(
    loaded: Loaded, batch: Batch, methods: Mapping[Key, Explainer], config: Config
) -> tuple[Trace, dict[Key, Explanation], dict[Key, str]]:
    """The recorded pass of a batch, the maps of the methods, and the reasons of those that refuse the images."""
    trace = record_for(
        loaded.model,
        batch.x,
        methods.values(),
        batch.target if by_label(loaded.cell, config) else None,
        spec=loaded.spec,
        score=config.run.score,
        seeds=[seed_of(config.run.seed, image) for image in batch.ids],
        scoring=loaded.scoring,
    )
    trace.scorer = loaded.scorer
    explanations: dict[Key, Explanation] = {}
    refused: dict[Key, str] = {}
    for key, method in methods.items():
        try:
            explanations[key] = method.explanation(trace)
        except XattnError as error:
            refused[key] = str(error)
    return trace, explanations, refused


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
    scores = trace.probabilities
    add("", PREDICTION, "probability", scores.gather(1, trace.target[:, None])[:, 0])
    right = (scores.argmax(1) == batch.target).double()
    # Labels of a data set with other classes say nothing about the prediction.
    add("", PREDICTION, "correct", right if scores.shape[1] == len(cell.dataset.classes) else right * float("nan"))
    masks = batch.object_masks() if cell.objects else None
    if masks is not None:
        share = masks.flatten(1).double().mean(1)
        add("", PREDICTION, "object_share", share.masked_fill(share == 0, float("nan")))


def seed_of(seed: int, image: str) -> int:
    """The number from which everything random about an image comes."""
    return int.from_bytes(
        hashlib.blake2b(f"{seed}/{image}".encode(errors="backslashreplace"), digest_size=7).digest(), "little"
    )
