"""Scoring: every method by every metric on every image, block by block, so that a run can stop anywhere and go on."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from xattn.benchmark.ahead import ahead
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
Progress = Callable[[float, float, str], None]
Read = tuple[Batch | None, dict[int, str]]
"""A batch of the images that can be read, and the reason for each place whose image cannot."""
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


@dataclass(frozen=True, eq=False)
class Work:
    """What is left to do of one block.

    Args:
        cell: which data set and model.
        block: its number.
        todo: pairs (method, metric) to score, with the number of images.
    """

    cell: Cell
    block: int
    todo: dict[Pair, int]

    @property
    def size(self) -> float:
        """Roughly how long it takes, in the time of a cheap pair on one image."""
        return _work(self.cell, self.todo)


def run(
    config: Config,
    folder: str | Path,
    *,
    rank: int = 0,
    world: int = 1,
    cells: Sequence[Cell] | None = None,
    progress: Progress | None = None,
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
    begin(store, config, cells)
    return Scoring(config, store).score(left(store, config, cells, rank, world), progress)


def begin(store: Store, config: Config, cells: Sequence[Cell]) -> None:
    """Make the folder of a run, or check that it is one of the same run.

    Raises:
        ParameterError: for a configuration that does not fit the folder.
    """
    store.check_unpublished()
    store.make(store.folder)
    check_manifest(store, config, cells, find_device(config.run.device, "run.device"))
    store.clear_leftovers()


def left(store: Store, config: Config, cells: Sequence[Cell], rank: int = 0, world: int = 1) -> list[Work]:
    """What is not stored yet of blocks `rank`, `rank + world`, ... of every cell."""
    shares = [(cell, range(blocks_of(cell, config))[rank::world]) for cell in cells]
    return [work for cell, blocks in shares for work in left_of(store, config, cell, blocks)]


def left_of(store: Store, config: Config, cell: Cell, blocks: Sequence[int]) -> list[Work]:
    """What is not stored yet of some blocks of a cell; no other part is opened."""
    done = store.done(cell.data.name, cell.model.title, blocks)
    todo = ((block, _todo(cell, config, block, done.get(block, {}))) for block in blocks)
    return [Work(cell, block, pairs) for block, pairs in todo if pairs]


def blocks_of(cell: Cell, config: Config) -> int:
    """Number of blocks of a cell."""
    return -(-len(cell.indices) // config.run.block)


class Scoring:
    """Scores blocks, with the model of the last one at hand.

    Args:
        config: the run.
        store: where the scores go.
    """

    def __init__(self, config: Config, store: Store) -> None:
        self.config, self.store = config, store
        self.device = find_device(config.run.device, "run.device")
        self._loaded: Loaded | None = None

    def score(self, work: Sequence[Work], progress: Progress | None = None) -> Summary:
        """Score blocks in their order and store each as it is done."""
        total, finished = sum(some.size for some in work), 0.0
        summary = Summary()
        for cell, group in itertools.groupby(work, lambda some: some.cell):
            blocks = list(group)
            loaded = self._load(cell)
            with ahead(self._reads(loaded, blocks)) as batches:
                for some in blocks:
                    rows: list[Row] = []
                    for scored, wanted in _score_block(loaded, some, self.config, batches):
                        rows += scored
                        finished += wanted
                        if progress is not None:
                            progress(finished, total, cell.name)
                    self.store.write(cell.data.name, cell.model.title, some.block, rows, some.todo)
                    summary.blocks += 1
                    summary.rows += len(rows)
        return summary

    def _load(self, cell: Cell) -> Loaded:
        if self._loaded is None or self._loaded.cell is not cell:
            self._loaded = None  # before the next one takes memory
            self._loaded = Loaded.load(cell, self.device, fast=self.config.run.fast)
        return self._loaded

    def _reads(self, loaded: Loaded, blocks: Sequence[Work]) -> Iterator[Callable[[], Read]]:
        """The reading of each batch of some blocks."""
        for some in blocks:
            indices = _indices(some, self.config)
            for first in _starts(some, self.config):
                own = indices[first : first + self.config.run.batch]
                yield partial(read_batch, loaded.cell, own, loaded.spec)


def _indices(work: Work, config: Config) -> tuple[int, ...]:
    size = config.run.block
    return work.cell.indices[work.block * size : (work.block + 1) * size]


def _starts(work: Work, config: Config) -> range:
    # Batches are cut at the same places whatever is left to do and wherever the share of a metric ends, and scored
    # whole: kernels add in an order that depends on the number of images, and the same images give the same bits.
    return range(0, max(work.todo.values()), config.run.batch)


def _work(cell: Cell, todo: dict[Pair, int]) -> float:
    """Roughly how long a list of pairs takes, in the time of a cheap one on one image."""
    return float(sum(count * _weight(cell, metric) for (_, metric), count in todo.items()))


def _weight(cell: Cell, metric: str) -> int:
    known = cell.metrics.get(metric)
    return 1 if known is None or known.family in _CHEAP else _EXPENSIVE


def _todo(cell: Cell, config: Config, block: int, done: dict[Pair, int]) -> dict[Pair, int]:
    """Pairs to score in a block, with the number of its images."""
    inside = all_of(cell, config, block)
    return {pair: inside[pair] for pair in missing(inside, done)}


def all_of(cell: Cell, config: Config, block: int) -> dict[Pair, int]:
    """All pairs that are to be scored in a block, and on how many of its images."""
    size = config.run.block
    inside = {pair: min(max(cell.count(pair) - block * size, 0), size) for pair in cell.pairs()}
    return {pair: count for pair, count in inside.items() if count}


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
    loaded: Loaded, work: Work, config: Config, batches: Iterator[Read]
) -> Iterator[tuple[list[Row], float]]:
    """Rows of each batch of a block, with the work that it was."""
    cell, todo = loaded.cell, work.todo
    indices = _indices(work, config)
    for first in _starts(work, config):
        wanted = {pair: min(count - first, config.run.batch) for pair, count in todo.items() if count > first}
        batch, bad = next(batches)
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
