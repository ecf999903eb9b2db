"""Label-free distillation by the command that a user has, on images that are given one by one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from xattn.models import load_model


def distilled(name: str, images: Iterator[Image.Image], folder: Path, *options: str) -> Any:
    """What `xattn convert --distil` makes of a network on a folder of images; a run that was stopped goes on.

    Args:
        name: of the network.
        images: to learn on.
        folder: keeps the images and the network.
        options: of the command.
    """
    out = folder / "distilled.safetensors"
    if not out.exists():
        photographs = folder / "distil"
        photographs.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images):
            image.save(photographs / f"{i:05}.png")
        command = ["convert", name, "--distil", str(photographs), "--out", str(out), "--weighting", "equal", *options]
        subprocess.run([sys.executable, "-m", "xattn", *command], check=True)
    return load_model(out)
