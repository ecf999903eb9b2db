"""A method: a frozen dataclass whose fields are its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from xattn.explainer import Family, LayerExplainer
from xattn.trace import Trace


@dataclass(frozen=True)
class BestChannel(LayerExplainer):
    """Best channel: the one with the largest mean gradient, times a factor (an example, 2026).

    Args:
        layer: name of the layer; None is the model's last layer with a spatial output.
        factor: of the map.
    """

    name: ClassVar[str] = "best-channel"
    family: ClassVar[Family] = Family.CAM
    grad: ClassVar[bool] = True
    passes: ClassVar[str] = "shared backward"
    paper: ClassVar[str] = "an example, 2026"
    factor: float = 1.0

    def attribute(self, trace: Trace) -> Tensor:
        (layer,) = self.layers(trace.spec)
        features, gradient = trace.activation(layer), trace.gradient(layer)
        best = gradient.mean((2, 3)).argmax(1)[:, None, None, None]
        return self.factor * features.gather(1, best.expand(-1, 1, *features.shape[2:]))
