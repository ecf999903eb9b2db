"""What replaces the pixels that a perturbation removes: a colour, a blur, noise, or what their neighbours suggest.

Every baseline is defined on pixels in [0, 1] and then normalized as the model's images are, so that black is black.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from xattn.errors import NotApplicableError, ParameterError, needs
from xattn.functional.imputation import linear_imputation
from xattn.functional.pixels import denormalize_pixels, normalize_pixels
from xattn.registry import Registry

Generators = Callable[[int], torch.Generator]
"""Random numbers (on the CPU) of image `i`."""


class Replace(Protocol):
    """Puts the baseline in the place of removed pixels."""

    image: Tensor | None

    def __call__(self, x: Tensor, removed: Tensor, owner: Tensor, out: Tensor | None = None) -> Tensor:
        """Perturbed images (B, C, H, W).

        Args:
            x: the images that are perturbed (B, C, H, W), or (1, C, H, W) if they are one.
            removed: bool (B, 1, H, W), True where the baseline goes.
            owner: int64 (B,) or (1,): which image of the batch the baseline is of.
            out: memory (B, C, H, W) for the result; may be `x` itself.
        """


baselines: Registry[Baseline] = Registry("baseline", "xattn.functional", "xattn.baselines")


@dataclass(frozen=True)
class Baseline(ABC):
    """What replaces removed pixels. Subclasses are frozen dataclasses, bound to no image."""

    @abstractmethod
    def prepare(
        self, x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, generators: Generators
    ) -> Replace:
        """Bind to images.

        Args:
            x: (N, C, H, W), normalized.
            mean: of the normalization, per channel; None takes the images as they are.
            std: likewise.
            generators: random numbers for each image.
        """


class Fixed:
    """Removed pixels come from one image per image: (N, C, H, W), or (1, C, 1, 1) for a colour."""

    def __init__(self, image: Tensor) -> None:
        self.image: Tensor | None = image
        self._pixels = image
        self._rows: Tensor | None = None  # reused from chunk to chunk: fresh memory costs more than the copy

    def __call__(self, x: Tensor, removed: Tensor, owner: Tensor, out: Tensor | None = None) -> Tensor:
        """See `Replace`."""
        image = self._pixels
        if len(image) > 1 and len(owner) == 1:
            image = image.index_select(0, owner)
        elif len(image) > 1:
            shape = (len(owner), *image.shape[1:])
            if self._rows is None or len(self._rows) < len(owner):
                self._rows = image.new_empty(shape)
            image = torch.index_select(image, 0, owner, out=self._rows[: len(owner)])
        if out is None:
            return torch.where(removed, image, x)
        return torch.where(removed, image, x, out=out)


def _color(x: Tensor, value: float, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """A grey value of pixel space as (1, C, 1, 1) in the space of `x`."""
    pixel = x.new_full((1, x.shape[1], 1, 1), value)
    return normalize_pixels(pixel, mean, std)


@baselines.register("mean")
@dataclass(frozen=True)
class Mean(Baseline):
    """The mean colour of the training images: zero in normalized space, what many papers call black."""

    def prepare(
        self, x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, generators: Generators
    ) -> Replace:
        return Fixed(x.new_zeros(1, x.shape[1], 1, 1))


@baselines.register("black")
@dataclass(frozen=True)
class Black(Baseline):
    """Black pixels, value 0 before normalization."""

    def prepare(
        self, x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, generators: Generators
    ) -> Replace:
        return Fixed(_color(x, 0.0, mean, std))


def gaussian_kernel(sigma: float, radius: int) -> Tensor:
    """A Gaussian sampled at whole pixels from -radius to radius, summing to one: float64 (2 radius + 1,)."""
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weight = torch.exp(-at.square() / (2 * sigma * sigma))
    return weight / weight.sum()


def separable_blur(x: Tensor, kernel: Tensor, padding: str) -> Tensor:
    """Filter rows and columns of each channel with one odd kernel.

    Args:
        x: (N, C, H, W).
        kernel: (k,).
        padding: `"replicate"` repeats the border; `"zeros"` darkens it, as in published code.

    Returns:
        The shape of `x`.
    """
    radius = len(kernel) // 2
    channels = x.shape[1]
    weight = kernel.to(x).view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    with torch.autocast(x.device.type, enabled=False):
        for turn in (weight, weight.transpose(2, 3)):
            border = (radius, radius, 0, 0) if turn.shape[3] > 1 or turn.shape[2] == 1 else (0, 0, radius, radius)
            x = pad(x, border, mode="replicate") if padding == "replicate" else pad(x, border)
            x = conv2d(x, turn, groups=channels)
    return x


@baselines.register("blur")
@dataclass(frozen=True)
class Blur(Baseline):
    """The image through a Gaussian: colours stay, shapes go. The border is repeated, so that it does not darken.

    Args:
        sigma: standard deviation as a share of the image's shorter side. The default has the deviation of BR-NPA's box
            of 121 pixels at 448.
    """

    sigma: float = 0.08

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ParameterError(f"blur: sigma must be positive but is {self.sigma}.")

    def prepare(
        self, x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, generators: Generators
    ) -> Replace:
        # Blurring and normalizing commute.
        sigma = self.sigma * min(x.shape[-2:])
        return Fixed(separable_blur(x, gaussian_kernel(sigma, math.ceil(3 * sigma)), "replicate"))


@dataclass(frozen=True)
class BoxBlur(Baseline):
    """The image through a box, with zeros (the mean colour) beyond the border, as the code of two papers has it.

    Args:
        share: side of the box as a share of the image's height, made odd: upward if `floor`, else to the nearest.
        smallest: least side in pixels.
        floor: cut the share to whole pixels before it is made odd.
    """

    share: float = 121 / 448
    smallest: int = 1
    floor: bool = False

    def side(self, height: int) -> int:
        """Side of the box in pixels for an image of this height.

        >>> BoxBlur().side(448), BoxBlur(share=1 / 5, smallest=9, floor=True).side(224)
        (121, 45)
        """
        if self.floor:
            cut = max(math.floor(height * self.share + 1e-9), self.smallest)
            return cut + 1 - cut % 2
        return max(2 * round((height * self.share - 1) / 2) + 1, self.smallest)

    def prepare(
        self, x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, generators: Generators
    ) -> Replace:
        side = self.side(x.shape[2])
        return Fixed(separable_blur(x, torch.full((side,), 1 / side, dtype=torch.float64), "zeros"))


def rise_kernel(size: int = 11, sigma: float = 5.0) -> Tensor:
    """One axis of RISE's kernel (Petsiuk et al. 2018, arXiv:1806.07421): a Gaussian folded back at the kernel's ends.

    The released code filters a single bright pixel of a `size` by `size` image with mirrored borders, so the tails
    beyond the kernel are not cut off but reflected into it.

    Returns:
        float64 (size,), summing to one.
    """
    reach = int(4 * sigma + 0.5)
    weight = gaussian_kernel(sigma, reach)
    kernel = torch.zeros(size, dtype=torch.float64)
    for shift, value in zip(range(-reach, reach + 1), weight.tolist(), strict=True):
        place = (size // 2 + shift) % (2 * size)  # mirrored borders repeat after twice the size
        kernel[place if place < size else 2 * size - 1 - place] += value
    return kernel


@dataclass(frozen=True)
class RISEBlur(Baseline):
    """The blur of RISE's insertion: 11 pixels and deviation 5 at every image size, zeros beyond the border."""

    def prepare(
        self, x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, generators: Generators
    ) -> Replace:
        return Fixed(separable_blur(x, rise_kernel(), "zeros"))


