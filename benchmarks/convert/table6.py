"""Ways to a BR-NPA network of high resolution: without training, fitted, or distilled as in the paper's table 6.

    python benchmarks/convert/table6.py DATA [--images 300] [--fit 500] [--learn 2000] [--only ROW]

On Tiny-ImageNet with the embedded networks, 3 parts, maps of 16x16 where the network itself has 4x4: strides removed,
as the paper does (Gomez et al. 2022, arXiv:2106.02566, section 3.3), or turned into dilation; as they come, or with the
classifier fitted to `tiny-cnn` on training images without labels; with dilation also distilled from it on such images
by `xattn convert --distil`, one epoch, the layers behind the first stride that became dilation. `tiny-brnpa` is what
the paper does in full: strides removed, then an epoch of distillation on 95,000 images with labels. Top-1 and sparsity
(the mean of 1 / x of the attention maps) on images of the validation part, which no network was trained on. Writes
`table6.json` and the table in `docs/convert.md`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gap import small
from learning import distilled
from pages import DOCS, put
from torch import Tensor

import xattn
from xattn.data.preprocessing import preprocess
from xattn.functional import attention_density
from xattn.models import create_model
from xattn.models.agreement import relative_cost
from xattn.models.converting import convert
from xattn.models.fitting import fit
from xattn.models.resolution import remove_strides

RESULTS = Path(__file__).parent / "table6.json"
BATCH = 20


def batches(root: Path, part: str, count: int, spec: xattn.ModelSpec) -> list[tuple[Tensor, Tensor]]:
    """Images (N, 3, 64, 64) and classes (N,)."""
    found = list(small(root, part, count))
    x = torch.stack([preprocess(image, spec) for image, _ in found])
    return list(zip(x.split(BATCH), torch.tensor([label for _, label in found]).split(BATCH), strict=True))


@torch.no_grad()
def measured(name: str, made: Any, model: Any, data: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Right answers, sparsity and cost of one network."""
    right, sparsity, grid = 0, [], (0, 0)
    for x, labels in data:
        features = made.backbone(x)
        right += int((made.head(features).argmax(1) == labels).sum())
        grid = tuple(features.shape[2:])
        if hasattr(made.head, "attention"):
            sparsity.append(1 / attention_density(made.head.attention(features).double(), features.double()))
    n = sum(len(labels) for _, labels in data)
    share = right / n
    row = {
        "network": name, "grid": grid, "cost": round(relative_cost(model, made, data[0][0][:1]), 2), "n": n,
        "top1": round(100 * share, 1), "half": round(196 * math.sqrt(share * (1 - share) / n), 1),
        "sparsity": round(float(torch.cat(sparsity).mean()), 2) if sparsity else None,
    }  # fmt: skip
    print(row, flush=True)
    return row


def without_strides() -> Any:
    """`tiny-cnn` without its last two strides."""
    removed: Any = create_model("tiny-cnn")
    remove_strides(removed.backbone, 2, feature_layer="", input_size=removed.spec.input_size)
    return removed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with tiny-imagenet")
    parser.add_argument("--images", type=int, default=300, help="to test on")
    parser.add_argument("--fit", type=int, default=500, help="to fit on")
    parser.add_argument("--only", default="", help="text that a row must contain; the others stay as they are")
    parser.add_argument("--learn", type=int, default=2000, help="to distil on")
    parser.add_argument("--work", type=Path, default=Path("runs/convert-table6"), help="what is kept of the training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model: Any = create_model("tiny-cnn")
    spec = model.spec
    test = batches(options.data, "val", options.images, spec)
    train = batches(options.data, "train", options.fit, spec)
    known = {row["network"]: row for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]}

    def row(name: str, make: Callable[[], Any]) -> dict[str, Any]:
        return measured(name, make(), model, test) if options.only in name else known[name]

    def fitted(made: Any) -> Any:
        fit(model, made, (x for x, _ in train), spec=spec, ridge=0.1)
        return made

    found = [row("`tiny-cnn`, as published", lambda: model)]
    for name, make in (
        ("3 parts", lambda: convert(model, weighting="equal")),
        ("3 parts, strides removed", lambda: convert(without_strides(), weighting="equal", spec=spec)),
        ("3 parts, dilation", lambda: convert(model, weighting="equal", resolution="x4")),
    ):
        found.append(row(f"{name}, no training", make))
        found.append(row(f"{name}, fitted", lambda make=make: fitted(make())))  # type: ignore[misc]
    settings = ("--resolution", "x4", "--epochs", "1", "--batch-size", "16")
    images = (image for image, _ in small(options.data, "train", options.learn))
    learned = partial(distilled, "tiny-cnn", images, options.work, *settings)
    found.append(row("3 parts, dilation, distilled without labels", learned))
    found.append(row("3 parts, strides removed, distilled (`tiny-brnpa`)", lambda: create_model("tiny-brnpa")))
    head = {
        "torch": torch.__version__, "device": "CPU", "xattn": xattn.__version__, "fitted_on": options.fit,
        "distilled_on": options.learn,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(head | {"rows": found}, indent=1) + "\n", encoding="utf-8")
    lines = ["| network | grid | passes | top-1 | sparsity 1/x |", "| --- " * 5 + "|"]
    for one in found:
        lines.append(
            f"| {one['network']} | {one['grid'][0]}x{one['grid'][1]} | {one['cost']} | {one['top1']} ± {one['half']} | "
            f"{'-' if one['sparsity'] is None else one['sparsity']} |"
        )
    put(DOCS / "convert.md", "table6.py", "\n".join(lines))


if __name__ == "__main__":
    main()
