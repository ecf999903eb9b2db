"""Ways to a BR-NPA network of high resolution: without training, fitted, or distilled as in the paper's table 6.

    python benchmarks/convert/table6.py DATA [--images 300] [--fit 500]

On Tiny-ImageNet with the embedded networks, 3 parts, maps of 16x16 where the network itself has 4x4: strides removed,
as the paper does (Gomez et al. 2022, arXiv:2106.02566, section 3.3), or turned into dilation; as they come, or with the
classifier fitted to `tiny-cnn` on training images without labels. `tiny-brnpa` is what the paper does in full: strides
removed, then an epoch of distillation on 95,000 images with labels. Top-1 and sparsity (the mean of 1 / x of the
attention maps) on images of the validation part, which no network was trained on. Writes `table6.json` and the table in
`docs/convert.md`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from gap import small
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with tiny-imagenet")
    parser.add_argument("--images", type=int, default=300, help="to test on")
    parser.add_argument("--fit", type=int, default=500, help="to fit on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model: Any = create_model("tiny-cnn")
    spec = model.spec
    test = batches(options.data, "val", options.images, spec)
    train = batches(options.data, "train", options.fit, spec)
    removed: Any = create_model("tiny-cnn")
    remove_strides(removed.backbone, 2, feature_layer="", input_size=spec.input_size)
    found = [measured("`tiny-cnn`, as published", model, model, test)]
    for name, one in (
        ("3 parts", convert(model)),
        ("3 parts, strides removed", convert(removed, spec=spec)),
        ("3 parts, dilation", convert(model, resolution="x4")),
    ):
        found.append(measured(f"{name}, no training", one, model, test))
        fit(model, one, (x for x, _ in train), spec=spec)
        found.append(measured(f"{name}, fitted", one, model, test))
    found.append(
        measured("3 parts, strides removed, distilled (`tiny-brnpa`)", create_model("tiny-brnpa"), model, test)
    )
    head = {"torch": torch.__version__, "device": "CPU", "xattn": xattn.__version__, "fitted_on": options.fit}
    RESULTS.write_text(json.dumps(head | {"rows": found}, indent=1) + "\n", encoding="utf-8")
    lines = ["| network | grid | passes | top-1 | sparsity 1/x |", "| --- " * 5 + "|"]
    for row in found:
        lines.append(
            f"| {row['network']} | {row['grid'][0]}x{row['grid'][1]} | {row['cost']} | {row['top1']} ± {row['half']} | "
            f"{'-' if row['sparsity'] is None else row['sparsity']} |"
        )
    put(DOCS / "convert.md", "table6.py", "\n".join(lines))


if __name__ == "__main__":
    main()
