"""What the perturbation metrics share: one curve for all that is read off it, and images scored once a batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from xattn.errors import NotApplicableError, ShapeError
from xattn.explanation import Explanation
from xattn.functional.baselines import Baseline, baselines
from xattn.functional.curves import step_counts, step_means
from xattn.functional.grid import Grid, cell_of_pixel, to_grid
from xattn.functional.perturb import ImageScore, Order, curve_scores, ranks, replaced_scores, tie_orders, undefined
from xattn.metric import Metric
from xattn.schema import Range
from xattn.score import SCORES, apply_score, find_score
from xattn.trace import Trace, record

_PIXELS = 16 * 224 * 224  # in a batch on a CPU
_CELLS = 1 << 26  # ranks held at a time: 256 MiB of them


@dataclass(frozen=True)
class PerturbationMetric(Metric):
    """A metric that changes the image and looks at the score. Maps of all methods share batches.

    A map that is not finite, or constant on the grid that is ranked, orders nothing: all its values are NaN.

    Args:
        score: what is measured: `"prob"`, `"logit"`, `"sigmoid"` or `"margin"` of the explained class.
        scorer: which network scores changed images: the `"model"` that is explained, or `"in-domain"`, its copy that
            was fine-tuned to images that lack cells, which a benchmark's configuration names as `scorer` of a model.
        chunk: images a batch; no part of the result. None is 16 of 224 pixels on a CPU, and 256 on a GPU.
    """

    family: ClassVar[str] = "perturbation"

    score: Annotated[str, find_score] = field(default="prob", kw_only=True)
    scorer: Literal["model", "in-domain"] = field(default="model", kw_only=True)
    chunk: Annotated[int | None, Range(1, 100_000)] = field(default=None, kw_only=True, repr=False, compare=False)

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        """See `Metric.measure`."""
        return self.measure_many([explanation], trace, batch)[0]

    def measure_many(self, explanations: Sequence[Explanation], trace: Trace, batch: Any) -> list[dict[str, Tensor]]:
        """See `Metric.measure_many`."""
        for explanation in explanations:
            if len(explanation) != len(trace.x) or explanation.input_size != trace.input_size:
                raise ShapeError(
                    f"{self.name}: maps have {len(explanation)} images of {explanation.input_size} pixels but x has "
                    f"{len(trace.x)} of {trace.input_size}; pass the explanation of the same batch."
                )
        if not explanations:
            return []
        with torch.inference_mode(False), torch.no_grad():
            return self._measure(explanations, trace if self.scorer == "model" else in_domain(trace, self.name))

    @abstractmethod
    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        """Values of each explanation."""

    def images_per_batch(self, trace: Trace) -> int:
        """Size of the batches that go through the model."""
        if self.chunk is not None:
            return self.chunk
        if trace.x.device.type != "cpu":
            return 256
        # Larger batches do not fit the caches, and the C library gives their memory back after each of them.
        return max(4, min(64, _PIXELS // (trace.input_size[0] * trace.input_size[1])))


def in_domain(trace: Trace, metric: str) -> Trace:
    """The pass of the same images and targets through the scorer; made once for all metrics.

    Raises:
        NotApplicableError: if the trace has no scorer.
    """
    network = trace.scorer
    if network is None:
        raise NotApplicableError(
            f"{metric}: scorer=in-domain needs a copy of the model that was fine-tuned to images that lack cells "
            "(xattn train --augment removal); name its file as scorer of the model in the configuration."
        )

    def make() -> Trace:
        seeds = [trace.seed(i) for i in range(len(trace.x))]
        return record(
            network,
            trace.x,
            trace.target,
            spec=trace.spec,
            grad=False,
            score=trace.score_fn,
            seeds=seeds,
            output=trace.which,
            goal=trace.goal,
            inputs=trace.inputs,
        )

    return trace.once("in-domain", make)


def scorer(trace: Trace, score: str) -> ImageScore:
    """Scores of perturbed images for the class that is explained in the image they are made from."""
    chosen = trace.named(score)
    return lambda images, own: trace.score(images, trace.target.index_select(0, own), chosen, own)


def clean_scores(trace: Trace, score: str) -> Tensor:
    """Scores (N,) of the untouched images, from the recorded pass."""
    return trace.once(("clean", score), lambda: apply_score(trace.named(score), trace.logits, trace.target))


def all_scores(trace: Trace) -> ImageScore:
    """All of `SCORES` (B, scores) of perturbed images: a forward pass serves every metric, whatever it measures."""

    def of(images: Tensor, own: Tensor) -> Tensor:
        logits, target = trace.predict(images, own), trace.target.index_select(0, own)
        return torch.stack([apply_score(trace.named(name), logits, target) for name in SCORES], dim=1)

    return of


def all_end_scores(trace: Trace, baseline: Baseline, chunk: int) -> tuple[Tensor, Tensor]:
    """All of `SCORES` (N, scores) of the untouched and of the fully replaced images."""
    clean = torch.stack([clean_scores(trace, name) for name in SCORES], dim=1)
    replaced = trace.once(
        ("all replaced", baseline),
        lambda: replaced_scores(all_scores(trace), trace.x, trace.replacement(baseline), chunk),
    )
    return clean, replaced


def end_scores(trace: Trace, baseline: Baseline, score: str, chunk: int) -> tuple[Tensor, Tensor]:
    """Scores (N,) of the untouched and of the fully replaced images; one pass of the latter serves all methods."""
    _, replaced = all_end_scores(trace, baseline, chunk)
    return clean_scores(trace, score), replaced[:, list(SCORES).index(score.lower())]


def tie_breakers(trace: Trace, cells: int) -> Tensor:
    """A random order (N, cells) for each image, the same for all methods, on the device."""

    def make() -> Tensor:
        return tie_orders(cells, [trace.generator(i, f"ties/{cells}") for i in range(len(trace.x))]).to(trace.x.device)

    return trace.once(("ties", cells), make)


def find_baseline(name: str) -> Baseline:
    """A baseline from its name and parameters (`"blur"`, `"blur:sigma=0.1"`)."""
    return baselines.parse(name)


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores of N images while their cells are replaced.

    Args:
        scores: float64 (N, S + 1), from nothing to everything replaced (put back).
        share: float64 (S + 1,), share of the cells at each point.
        saliency: float64 (N, S), mean importance of the cells of each step, most important first.
        ties: float64 (N,), share of the cells that have an equal.
        undefined: bool (N,), the map orders nothing.
    """

    scores: Tensor
    share: Tensor
    saliency: Tensor
    ties: Tensor
    undefined: Tensor

    def defined(self, values: Tensor) -> Tensor:
        """Values (N,) in float64, NaN where the map orders nothing."""
        return torch.where(self.undefined, torch.nan, values.double())

    def at(self, share: float) -> Tensor:
        """Scores (N,) where a share of the cells is replaced (put back), on straight lines between the points."""
        right = int((self.share < share).sum())
        if right == 0:
            return self.scores[:, 0]
        place = (share - self.share[right - 1]) / (self.share[right] - self.share[right - 1])
        return self.scores[:, right - 1].lerp(self.scores[:, right], place)


