"""Augmentation of whole batches: one draw of numbers per image, then a crop, a mirror and colours.

The numbers are drawn for the batch of all processes together and depend on nothing but seed and step. So a run gives
the same images whatever its number of processes, and after it was interrupted.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from xattn.training.recipe import AugmentSection
from xattn.training.removal import remove_cells

Draws = Mapping[str, Tensor]
Size = int | tuple[int, int]
"""Pixels of an image: one side of a square, or height and width."""


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits from numbers and words; neighbouring numbers give unrelated seeds.

    >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 1) != derive_seed(0, "order", 2)
    True
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def draw(section: AugmentSection, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random numbers for `n` images.

    Args:
        section: ranges.
        n: number of images.
        generator: source.

    Returns:
        Tensors (n,): `area` and `ratio` of a crop, its position `x` and `y` in [0, 1], `flip` (bool), factors
        `brightness`, `contrast`, `saturation`, and `seed` for whatever else is random; `erase` (n, 5) in [0, 1].
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    return {
        "area": uniform(*section.scale),
        "ratio": uniform(math.log(3 / 4), math.log(4 / 3)).exp(),
        "x": uniform(0, 1),
        "y": uniform(0, 1),
        "flip": (uniform(0, 1) < 0.5) & section.flip,
        "brightness": uniform(1 - section.brightness, 1 + section.brightness),
        "contrast": uniform(1 - section.contrast, 1 + section.contrast),
        "saturation": uniform(1 - section.saturation, 1 + section.saturation),
        "seed": torch.randint(2**62, (n,), generator=generator),
        "erase": torch.rand(n, 5, generator=generator),
    }


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def crop_boxes(section: AugmentSection, draws: Draws | None, sizes: Tensor, size: Size) -> Tensor:
    """The part of each image that is cut out and resized.

    Args:
        section: kind of crop.
        draws: numbers of `draw`; None for the central crop of an evaluation.
        sizes: height and width of the images (n, 2).
        size: of the result: its shape is that of the box, and with `section.resize` its shorter side decides what share
            of the image is seen.

    Returns:
        Left, top, right, bottom in pixels (n, 4), inside the image.
    """
    height, width = sizes.to(torch.float32).unbind(1)
    if draws is not None and section.crop == "random-resized":
        area = draws["area"] * height * width
        w = torch.minimum((area * draws["ratio"]).sqrt(), width)
        h = torch.minimum((area / draws["ratio"]).sqrt(), height)
    elif section.crop == "squash":
        share_of_sides = torch.ones_like(height) if draws is None else draws["area"].sqrt()
        w, h = width * share_of_sides, height * share_of_sides
    else:
        high, wide = sides(size)
        share = min(1.0, min(high, wide) / section.resize) if section.resize else 1.0
        w = torch.minimum(width, height * (wide / high)) * share
        h = torch.minimum(height, width * (high / wide)) * share
    if draws is not None and section.crop != "none":
        left, top = draws["x"] * (width - w), draws["y"] * (height - h)
    else:
        left, top = (width - w) / 2, (height - h) / 2
    return torch.stack((left, top, left + w, top + h), 1)


def cut(images: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Boxes of images of one size, bilinear, without a low-pass filter (for factors below two).

    Args:
        images: (n, 3, H, W), any dtype, values 0 to 255.
        boxes: left, top, right, bottom in pixels (n, 4).
        size: of the result.

    Returns:
        (n, 3, *size) float32, values 0 to 255.
    """
    high, wide = sides(size)
    n, _, height, width = images.shape
    whole = torch.tensor([0.0, 0.0, width, height])
    if (height, width) == (high, wide) and bool((boxes == whole).all()):
        return images.float()
    left, top, right, bottom = boxes.unbind(1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = (right - left) / width, (right + left) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = (bottom - top) / height, (bottom + top) / height - 1
    grid = F.affine_grid(theta, [n, 3, high, wide], align_corners=False)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def finish(images: Tensor, section: AugmentSection, draws: Draws | None, mean: Tensor, std: Tensor) -> Tensor:
    """Mirror, colours, normalization, and cells removed.

    Args:
        images: (n, 3, H, W), values 0 to 255.
        section: which changes.
        draws: numbers of `draw`; None changes nothing but the scale.
        mean: per channel (3,), of images scaled to [0, 1].
        std: per channel (3,).

    Returns:
        Normalized images (n, 3, H, W) float32.
    """
    if section.randaugment and draws is not None:
        images = _rand_augment(images, section, draws["seed"])
    x = images.float() / 255
    if draws is not None:
        flip = draws["flip"].view(-1, 1, 1, 1)
        if bool(flip.any()):
            x = torch.where(flip, x.flip(3), x)
        x = x * draws["brightness"].view(-1, 1, 1, 1)
        level = x.mean((1, 2, 3), keepdim=True)
        x = level + (x - level) * draws["contrast"].view(-1, 1, 1, 1)
        grey = x.mean(1, keepdim=True)
        x = (grey + (x - grey) * draws["saturation"].view(-1, 1, 1, 1)).clamp(0, 1)
    x = (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    if section.erase and draws is not None:
        x = erase(x, section.erase, draws["erase"].to(x.device))
    if section.removal == "none" or draws is None:
        return x
    return remove_cells(x, section, draws["seed"], mean, std)


def erase(x: Tensor, probability: float, numbers: Tensor) -> Tensor:
    """Random erasing: a box of some images becomes their mean colour, zero (Zhong et al. 2017, arXiv:1708.04896).

    The box covers 2 to 40 % of the image, its sides are in a ratio of 0.3 to 1 / 0.3; a side longer than the image is
    cut to it, where the paper draws again.

    Args:
        x: normalized images (n, 3, H, W).
        probability: of an image to lose a box.
        numbers: in [0, 1] (n, 5): whether, area, ratio, and the place of the box.
    """
    height, width = x.shape[2:]
    chosen, area, ratio, down, right = numbers.unbind(1)
    area = (0.02 + 0.38 * area) * height * width
    ratio = (math.log(0.3) * (1 - 2 * ratio)).exp()
    high, wide = (area * ratio).sqrt().clamp(max=height), (area / ratio).sqrt().clamp(max=width)
    top, left = down * (height - high), right * (width - wide)
    y = torch.arange(height, device=x.device) + 0.5
    across = torch.arange(width, device=x.device) + 0.5
    rows = (y >= top[:, None]) & (y < (top + high)[:, None])
    columns = (across >= left[:, None]) & (across < (left + wide)[:, None])
    gone = rows[:, None, :, None] & columns[:, None, None, :] & (chosen < probability).view(-1, 1, 1, 1)
    return x.masked_fill(gone, 0.0)


def _rand_augment(images: Tensor, section: AugmentSection, seeds: Tensor) -> Tensor:
    """RandAugment of torchvision, image by image, each from its own seed."""
    from torchvision.transforms import v2

    operation = v2.RandAugment(num_ops=section.randaugment, magnitude=section.magnitude)
    changed = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images.round().to(torch.uint8), seeds.tolist(), strict=True):
            torch.manual_seed(seed)
            changed.append(operation(image))
    return torch.stack(changed)
