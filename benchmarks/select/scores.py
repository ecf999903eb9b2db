"""A small network and the scores of all methods of `xattn select` on 1,000 images that it has not seen, without a stop.

The network is trained here, in some minutes of a processor: three convolutions on the 20 test classes of CIFAR-FS
(32 x 32 pixels), 100 images of each to train on and 50 to score. Small, so that a full benchmark to hold races against
is cheap; its photographs are real.

    python benchmarks/select/scores.py runs/select-cifar && python benchmarks/select/replay.py runs/select-cifar
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from xattn.benchmark.config import Config
from xattn.benchmark.costs import write_costs
from xattn.benchmark.plan import plan
from xattn.benchmark.run import run
from xattn.benchmark.select import METHODS, QUESTIONS
from xattn.benchmark.store import Store
from xattn.data import datasets
from xattn.data.dataset import Dataset, split
from xattn.spec import ModelSpec

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
TITLE = "cifar-net"


class Net(nn.Module):
    """Three convolutions, a grid of 8 x 8, global average pooling and a linear layer."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__()
        widths = (3, 24, 48, 96)
        blocks = [
            nn.Sequential(
                nn.Conv2d(widths[i], widths[i + 1], 3, 1 if i == 0 else 2, 1, bias=False),
                nn.BatchNorm2d(widths[i + 1]),
                nn.ReLU(),
            )
            for i in range(3)
        ]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(widths[-1], len(classes))
        self.spec = ModelSpec(
            feature_layer="features", classifier="classifier", input_size=(32, 32), mean=MEAN, std=STD,
            classes=classes, name=TITLE,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.classifier(self.features(x).mean((2, 3)))


def pixels_of(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Normalized images (N, 3, 32, 32) and labels."""
    images = torch.from_numpy(np.stack([sample.image for sample in dataset])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (images - mean) / std, torch.from_numpy(dataset.labels.copy())


def train(dataset: Dataset, epochs: int) -> Net:
    """Train on a data set, with flips and shifts."""
    torch.manual_seed(0)
    net = Net(dataset.classes)
    x, y = pixels_of(dataset)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x) - 63, 64):
            some = order[start : start + 64]
            batch = x[some]
            batch = torch.where(torch.rand(len(some), 1, 1, 1) < 0.5, batch.flip(3), batch)
            dy, dx = torch.randint(-3, 4, (2,)).tolist()
            batch = batch.roll((dy, dx), (2, 3))
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch), y[some], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def main() -> None:
    """Train, score and say how good the network is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder for the scores")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(os.environ.get("XATTN_DATA", "data")) / "cifar-fs"
    known, held = split(datasets.create("cifar-fs", root=root, split="test"), 1 / 3, seed=0)
    start = time.process_time()
    net = train(known, options.epochs)
    x, y = pixels_of(held)
    with torch.no_grad():
        accuracy = float((net(x).argmax(1) == y).double().mean())
    about = {"train": len(known), "held_out": len(held), "accuracy": accuracy, "train_s": time.process_time() - start}
    print(json.dumps(about))
    values = {
        "data": [{"source": f"cifar-fs:{root}", "label": "cifar-fs", "limit": options.images}],
        "models": [{"name": TITLE}],
        "methods": list(METHODS),
        "metrics": [metric for question in QUESTIONS for metric in (question.full, question.metric)],
        "run": {"batch": 50, "block": 100, "device": "cpu"},
    }
    config = Config.build(values)
    (cell,) = plan(config, {TITLE: (net, net.spec)})
    order = np.random.default_rng(0).permutation(len(held))[: options.images]
    cell = dataclasses.replace(cell, dataset=held, indices=tuple(order.tolist()))
    run(config, options.run, cells=[cell])
    write_costs(Store(options.run), [cell], torch.device("cpu"))
    (options.run / "network.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
