"""XAI-TRIS: tetrominoes in noise, where the evidence for the class is known pixel by pixel (Clark et al. 2024)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from xattn.data import datasets
from xattn.data.dataset import Dataset
from xattn.data.sample import Sample, tight_box
from xattn.errors import ParameterError

Scenario = Literal["linear", "multiplicative", "translation", "xor"]
Background = Literal["white", "correlated"]
_LONGEST = 10_000_000
_CELLS = 8  # on each side: the small images are one pixel a cell
_T = np.array([[1, 0], [1, 1], [1, 0]], np.float64)
_L = np.array([[1, 0], [1, 0], [1, 1]], np.float64)
_PLACES = ((1, 1), (4, 5))  # of T and L, in cells
_NOISE = 0.5  # standard deviation
_BOUND = 5.0  # deviations of the background that the grey levels hold

# Share of the signal in the sum (the strength of the change where it multiplies), as in the released configuration.
_ALPHA: dict[tuple[int, str, str], float] = {
    (8, "linear", "white"): 0.18, (8, "linear", "correlated"): 0.0125,
    (8, "multiplicative", "white"): 0.7, (8, "multiplicative", "correlated"): 0.1,
    (8, "translation", "white"): 0.65, (8, "translation", "correlated"): 0.2,
    (8, "xor", "white"): 0.35, (8, "xor", "correlated"): 0.15,
    (64, "linear", "white"): 0.03, (64, "linear", "correlated"): 0.02,
    (64, "multiplicative", "white"): 0.2, (64, "multiplicative", "correlated"): 0.65,
    (64, "translation", "white"): 0.575, (64, "translation", "correlated"): 0.375,
    (64, "xor", "white"): 0.35, (64, "xor", "correlated"): 0.15,
}  # fmt: skip


@datasets.register("xai-tris")
@dataclass(frozen=True)
class XAITris(Dataset):
    """Grey images of a tetromino in noise, T or L, of 8 or 64 pixels (Clark et al. 2024, arXiv:2306.12816).

    `"linear"`: one of the two at its own place is added to the noise. `"multiplicative"`: it dampens the noise there.
    `"translation"`: it is added anywhere, turned by a multiple of 90 degrees. `"xor"`: both are there, each added or
    taken away; alike is one class, unlike the other.

    The mask is the evidence: the pixels of the tetromino, and for fixed places, where the lack of one tells as much as
    the other, those of both (the paper's F+). Differs from the paper: signal and noise are weighed by their expected
    norms in place of those of a drawn data set, so that each image comes from `seed` and its own number alone; values
    are stored as 256 grey levels; there is no background of photographs.

    Args:
        scenario: what of the class is in the image.
        background: noise of independent pixels, or smoothed (a Gaussian of 3 pixels of 8, 10 of 64).
        size: height and width in pixels, 8 or 64.
        length: number of images; classes take turns.
        alpha: share of the signal; 0 is that of the released configuration.
        seed: of noise, places and turns.
        split: `"train"`, `"val"` and `"test"` have different images.
    """

    scenario: Scenario = "linear"
    background: Background = "white"
    size: int = 64
    length: int = 1000
    alpha: float = 0.0
    seed: int = 0
    split: str = "train"

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    def __post_init__(self) -> None:
        for name, choices in (
            ("scenario", get_args(Scenario)), ("background", get_args(Background)), ("split", self.splits),
            ("size", (8, 64)),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                words = ", ".join(map(str, choices))
                raise ParameterError(f"xai-tris: {name} must be one of {words} but is '{getattr(self, name)}'.")
        if not 1 <= self.length <= _LONGEST:
            raise ParameterError(f"xai-tris: length must be at least 1 and at most {_LONGEST:,} but is {self.length}.")
        if not 0 <= self.alpha <= 1:
            raise ParameterError(f"xai-tris: alpha must be at least 0 and at most 1 but is {self.alpha}.")
        if not 0 <= self.seed < 2**63:
            raise ParameterError(f"xai-tris: seed must be from 0 to 2**63 - 1 but is {self.seed}.")

    @property
    def classes(self) -> tuple[str, ...]:
        """T or L; alike or unlike signs."""
        return ("alike", "unlike") if self.scenario == "xor" else ("T", "L")

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class of every sample (n,)."""
        return np.arange(self.length, dtype=np.int64) % 2

    @property
    def share(self) -> float:
        """Alpha, that of the released configuration where none is given."""
        return self.alpha or _ALPHA[self.size, self.scenario, self.background]

    def sample(self, index: int) -> Sample:
        """Draw one image."""
        label = int(self.labels[index])
        generator = np.random.default_rng([self.seed, self.splits.index(self.split), index])
        noise = generator.normal(0, _NOISE, (self.size, self.size))
        if self.background == "correlated":
            smooth = _smoothing(self.size, 3.0 if self.size == _CELLS else 10.0)
            noise = smooth @ noise @ smooth.T
        noise = noise / _deviation(self.size, self.background)
        signal, mask = self._signal(label, generator)
        if self.scenario == "multiplicative":
            values = (1 - self.share * signal) * noise / _BOUND
        else:
            # All patterns have four cells; the norm of an image's share of the data set is that of one of them.
            strength = signal / math.sqrt((signal**2).mean())
            largest = self.share * strength.max() + (1 - self.share) * _BOUND
            values = (self.share * strength + (1 - self.share) * noise) / largest
        grey = np.clip(np.rint(127.5 * (values + 1)), 0, 255).astype(np.uint8)
        image = np.repeat(grey[:, :, None], 3, axis=2)
        name = f"xai-tris-{self.scenario}-{self.background}-{self.size}-{self.split}-{index:06d}"
        return Sample(name, image, label, mask=mask, boxes=tight_box(mask))

    def _signal(self, label: int, generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """What is added to the noise (H, W), and where evidence is."""
        unit = self.size // _CELLS
        if self.scenario == "translation":
            side = max(1, unit // 2)
            shape = np.rot90(_T if label == 0 else _L, int(generator.integers(4)))
            pattern = np.kron(shape, np.ones((side, side))).astype(np.float64)
            top, left = (int(generator.integers(self.size - n + 1)) for n in pattern.shape)
            signal = self._drawn(pattern, top, left)
            return signal, signal != 0
        both = [
            self._drawn(np.kron(shape, np.ones((unit, unit))).astype(np.float64), row * unit, column * unit)
            for shape, (row, column) in zip((_T, _L), _PLACES, strict=True)
        ]
        mask = (both[0] != 0) | (both[1] != 0)
        if self.scenario != "xor":
            return both[label], mask
        first = int(generator.integers(2)) * 2 - 1
        return first * both[0] + (first if label == 0 else -first) * both[1], mask

    def _drawn(self, pattern: NDArray[np.float64], top: int, left: int) -> NDArray[np.float64]:
        """A pattern at its place in an image; large ones have soft edges, a Gaussian of 1.5 pixels."""
        image = np.zeros((self.size, self.size))
        image[top : top + pattern.shape[0], left : left + pattern.shape[1]] = pattern
        if self.size == _CELLS:
            return image
        smooth = _smoothing(self.size, 1.5)
        soft = smooth @ image @ smooth.T
        return np.where(soft > 1e-3, soft, 0.0)


@functools.lru_cache(maxsize=8)
def _smoothing(size: int, sigma: float) -> NDArray[np.float64]:
    """A Gaussian along one axis as a matrix (size, size): cut at four deviations, the border mirrored.

    >>> _smoothing(8, 3.0).sum(axis=1).round(12).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    radius = int(4 * sigma + 0.5)
    offset = np.arange(-radius, radius + 1)
    weight = np.exp(-0.5 * (offset / sigma) ** 2)
    matrix = np.zeros((size, size))
    for place in range(size):
        source = (place + offset) % (2 * size)  # the image and its mirror, again and again
        np.add.at(matrix[place], np.where(source < size, source, 2 * size - 1 - source), weight / weight.sum())
    return matrix


@functools.lru_cache(maxsize=8)
def _deviation(size: int, background: Background) -> float:
    """Standard deviation of a pixel of the background, over the whole image."""
    if background == "white":
        return _NOISE
    smooth = _smoothing(size, 3.0 if size == _CELLS else 10.0)
    return float(_NOISE * (smooth**2).sum(axis=1).mean())
