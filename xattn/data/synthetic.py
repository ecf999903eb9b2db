"""Images whose evidence is known, and models that are known to use it: the truth against which methods are tested."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xattn.data import datasets
from xattn.data.dataset import Dataset
from xattn.data.sample import Sample, tight_box
from xattn.data.scene import Scene
from xattn.errors import ParameterError
from xattn.spec import ModelSpec

COLOURS = {"red": (230, 40, 40), "green": (40, 230, 40), "blue": (40, 40, 230)}
GRID = 2
LONGEST, LARGEST = 10_000_000, 4096  # labels and one image take 80 MB and some 100 MB
_STRIPS = ("upper", "middle", "lower")
PLACES = ("upper left", "upper right", "lower left", "lower right")


@datasets.register("synthetic")
@dataclass(frozen=True)
class Synthetic(Dataset):
    """A coloured shape on grey noise; its place or its colour decides the class, and its mask is known.

    Nothing but the shape has a colour, so that all evidence lies on the mask. Every image comes from `seed` and its own
    number alone.

    Args:
        length: number of images; classes take turns.
        size: height and width in pixels, even and at least 16.
        decides: `"place"`: a red shape in one of four quarters, which is the class. `"colour"`: a red, green or blue
            shape anywhere.
        seed: of shapes, places and noise.
        split: `"train"` and `"test"` have different images.
        scenes: each image comes with the images that lack parts of it: the shape is cut into strips of a half, a third
            and a sixth of its height, and a square of the noise beside it can be drawn anew.
    """

    length: int = 64
    size: int = 32
    decides: Literal["place", "colour"] = "place"
    seed: int = 0
    split: str = "train"
    scenes: bool = False

    splits: ClassVar[tuple[str, ...]] = ("train", "test")

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 2:
            raise ParameterError(f"synthetic: size must be even and at least 16 but is {self.size}.")
        if self.size > LARGEST:
            raise ParameterError(f"synthetic: size must be at most {LARGEST:,} but is {self.size}.")
        if self.length < 1:
            raise ParameterError(f"synthetic: length must be at least 1 but is {self.length}.")
        if self.length > LONGEST:
            raise ParameterError(f"synthetic: length must be at most {LONGEST:,} but is {self.length}.")
        if not 0 <= self.seed < 2**63:
            raise ParameterError(f"synthetic: seed must be from 0 to 2**63 - 1 but is {self.seed}.")
        if self.decides not in ("place", "colour"):
            raise ParameterError(f"synthetic: decides must be place or colour but is '{self.decides}'.")
        if self.split not in self.splits:
            raise ParameterError(f"synthetic: split must be train or test but is '{self.split}'.")

    @property
    def classes(self) -> tuple[str, ...]:
        """Four places or three colours."""
        return PLACES if self.decides == "place" else tuple(COLOURS)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class of every sample (n,)."""
        return np.arange(self.length, dtype=np.int64) % len(self.classes)

    def sample(self, index: int) -> Sample:
        """Draw one image."""
        label = int(self.labels[index])
        generator = np.random.default_rng([self.seed, self.splits.index(self.split), index])
        grey = generator.integers(64, 192, (self.size, self.size, 1), dtype=np.uint8)
        image = np.repeat(grey, 3, axis=2)
        half = self.size // GRID
        side = int(generator.integers(half // 3, half // 2 + 1))
        room, start = half, np.array(divmod(label, GRID)) * half
        if self.decides == "colour":
            room, start = self.size, np.zeros(2, np.int64)
        top, left = start + generator.integers(0, room - side + 1, 2)
        mask = np.zeros((self.size, self.size), np.bool_)
        mask[top : top + side, left : left + side] = _shape(side, disk=bool(generator.integers(2)))
        colour = "red" if self.decides == "place" else self.classes[label]
        image[mask] = COLOURS[colour]
        name = f"synthetic-{self.decides}-{self.split}-{index:05d}"
        scene = self._scene(image, grey, mask, label) if self.scenes else None
        return Sample(name, image, label, mask=mask, boxes=tight_box(mask), scene=scene)

    def _scene(
        self, image: NDArray[np.uint8], grey: NDArray[np.uint8], mask: NDArray[np.bool_], label: int
    ) -> Scene[NDArray[Any]]:
        """The strips of the shape, of which no two classes have one in common, and a square of noise."""
        rows = np.flatnonzero(mask.any(axis=1))
        ends = rows[0] + np.array([0, len(rows) // 2, len(rows) * 5 // 6, len(rows)])
        masks = {}
        for name, top, bottom in zip(_STRIPS, ends[:-1], ends[1:], strict=True):
            masks[name] = mask.copy()
            masks[name][:top] = masks[name][bottom:] = False
        side = self.size // 8
        corners = ((y, x) for y in (0, self.size - side) for x in (0, self.size - side))
        top, left = next((y, x) for y, x in corners if not mask[y : y + side, x : x + side].any())
        masks["noise"] = np.zeros_like(mask)
        masks["noise"][top : top + side, left : left + side] = True
        several = [frozenset(some) for n in (1, 2, 3) for some in itertools.combinations(_STRIPS, n)]
        plain = np.repeat(grey, 3, axis=2)
        lacking = {gone: image.copy() for gone in several}
        for gone, pixels in lacking.items():
            for name in gone:
                pixels[masks[name]] = plain[masks[name]]
        lacking[frozenset(["noise"])] = np.where(masks["noise"][..., None], 255 - image, image)
        shared = {other: frozenset[str]() for other in range(len(self.classes)) if other != label}
        return Scene(_STRIPS, masks, lacking, shared)

    def model(self) -> ColourModel:
        """The model that solves the task exactly from the evidence and nothing else."""
        return ColourModel(self.size, self.decides)


def _shape(side: int, *, disk: bool) -> NDArray[np.bool_]:
    """A square or a disk of a width of `side` pixels, as bool (side, side)."""
    if not disk:
        return np.ones((side, side), np.bool_)
    offset = np.arange(side) - (side - 1) / 2
    return offset[:, None] ** 2 + offset[None, :] ** 2 <= (side / 2) ** 2


class ColourModel(nn.Module):
    """A network with weights set by hand that is right on all of `Synthetic` and looks at coloured pixels alone.

    `features` is a 1x1 convolution and ReLU whose channels answer to one colour each, by how much its channel exceeds
    the mean of the two others; grey gives exactly zero. Places: one channel, the mean of each quarter is a logit.
    Colours: three channels, global mean, the identity as classifier, so that CAM is defined.

    Args:
        size: height and width of the images.
        decides: as in `Synthetic`.
    """

    def __init__(self, size: int = 32, decides: Literal["place", "colour"] = "place") -> None:
        super().__init__()
        channels = 1 if decides == "place" else len(COLOURS)
        classes = len(PLACES) if decides == "place" else len(COLOURS)
        self.features = nn.Sequential(nn.Conv2d(3, channels, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(GRID if decides == "place" else 1)
        self.classifier = nn.Linear(classes, classes)
        convolution, classifier = self.features[0], self.classifier
        with torch.no_grad():
            contrast = torch.eye(3) * 1.5 - 0.5  # (3, 3): itself less the mean of the others
            convolution.weight.copy_(contrast[:channels, :, None, None])  # type: ignore[operator]
            convolution.bias.zero_()  # type: ignore[operator]
            classifier.weight.copy_(torch.eye(classes) * 100)
            classifier.bias.zero_()
        self.spec = ModelSpec(
            feature_layer="features",
            classifier="classifier",
            input_size=(size, size),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            classes=PLACES if decides == "place" else tuple(COLOURS),
            crop=1.0,
            name=f"synthetic-{decides}",
        )
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, 3, H, W)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))
