"""Train the networks of the study, and measure how far each of them uses its mark.

    python benchmarks/audit/train.py runs/audit

`$XATTN_DATA` is the folder that holds Tiny-ImageNet. Each network is the embedded tiny-cnn with a new linear layer for
fewer classes; the last stage and that layer are trained, the stages before stay as they are, so that their features are
computed once and a network takes a few seconds of one processor core. It goes to a folder of its own, with `use.json`
beside it; what is there is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from runs import DEVELOPMENT, RUNS, Run
from torch import Tensor, nn
from torch.nn import functional as F

from xattn.data.planted import Planted
from xattn.data.preprocessing import preprocess
from xattn.files import whole_file
from xattn.models.checkpoint import save_weights
from xattn.models.factory import create_model, load_model

BATCH = 50
EPOCHS, LR, STEP = 10, 0.03, 50
OTHERS = 12  # one in so many images of other classes is asked about


@torch.no_grad()
def early(model: Any, images: list[NDArray[np.uint8]]) -> Tensor:
    """Features (n, C, h, w) of the stages that are not trained."""
    parts = []
    for start in range(0, len(images), BATCH):
        x = torch.stack([preprocess(image, model.spec) for image in images[start : start + BATCH]])
        for name, stage in model.backbone.named_children():
            x = x if name == "layer4" else stage(x)
        parts.append(x)
    return torch.cat(parts)


def early_of(model: Any, data: Planted, bare: Tensor, places: NDArray[np.int64]) -> Tensor:
    """The same of some images of a data set, where those (N, C, h, w) of all its images without a mark are known."""
    features = bare[torch.from_numpy(places)]
    changed = np.flatnonzero(data.marked[places])
    if len(changed):
        features[torch.from_numpy(changed)] = early(model, [data[int(i)].image for i in places[changed]])
    return features


def late(model: Any, features: Tensor) -> Tensor:
    """Logits (n, K) of such features."""
    return model.head(model.backbone.layer4(features))


def train(run: Run, data: Planted, bare: Tensor) -> nn.Module:
    """A network that learned from planted images.

    Args:
        run: which.
        data: its images.
        bare: early features of the images without a mark.
    """
    torch.manual_seed(run.seed)
    model: Any = create_model("tiny-cnn", weights="DEFAULT", head="linear", num_classes=len(data.classes))
    model.spec = dataclasses.replace(model.spec, classes=data.classes)
    features, labels = early_of(model, data, bare, np.arange(len(data))), torch.from_numpy(data.labels)
    learned = [*model.backbone.layer4.parameters(), *model.head.parameters()]
    optimizer = torch.optim.SGD(learned, LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = EPOCHS * -(-len(data) // STEP)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):  # batch norm keeps its statistics: the network stays in evaluation mode
        for chosen in torch.randperm(len(data)).split(STEP):
            loss = F.cross_entropy(late(model, features[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


@torch.no_grad()
def use_of(model: Any, run: Run, data: Planted, bare: Tensor) -> dict[str, Any]:
    """How far a network uses a mark, on images that it was not trained on.

    Args:
        model: the network.
        run: which.
        data: the images.
        bare: early features of the images without a mark.

    Returns:
        `images`: of the class; `right_with`, `right_without`: share of them that is recognized if all carry the mark
        and if none does; `score_with`, `score_without`: their mean probability; `lost`, `gained`: images that are right
        only with it and only without; `drawn`: share of the images of other classes, of every 12th, that are taken for
        the class with the mark and not without.
    """

    def ask(places: NDArray[np.int64]) -> list[Tensor]:
        return [late(model, early_of(model, d, bare, places)).softmax(1) for d in (full, plain)]

    plain, full = data.without(), data.everywhere()
    own = np.flatnonzero(data.labels == run.label)
    others = np.flatnonzero(data.labels != run.label)[::OTHERS]
    with_mark, without = ask(own)
    right, left = with_mark.argmax(1) == run.label, without.argmax(1) == run.label
    after, before = (logits.argmax(1) == run.label for logits in ask(others))
    return {
        "images": len(own),
        "right_with": float(right.double().mean()),
        "right_without": float(left.double().mean()),
        "score_with": float(with_mark[:, run.label].double().mean()),
        "score_without": float(without[:, run.label].double().mean()),
        "lost": int((right & ~left).sum()),
        "gained": int((left & ~right).sum()),
        "drawn": float((after & ~before).double().mean()),
    }


def main() -> None:
    """Train what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default=os.environ.get("XATTN_DATA", "data"), help="root that holds tiny-imagenet")
    parser.add_argument("--only", default="", help="runs whose name begins so")
    parser.add_argument("--development", action="store_true", help="the networks that the audit was made with")
    given = parser.parse_args()
    torch.set_num_threads(1)
    root = str(Path(given.data) / "tiny-imagenet")
    untrained = create_model("tiny-cnn")
    bare = [
        early(untrained, [sample.image for sample in data.without()])
        for data in (RUNS[0].to_train(root), RUNS[0].to_look_at(root))
    ]
    for run in DEVELOPMENT if given.development else RUNS:
        out = given.folder / run.name
        if (out / "use.json").exists() or not run.name.startswith(given.only):
            continue
        out.mkdir(parents=True, exist_ok=True)
        path = save_weights(train(run, run.to_train(root), bare[0]), out / "best.safetensors")
        use = use_of(load_model(path), run, run.to_look_at(root), bare[1])
        with whole_file(out / "use.json") as temporary:
            temporary.write_text(json.dumps(use, indent=1) + "\n")
        print(run.name, {key: round(value, 3) for key, value in use.items()}, flush=True)


if __name__ == "__main__":
    main()
