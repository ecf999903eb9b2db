"""Mosaics of which the network is made to see one cell alone, so that a map on the others is wrong whatever it learned.

In the grid pointing game a network may look at any cell for any class. Here its connections to the others are cut.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError, XattnError
from xattn.explainer import needs_of
from xattn.explanation import Explanation
from xattn.functional.localization import energy_share
from xattn.functional.perturb import undefined
from xattn.functional.resize import resize
from xattn.metric import HIGHER, Direction, Metric
from xattn.metrics import metrics
from xattn.metrics.localization import object_masks
from xattn.trace import Trace

Cell = tuple[int, int]
Shape = tuple[int, int]


class OneCell(nn.Module):
    """A layer whose successors see one cell of its output; `whole` hands on all of it.

    Args:
        layer: what is there now.
        grid: cells on each side.
        cell: row and column of the one that is seen.
        apart: the images are cut into cells before the network, and put together here.
    """

    def __init__(self, layer: nn.Module, grid: int, cell: Cell, *, apart: bool) -> None:
        super().__init__()
        self.layer, self.whole = layer, nn.Identity()
        self.grid, self.cell, self.apart = grid, cell, apart

    def forward(self, *inputs: Any) -> Tensor:
        """The cell, (N, C, h / grid, w / grid)."""
        features = self.layer(*inputs)
        if not isinstance(features, Tensor) or features.ndim != 4:
            raise NotApplicableError("the features of this network are no grid that could be cut into cells.")
        if self.apart:
            n, grid = len(features) // self.grid**2, self.grid
            parts = features.reshape(n, grid, grid, *features.shape[1:])
            features = parts.permute(0, 3, 1, 4, 2, 5).reshape(
                n, features.shape[1], grid * features.shape[2], grid * features.shape[3]
            )
        features = self.whole(features)
        (top, bottom), (left, right) = (
            (i * side // self.grid, (i + 1) * side // self.grid)
            for i, side in zip(self.cell, features.shape[2:], strict=True)
        )
        return features[:, :, top:bottom, left:right]


def disconnected(model: nn.Module, layer: str, grid: int, cell: Cell, *, apart: bool) -> nn.Module:
    """A copy of a network that sees one cell: behind a layer, or from the image on (`apart`).

    Its features of the whole mosaic are the output of `layer` + `".whole"`.
    """
    with torch.inference_mode(False):  # maps are made with gradients, whatever mode asks for them
        network = copy.deepcopy(model)
    parent, _, name = layer.rpartition(".")
    setattr(network.get_submodule(parent), name, OneCell(network.get_submodule(layer), grid, cell, apart=apart))

    def cut(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = inputs
        n, channels, height, width = x.shape
        parts = x.reshape(n, channels, grid, height // grid, grid, width // grid).permute(0, 2, 4, 1, 3, 5)
        return (parts.reshape(n * grid**2, channels, height // grid, width // grid), *rest)

    if apart:
        network.register_forward_pre_hook(cut)
    return network


@dataclass(frozen=True)
class DisconnectedMetric(Metric):
    """Share of the positive relevance in the one cell that the network sees."""

    family: ClassVar[str] = "ground_truth"
    columns: ClassVar[Mapping[str, Direction]] = {"cell": HIGHER}
    needs: ClassVar[frozenset[str]] = frozenset({"mosaic"})
    paper: ClassVar[str] = "Rao et al. 2022, Towards Better Understanding Attribution Methods, arXiv:2205.10435"

    @property
    @abstractmethod
    def apart(self) -> bool:
        """Whether cells are apart from the image on."""

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        return self.measure_many([explanation], trace, batch)[0]

    def measure_many(self, explanations: Sequence[Explanation], trace: Trace, batch: Any) -> list[dict[str, Tensor]]:
        device = trace.x.device
        masks = object_masks(self, batch, explanations[0]).to(device)
        wrong = trace.target != batch.target.to(device)
        places = [_place(mask) for mask in masks[:, 0]]
        values = torch.full((len(explanations), len(masks)), torch.nan, dtype=torch.float64, device=device)
        for grid, cell in dict.fromkeys(places):
            rows = torch.tensor([i for i, place in enumerate(places) if place == (grid, cell)], device=device)
            if trace.input_size[0] % grid or trace.input_size[1] % grid:
                continue
            network = disconnected(trace.model, trace.spec.feature_layer, grid, cell, apart=self.apart)
            for j, explanation in enumerate(explanations):
                try:
                    maps = _maps(explanation, trace, network, rows)
                except XattnError:  # a method that cannot read such a network has no value
                    continue
                values[j, rows] = energy_share(maps, masks[rows])
        nothing = torch.stack([undefined(e.maps) for e in explanations]).to(device)
        return [{"cell": row} for row in values.masked_fill(nothing | wrong, torch.nan)]


def _place(mask: Tensor) -> tuple[int, Cell]:
    """How many cells a mosaic has on each side, and which one a mask (H, W) is; one cell where the mask is empty."""
    inside = mask.nonzero()
    if not len(inside):
        return 1, (0, 0)
    grid = max(1, round((mask.numel() / len(inside)) ** 0.5))
    middle = inside.double().mean(0) + 0.5
    row, column = (min(grid - 1, int(m * grid / side)) for m, side in zip(middle, mask.shape, strict=True))
    return grid, (row, column)


def _maps(explanation: Explanation, trace: Trace, network: nn.Module, rows: Tensor) -> Tensor:
    """Maps (M, 1, H, W) of some images by the same method, of a network that sees one cell."""
    method = explanation.method
    spec = dataclasses.replace(trace.spec, feature_layer=f"{trace.spec.feature_layer}.whole")
    x = trace.x.index_select(0, rows)
    again = trace.again(x, rows=rows, model=network, spec=spec, **needs_of([method], spec))
    return resize(method.explanation(again).maps.to(x.device), trace.input_size)


@metrics.register("difull")
@dataclass(frozen=True)
class DiFull(DisconnectedMetric):
    """DiFull: share of the map in the one cell of a mosaic that the network sees at all (Rao et al. 2022).

    Each cell goes through the network by itself, and the classifier has the features of one. What lies on another cell
    cannot have had an influence (arXiv:2205.10435, sec. 3.1). Random: one over the number of cells.

    Differs from the paper: the cell is where the mosaic has the image of the class that is explained, not its first and
    last corner.
    """

    @property
    def apart(self) -> bool:
        return True


@metrics.register("dipart")
@dataclass(frozen=True)
class DiPart(DisconnectedMetric):
    """DiPart: share of the map in the one cell whose features the classifier sees (Rao et al. 2022).

    The mosaic goes through the network as a whole; the classifier has the features of one cell, whose receptive fields
    may reach into others (arXiv:2205.10435, sec. 3.1). Random: one over the number of cells.

    Differs from the paper: as `difull`.
    """

    @property
    def apart(self) -> bool:
        return False
