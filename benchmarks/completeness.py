"""How many maps of the path methods add up, and what that costs: numbers of steps against steps that grow.

    XATTN_DATA=DATA python benchmarks/completeness.py [--images 64] [--photos 16] [--model tiny-cnn] [--again]

Each row is written when it is there; one that is in the file already is not measured again unless `--again`.
A map adds up where its sum is f(x) - f(baseline) to 1 % of the largest of the two scores and their difference; the
check of `Explanation.status` passes at 5 %. The numbers of steps are those of the published benchmark and the default
of before. Images are validation images of Tiny-ImageNet, drawn by seed, and ImageNet photographs; the class is the
predicted one. Passes are gradients, each one forward and one backward pass of one image.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

import xattn
from xattn.data import datasets
from xattn.data.preprocessing import to_batch
from xattn.explainers import explainers
from xattn.files import whole_file
from xattn.trace import record

RESULTS = Path(__file__).parent / "completeness.json"
METHODS = (
    "integrated-gradients:steps=16", "integrated-gradients:steps=50", "integrated-gradients",
    "blur-ig:steps=16", "blur-ig:steps=50", "blur-ig",
    "guided-ig:steps=25", "guided-ig:steps=100", "guided-ig",
)  # fmt: skip


def measure(model: nn.Module, x: Tensor, name: str) -> dict[str, object]:
    """Errors of the sums and gradients of one method, image by image."""
    errors, gradients = [], []
    for image in x.split(1):
        method, trace = explainers.parse(name), record(model, image, spec=model.spec)
        rows = [0]
        handle = model.register_forward_pre_hook(lambda _, inputs, rows=rows: rows.append(len(inputs[0])))
        try:
            maps = method.attribute(trace)
            errors.append(float(method.conservation(trace, maps)))
        finally:
            handle.remove()
        gradients.append(sum(rows) - 1)  # less the baseline's own score
    error = torch.tensor(errors, dtype=torch.float64)
    return {
        "method": name,
        "within 1 %": float((error <= 0.01).double().mean()),
        "within 5 %": float((error <= 0.05).double().mean()),
        "median error": float(error.median()),
        "largest error": float(error.max()),
        "gradients, mean": sum(gradients) / len(gradients),
        "gradients, most": max(gradients),
    }


def main() -> None:
    """Measure and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--model", default="tiny-cnn")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--again", action="store_true", help="measure what is in the file already, too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    root, model = Path(os.environ["XATTN_DATA"]), xattn.create_model(given.model)
    validation = datasets.create("tiny-imagenet", root=str(root / "tiny-imagenet"))
    drawn = torch.randperm(len(validation), generator=torch.Generator().manual_seed(0))[: given.images].tolist()
    photos = sorted((root / "imagenet" / "photos").iterdir())[: given.photos]
    sets = {"tiny-imagenet": [validation[i].image for i in drawn], "photographs": photos}
    about = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
    about |= {"torch": version("torch"), "threads": torch.get_num_threads()}
    rows = json.loads(given.out.read_text(encoding="utf-8"))["rows"] if given.out.exists() and not given.again else []
    done = {_key(row) for row in rows}
    for name, images in sets.items():
        x = to_batch(images, model.spec)
        for method in given.methods:
            row = {"model": given.model, "images": name, "count": len(x), "method": method}
            if _key(row) in done:
                continue
            rows.append(row | measure(model, x, method))
            print(json.dumps(rows[-1]), flush=True)
            content = json.dumps({"environment": about, "rows": rows}, indent=2) + "\n"
            with whole_file(given.out) as path:
                path.write_text(content, encoding="utf-8")


def _key(row: dict[str, object]) -> tuple[object, ...]:
    return row["model"], row["images"], row["count"], row["method"]


if __name__ == "__main__":
    main()
