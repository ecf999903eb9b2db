"""ROAD: remove and debias, perturbation whose holes are filled with what their surroundings suggest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from xattn.explanation import Explanation
from xattn.metric import HIGHER, LOWER, Direction
from xattn.metrics import metrics
from xattn.metrics.deletion import CurveMetric
from xattn.metrics.perturbation import find_baseline
from xattn.schema import Range
from xattn.trace import Trace


@metrics.register("road")
@dataclass(frozen=True)
class ROAD(CurveMetric):
    """ROAD: mean score while 10 to 90 % of the image is imputed (Rong et al. 2022, arXiv:2202.00449).

    `road_morf` removes the most important cells first, `road_lerf` the least important first, and `road` is the second
    less the first. Pixels are filled by noisy linear imputation, so that the model cannot read the class off the mask.

    Differs from the paper: the mean score of an image takes the place of the accuracy over a data set, so that each
    image has a value. pytorch-grad-cam reports half of `road`, and marks pixels by a threshold, which takes all of a
    constant map; here counts are by rank.

    Args:
        baseline: how holes are filled.
        steps: tenths by default; both ends are left out.
        grid: as for deletion.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"road": HIGHER, "road_morf": LOWER, "road_lerf": HIGHER}

    baseline: Annotated[str, find_baseline] = "linear"
    steps: Annotated[int, Range(1, 100_000)] = 10

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        results = []
        morf, lerf = self.curves(explanations, trace, "morf"), self.curves(explanations, trace, "lerf")
        for most, least in zip(morf, lerf, strict=True):
            # A map of one cell has no point between the ends: the mean of nothing is NaN, as it should be.
            down, up = most.scores[:, 1:-1].mean(dim=1), least.scores[:, 1:-1].mean(dim=1)
            results.append(
                {"road": most.defined(up - down), "road_morf": most.defined(down), "road_lerf": most.defined(up)}
            )
        return results
