"""One picture for each of the three tasks: six methods of the BR-NPA paper side by side, on photographs of the task.

    python benchmarks/three_tasks/figures.py cub-20 --out docs/images/tasks-cub-20.png
    python benchmarks/three_tasks/figures.py holstein-reid --out docs/images/tasks-holstein-reid.png
    python benchmarks/three_tasks/figures.py cifar-fs --out docs/images/tasks-cifar-fs.png

The networks are the embedded ones unless files are named. The photographs lie at equal distances in the test part:
nobody chose them. Where there is no class the score is a likeness: to the first photograph of the same cow on another
day, or to the mean of the first five photographs of the class.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from measure import SOURCES
from PIL import Image
from torch.nn import functional as F

from xattn.data import open_dataset
from xattn.data.dataset import Dataset
from xattn.data.preprocessing import to_batch, view_of
from xattn.explaining import explain
from xattn.files import whole_file
from xattn.models import create_model
from xattn.models.embedder import Embedder
from xattn.models.heads import Classifier
from xattn.targets import Similarity
from xattn.viz.panel import Cell, panel
from xattn.viz.render import render, title

METHODS = {"linear": ("guided-gradcam++", "gradcam", "gradcam++", "activation"), "bcnn": ("bcnn",), "brnpa": ("brnpa",)}
EMBEDDED = {"linear": "tiny-cnn", "bcnn": "tiny-bcnn", "brnpa": "tiny-brnpa"}
SIZES = {"cub-20": (128, 128), "holstein-reid": (128, 64), "cifar-fs": (64, 64)}
ROWS, SHOWN, CELL = {"cub-20": 4, "holstein-reid": 3, "cifar-fs": 4}, 5, 84


def chosen(data: Dataset, rows: int) -> list[int]:
    """Places at equal distances."""
    return [len(data) * (2 * k + 1) // (2 * rows) for k in range(rows)]


def likes(task: str, query: Dataset, places: list[int]) -> list[list[np.ndarray[Any, Any]]]:
    """For each photograph those that it is compared with."""
    if task == "cifar-fs":
        found = []
        for i in places:
            same = [j for j in np.flatnonzero(query.labels == query.labels[i]).tolist() if j != i]
            found.append([query[j].image for j in same[:SHOWN]])
        return found
    gallery = open_dataset(os.path.expandvars(SOURCES[task]), "gallery")
    assert query.groups is not None
    assert gallery.groups is not None
    return [
        [
            gallery[
                int(np.flatnonzero((gallery.labels == query.labels[i]) & (gallery.groups != query.groups[i]))[0])
            ].image
        ]
        for i in places
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=SIZES)
    for head, name in EMBEDDED.items():
        parser.add_argument(f"--{head}", default=name, help=f"network, or weights file; {name} where it is not given")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    part = "query" if args.task == "holstein-reid" else "test"
    data = open_dataset(os.path.expandvars(SOURCES[args.task]), part)
    places = chosen(data, ROWS[args.task])
    photographs = [Image.fromarray(data[i].image) for i in places]
    columns: list[list[Cell]] = []
    titles = ["photograph"]
    for head, methods in METHODS.items():
        name = getattr(args, head)
        model = cast("Classifier", create_model(name))
        if name in EMBEDDED.values():
            model.spec = dataclasses.replace(model.spec, input_size=SIZES[args.task], crop=1.0)
        views = [view_of(p, model.spec) for p in photographs]
        if not columns:
            columns = [[Cell(v.resize((2 * CELL * v.width // v.height, 2 * CELL))) for v in views]]
        network: Any = model.eval() if args.task == "cub-20" else Embedder.of(model).eval()
        x, target = to_batch(photographs, network.spec), None
        if args.task != "cub-20":
            with torch.no_grad():
                means = [
                    F.normalize(network(to_batch(row, network.spec)), dim=1).mean(0)
                    for row in likes(args.task, data, places)
                ]
            target = Similarity(torch.stack(means))
        for found in explain(network, x, list(methods), target, spec=network.spec):
            titles.append(title(found.method))
            shape = (2 * CELL, 2 * CELL * views[0].width // views[0].height)
            columns.append([Cell(render(found, i, image=views[i], size=shape)) for i in range(len(places))])
    picture = panel(
        list(zip(*columns, strict=True)),
        titles,
        cell=CELL if views[0].width == views[0].height else CELL * 5 // 3,
        scale=1.5,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(args.out) as temporary:
        colours = picture.quantize(256, Image.Quantize.MEDIANCUT)
        picture.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG).save(temporary, "PNG", optimize=True)


if __name__ == "__main__":
    main()
