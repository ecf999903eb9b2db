"""What turning a network into one whose attention can be read costs, and what closes the gap without labels.

    python benchmarks/convert/gap.py DATA [--only NAME] [--work FOLDER]

For each network and resolution: how many of the test images it has right, as published and with 3 parts, as converted,
with the classifier fitted by `xattn.models.fitting` to the network itself on other images without labels. Nothing of
the test images is used for any of these. Of each network and set of images one pass is made and what the classifier
reads is kept in the work folder, so that a run that was stopped goes on there. Results go to `gap.json`, the table to
`docs/convert.md`.

DATA has `imagenet` (40 photographs; EfficientNet-Lite0 and SqueezeNet were trained on ImageNet and may have seen
them), `cub-20` (600 train and 585 test photographs) and `tiny-imagenet`. The network of 20 birds is EfficientNet-Lite0
with a linear classifier that is trained here on the 600 photographs with their labels; its fit sees them without.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pages import DOCS, put
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import xattn
from xattn.data.preprocessing import preprocess
from xattn.models import create_model
from xattn.models.agreement import relative_cost
from xattn.models.converting import convert
from xattn.models.fitting import RIDGE, correction

RESULTS = Path(__file__).parent / "gap.json"
PARTS, BATCH = 3, 10
RIDGES = (1.0, 0.1, 0.01)  # all are in the JSON, the table has that of `xattn convert`
Images = Iterator[tuple[Image.Image, int]]


# ------------------------------------------------------------------------------------------------------- images


def photographs(root: Path) -> Images:
    """The 40 photographs with their classes of ImageNet."""
    with (root / "imagenet" / "photos.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            yield Image.open(root / "imagenet" / "photos" / row["file"]).convert("RGB"), int(row["label"])


def birds(root: Path, part: str, count: int) -> Images:
    """Photographs of 20 birds, spread over the classes."""
    yield from rows(root / "cub-20" / f"{part}.parquet", count)


def small(root: Path, part: str, count: int) -> Images:
    """Images of Tiny-ImageNet, 64x64."""
    yield from rows(next((root / "tiny-imagenet").glob(f"{part}-00000-*.parquet")), count)


def mosaics(root: Path, count: int) -> Images:
    """Four training images of Tiny-ImageNet each, side by side, so that the picture has details."""
    path = next((root / "tiny-imagenet").glob("train-00000-*.parquet"))
    images = [image.resize((128, 128), Image.Resampling.BICUBIC) for image, _ in first(path, 200, 4 * count)]
    for i in range(count):
        whole = Image.new("RGB", (256, 256))
        for j in range(4):
            whole.paste(images[4 * i + j], (128 * (j % 2), 128 * (j // 2)))
        yield whole, -1


def first(path: Path, start: int, count: int) -> Images:
    """Rows of a file from one on, as images and their labels."""
    import pyarrow.parquet as pq

    for row in pq.read_table(path, columns=["image", "label"]).slice(start, count).to_pylist():
        yield Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"), row["label"]


def rows(path: Path, count: int) -> Images:
    """Every so many-th row of a file, as an image and its label."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["image", "label"]).to_pylist()
    for i in range(0, count):
        row = table[i * len(table) // count]
        yield Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"), row["label"]


# ------------------------------------------------------------------------------------------------------ networks


@dataclass(frozen=True)
class Case:
    """One network at one resolution.

    Args:
        name: in the table.
        build: makes the network.
        resolution: of the converted one.
        fit: sets of images without labels that the classifier is fitted on, by name.
        test: sets of images that are measured on.
        birds: the classifier is trained here for the 20 birds.
    """

    name: str
    build: Callable[[], nn.Module]
    resolution: str
    fit: dict[str, Callable[[], Images]]
    test: dict[str, Callable[[], Images]]
    birds: bool = False


def cases(root: Path) -> list[Case]:
    """What is measured."""
    general = {"birds, train": partial(birds, root, "train", 600), "mosaics": partial(mosaics, root, 300)}
    tests = {"photographs": partial(photographs, root), "birds": partial(birds, root, "test", 585)}
    own = {"Tiny-ImageNet, train": partial(small, root, "train", 2000)}
    held = {"Tiny-ImageNet": partial(small, root, "val", 1500)}
    squeezenet = partial(create_model, "squeezenet1_0", weights=root / "imagenet" / "squeezenet1_0.safetensors")
    lite = partial(create_model, "efficientnet_lite0")
    fewer = {"birds, train": partial(birds, root, "train", 300), "mosaics": partial(mosaics, root, 200)}
    few = {"photographs": partial(photographs, root), "birds": partial(birds, root, "test", 200)}
    found = [
        Case("tiny-cnn", partial(create_model, "tiny-cnn"), "low", own, held),
        Case("squeezenet1_0", squeezenet, "low", fewer, few),
    ]
    for resolution in ("low", "x4"):
        found.append(Case("efficientnet_lite0", lite, resolution, general, tests))
        found.append(Case("efficientnet_lite0, 20 birds", lite, resolution, general, tests, birds=True))
    return found


# ------------------------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def read(model: nn.Module, made: Any, factor: int, images: Callable[[], Images], path: Path) -> dict[str, Tensor]:
    """What the classifiers read of a set of images, from one pass of each network: kept in a file.

    Returns:
        Logits of both networks (N, K), the mean feature (N, C), parts of the converted one (N, P * C), labels (N,).
    """
    if path.exists():
        kept: dict[str, Tensor] = torch.load(path, weights_only=True)
        return kept
    columns: dict[str, list[Tensor]] = {}
    waiting = list(images())
    for start in range(0, len(waiting), BATCH):
        batch = waiting[start : start + BATCH]
        x = torch.stack([preprocess(image, model.spec) for image, _ in batch])
        features = made.backbone(x)
        new = {
            "old": model(x), "new": made.head(features), "parts": made.head.embed(features),
            "mean": features[:, :, ::factor, ::factor].mean((2, 3)),  # by the law that of the network
            "label": torch.tensor([label for _, label in batch]),
        }  # fmt: skip
        for key, value in new.items():
            columns.setdefault(key, []).append(value)
    found = {key: torch.cat(values) for key, values in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
    return found


def measure(case: Case, work: Path) -> list[dict[str, Any]]:
    """Rows of one network and resolution: one for each set of test images."""
    model: Any = case.build().eval()
    made = convert(model, parts=PARTS, resolution=case.resolution)
    factor = {"low": 1, "x2": 2, "x4": 4}[case.resolution]
    folder = work / f"{case.name.partition(',')[0]}-{case.resolution}"
    sets = {**case.fit, **case.test}
    seen = {name: read(model, made, factor, images, folder / f"{name}.pt") for name, images in sets.items()}
    side = model.spec.input_size[0]
    row = {
        "network": case.name, "resolution": case.resolution, "parts": PARTS, "grid": grid(made, side),
        "cost": round(relative_cost(model, made, torch.zeros(1, 3, side, side)), 2),
        "fitted_on": {name: len(seen[name]["label"]) for name in case.fit},
    }  # fmt: skip
    if case.birds:
        seen = {name: of_birds(seen["birds, train"], one) for name, one in seen.items() if name != "photographs"}
    fitted_on = [seen[name] for name in case.fit]
    parts = torch.cat([one["parts"] for one in fitted_on])
    missing = torch.cat([one["old"] - one["new"] for one in fitted_on])
    matrices = {ridge: correction(parts, missing, ridge) for ridge in RIDGES}
    found = []
    for name in case.test:
        if name not in seen:
            continue
        test = seen[name]
        # The classes of the 20 birds are none of ImageNet's.
        labelled = case.birds or name != "birds"
        answers = {"as converted": test["new"]}
        answers |= {f"fitted, ridge {r:g}": test["new"] + test["parts"] @ d.T for r, d in matrices.items()}
        result = {"images": name, "n": len(test["old"])}
        if labelled:
            result["right"] = int((test["old"].argmax(1) == test["label"]).sum())
        result["stages"] = {
            stage: compared(test["old"], new, test["label"] if labelled else None) for stage, new in answers.items()
        }
        found.append(row | result)
    return found


@torch.no_grad()
def grid(made: Any, side: int) -> list[int]:
    """Height and width of the map."""
    return list(made.backbone(torch.zeros(1, 3, side, side)).shape[2:])


def of_birds(train: dict[str, Tensor], one: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with a linear classifier of 20 birds in place of that of ImageNet, shared by the parts."""
    weight, bias = probe(train["mean"], train["label"])
    shared = weight.repeat(1, PARTS) / PARTS
    return one | {"old": one["mean"] @ weight.T + bias, "new": one["parts"] @ shared.T + bias}


def probe(features: Tensor, labels: Tensor, decay: float = 3e-3) -> tuple[Tensor, Tensor]:
    """A linear classifier (K, C) and (K,) of features (N, C): cross-entropy of standardized ones, decayed weights."""
    mean, spread = features.mean(0), features.std(0) + 1e-3
    x = (features - mean) / spread
    weight = torch.zeros(int(labels.max()) + 1, x.shape[1], requires_grad=True)
    bias = torch.zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, labels) + decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    scaled = (weight / spread).detach()
    return scaled, (bias - scaled @ mean).detach()


def compared(old: Tensor, new: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """Agreement with the network, divergence from it, and points lost with their interval of 95 % where labels are."""
    result: dict[str, Any] = {
        "agrees": int((old.argmax(1) == new.argmax(1)).sum()),
        "kl": round(float((old.softmax(1) * (old.log_softmax(1) - new.log_softmax(1))).sum(1).mean()), 3),
    }
    if labels is not None:
        right = (new.argmax(1) == labels).double()
        lost = (old.argmax(1) == labels).double() - right
        half = 1.96 * float(lost.std()) / math.sqrt(len(lost))
        result |= {"right": int(right.sum()), "lost": round(100 * float(lost.mean()), 2), "half": round(100 * half, 2)}
    return result


# --------------------------------------------------------------------------------------------------------- results


def table(found: list[dict[str, Any]]) -> str:
    """All rows in Markdown, at the ridge of `xattn convert`."""
    lines = [
        "| network | grid | cost | test images | right, as published | lost as converted | lost when fitted | agrees: "
        "converted, fitted |",
        "| --- " * 8 + "|",
    ]
    for row in found:
        stages = [row["stages"]["as converted"], row["stages"][f"fitted, ridge {RIDGE:g}"]]
        lost = [told(s) for s in stages]
        agrees = ", ".join(f"{s['agrees'] / row['n']:.1%}" for s in stages)
        right = f"{row['right'] / row['n']:.1%}" if "right" in row else ""
        lines.append(
            f"| {row['network']} | {row['grid'][0]}x{row['grid'][1]} | {row['cost']} | {row['images']}, n={row['n']} | "
            f"{right} | {lost[0]} | {lost[1]} | {agrees} |"
        )
    return "\n".join(lines)


def told(stage: dict[str, Any]) -> str:
    """Points lost with their interval, which has no width to tell where no image changed; empty without labels."""
    if "lost" not in stage:
        return ""
    return f"{stage['lost']:.1f} ± {stage['half']:.1f}" if stage["half"] else f"{stage['lost']:.1f}, no image changed"


def publish(found: list[dict[str, Any]]) -> None:
    """Write the JSON and put the table into the page."""
    head = {"torch": torch.__version__, "device": "CPU", "xattn": xattn.__version__, "ridge": RIDGE}
    RESULTS.write_text(json.dumps(head | {"rows": found}, indent=1) + "\n", encoding="utf-8")
    put(DOCS / "convert.md", "gap.py", table(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with imagenet, cub-20 and tiny-imagenet")
    parser.add_argument("--only", default="", help="text that `NETWORK-RESOLUTION` must contain; nothing is published")
    parser.add_argument("--work", type=Path, default=Path("runs/convert-gap"), help="what is kept of the passes")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = []
    for case in cases(options.data):
        if options.only in f"{case.name}-{case.resolution}":
            began = time.process_time()
            found += measure(case, options.work)
            print(table(found[-2:]).splitlines()[-1], f"{time.process_time() - began:.0f} s", flush=True)
    if not options.only:
        publish(found)
    else:
        print(table(found))


if __name__ == "__main__":
    main()
