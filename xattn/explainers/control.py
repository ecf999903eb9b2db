"""Controls: maps that know nothing of the model, or no more than its plain gradient, on any grid.

A method that does not beat them on the grid that it is scored on explains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from xattn.explainer import Explainer, Family
from xattn.explainers import explainers
from xattn.functional.control import center_map, sobel_map
from xattn.functional.gradient import reduce_channels
from xattn.functional.grid import grid_cells, resample
from xattn.functional.pixels import denormalize_pixels
from xattn.schema import Range
from xattn.spec import ModelSpec
from xattn.trace import INPUT, Trace

Cells = Annotated[Literal["common", "pixels"] | int, Range(1, 4096)]
"""The grid of a control: the one on which metrics rank all maps, pixels, or so many cells on the shorter side."""


@dataclass(frozen=True)
class _Control(Explainer):
    """A map that any method has to beat.

    Args:
        grid: of the map: `"common"`, the one on which metrics rank the maps of all methods (cells of 16 pixels, at
            least eight on the shorter side), so many cells on the shorter side, or `"pixels"`. Finer maps are averaged.
    """

    family: ClassVar[Family] = Family.CONTROL
    class_specific: ClassVar[bool] = False
    paper: ClassVar[str] = "control"
    grid: Cells = "pixels"

    def cells(self, trace: Trace) -> tuple[int, int]:
        """Rows and columns of the map."""
        return grid_cells(self.grid, trace.input_size)


@explainers.register("random")
@dataclass(frozen=True)
class Random(_Control):
    """Random control: independent uniform values, from the image's own seed (Petsiuk et al. 2018, arXiv:1806.07421)."""

    title: ClassVar[str] = "Random"
    grid: Cells = "common"

    def attribute(self, trace: Trace) -> Tensor:
        cells = self.cells(trace)
        maps = [torch.rand(1, *cells, generator=trace.generator(i, self.name)) for i in range(len(trace.x))]
        return torch.stack(maps).to(trace.x)


@explainers.register("center", "centre")
@dataclass(frozen=True)
class Center(_Control):
    """Centre control: a Gaussian in the middle of the image, where photographers put their subject (Judd et al. 2009).

    Args:
        sigma: standard deviation as a share of the image's height and width.
    """

    title: ClassVar[str] = "Centre"
    sigma: Annotated[float, Range(0, 1000, open_low=True)] = 0.25

    def attribute(self, trace: Trace) -> Tensor:
        maps = resample(center_map(trace.input_size, self.sigma), self.cells(trace))
        return maps.expand(len(trace.x), -1, -1, -1).to(trace.x)


@explainers.register("edges", "sobel")
@dataclass(frozen=True)
class Edges(_Control):
    """Edge control: length of the Sobel gradient of the grey image (Adebayo et al. 2018, arXiv:1810.03292).

    The image is taken back to pixel space first, where the model's mean and deviation are known.
    """

    title: ClassVar[str] = "Edges"
    paper: ClassVar[str] = "control, as in Adebayo et al. 2018, arXiv:1810.03292"

    def attribute(self, trace: Trace) -> Tensor:
        return resample(sobel_map(denormalize_pixels(trace.x, trace.spec.mean, trace.spec.std)), self.cells(trace))


@explainers.register("pooled-gradient")
@dataclass(frozen=True)
class PooledGradient(_Control):
    """Pooled gradient: input x gradient (Shrikumar et al. 2016, arXiv:1605.01713), averaged over cells, with its signs.

    The one control that knows the model: what a plain gradient says once its noise is averaged away. A method that does
    not beat it adds nothing to one backward pass.
    """

    title: ClassVar[str] = "Pooled gradient"
    grad: ClassVar[bool] = True
    opposes: ClassVar[bool] = True
    class_specific: ClassVar[bool] = True
    passes: ClassVar[str] = "shared backward, down to the input"
    grid: Cells = "common"

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        return (INPUT,)

    def attribute(self, trace: Trace) -> Tensor:
        return resample(reduce_channels(trace.activation(INPUT) * trace.gradient(INPUT), "sum"), self.cells(trace))