@baselines.register("noise")
@dataclass(frozen=True)
class Noise(Baseline):
    """Independent uniform noise on [0, 1], the same for every map of an image."""

    def prepare(
        self, x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, generators: Generators
    ) -> Replace:
        noise = torch.stack([torch.rand(x.shape[1:], generator=generators(i)) for i in range(len(x))])
        return Fixed(normalize_pixels(noise.to(x), mean, std))


class _LinearReplace:
    """Noisy linear imputation bound to the noise of each image."""

    image: Tensor | None = None

    def __init__(self, noise: Tensor) -> None:
        self._noise = noise

    def __call__(self, x: Tensor, removed: Tensor, owner: Tensor, out: Tensor | None = None) -> Tensor:
        filled = linear_imputation(x.expand(len(removed), -1, -1, -1), removed)
        return torch.add(filled, self._noise.index_select(0, owner) * removed, out=out).to(x.dtype)


@baselines.register("linear", "noisy_linear")
@dataclass(frozen=True)
class NoisyLinear(Baseline):
    """Noisy linear imputation (Rong et al. 2022, ROAD, arXiv:2202.00449): neighbours' mean and a little noise.

    The noise keeps the model from reading the mask off the smooth patches. It is drawn once for each image, and its
    size counts on pixels in [0, 1]; the released code adds it to whatever it is given.

    Args:
        noise: standard deviation.
    """

    noise: float = 0.01

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise ParameterError(f"linear: noise must not be negative but is {self.noise}.")

    def prepare(
        self, x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, generators: Generators
    ) -> Replace:
        noise = torch.stack([torch.randn(x.shape[1:], generator=generators(i)) for i in range(len(x))]).to(x)
        scale = x.new_tensor(std if std is not None and mean is not None else [1.0] * x.shape[1])
        return _LinearReplace(self.noise * noise / scale.view(-1, 1, 1))


class _TeleaReplace:
    """Telea's inpainting, image by image on the CPU."""

    image: Tensor | None = None

    def __init__(self, radius: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        self.radius, self.mean, self.std = radius, mean, std

    def __call__(self, x: Tensor, removed: Tensor, owner: Tensor, out: Tensor | None = None) -> Tensor:
        import cv2
        import numpy as np

        x = x.expand(len(removed), -1, -1, -1)
        pixels = denormalize_pixels(x, self.mean, self.std).mul(255).round().clamp(0, 255).to(torch.uint8)
        images = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())
        holes = removed[:, 0].to(torch.uint8).cpu().numpy()
        filled = [
            np.zeros_like(image) if hole.all() else cv2.inpaint(image, hole, self.radius, cv2.INPAINT_TELEA)
            for image, hole in zip(images, holes, strict=True)
        ]
        back = torch.from_numpy(np.stack(filled)).reshape(images.shape).permute(0, 3, 1, 2).to(x) / 255
        return torch.where(removed, normalize_pixels(back, self.mean, self.std), x, out=out)


@baselines.register("telea")
@dataclass(frozen=True)
class Telea(Baseline):
    """Inpainting by fast marching (Telea 2004), through OpenCV: 8-bit pixels, on the CPU, one image after the other.

    Where all pixels are removed the image becomes black.

    Args:
        radius: of the neighbourhood, in pixels.
    """

    radius: int = 3
    images_channels: ClassVar[tuple[int, ...]] = (1, 3)

    def prepare(
        self, x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, generators: Generators
    ) -> Replace:
        needs("metrics", "the baseline telea (linear does without)")
        if x.shape[1] not in self.images_channels:
            raise NotApplicableError(f"telea: needs images of 1 or 3 channels but these have {x.shape[1]}.")
        return _TeleaReplace(self.radius, mean, std)
