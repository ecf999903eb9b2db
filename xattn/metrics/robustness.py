"""Robustness: how much a map changes when the image hardly does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from xattn.explanation import Explanation
from xattn.metric import LOWER, Direction, Metric
from xattn.metrics import metrics
from xattn.metrics.rerun import maps_again
from xattn.schema import Range
from xattn.trace import Trace


@metrics.register("max_sensitivity")
@dataclass(frozen=True)
class MaxSensitivity(Metric):
    """Largest relative change of the map under small random changes of the image (Yeh et al. 2019, arXiv:1901.09392).

    |map(x + d) - map(x)| / |map(x)|, Frobenius norms of the raw maps on their own grid, with d uniform in a cube around
    zero; `max_sensitivity` is the largest of the samples, `avg_sensitivity` their mean. The class stays the one that
    was explained. The cube is one in pixel space, where the model's deviations are known (captum takes the radius in
    the model's own space); the sum is not clipped. A map that does not look at the image is perfectly robust, so the
    controls score near 0 here. A map that is all zero gives NaN.

    Args:
        radius: half the side of the cube, for pixels from 0 to 1.
        samples: number of changed images.
    """

    family: ClassVar[str] = "robustness"
    columns: ClassVar[Mapping[str, Direction]] = {"max_sensitivity": LOWER, "avg_sensitivity": LOWER}
    radius: Annotated[float, Range(0, 100, open_low=True)] = 0.02
    samples: Annotated[int, Range(1, 10_000)] = 10

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        return self.measure_many([explanation], trace, batch)[0]

    def measure_many(self, explanations: Sequence[Explanation], trace: Trace, batch: Any) -> list[dict[str, Tensor]]:
        generators = [trace.generator(i, self.name) for i in range(len(trace.x))]
        std = trace.x.new_tensor(trace.spec.std or (1.0,) * trace.x.shape[1])[:, None, None]
        first = [explanation.maps.double().flatten(1) for explanation in explanations]
        norms = [torch.linalg.vector_norm(rows, dim=1) for rows in first]
        changes: list[list[Tensor]] = [[] for _ in explanations]
        for _ in range(self.samples):
            noise = torch.stack([torch.rand(trace.x.shape[1:], generator=g) * 2 - 1 for g in generators])
            maps = maps_again(explanations, trace, x=trace.x + self.radius * noise.to(trace.x) / std)
            for change, rows, norm, again in zip(changes, first, norms, maps, strict=True):
                distance = torch.linalg.vector_norm(again.double().flatten(1) - rows, dim=1)
                change.append(torch.where(norm > 0, distance / norm, torch.nan))
        stacked = [torch.stack(change) for change in changes]
        return [{"max_sensitivity": c.amax(0), "avg_sensitivity": c.mean(0)} for c in stacked]
