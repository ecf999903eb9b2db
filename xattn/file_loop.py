"""The one loop over image files: read, record, explain, time. What becomes of the results is for its callers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from xattn.data.preprocessing import VIEW_PX, Fit, preprocess, view_of
from xattn.data.reading import Window, read_image
from xattn.device import at_precision
from xattn.errors import DataError, NotApplicableError, ParameterError, XattnError
from xattn.explainer import Explainer
from xattn.explaining import probability_by, record_for
from xattn.explanation import Explanation
from xattn.functional.pixels import denormalize
from xattn.inspection.processors import apply_transform
from xattn.score import apply_score
from xattn.spec import ASSUMED, PROVED, Evidence, ModelSpec
from xattn.targets import Class, Target, as_target
from xattn.trace import Trace, place_of

SAME = "the same for every class"
"""Stands for the explanation of a further class by a method that does not look at the class."""

NO_MORE = "the network has no further class"
"""Stands for the explanation of a further class by a network of fewer classes than another one."""

_BATCH_VALUES = 2**26  # numbers of the images and maps of a batch, at most


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A model ready to be explained.

    Args:
        model: on its device, in evaluation mode.
        spec: facts about it.
        name: how messages and tables call it.
        random: what of it is random, so that its maps mean nothing: all weights, or its head alone.
        original: the network that this one is a changed copy of, with finer maps or another pooling; what it names is
            explained.
    """

    model: nn.Module
    spec: ModelSpec
    name: str
    random: Literal["", "weights", "head"] = ""
    original: Network | None = None


