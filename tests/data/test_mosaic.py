"""Mosaics: what lies where, and the grid pointing game on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from xattn.data.dataset import Dataset
from xattn.data.mosaic import Mosaic, mosaic_spec
from xattn.data.sample import Sample
from xattn.errors import DataError, ParameterError
from xattn.explainers import resolve
from xattn.metrics import metrics
from xattn.spec import ModelSpec
from xattn.trace import record

LEVELS = (40, 90, 140, 190, 240)


@dataclass(frozen=True, eq=False)
class Grey(Dataset):
    """One grey level per class, images of different sizes."""

    n: int = 12

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(map(str, LEVELS))

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.arange(self.n) % len(LEVELS)

    def sample(self, index: int) -> Sample:
        image = np.full((10 + index, 14, 3), LEVELS[index % len(LEVELS)], np.uint8)
        return Sample(f"grey-{index}", image, int(self.labels[index]))


@pytest.mark.parametrize("grid", [2])
def test_cells_hold_different_classes_and_the_mask_the_right_one(grid: int) -> None:
    data = Grey()
    mosaic = Mosaic(data, grid=grid, cell_px=8)
    assert len(mosaic) == 12
    assert mosaic.classes == data.classes
    cells = set()
    for i, sample in enumerate(mosaic):
        assert sample.image.shape == (grid * 8, grid * 8, 3)
        assert sample.label == i % len(LEVELS)
        assert sample.id == f"grey-{i}#mosaic"
        assert sample.mask is not None
        assert sample.boxes is not None
        assert (sample.image[sample.mask] == LEVELS[sample.label]).all()
        assert (sample.image[~sample.mask] != LEVELS[sample.label]).all()
        levels = {int(sample.image[8 * r + 4, 8 * c + 4, 0]) for r in range(grid) for c in range(grid)}
        assert len(levels) == grid**2
        x0, y0, x1, y1 = sample.boxes[0].astype(int)
        box = np.zeros_like(sample.mask)
        box[y0:y1, x0:x1] = True
        assert np.array_equal(box, sample.mask)
        cells.add((x0, y0))
    assert len(cells) > 2  # not always the same place


def test_the_same_seed_gives_the_same_mosaic_whatever_is_read_before() -> None:
    a, b = Mosaic(Grey(), cell_px=8), Mosaic(Grey(), cell_px=8)
    b[3], b[5]
    assert np.array_equal(a[7].image, b[7].image)
    different = [Mosaic(Grey(), cell_px=8, seed=s)[7].image for s in range(5)]
    assert any(not np.array_equal(a[7].image, d) for d in different)


def test_images_of_the_size_of_a_cell_are_not_touched() -> None:
    @dataclass(frozen=True, eq=False)
    class Noise(Grey):
        def sample(self, index: int) -> Sample:
            rng = np.random.default_rng(index)
            return Sample(str(index), rng.integers(0, 256, (8, 8, 3), np.uint8), int(self.labels[index]))

    data = Noise()
    sample = Mosaic(data, cell_px=8)[4]
    assert sample.mask is not None
    assert np.array_equal(sample.image[sample.mask].reshape(8, 8, 3), data[4].image)


def test_too_few_classes_and_wrong_parameters_are_refused() -> None:
    with pytest.raises(DataError, match="9 cells need as many classes"):
        Mosaic(Grey(), grid=3)
    with pytest.raises(ParameterError, match="grid"):
        Mosaic(Grey(), grid=1)
    with pytest.raises(ParameterError, match="cell_px"):
        Mosaic(Grey(), cell_px=0)


class Levels(nn.Module):
    """One feature per class: how near a cell is to the grey level of the class; exact evidence."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, len(LEVELS), 4, 4)
        self.fc = nn.Linear(len(LEVELS), len(LEVELS), bias=False)
        nn.init.eye_(self.fc.weight)
        self.features.register_forward_hook(self._near)

    @staticmethod
    def _near(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        level = torch.tensor(LEVELS).view(-1, 1, 1) / 255
        return (1 - 20 * (output - level).abs()).clamp(min=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def test_grid_pointing_game_on_mosaics() -> None:
    model = Levels().eval()
    with torch.no_grad():
        model.features.weight.fill_(1 / 48)
        model.features.bias.zero_()
    spec = ModelSpec(
        feature_layer="features", classifier="fc", input_size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3, crop=0.5
    )
    large = mosaic_spec(spec)
    assert (large.input_size, large.crop) == ((32, 32), 1.0)
    mosaic = Mosaic(Grey(40), cell_px=16)
    batch = mosaic.batch(range(40), large)
    methods = resolve(["cam", "random:grid=32", "center"])
    trace = record(model, batch.x, batch.target, spec=large, layers=["features"], seeds=list(range(40)))
    cam, chance, center = (
        metrics.create("grid_pointing_game").measure(m.explanation(trace), trace, batch)["cell"] for m in methods
    )
    assert float(cam.min()) > 0.7  # less than one by the bilinear rim alone
    assert float(chance.mean()) == pytest.approx(0.25, abs=0.01)
    assert float(center.mean()) == pytest.approx(0.25, abs=0.01)
    predicted = record(model, batch.x, (batch.target + 1) % 5, spec=large, layers=["features"])
    other = metrics.create("grid_pointing_game").measure(methods[0].explanation(predicted), predicted, batch)["cell"]
    assert other.isnan().all()
