"""Attention that is learned beside attention without parameters: B-CNN and BR-NPA on the same frozen features.

    python benchmarks/convert/bcnn.py DATA [--images 600] [--learn 1000] [--epochs 2] [--lr 0.01]

`tiny-cnn` is converted with 3 parts of BR-NPA and of B-CNN and distilled from itself without labels by `xattn convert
--distil`: the same training images of Tiny-ImageNet, epochs and learning rate for both, attention and classifier alone
(the features stay as they are). Top-1, answers that are those of `tiny-cnn`, and sparsity of the maps on images of the
validation part, which no network was trained on. Writes `bcnn.json` and the table in `docs/convert.md`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from gap import compared, small
from learning import distilled
from pages import DOCS, put
from table6 import batches
from torch import Tensor

import xattn
from xattn.functional import attention_density
from xattn.models import create_model
from xattn.models.converting import convert

RESULTS = Path(__file__).parent / "bcnn.json"


@torch.no_grad()
def measured(name: str, made: Any, model: Any, data: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Right answers, those of the network, and sparsity."""
    old, new, sparsity = [], [], []
    for x, _ in data:
        features = made.backbone(x)
        old.append(model(x))
        new.append(made.head(features))
        maps = made.head.attention(features).double()
        sparsity.append(1 / attention_density(maps, features.double()))
    labels = torch.cat([y for _, y in data])
    found = compared(torch.cat(old), torch.cat(new), labels)
    found |= {"network": name, "n": len(labels), "before": int((torch.cat(old).argmax(1) == labels).sum())}
    found["sparsity"] = round(float(torch.cat(sparsity).nanmean()), 2)
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with tiny-imagenet")
    parser.add_argument("--images", type=int, default=600, help="to test on")
    parser.add_argument("--learn", type=int, default=1000, help="to distil on")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--work", type=Path, default=Path("runs/convert-bcnn"), help="what is kept of the training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model: Any = create_model("tiny-cnn")
    test = batches(options.data, "val", options.images, model.spec)
    found = []
    for head in ("brnpa", "bcnn"):
        title = {"brnpa": "BR-NPA", "bcnn": "B-CNN"}[head]
        found.append(measured(f"{title}, as converted", convert(model, head=head, weighting="equal"), model, test))
        images = (image for image, _ in small(options.data, "train", options.learn))
        settings = ("--head", head, "--epochs", str(options.epochs), "--lr", str(options.lr), "--batch-size", "16")
        learned = distilled("tiny-cnn", images, options.work / head, *settings)
        found.append(measured(f"{title}, distilled", learned, model, test))
    facts = {
        "torch": torch.__version__, "device": "CPU", "xattn": xattn.__version__, "distilled_on": options.learn,
        "epochs": options.epochs, "lr": options.lr,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(facts | {"rows": found}, indent=1) + "\n", encoding="utf-8")
    n = found[0]["n"]
    lines = [
        f"`tiny-cnn` has {found[0]['before'] / n:.1%} of {n} images right; distilled on {options.learn} others in "
        f"{options.epochs} epochs:",
        "",
        "| head, 3 parts | points of top-1 lost | same class | sparsity 1/x |",
        "| --- " * 4 + "|",
    ]
    for row in found:
        lost = f"{row['lost']:.1f} ± {row['half']:.1f}"
        lines.append(f"| {row['network']} | {lost} | {row['agrees'] / n:.1%} | {row['sparsity']} |")
    put(DOCS / "convert.md", "bcnn.py", "\n".join(lines))


if __name__ == "__main__":
    main()
