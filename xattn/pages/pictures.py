"""The images that tell methods apart: the best, the worst and the most disputed ones, with the maps of all methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn.benchmark.config import Config, MetricEntry
from xattn.benchmark.panels import rank_of
from xattn.benchmark.plan import Cell as RunCell
from xattn.benchmark.plan import plan
from xattn.benchmark.run import Loaded, explain_batch
from xattn.benchmark.scores import Scores
from xattn.benchmark.tables import text_of
from xattn.benchmark.verdict import Verdict, duration, name_of
from xattn.data.sample import Sample, collate
from xattn.device import at_precision, find_device
from xattn.errors import DataError
from xattn.explainer import Explainer
from xattn.explanation import Explanation
from xattn.metric import HIGHER
from xattn.trace import place_of
from xattn.viz import Cell, keys_of, panel, part_key, percent, render, save, to_rgb

KINDS = {
    "disputed": "The scores of the methods differ most. Methods stand from the best to the worst on the image.",
    "best": "The methods score highest on average.",
    "worst": "The methods score lowest on average.",
}
"""What is shown, and what it means."""

_ACROSS = 8  # pictures in a line
_SIDE = 112  # points of a picture
_SCALE = 2.0  # pixels of a point
_EXPENSIVE_S = 2.0  # methods that take longer for an image are not run again


@dataclass(frozen=True)
class Picture:
    """One image with the maps of all methods.

    Args:
        kind: one of `KINDS`.
        image: its name.
        predicted: the class that is explained.
        spread: standard deviation over methods of the standardized scores.
        path: file of the panel.
        picture: the panel.
    """

    kind: str
    image: str
    predicted: str
    spread: float
    path: Path
    picture: Image.Image


def choose(verdict: Verdict, count: int) -> dict[str, list[tuple[int, float]]]:
    """Numbers of the most disputed, best and worst images, with the spread of the methods' scores.

    Scores are turned so that higher is better, standardized over the panel and averaged over the questions. Each image
    is chosen once; controls do not count.

    Args:
        verdict: whose questions decide.
        count: images of each kind.
    """
    shared = sorted(set.intersection(*(set(s.images) for s in verdict.questions))) if verdict.questions else []
    methods = verdict.order
    if not shared or len(methods) < 2 or count < 1:
        return {}
    standard = []
    for s in verdict.questions:
        rows = s.values[np.searchsorted(s.images, shared)][:, methods] * s.column.sign
        standard.append((rows - np.nanmean(rows)) / max(float(np.nanstd(rows)), 1e-12))
    scores = np.mean(standard, axis=0)  # a method counts where it has a value in every question
    there = ~np.isnan(scores)
    known = np.flatnonzero(there.sum(1) >= 2)
    mean, spread = _moments(scores[known], there[known])
    chosen: dict[str, list[tuple[int, float]]] = {}
    left = np.ones(len(known), np.bool_)
    for kind, key in (("disputed", -spread), ("best", -mean), ("worst", mean)):
        order = [i for i in np.argsort(key, kind="stable").tolist() if left[i]][:count]
        left[order] = False
        chosen[kind] = [(shared[int(known[i])], float(spread[i])) for i in order]
    return chosen


def _moments(x: NDArray[np.float64], there: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (N,) over what is there."""
    count = there.sum(1)
    mean = np.where(there, x, 0).sum(1) / count
    return mean, np.sqrt(np.where(there, (x - mean[:, None]) ** 2, 0).sum(1) / count)


def draw(
    scores: Scores, config: Config, verdict: Verdict, count: int, folder: Path, name: str
) -> tuple[list[Picture], list[str]]:
    """Make the maps of the chosen images once more and draw them.

    Args:
        scores: the run.
        config: how to open data and models; given by the person, since what a run's own folder names could be anything.
        verdict: of a panel of one model.
        count: images of each kind.
        folder: for the files.
        name: how they begin.

    Returns:
        The pictures, and notes: methods that are not shown, or the one reason why there is no picture.
    """
    chosen = choose(verdict, count)
    if not any(chosen.values()):
        return [], []
    try:
        (title,) = {entry.model for entry in verdict.panel.entries}
        cell, config = _reopen(scores, config, verdict.panel.dataset, title)
        samples = _find(cell, config, scores, [scores.names[i] for some in chosen.values() for i, _ in some])
        methods, notes = _methods(verdict, cell)
        device = find_device(config.run.device, "run.device")
        loaded = Loaded.load(cell, device, fast=False)
        pictures = []
        for kind, some in chosen.items():
            for place, (number, spread) in enumerate(some):
                sample = samples[scores.names[number]]
                maps = _explain(loaded, config, sample, methods)
                picture = _panel(verdict, number, maps)
                path = save(picture, folder / f"{name}-{kind}-{place + 1}.png")
                pictures.append(Picture(kind, sample.id, _predicted(maps), spread, path, picture))
    except Exception as error:  # data, model and methods may be anyone's, and the report needs none of them
        reason = " ".join(str(error).split()) or type(error).__name__
        return [], [f"The images cannot be shown again: {reason}"]
    return pictures, notes


