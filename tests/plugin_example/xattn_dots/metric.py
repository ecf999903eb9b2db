"""A metric: one value per image, from that image alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from xattn.explanation import Explanation
from xattn.metric import HIGHER, Direction, Metric
from xattn.trace import Trace


@dataclass(frozen=True)
class PeakOnDot(Metric):
    """Whether the highest pixel of the map lies on the dot (an example, 2026)."""

    name: ClassVar[str] = "peak_on_dot"
    family: ClassVar[str] = "localization"
    columns: ClassVar[Mapping[str, Direction]] = {"peak_on_dot": HIGHER}
    needs: ClassVar[frozenset[str]] = frozenset({"masks"})

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        peak = explanation.resized().flatten(1).argmax(1, keepdim=True)
        masks = batch.object_masks().flatten(1).to(peak.device)
        return {"peak_on_dot": masks.gather(1, peak)[:, 0].double()}