@dataclasses.dataclass(eq=False)
class Column:
    """A method and the network that it explains.

    Args:
        method: the explainer.
        network: the model, with its spec.
        refused: why it cannot be used, which may come out only on the way.
    """

    method: Explainer
    network: Network
    refused: str | None = None

    @property
    def reason(self) -> str:
        """Why the method is left out, without its own name in front."""
        return (self.refused or "").removeprefix(f"{self.method.name}: ")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked of every image, whatever the answers are for.

    Args:
        targets: what to explain, in this order: classes by name or index, `scalar`, `a - b`; none stands for the
            predicted class.
        topk: classes to explain at least; the most probable ones follow those that are named.
        fit: as in `preprocess`.
        window: as in `read_image`.
        score: the scalar to explain.
        precision: `fp32`, `bf16` or `fp16`.
        batch_size: images that go through a network together, at most.
        tolerant: leave out a method that refuses a model on the way, instead of raising.
        transform: makes an input of an image in place of what is known of the networks.
    """

    targets: tuple[str, ...] = ()
    topk: int = 1
    fit: Fit | None = None
    window: Window | None = None
    score: str = "logit"
    precision: str = "fp32"
    batch_size: int = 8
    tolerant: bool = False
    transform: Callable[[Image.Image], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Unread:
    """A file that is no image, and why."""

    file: Path
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Explained:
    """All that came of one image.

    Args:
        file: where it is.
        views: what each network sees of it by name of the network, the first one's first, with `VIEW_PX` pixels at
            least, so that its maps fit it exactly.
        predicted: `index`, `class` and `probability` of the predicted class by name of the network.
        lines: for each class that is explained an entry a column: the explanation of this one image, or a text that
            says why there is none.
        measured: what was measured of each entry; None where nothing was.
        seconds: an image took for each column.
        pass_seconds: an image took for the recorded passes by name of the network.
    """

    file: Path
    views: dict[str, Image.Image]
    predicted: dict[str, dict[str, Any]]
    lines: list[list[Explanation | str]]
    measured: list[list[Any]]
    seconds: list[float]
    pass_seconds: dict[str, float]

    @property
    def view(self) -> Image.Image:
        """What the first network sees."""
        return next(iter(self.views.values()))


Measure = Callable[[list[Explanation], Trace], Sequence[Sequence[Any]]]
"""Measures explanations while their pass is at hand: for each of them one value an image."""


def explain_files(
    files: Sequence[Path], columns: Sequence[Column], settings: Settings, measure: Measure | None = None
) -> Iterator[Explained | Unread]:
    """Read, record, explain and time: the one loop over image files.

    Images are decoded one at a time and only what the networks see of them is kept; a batch is bounded by the numbers
    that its images and maps have. So memory depends neither on how many images there are nor on how large they are.

    Args:
        files: the images.
        columns: methods with their networks; `refused` is set on those that refuse on the way.
        settings: what is asked of every image.
        measure: called after each pass.

    Yields:
        What came of each file, in their order but for those that cannot be read, which are told at once.

    Raises:
        NotApplicableError: for a method that refuses its model, unless `settings.tolerant`.
        ParameterError: if memory does not suffice.
    """
    batch: list[_Ready] = []
    for file in files:
        try:
            ready = _ready(file, columns, settings)
        except DataError as error:
            yield Unread(file, str(error).removeprefix(f"{file}: "))
            continue
        if batch and ready.shapes != batch[0].shapes:
            yield from _explain_batch(batch, columns, settings, measure)
            batch = []
        batch.append(ready)
        values = sum(x.numel() for x in ready.inputs.values()) * (
            1 + len(columns) * max(settings.topk, len(settings.targets))
        )
        if len(batch) >= min(settings.batch_size, _BATCH_VALUES // values):
            yield from _explain_batch(batch, columns, settings, measure)
            batch = []
    if batch:
        yield from _explain_batch(batch, columns, settings, measure)


@dataclasses.dataclass(frozen=True, eq=False)
class _Ready:
    """A file as the networks see it: inputs (3, H, W) by network."""

    file: Path
    views: dict[str, Image.Image]
    inputs: dict[Network, Tensor]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(x.shape) for x in self.inputs.values()]


def _ready(file: Path, columns: Sequence[Column], settings: Settings) -> _Ready:
    image = read_image(file, window=settings.window)
    networks = dict.fromkeys(c.network for c in columns)
    if settings.transform is not None:
        x = apply_transform(settings.transform, image)
        views = {n.name: _view(image, x, n.spec) for n in networks}
        return _Ready(file, views, dict.fromkeys(networks, x))
    inputs = {network: preprocess(image, network.spec, fit=settings.fit) for network in networks}
    return _Ready(file, {n.name: view_of(image, n.spec, settings.fit) for n in networks}, inputs)


def _view(image: Image.Image, x: Tensor, spec: ModelSpec) -> Image.Image:
    """What a transform leaves of an image: of the image itself where it is known to resize and crop alone."""
    if spec.evidence.get("normalization", Evidence(ASSUMED)).how == PROVED:
        return view_of(image, spec)
    pixels = Image.fromarray(denormalize(x[None], spec.mean, spec.std)[0].cpu().numpy())
    scale = max(1.0, VIEW_PX / max(pixels.size))
    return pixels.resize((round(pixels.width * scale), round(pixels.height * scale)), Image.Resampling.BICUBIC)


def _explain_batch(
    batch: Sequence[_Ready], columns: Sequence[Column], settings: Settings, measure: Measure | None
) -> Iterator[Explained]:
    """Explain images of one shape: all classes by all networks."""
    answers = _Answers(columns, settings, measure)
    for network in batch[0].inputs:
        x = torch.stack([ready.inputs[network] for ready in batch]).to(place_of(network.model)[0])
        answers.add(network, x)
    if all(column.refused is not None for column in columns):
        raise NotApplicableError("no method fits the model; `xattn doctor` says why for each.")
    for i, ready in enumerate(batch):
        yield Explained(
            ready.file,
            ready.views,
            {name: rows[i] for name, rows in answers.predicted.items()},
            [[one(e, i) if isinstance(e, Explanation) else e for e in line] for line in answers.lines],
            [[None if values is None else values[i] for values in line] for line in answers.measured],
            [value / len(batch) for value in answers.seconds],
            {name: value / len(batch) for name, value in answers.passes.items()},
        )


class _Answers:
    """What comes of a batch; `lines` and `measured` have an entry for each class and column."""

    def __init__(self, columns: Sequence[Column], settings: Settings, measure: Measure | None) -> None:
        self.columns, self.settings, self.measure = columns, settings, measure
        # k times classes (N,) or a target; networks of the same classes explain the same ones, so that pictures compare
        self.wanted: dict[Any, Sequence[Tensor | Target]] = {}
        self.predicted: dict[str, list[dict[str, Any]]] = {}
        self.seconds = [0.0] * len(columns)
        self.passes: dict[str, float] = {}
        self.lines: list[list[Explanation | str]] = []
        self.measured: list[list[Sequence[Any] | None]] = []

    def add(self, network: Network, x: Tensor) -> None:
        """Explain all classes by the methods of a network."""
        self._explain(network, x, 0)
        for k in range(1, len(self.wanted.get(_classes_of(network), ()))):
            self._explain(network, x, k)
        for line in self.lines:
            for j, column in enumerate(self.columns):
                if column.refused is not None and isinstance(line[j], str):
                    line[j] = column.reason

    def _explain(self, network: Network, x: Tensor, k: int) -> None:
        """Explain the class number `k` of each image by one recorded pass."""
        todo = [
            (j, column)
            for j, column in enumerate(self.columns)
            if column.network is network and column.refused is None and (k == 0 or column.method.class_specific)
        ]
        if not todo:
            return
        named = [as_target(text, network.spec) for text in self.settings.targets]
        classes = all(isinstance(goal, Class) for goal in named)
        wanted = self.wanted.get(_classes_of(network), ())
        target: Any = wanted[k] if wanted and classes else named[k] if named else None
        whole = _pass_of_original(network, x, target, self.settings)
        if target is None and whole is not None and whole.goal.has_classes:
            target = whole.target
        start = time.perf_counter()
        trace = _record_all([column for _, column in todo], x, target, self.settings)
        if trace is None:
            return
        self.passes[network.name] = self.passes.get(network.name, 0.0) + time.perf_counter() - start
        if k == 0:
            self.predicted[network.name] = predictions(trace)
            if whole is not None:
                for row, own in zip(self.predicted[network.name], predictions(whole), strict=True):
                    row["original"] = own
        if not wanted:
            if not classes and self.settings.topk > 1:
                raise ParameterError(
                    f"--topk {self.settings.topk}: there are no classes behind '{trace.goal.text(0, trace.spec)}'; "
                    "leave one of --topk and --target out."
                )
            more = self.settings.targets[1:]
            wanted = (
                wanted_classes(trace if whole is None else whole, self.settings.topk, more).unbind(1)
                if classes
                else named
            )
            self.wanted[_classes_of(network)] = wanted
            for _ in range(len(self.lines), len(wanted)):
                self.lines.append([NO_MORE if c.method.class_specific else SAME for c in self.columns])
                self.measured.append([None] * len(self.columns))
        fresh: dict[int, Explanation] = {}
        for j, column in todo:
            start = time.perf_counter()
            if (explanation := _explanation(column, trace, self.settings.tolerant)) is not None:
                if whole is not None:
                    explanation = dataclasses.replace(explanation, original=probability_by(whole, trace))
                self.lines[k][j] = fresh[j] = explanation
            self.seconds[j] += time.perf_counter() - start
        if self.measure is not None and fresh:
            with at_precision(self.settings.precision, x.device):
                values = self.measure([*fresh.values()], trace)
            for j, value in zip(fresh, values, strict=True):
                self.measured[k][j] = value


def _classes_of(network: Network) -> Any:
    """What networks share that mean the same by a class: its names, where there are any."""
    return network.spec.classes or network


def _pass_of_original(network: Network, x: Tensor, target: Any, settings: Settings) -> Trace | None:
    """The pass of the network that this one is a changed copy of, without a graph."""
    if network.original is None:
        return None
    model, spec = network.original.model, network.original.spec
    with at_precision(settings.precision, x.device):
        return record_for(model, x, (), target, spec=spec, score=settings.score, grad=False)


def _record_all(columns: Sequence[Column], x: Tensor, target: Any, settings: Settings) -> Trace | None:
    """The recorded pass for all of these columns; those that it refuses are marked where that is tolerated."""
    if not columns:
        return None
    network = columns[0].network

    def attempt(some: Sequence[Column], x: Tensor, target: Any) -> Trace:
        methods = [column.method for column in some]
        with at_precision(settings.precision, x.device):
            trace = record_for(network.model, x, methods, target, spec=network.spec, score=settings.score)
            read = [layer for m in methods if m.grad for layer in m.layers(network.spec)]
            if read:
                trace.gradient(read[0])  # the backward pass belongs to the time of the pass, and to its precision
        return trace

    try:
        return attempt(columns, x, target)
    except XattnError:
        if not settings.tolerant:
            raise
    except (RuntimeError, MemoryError) as error:  # whatever a foreign forward pass raises
        if _is_memory(error):
            raise ParameterError(
                f"out of memory with {len(x)} images at once; pass a smaller --batch-size, or --device cpu."
            ) from None
        reason = str(error).split("\n", maxsplit=1)[0]
        raise NotApplicableError(
            f"{network.name} failed on images of shape {tuple(x.shape)} ({reason}); --debug shows where."
        ) from error
    alone = target[:1] if isinstance(target, Tensor) else target
    for column in columns:
        try:
            attempt([column], x[:1], alone)
        except NotApplicableError as error:
            column.refused = str(error)
    left = [column for column in columns if column.refused is None]
    if left and len(left) == len(columns):
        return attempt(left, x, target)  # raises: the error is about something else
    return _record_all(left, x, target, settings)


def _explanation(column: Column, trace: Trace, tolerant: bool) -> Explanation | None:
    """The explanation by one method; None if it refuses the model and that is tolerated."""
    if column.refused is not None:
        return None
    try:
        return column.method.explanation(trace)
    except NotApplicableError as error:
        if not tolerant:
            raise
        column.refused = str(error)
        return None
    except (RuntimeError, MemoryError) as error:
        if _is_memory(error):
            raise ParameterError(
                f"{column.method.name}: out of memory with {len(trace.x)} images at once; pass smaller numbers to the "
                "method, or a smaller --batch-size."
            ) from None
        raise


def _is_memory(error: BaseException) -> bool:
    """Whether memory did not suffice: on the processor torch says so by a plain `RuntimeError`."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def wanted_classes(trace: Trace, topk: int, more: Sequence[str] = ()) -> Tensor:
    """Classes (N, k) to explain: the target of the trace, then `more`, then the most probable ones up to `topk`."""
    scores = trace.probabilities
    first = trace.target
    indices = dict.fromkeys(trace.spec.class_index(name) for name in more)
    for index in indices:
        Class(index).bind(None, trace.logits, trace.spec, None)  # refuses what does not exist
    # A class that is named is the same in all images, so that the first image tells whether the target is among `more`.
    others = [torch.full_like(first, index) for index in indices if index != int(first[0])]
    named = torch.stack([first, *others], dim=1)
    rest = scores.scatter(1, named, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return torch.cat([named, rest[:, : max(min(topk, scores.shape[1]) - named.shape[1], 0)]], dim=1)


def predictions(trace: Trace) -> list[dict[str, Any]]:
    """The predicted class of each image: `index`, `class` and `probability`; what else is explained, and its value."""
    if not isinstance(trace.goal, Class):
        values = apply_score(trace.score_fn, trace.logits, trace.target).tolist()
        text = [trace.goal.text(i, trace.spec) for i in range(len(values))]
        return [
            {"index": None, "class": f"{what} {value:.4g}", "probability": None}
            for what, value in zip(text, values, strict=True)
        ]
    best = trace.probabilities.double().max(dim=1)
    return [
        {"index": k, "class": trace.spec.class_name(k), "probability": p}
        for k, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def one(explanation: Explanation, i: int) -> Explanation:
    """The explanation of image `i` alone."""

    def pick(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[i : i + 1]

    return dataclasses.replace(
        explanation,
        maps=explanation.maps[i : i + 1],
        target=explanation.target[i : i + 1],
        parts=pick(explanation.parts),
        status=(explanation.status[i],),
        probability=pick(explanation.probability),
        original=pick(explanation.original),
        described=explanation.described[i : i + 1],
        inputs=pick(explanation.inputs),
        photographs=explanation.photographs[i : i + 1],
        predicted=pick(explanation.predicted),
        labels=explanation.labels[i : i + 1],
        remarks=explanation.remarks[i : i + 1],
    )
