"""Metrics of one look through the map: how much of the score is left with the map's part alone, and without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from xattn.errors import NotApplicableError, ParameterError
from xattn.explanation import Explanation
from xattn.functional.baselines import Baseline
from xattn.functional.perturb import packed_scores, seen_through, undefined
from xattn.functional.resize import normalize, resize
from xattn.metric import HIGHER, LOWER, Direction
from xattn.metrics import metrics
from xattn.metrics.perturbation import PerturbationMetric, clean_scores, find_baseline, scorer
from xattn.trace import Trace


def shown_and_hidden(
    explanations: Sequence[Explanation], trace: Trace, *, baseline: Baseline, score: str, mode: str, chunk: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Scores of the images as they are, seen through the map, and seen through its complement.

    The map of each image is scaled to [0, 1] by itself and then interpolated to the pixels.

    Returns:
        For each explanation three tensors (N,), float64; NaN in the last two where a map has no scale.
    """
    n, count = len(trace.x), len(explanations)
    masks = torch.stack([resize(normalize(e.maps.to(trace.x)), trace.input_size, mode) for e in explanations], dim=1)
    masks = torch.cat([masks, 1 - masks], dim=1).flatten(0, 1).to(trace.x.dtype)
    build = seen_through(masks, trace.replacement(baseline))
    owner = torch.arange(n).repeat_interleave(2 * count)
    scores = packed_scores(scorer(trace, score), trace.x, build, owner, chunk).double().view(n, 2, count)
    clean = clean_scores(trace, score).double()
    results = []
    for j, explanation in enumerate(explanations):
        nothing = undefined(explanation.maps).to(clean.device) | (explanation.maps[0].numel() == 1)
        shown, hidden = (torch.where(nothing, torch.nan, scores[:, k, j]) for k in range(2))
        results.append((clean, shown, hidden))
    return results


def single_step_values(clean: Tensor, shown: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """Average drop, increase in confidence, average gain and average drop in deletion of each image.

    Args:
        clean: scores (N,) of the images.
        shown: of the images seen through the map.
        hidden: of the images seen through its complement.

    Returns:
        float64 (N,) each; NaN where the score that is divided by is not positive.
    """
    base = torch.where(clean > 0, clean, torch.nan)
    room = torch.where(clean < 1, 1 - clean, torch.nan)
    increase = torch.where(shown.isnan(), torch.nan, (shown > clean).double())
    return {
        "average_drop": (clean - shown).clamp(min=0) / base,
        "increase_in_confidence": increase,
        "average_gain": (shown - clean).clamp(min=0) / room,
        "average_drop_in_deletion": (clean - hidden) / base,
    }


@metrics.register("average_drop")
@dataclass(frozen=True)
class AverageDrop(PerturbationMetric):
    """How much of the score is left when only the map's part of the image is seen, from two masked images.

    `average_drop` max(0, y - o) / y and `increase_in_confidence` o > y (Chattopadhay et al. 2018, Grad-CAM++,
    arXiv:1710.11063); `average_gain` max(0, o - y) / (1 - y) (Zhang et al. 2024, Opti-CAM, arXiv:2301.07002);
    `average_drop_in_deletion` (y - d) / y (Jung and Oh 2021, LIFT-CAM, arXiv:2102.05228): y is the score of the image,
    o that of the image times the map, d that of the image times one minus the map. The map is scaled to [0, 1] image
    by image, then interpolated.

    Differs from the papers: shares rather than percent. A map that shows everything wins the first three, so read them
    beside the fourth. All but the second need a score in [0, 1].

    Args:
        baseline: what a masked pixel fades to: `"black"`, `"mean"`, `"blur"` or `"noise"`. Other libraries multiply the
            normalized image, which is `"mean"`.
        mode: interpolation of the map, `"bilinear"`, `"nearest"` or `"bicubic"`.
    """

    paper: ClassVar[str] = "Chattopadhay et al. 2018, arXiv:1710.11063"
    columns: ClassVar[Mapping[str, Direction]] = {
        "average_drop": LOWER,
        "increase_in_confidence": HIGHER,
        "average_gain": HIGHER,
        "average_drop_in_deletion": HIGHER,
    }

    baseline: Annotated[str, find_baseline] = "black"
    mode: Literal["bilinear", "nearest", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score not in ("prob", "sigmoid"):
            raise ParameterError(f"{self.name}: drops are shares of a probability; score must be prob or sigmoid.")

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        if trace.goal.probability(trace.logits, trace.target, trace.spec.values) is None:
            what = trace.goal.text(0, trace.spec)
            raise NotApplicableError(f"{self.name}: drops are shares of a probability, which '{what}' has none of.")
        measured = shown_and_hidden(
            explanations,
            trace,
            baseline=find_baseline(self.baseline),
            score=self.score,
            mode=self.mode,
            chunk=self.images_per_batch(trace),
        )
        return [single_step_values(*scores) for scores in measured]
