"""A small labelled set of images whose classes are colours, and recipes that train on it in seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import xattn
from xattn.models.checkpoint import read_state
from xattn.training.recipe import Recipe

COLOURS = {"blue": (40, 60, 220), "green": (30, 200, 60), "red": (230, 40, 30)}


def write_images(root: Path, per_class: int, size: int, seed: int) -> Path:
    """One folder per colour, each image a noisy ground with a square of the colour."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(90, 150, (size, size, 3))
            top, left = rng.integers(0, size // 2, 2)
            pixels[top : top + size // 2, left : left + size // 2] = colour
            noisy = np.clip(pixels + rng.normal(0, 10, pixels.shape), 0, 255)
            Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{i:03d}.png")
    return root


def tiny_recipe(data: Path, out: Path, **changes: Any) -> Recipe:
    """Two epochs of the compact network on 32 px; changes are `section__key=value`."""
    values: dict[str, dict[str, Any]] = {
        "data": {"source": str(data), "held_out": 0.2},
        "model": {"backbone": "tiny-cnn", "head": "brnpa"},
        "optimizer": {"lr": 0.02, "warmup_epochs": 0.5, "ema": 0.9},
        "run": {
            "out": str(out),
            "epochs": 2,
            "batch_size": 8,
            "image_size": 32,
            "accelerator": "cpu",
            "devices": 1,
            "tensorboard": False,
        },
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values.setdefault(section, {})[name] = value
    return Recipe.build(values)


def write_recipe(recipe: Recipe, path: Path) -> Path:
    """The recipe as a file."""
    path.write_text(recipe.to_toml())
    return path


def environment() -> dict[str, str]:
    """Of a process that trains on one thread, with this checkout."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(xattn.__file__).parents[1])}


def same_tensors(a: Path, b: Path) -> bool:
    """Whether two weights files hold the same bits."""
    one, two = read_state(a), read_state(b)
    return list(one) == list(two) and all(torch.equal(one[k], two[k]) for k in one)
