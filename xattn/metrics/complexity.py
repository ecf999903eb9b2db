"""Sparsity and complexity: how concentrated a map is. These describe; none of them says that a map is right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from xattn.errors import UnknownNameError
from xattn.explainer import Family
from xattn.explanation import Explanation
from xattn.functional import complexity as F
from xattn.functional.sparsity import attention_density, map_density
from xattn.metric import NEITHER, Direction, Metric
from xattn.metrics import metrics
from xattn.schema import Range
from xattn.trace import Trace


@metrics.register("sparsity")
@dataclass(frozen=True)
class Sparsity(Metric):
    """Sparsity of BR-NPA: density is the mean brightness x, sparsity is 1 / x (Gomez et al. 2022, arXiv:2106.02566).

    On the map's own grid. The part maps of attention methods, weighted by the feature norm, are each divided by their
    largest value and averaged; any other map is scaled by min-max and averaged. The mean of 1 / x over images is not
    one over the mean of x; the paper prints the former.
    """

    family: ClassVar[str] = "complexity"
    columns: ClassVar[Mapping[str, Direction]] = {"density": NEITHER, "sparsity": NEITHER}

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        parts = explanation.parts
        if parts is None or explanation.method.family is not Family.ATTENTION:
            density = map_density(explanation.maps.double())
        else:
            # The parts hold weight times feature norm; the formula wants the norm over its own largest value.
            parts = parts.double() / _largest_norm(explanation, trace)
            density = attention_density(parts, torch.ones_like(parts[:, :1]))
            dark = ~parts.isfinite().flatten(1).all(1) | (parts.flatten(1) == 0).all(1)
            density = density.masked_fill(dark, torch.nan)
        return {"density": density, "sparsity": 1 / density}


def _largest_norm(explanation: Explanation, trace: Trace) -> Tensor:
    """Largest norm (N, 1, 1, 1) of the features that the maps were weighted by; 1 where they were not recorded."""
    layer = explanation.method.layers(trace.spec)[:1]
    try:
        norm = torch.linalg.vector_norm(trace.activation(*layer).double(), dim=1) if layer else None
    except UnknownNameError:
        norm = None
    if norm is None or norm.ndim != 3:
        return torch.ones((), dtype=torch.float64, device=explanation.maps.device)
    peak = norm.amax((1, 2))[:, None, None, None]
    return torch.where(peak > 0, peak, 1.0)


@dataclass(frozen=True)
class _OfValues(Metric):
    """A metric of the map's absolute values.

    Args:
        resized: measure the map enlarged to the image, so that methods on different grids compare; False measures it on
            its own grid.
    """

    family: ClassVar[str] = "complexity"
    resized: bool = True

    def maps(self, explanation: Explanation) -> Tensor:
        """The maps that are measured."""
        return explanation.resized() if self.resized else explanation.maps


@metrics.register("gini", "sparseness")
@dataclass(frozen=True)
class Gini(_OfValues):
    """Gini index of the absolute values, high for a sparse map (Chalasani et al. 2020, arXiv:1810.06583).

    Args:
        resized: measure the map enlarged to the image, so that methods on different grids compare.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"gini": NEITHER}

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        return {"gini": F.gini(self.maps(explanation))}


@metrics.register("entropy", "complexity")
@dataclass(frozen=True)
class Entropy(_OfValues):
    """Entropy of the shares of the cells, low for a simple map (complexity; Bhatt et al. 2020, arXiv:2005.00631).

    `entropy` is in nats, `entropy_share` is divided by the logarithm of the number of cells.

    Args:
        resized: measure the map enlarged to the image, so that methods on different grids compare.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"entropy": NEITHER, "entropy_share": NEITHER}
    paper: ClassVar[str] = "Bhatt et al. 2020, arXiv:2005.00631"

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        maps = self.maps(explanation)
        value = F.entropy(maps)
        cells = maps.shape[-2] * maps.shape[-1]
        return {"entropy": value, "entropy_share": value / math.log(cells) if cells > 1 else value * torch.nan}


@metrics.register("effective_complexity")
@dataclass(frozen=True)
class EffectiveComplexity(_OfValues):
    """Share of the cells that are not negligible beside the largest (Nguyen, Martinez 2020, arXiv:2007.07584).

    Args:
        resized: measure the map enlarged to the image, so that methods on different grids compare.
        epsilon: a cell counts above this share of the largest absolute value.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"effective_complexity": NEITHER}
    epsilon: Annotated[float, Range(0, 1, open_high=True)] = 0.05

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        return {"effective_complexity": F.effective_complexity(self.maps(explanation), self.epsilon)}
