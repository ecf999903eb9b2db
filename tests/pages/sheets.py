"""A page of comparisons for the tests: explanations of a tiny network for photographs made of sines."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.cli import models
from xattn.explainers import resolve
from xattn.metrics.deletion import Deletion
from xattn.pages.compare import Column, Comparison, pair_of
from xattn.trace import record

EVIL = "<img src=x onerror=alert(1)>.png"
EVIL_CLASS = "</script><script>alert(2)</script>, \u2028"
METHODS = ["brnpa:parts=4", "saliency", "input-x-gradient", "random", "center"]


def photograph(i: int, size: tuple[int, int] = (96, 96), grey: bool = False) -> Image.Image:
    """A smooth picture that differs from its neighbours."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]] / max(size)
    bands = [np.sin((2 + i) * x + k) * np.cos((3 + i) * y - k) for k in ((0, 0, 0) if grey else (0, 1, 2))]
    return Image.fromarray(np.uint8(127 + 110 * np.stack(bands, axis=2)))


def comparison(names: list[str], *, curves: bool = True, topk: int = 2, heading: str = "Side by side") -> Comparison:
    """Explanations of a tiny network for the first classes of some photographs."""
    model = models.cnn()
    spec = dataclasses.replace(model.spec, classes=(EVIL_CLASS, *models.CLASSES[1:]))
    methods = resolve(METHODS)
    images = [photograph(i) for i in range(len(names))]
    x = torch.stack([to_input(image) for image in images])
    steps = 4
    page = Comparison(
        [Column(m) for m in methods], heading, shares=[i / steps for i in range(steps + 1)] if curves else ()
    )
    lines, drawn = [], []
    for k in range(topk):
        layers = [layer for m in methods for layer in m.layers(spec)]
        trace = record(model, x, k, spec=spec, layers=layers, grad=True)
        found = [m.explanation(trace) for m in methods]
        lines.append(found)
        metric = Deletion(steps=steps)
        both = [metric.curves(found, trace, order) for order in ("morf", "insertion")]
        drawn.append(list(zip(*both, strict=True)))
    for i, name in enumerate(names):
        guess = {"class": EVIL_CLASS, "probability": 0.5}
        pairs = [[pair_of(*both, i) for both in line] for line in drawn] if curves else None
        page.add(f"photos/{name}", images[i], lines, i, predicted={"tiny": guess}, curves=pairs)
    return page


def to_input(image: Image.Image) -> Tensor:
    small = np.asarray(image.resize((32, 32)), dtype=np.float32) / 255
    return torch.from_numpy((small - 0.5) / 0.25).permute(2, 0, 1)


def stored(text: str) -> Iterator[Any]:
    """What the data scripts of a page hold, read as a browser would: up to the first end of a script."""
    for match in re.finditer(r'<script type="application/json"[^>]*>(.*?)</script', text, re.DOTALL):
        yield json.loads(match[1])