def _reopen(scores: Scores, config: Config, dataset: str, model: str) -> tuple[RunCell, Config]:
    """The data set and the model as the configuration has them.

    Raises:
        XattnError: if one of them cannot be opened or is another one now.
    """
    data = [d for d in config.data if d.name == dataset]
    models = [m for m in config.models if m.title == model]
    if not data or not models:
        raise DataError(f"the configuration has no '{dataset if not data else model}'.")
    one = config.model_copy(
        update={
            "data": (data[0].model_copy(update={"metrics": ()}),),
            "models": (models[0],),
            "metrics": (MetricEntry(name="sparsity"),),
            "run": config.run.model_copy(update={"device": "auto"}),
        }
    )
    (cell,) = plan(one)
    identity = scores.manifest.identity
    if identity and model in identity.models and identity.models[model].weights != cell.digest:
        raise DataError(f"the weights of {model} have changed since the run.")
    return cell, one


def _find(cell: RunCell, config: Config, scores: Scores, names: Sequence[str]) -> dict[str, Sample]:
    """Samples by their names. The parts tell in which block of the sample an image is, so that few are read."""
    wanted = set(names)
    blocks = scores.store.blocks_with(cell.data.name, cell.model.title, wanted)
    samples: dict[str, Sample] = {}
    size = config.run.block
    for block in range(-(-len(cell.indices) // size)) if blocks is None else blocks:
        for index in cell.indices[block * size : (block + 1) * size]:
            try:
                sample = cell.dataset[index]
            except (DataError, OSError):
                continue  # it was not readable then, either
            if sample.id in wanted:
                samples[sample.id] = sample
            if len(samples) == len(wanted):
                return samples
    missing = sorted(wanted - samples.keys())
    raise DataError(f"{cell.data.name} has no image '{missing[0]}' any more.")


def _methods(verdict: Verdict, cell: RunCell) -> tuple[dict[int, Explainer], list[str]]:
    """The methods of a panel by their place in it, and which are left out."""
    panel = verdict.panel
    seconds = [cost.get("seconds") or 0.0 for cost in panel.costs]
    known = {j: cell.methods.get(entry.method) for j, entry in enumerate(panel.entries)}
    methods = {j: method for j, method in known.items() if method is not None and seconds[j] <= _EXPENSIVE_S}
    expensive = [f"{panel.labels[j]} ({duration(s)} an image)" for j, s in enumerate(seconds) if s > _EXPENSIVE_S]
    return methods, [f"Not shown, for their cost: {', '.join(expensive)}."] if expensive else []


def _explain(
    loaded: Loaded, config: Config, sample: Sample, methods: Mapping[int, Explainer]
) -> dict[int, Explanation | str]:
    """What the run explained of one image; for a method that refuses it the reason."""
    device = place_of(loaded.model)[0]
    batch = collate([sample], loaded.spec, fit=loaded.cell.data.fit).to(device)
    with at_precision(config.run.precision, device):
        _, explanations, refused = explain_batch(loaded, batch, methods, config)
    return {j: refused[j] if j in refused else explanations[j] for j in methods}


def _predicted(maps: Mapping[int, Explanation | str]) -> str:
    """The class that is explained, with its probability."""
    for explanation in maps.values():
        if not isinstance(explanation, str):
            name = explanation.class_name()
            probability = explanation.probability
            return name if probability is None else f"{name}, {percent(float(probability[0]))}"
    return ""


def _panel(verdict: Verdict, number: int, maps: Mapping[int, Explanation | str]) -> Image.Image:
    """The image, then all methods from the best to the worst on it, then the controls, each with its scores."""
    entries, labels = verdict.panel.entries, verdict.panel.labels
    values = [s.values[s.images.index(number)] for s in verdict.questions]
    ranks = np.mean(
        [rank_of(v, s.column.direction is HIGHER) for v, s in zip(values, verdict.questions, strict=True)], axis=0
    )
    order = sorted(maps, key=lambda j: (entries[j].control, math.isnan(ranks[j]), ranks[j], j))
    real = [e for e in maps.values() if not isinstance(e, str)]
    image = to_rgb(real[0].images[0]) if real else None
    lines = math.ceil((1 + len(order)) / _ACROSS)
    across = math.ceil((1 + len(order)) / lines)  # equally long lines
    size = round(_SIDE * _SCALE)
    name, _, probability = _predicted(maps).rpartition(", ")
    cells = [Cell(image, name, probability, title="image")]
    for j in order:
        explanation = maps[j]
        below = [f"{name_of(s)} {text_of(float(v[j]))}" for v, s in zip(values, verdict.questions, strict=True)]
        caption, detail = [*below, "", ""][:2]
        title = labels[j] + (" (control)" if entries[j].control else "")
        if isinstance(explanation, str):
            cells.append(Cell(None, caption, detail, note=explanation, title=title))
        else:
            shown = render(explanation, 0, size=size)
            cells.append(Cell(shown, caption, detail, key=part_key(explanation, 0), title=title))
    cells += [Cell()] * (lines * across - len(cells))
    rows = [cells[i : i + across] for i in range(0, len(cells), across)]
    return panel(rows, legend=keys_of(real), cell=_SIDE, scale=_SCALE)
