"""Fine-grained classification by heads on EfficientNet-Lite0 as it comes: nothing of the network learns but the head.

    python benchmarks/three_tasks/frozen.py --cache runs/three-tasks/frozen

The feature maps of `cub-20` are computed once, at 224 px on 7 x 7 cells and, with dilation in place of the last
strides, on 14 x 14. Mean pooling and BR-NPA have no parameters, so that what learns is a linear layer; a
B-CNN head also learns its attention maps, at 7 x 7 cells alone and for fewer epochs. The same optimizer for all; the
best epoch is chosen on a tenth of the training photographs, other ones for each seed. Beside the whole head a linear
layer learns from each subset of the parts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from measure import source
from torch import Tensor, nn
from torch.nn import functional as F

from xattn.files import whole_file
from xattn.functional.attention import attention_pool
from xattn.functional.sparsity import attention_density
from xattn.models import convert, create_model
from xattn.models.heads import BCNNHead, BRNPAAttention, Classifier
from xattn.training.data import Source, hold_out
from xattn.training.evaluation import prepared
from xattn.training.folder import processor_name
from xattn.training.network import RANK_SUBSETS

RESULTS = Path(__file__).parent / "frozen.json"
PARTS, EPOCHS, BATCH, RATE, DECAY = 3, 40, 32, 1e-3, 1e-2
RESOLUTIONS = {"low": "7 x 7", "x2": "14 x 14"}


@torch.no_grad()
def pooled(model: Classifier, images: Source) -> dict[str, Tensor]:
    """Means (n, C), part vectors (n, P, C) and densities (n,) of all images; for a small grid the maps too."""
    attention = BRNPAAttention(PARTS)
    found: dict[str, list[Tensor]] = {"mean": [], "parts": [], "density": [], "maps": []}
    for x in prepared(model, images, list(torch.arange(len(images)).split(8)), "cpu"):
        features = model.backbone(x)
        maps = attention(features)
        found["mean"].append(features.mean((2, 3)))
        found["parts"].append(attention_pool(features, maps))
        found["density"].append(attention_density(maps, features))
        if features.shape[2] <= 8:
            found["maps"].append(features.half())
    return {key: torch.cat(values) for key, values in found.items() if values}


class Rows(nn.Module):
    """A linear layer on vectors."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)
        return logits


def learned(
    make: Callable[[], nn.Module], train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], seed: int, epochs: int
) -> dict[str, float]:
    """Accuracy on the test photographs of the epoch that is the best on those held out."""
    inputs, labels = train
    kept, held = hold_out(labels, 0.1, seed)
    torch.manual_seed(seed)
    head = make()
    optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=DECAY)
    steps = epochs * (len(kept) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, accuracy, at = -1.0, 0.0, 0
    for epoch in range(1, epochs + 1):
        head.train()
        for rows in kept[torch.randperm(len(kept))].split(BATCH):
            if len(rows) < BATCH:
                continue
            optimizer.zero_grad()
            F.cross_entropy(head(inputs[rows].float()), labels[rows], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
        on_held = share_right(head, inputs[held], labels[held])
        if on_held > best:
            best, accuracy, at = on_held, share_right(head, *test), epoch
    return {"accuracy": accuracy, "held_out": best, "epoch": at}


@torch.no_grad()
def share_right(head: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Accuracy."""
    head.eval()
    right = [(head(x.float()).argmax(1) == y) for x, y in zip(inputs.split(64), labels.split(64), strict=True)]
    return float(torch.cat(right).double().mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is computed once")
    parser.add_argument("--bcnn-epochs", type=int, default=10)
    parser.add_argument("--bcnn-seeds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = {part: source("cub-20", part) for part in ("train", "test")}
    labels = {part: images[part].labels for part in images}
    classes = len(images["train"].classes)
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": {}}
    args.cache.mkdir(parents=True, exist_ok=True)
    for resolution, grid in RESOLUTIONS.items():
        have: dict[str, dict[str, Tensor]] = {}
        for part in images:
            file = args.cache / f"{resolution}-{part}.pt"
            if not file.is_file():
                model = convert(
                    create_model("efficientnet_lite0"), parts=PARTS, weighting="equal", resolution=resolution
                )
                with whole_file(file) as temporary:
                    torch.save(pooled(model.eval(), images[part]), temporary)
                print(file.name, flush=True)
            have[part] = torch.load(file, weights_only=True)
        wanted: dict[str, tuple[str, tuple[int, ...]]] = {"linear": ("mean", ())}
        wanted |= {"brnpa": ("parts", (0, 1, 2))} | {f"brnpa {k}": ("parts", v) for k, v in RANK_SUBSETS.items()}
        for name, (kind, chosen) in wanted.items():
            if f"{name}, {grid}" in result["rows"]:
                continue
            rows = {p: have[p][kind] if not chosen else have[p][kind][:, list(chosen)].flatten(1) for p in have}
            width = rows["train"].shape[1]
            train, test = ((rows[p], labels[p]) for p in ("train", "test"))
            seeds = [learned(lambda w=width: Rows(w, classes), train, test, s, EPOCHS) for s in range(3)]  # type: ignore[misc]
            _keep(
                result, f"{name}, {grid}", {"epochs": EPOCHS, "seeds": seeds}, have["test"], name, len(labels["test"])
            )
        if "maps" in have["train"] and f"bcnn, {grid}" not in result["rows"]:
            train, test = ((have[p]["maps"], labels[p]) for p in ("train", "test"))
            channels = train[0].shape[1]
            began = time.process_time()
            make = lambda c=channels: BCNNHead(c, classes, PARTS, width=64)  # noqa: E731
            seeds = [learned(cast("Any", make), train, test, s, args.bcnn_epochs) for s in range(args.bcnn_seeds)]
            facts = {"epochs": args.bcnn_epochs, "seeds": seeds, "seconds": time.process_time() - began}
            _keep(result, f"bcnn, {grid}", facts, have["test"], "bcnn", len(labels["test"]))


def _keep(result: dict[str, Any], name: str, facts: dict[str, Any], have: dict[str, Tensor], kind: str, n: int) -> None:
    """One row, written at once."""
    row = {**facts, "images": n}
    if kind == "brnpa":
        density = have["density"].double()
        row |= {"density": float(density.mean()), "sparsity": float((1 / density).mean())}
    result["rows"][name] = row
    result["device"] = f"{processor_name()}, 1 thread"
    result["date"] = datetime.now(UTC).date().isoformat()
    with whole_file(RESULTS) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(name, [round(s["accuracy"], 4) for s in facts["seeds"]], flush=True)


if __name__ == "__main__":
    main()