def draw_curves(
    explanations: Sequence[Explanation],
    trace: Trace,
    *,
    baseline: Baseline,
    steps: int | None,
    grid: Grid,
    order: Order,
    score: str,
    chunk: int,
) -> list[Curve]:
    """Perturbation curves of several methods on the same images, in batches that are full.

    A curve is kept with the trace, for all scores, so that every metric with the same protocol reads the same one.

    Args:
        explanations: maps of the images of the trace.
        trace: the recorded pass.
        baseline: what replaces removed cells.
        steps: number of steps, at most; None is one cell a step.
        grid: cells that are ranked, as in `functional.grid_cells`.
        order: which cells go first, and whether they are removed or put back.
        score: name of the score.
        chunk: images a batch.
    """
    protocol = (baseline, steps, grid, order)
    kept: dict[Hashable, dict[str, Curve]] = trace.once("curves", dict)

    def key(explanation: Explanation) -> Hashable:
        return explanation.maps, *protocol  # a tensor is a key by identity

    missing = {key(e): e for e in explanations if key(e) not in kept}
    size = trace.input_size
    at_once = max(1, _CELLS // (len(trace.x) * size[0] * size[1]))
    todo = list(missing.values())
    for start in range(0, len(todo), at_once):
        group = todo[start : start + at_once]
        drawn = _draw(group, trace, baseline=baseline, steps=steps, grid=grid, order=order, chunk=chunk)
        kept.update({key(e): curves for e, curves in zip(group, drawn, strict=True)})
    return [kept[key(e)][score] for e in explanations]


def _draw(
    group: Sequence[Explanation],
    trace: Trace,
    *,
    baseline: Baseline,
    steps: int | None,
    grid: Grid,
    order: Order,
    chunk: int,
) -> list[dict[str, Curve]]:
    """The curves of each explanation, one for each of `SCORES`."""
    n, size, device = len(trace.x), trace.input_size, trace.x.device
    pixel_ranks, counts, facts = [], [], []
    for explanation in group:
        maps = to_grid(explanation.maps.to(device), size, grid)
        own = (maps.shape[-2], maps.shape[-1])
        cells = own[0] * own[1]
        rank, ties = ranks(maps, tie_breakers(trace, cells))
        count = step_counts(cells, steps)
        facts.append((count, step_means(maps.flatten(1), rank, count), ties, undefined(maps)))
        if own != size:
            rank = rank.index_select(1, cell_of_pixel(own, size).to(device))
        pixel_ranks.append(rank)
        counts.append(count)
    longest = max(map(len, counts))
    filled = torch.stack([torch.nn.functional.pad(c, (0, longest - len(c)), value=int(c[-1])) for c in counts])
    # Maps of one image lie side by side, so that most batches are made from one image.
    by_image = torch.stack(pixel_ranks, dim=1).flatten(0, 1)
    scores = curve_scores(
        all_scores(trace),
        trace.x,
        trace.replacement(baseline),
        by_image,
        torch.arange(n).repeat_interleave(len(group)),
        filled.repeat(n, 1),
        all_end_scores(trace, baseline, chunk),
        order=order,
        chunk=chunk,
    )
    scores = scores.double().view(n, len(group), longest, len(SCORES))
    return [
        {
            name: Curve(
                scores[:, j, : len(count), k], count.to(device).double() / int(count[-1]), saliency, ties, nothing
            )
            for k, name in enumerate(SCORES)
        }
        for j, (count, saliency, ties, nothing) in enumerate(facts)
    ]
