"""Controls: maps that know nothing of the model. A method that does not beat them explains nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from xattn.explainer import Explainer, Family
from xattn.explainers import explainers
from xattn.functional.control import center_map, sobel_map
from xattn.functional.pixels import denormalize_pixels
from xattn.schema import Range
from xattn.spec import ModelSpec
from xattn.trace import Trace


@explainers.register("random")
@dataclass(frozen=True)
class Random(Explainer):
    """Random control: independent uniform values, from the image's own seed (Petsiuk et al. 2018, arXiv:1806.07421).

    Args:
        grid: cells on each side; None is the grid of the model's feature layer, so that it compares with CAMs, and 7
            where there is none.
    """

    title: ClassVar[str] = "Random"
    family: ClassVar[Family] = Family.CONTROL
    class_specific: ClassVar[bool] = False
    paper: ClassVar[str] = "control"
    grid: Annotated[int | None, Range(1, 4096)] = None

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        return (spec.feature_layer,) if self.grid is None and spec.feature_layer else ()

    def attribute(self, trace: Trace) -> Tensor:
        if self.layers(trace.spec):
            h, w = trace.activation(trace.spec.feature_layer).shape[-2:]
        else:
            h = w = self.grid or 7
        maps = [torch.rand(1, h, w, generator=trace.generator(i, self.name)) for i in range(len(trace.x))]
        return torch.stack(maps).to(trace.x)


@explainers.register("center", "centre")
@dataclass(frozen=True)
class Center(Explainer):
    """Centre control: a Gaussian in the middle of the image, where photographers put their subject (Judd et al. 2009).

    Args:
        sigma: standard deviation as a share of the image's height and width.
    """

    title: ClassVar[str] = "Centre"
    family: ClassVar[Family] = Family.CONTROL
    class_specific: ClassVar[bool] = False
    paper: ClassVar[str] = "control"
    sigma: Annotated[float, Range(0, 1000, open_low=True)] = 0.25

    def attribute(self, trace: Trace) -> Tensor:
        return center_map(trace.input_size, self.sigma).expand(len(trace.x), -1, -1, -1).to(trace.x)


@explainers.register("edges", "sobel")
@dataclass(frozen=True)
class Edges(Explainer):
    """Edge control: length of the Sobel gradient of the grey image (Adebayo et al. 2018, arXiv:1810.03292).

    The image is taken back to pixel space first, where the model's mean and deviation are known.
    """

    title: ClassVar[str] = "Edges"
    family: ClassVar[Family] = Family.CONTROL
    class_specific: ClassVar[bool] = False
    paper: ClassVar[str] = "control, as in Adebayo et al. 2018, arXiv:1810.03292"

    def attribute(self, trace: Trace) -> Tensor:
        return sobel_map(denormalize_pixels(trace.x, trace.spec.mean, trace.spec.std))
