"""Small sets of individuals and of few-shot classes, whose images are two colours each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_individuals(root: Path) -> Path:
    """Market-1501's layout: 32 x 16 px, an individual is a pair of colours, a camera its brightness."""
    rng = np.random.default_rng(0)
    for folder, persons, cameras, shots in (
        ("bounding_box_train", range(1, 9), (1, 2), 3),
        ("query", range(11, 15), (1,), 1),
        ("bounding_box_test", range(11, 17), (1, 2, 3), 2),
    ):
        (root / folder).mkdir(parents=True)
        for person in persons:
            colours = np.random.default_rng(person).integers(30, 220, (2, 3))
            for camera in cameras:
                for shot in range(shots):
                    pixels = np.repeat(np.repeat(colours[:, None], 16, 0), 16, 1) + 15 * camera
                    noisy = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
                    name = f"{person:04d}_c{camera}s1_{shot:06d}_00.png"
                    Image.fromarray(noisy).save(root / folder / name)
    return root


def write_few_shot(root: Path, classes: int = 6, images: int = 20) -> Path:
    """CIFAR-FS in its own layout, with as many classes in each part."""
    rng = np.random.default_rng(0)
    (root / "splits" / "bertinetto").mkdir(parents=True)
    for number, part in enumerate(("train", "val", "test")):
        names = [f"{part}_{c}" for c in range(classes)]
        (root / "splits" / "bertinetto" / f"{part}.txt").write_text("\n".join(names))
        for c, name in enumerate(names):
            colour = np.random.default_rng(100 * number + c).integers(30, 220, 3)
            (root / "data" / name).mkdir(parents=True)
            for i in range(images):
                noisy = np.clip(colour + rng.normal(0, 12, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(root / "data" / name / f"{name}_s_{i:06d}.png")
    return root
