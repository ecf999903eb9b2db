"""Which method for a model, within minutes: a race of a handful of methods on images in random order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from xattn.benchmark.config import Config, ModelEntry
from xattn.benchmark.costs import measured
from xattn.benchmark.limit import Limit, TimeOver
from xattn.benchmark.plan import Cell, build_model, plan, read_batch
from xattn.benchmark.race import Race, Rules
from xattn.benchmark.run import Loaded, explain_batch, score_batch
from xattn.benchmark.schemas import MethodCost
from xattn.benchmark.selection import Question, Selection
from xattn.benchmark.store import REFUSED, STATUS, Row
from xattn.data.opening import open_dataset
from xattn.data.sample import Batch
from xattn.device import at_precision, find_device
from xattn.errors import DataError, ParameterError
from xattn.explainer import Family
from xattn.explainers import resolve
from xattn.explanation import Explanation
from xattn.functional.statistics import Array
from xattn.inspection import infer_spec
from xattn.labels import label_of
from xattn.models.fast import fast_copy
from xattn.spec import ModelSpec
from xattn.trace import place_of

METHODS = (
    "cam", "gradcam", "gradcam++", "layercam", "brnpa", "part-cam", "bcnn", "activation", "eigencam",
    "input-x-gradient", "guided-backprop", "lrp", "integrated-gradients:steps=32",
)  # fmt: skip
"""What runs where nothing is named: the usual methods of every family."""
FOR_TRANSFORMERS = (
    "gradcam", "activation", "agcam", "legrad", "transformer-attribution", "attention-x-gradient", "rollout",
    "raw-attention", "attnlrp", "input-x-gradient", "integrated-gradients:steps=32",
)  # fmt: skip
"""The same for models whose attention can be read."""

QUESTIONS = (
    Question("abpc:baseline=blur,steps=5", "abpc", "where parts are blurred", "blur", full="abpc:baseline=blur"),
    Question("abpc:steps=5", "abpc", "where parts become the mean colour", "mean", full="abpc"),
)
"""The area between the curves of the score while the least and while the most important cells are replaced, which are
deletion, and insertion read backwards. It orders methods more alike from one replacement to another than either of the
two does (symmetric relevance gain; Blücher et al. 2024, arXiv:2401.06654). In five steps where the benchmark takes ten:
images differ far more than the points of a curve do, so that twice the images in half the steps tell more."""
ON_OBJECT = Question("energy_pointing_game", "energy", "on the object", "object", deciding=False)
"""Asked where the data have boxes or masks. It costs no pass; it says nothing of the model, and decides nothing."""

FULL = ("deletion", "insertion", "curves", "sparsity", "class_sensitivity", "parameter_randomization:stages=3")
"""What the full benchmark asks besides."""

UNSOUND = 0.1  # share of maps that are constant, undefined or do not add up, from which a method is out
_SETTLED = 16  # images after which unsound maps count
DEAR = 6.0  # forward and backward passes for a map from which a method starts late
_SHOWN = 4  # images, and methods, in the picture
_TO_RACE, _TO_SHOW = 0.75, 0.1  # shares of the time that are kept for the race, and for the picture


def select(
    model: nn.Module | str,
    data: str | Path,
    methods: str | Sequence[str] | None = None,
    *,
    spec: ModelSpec | None = None,
    entry: Mapping[str, Any] | None = None,
    images: int = 200,
    minutes: float | Limit | None = None,
    seed: int = 0,
    split: str | None = None,
    batch: int = 8,
    score: str = "logit",
    fast: bool = False,
    device: str = "auto",
    rules: Rules | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Selection:
    """Find the method for a model, with as few images as it takes.

    Images are drawn in random order, in batches. A method that is shown to be worse than another, or than a control,
    is not computed any more; nor is one that scores like a cheaper one. All that is said is wrong with a probability
    of `rules.alpha` at most, whenever the race stops (`benchmark.race`).

    Args:
        model: any classifier, which leaves as it came, or its name, as for `xattn.create_model`.
        data: folder of images, with or without folders of classes, or a data set by name, as for `xattn benchmark`.
        methods: names with their parameters; None are the usual ones for the kind of model (`METHODS`). Those that it
            cannot have are left out with the reason.
        spec: facts about the model; None takes `model.spec` or infers them.
        entry: what the configuration of the full benchmark says of the model; by default its name.
        images: to draw at most; 0 for all.
        minutes: in which it answers, to one pass of the network; None sets no limit. A `Limit` may have begun before.
        seed: of the order of the images and of everything random.
        split: part of the data set, as for `xattn benchmark`.
        batch: images at a time.
        score: the scalar explained.
        fast: score perturbed images with a cheaper copy of the model, as `xattn benchmark --fast`.
        device: where to compute, if `model` is a name.
        rules: when a pair is decided.
        progress: called with the images done, the most there can be, and the methods left.

    Raises:
        ParameterError: if nothing can be compared.
        DataError: if there are no images that can be read.
    """
    limit = minutes if isinstance(minutes, Limit) else Limit(minutes)
    if isinstance(model, str):
        entry = {"name": model} if entry is None else entry
        model, own = build_model(ModelEntry(name=model), find_device(device, "device"))
        spec = own if spec is None else spec
    if spec is None:
        known = getattr(model, "spec", None)
        spec = known if isinstance(known, ModelSpec) else infer_spec(model)
    entry = {"name": type(model).__name__} if entry is None else entry
    if methods is None:
        methods = FOR_TRANSFORMERS if spec.probability_layers else METHODS
    values: dict[str, Any] = {
        "data": [{"source": source_of(data), "split": split, "limit": images}],
        "models": [dict(entry)],
        "methods": list(dict.fromkeys(label_of(method) for method in resolve(methods))),
        "metrics": [question.metric for question in QUESTIONS],
        "run": {"seed": seed, "batch": batch, "score": score, "device": str(place_of(model)[0])},
    }
    cell = _cell(values, (model, spec))
    questions: tuple[Question, ...] = QUESTIONS
    if cell.objects:
        questions = (*QUESTIONS, ON_OBJECT)
        values["metrics"].append(ON_OBJECT.metric)
        cell = _cell(values, (model, spec))
    config = Config.build(values, "select")
    loaded = Loaded(cell, *cell.load(values["run"]["device"]), fast_copy(model, spec) if fast else None)
    with _watched(loaded, limit) as passes:
        if rules is None:  # of few images the second question and the methods of many passes have their share, too
            rules = Rules(first=min(Rules.first, len(cell.indices) // 4))
        runner = _Runner(loaded, config, questions, rules, limit, passes)
        race, over = runner.race, False
        try:
            limit.keep(_TO_SHOW)
            for group in runner.batches(batch):
                runner.score(group)
                if progress is not None:
                    progress(race.images, len(cell.indices), int(race.left.sum()))
                if race.decided:
                    break
        except TimeOver:
            over = True
        result = Selection(
            race,
            questions,
            cell.model.title,
            cell.data.name,
            len(cell.dataset),
            runner.left_out,
            runner.costs,
            _full(values, cell, questions),
            unreadable=runner.unreadable,
            over=limit.minutes if over else None,
        )
        limit.keep(0)
        result.explanations = runner.explain(result)
    result.passes, result.seconds = passes[0], limit.spent()
    return result


def _cell(values: dict[str, Any], built: tuple[nn.Module, ModelSpec]) -> Cell:
    """Everything opened and checked, as for a benchmark."""
    config = Config.build(values, "select")
    (cell,) = plan(config, {config.models[0].title: built})
    # The pooled gradient is the map of input-x-gradient, a method that races itself and would have to beat its copy.
    methods = {name: m for name, m in cell.methods.items() if m.family is not Family.CONTROL or not m.grad}
    cell = dataclasses.replace(cell, methods=methods)
    if all(method.family is Family.CONTROL for method in cell.methods.values()):
        why = "; ".join(f"{name}: {reason}" for name, reason in cell.left_out.items())
        raise ParameterError(f"select: none of the methods is defined for {cell.model.title} ({why}).")
    return cell


def source_of(data: str | Path) -> str:
    """What a person names as a data set; photographs without folders of classes will do."""
    path = Path(data).expanduser()
    if not path.is_dir():
        return str(data)
    path = path.resolve()
    try:
        open_dataset(path)
    except DataError as reason:
        try:
            open_dataset(f"images:{path}")
        except DataError:
            raise reason from None
        return f"images:{path}"
    return str(path)


@contextmanager
def _watched(loaded: Loaded, limit: Limit) -> Iterator[list[int]]:
    """Count the images that go through the network, and let none in when the time is over."""
    passes = [0]

    def count(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        limit.check()
        passes[0] += len(inputs[0])

    networks = [loaded.model] if loaded.scoring is None else [loaded.model, loaded.scoring]
    handles = [network.register_forward_pre_hook(count) for network in networks]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


class _Runner:
    """Scores what the race asks for, through what a benchmark runs.

    Args:
        loaded: the cell with its model.
        config: the race as a benchmark.
        questions: what is asked.
        rules: of the race.
        limit: of the time.
        passes: counts the images that go through the network.
    """

    def __init__(
        self,
        loaded: Loaded,
        config: Config,
        questions: Sequence[Question],
        rules: Rules,
        limit: Limit,
        passes: Sequence[int],
    ) -> None:
        self.loaded, self.config, self.questions, self.limit = loaded, config, questions, limit
        cell = loaded.cell
        self.left_out = dict(cell.left_out)
        self.unreadable: list[str] = []
        self.first: Batch | None = None
        index = next((i for i in cell.indices if read_batch(cell, [i], loaded.spec)[0] is not None), None)
        if index is None:
            raise DataError(f"{cell.data.name}: none of the images can be read.")
        device = place_of(loaded.model)[0]
        self.costs: dict[str, MethodCost] = {}
        unknown = 1.0  # what refuses the image costs nothing
        through: dict[str, float] = {}
        try:
            limit.keep(_TO_RACE)
            before = passes[0]
            for label, cost in measured(dataclasses.replace(cell, indices=(index,)), device, repeats=1):
                self.costs[label] = cost
                # Steps of one image go through the network in one pass where they fit, so that both are looked at.
                through[label] = max(cost.forwards + cost.backwards, (passes[0] - before) / 2)
                before = passes[0]
        except TimeOver:
            unknown = float("inf")  # what was not reached starts late
        dear = [through.get(label, unknown) for label in cell.methods]
        controls = [method.family is Family.CONTROL for method in cell.methods.values()]
        late = [cost > DEAR and not control for cost, control in zip(dear, controls, strict=True)]
        if all(waits or control for waits, control in zip(late, controls, strict=True)):
            late = [False] * len(late)  # nobody to wait for
        self.race = Race(
            [*cell.methods],
            controls,
            [question.what for question in questions],
            deciding=[question.deciding for question in questions],
            cost=dear,
            late=late,
            rules=rules,
        )
        self.seen = dict.fromkeys(cell.methods, 0)
        self.unsound = dict.fromkeys(cell.methods, 0)

    def batches(self, size: int) -> Iterator[Batch]:
        """The images that can be read, in random order, as many at a time as the time allows."""
        cell = self.loaded.cell
        each: float | None = None
        for first in range(0, len(cell.indices), size):
            batch, problems = read_batch(cell, cell.indices[first : first + size], self.loaded.spec)
            self.unreadable += problems.values()
            self.first = self.first or batch
            while batch is not None and len(batch):
                count = min(len(batch), self.limit.images(each, size))
                begun = self.limit.spent()
                yield batch[:count]
                each = (self.limit.spent() - begun) / count
                batch = batch[count:]

    def score(self, batch: Batch) -> None:
        """Score a batch by what is asked, for what is still in the race."""
        race = self.race
        names = [name for name, there in zip(race.names, race.racing, strict=True) if there]
        asked = [question.label for question, there in zip(self.questions, race.asked, strict=True) if there]
        wanted = {(name, metric): len(batch) for name in names for metric in (STATUS, *asked)}
        rows = score_batch(self.loaded, batch, wanted, self.config)
        place = {image: i for i, image in enumerate(batch.ids)}
        columns = {(q.label, q.column): (i, q.sign) for i, q in enumerate(self.questions)}
        scores: Array = np.full((len(batch), len(columns), len(race.names)), np.nan)
        for row in rows:
            if (row.metric, row.column) in columns:
                q, sign = columns[row.metric, row.column]
                scores[place[row.image], q, race.names.index(row.method)] = sign * row.value
        race.add(scores)
        for row in rows:
            if row.metric == STATUS:
                self._check(row)

    def _check(self, row: Row) -> None:
        """Take a method out that refuses the images, or whose maps are unsound on more than `UNSOUND` of them."""
        name = row.method
        j = self.race.names.index(name)
        if name in self.left_out or self.race.controls[j]:
            return
        self.seen[name] += 1
        self.unsound[name] += row.value < 1
        share = self.unsound[name] / self.seen[name]
        if row.note.startswith(REFUSED):
            self.left_out[name] = row.note.removeprefix(REFUSED)
            self.race.drop(j)
        elif self.seen[name] >= _SETTLED and share > UNSOUND:
            self.left_out[name] = f"its maps are not fine on {share:.0%} of {self.seen[name]} images"
            self.race.drop(j)

    def explain(self, result: Selection) -> list[Explanation]:
        """Explanations of some of the first images by the best methods, or by the last to be out where none is left."""
        order = [self.race.names[j] for j in result.order() if not self.race.controls[j]]
        names = [name for name in result.group or order if name not in self.left_out][:_SHOWN]
        if self.first is None or not names:
            return []
        batch = self.first[:_SHOWN]
        device = place_of(self.loaded.model)[0]
        shown: list[Explanation] = []
        with at_precision(self.config.run.precision, device):
            for name in names:  # one by one, so that those are there for which the time was enough
                try:
                    methods = {name: self.loaded.cell.methods[name]}
                    shown += explain_batch(self.loaded, batch.to(device), methods, self.config)[1].values()
                except TimeOver:
                    break
        return shown


def _full(values: Mapping[str, Any], cell: Cell, questions: Sequence[Question]) -> Config:
    """The configuration that would be the full benchmark: every image, and what else there is to ask."""
    metrics = [*(question.full or question.metric for question in questions), *FULL]
    methods = [name for name, method in cell.methods.items() if method.family is not Family.CONTROL]
    run = {key: value for key, value in values["run"].items() if key in ("seed", "score")}
    data = [{**values["data"][0], "limit": 0}]
    return Config.build({**values, "data": data, "methods": methods, "metrics": metrics, "run": run}, "select")
