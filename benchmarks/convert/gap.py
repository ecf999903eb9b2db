"""What turning a network into one whose attention can be read costs, and what closes the gap without labels.

    python benchmarks/convert/gap.py DATA [--only NAME] [--work FOLDER]

For each network and resolution: how many of the test images it has right, as published and with 3 parts: those that
count as much as they cover and those that count the same, each as converted and with the classifier fitted as `xattn
convert --fit` does; and the latter with batch norm's statistics taken anew (finer grids only), and distilled by
`xattn convert --distil`, all from the network itself on other images without labels. Nothing of the test images is used
for any of these. Of each network and set of images one pass is made, and what the classifier reads is kept in the work
folder, so that a run that was stopped goes on there. Results go to `gap.json`, the table to `docs/convert.md`; rows of
what was not asked for stay as they are.

DATA has `imagenet` (40 photographs, of which ten views each are another set), `cub-20` (600 train and 585 test
photographs) and `tiny-imagenet`, whose images are enlarged to 224 pixels for the networks of ImageNet and have 200 of
its classes: right of all classes and right of these. EfficientNet-Lite0 and SqueezeNet were trained on ImageNet and may
have seen the photographs, and those that became Tiny-ImageNet, at full size. The network of 20 birds is
EfficientNet-Lite0 with a linear classifier that is trained here on the 600 photographs with their labels; its fit sees
them without.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from learning import distilled
from pages import DOCS, put
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import xattn
from xattn.data.preprocessing import preprocess
from xattn.files import whole_file
from xattn.models import create_model
from xattn.models.agreement import relative_cost
from xattn.models.converting import convert, everywhere, recalibrated
from xattn.models.dilated_layers import old_cells
from xattn.models.fitting import best_ridge, correction, divergence
from xattn.models.shared_heads import CoverageAttention

RESULTS = Path(__file__).parent / "gap.json"
PARTS, BATCH = 3, 10
ORDER = ("tiny-cnn", "squeezenet1_0", "efficientnet_lite0")
FEW = 200  # images for statistics of batch norm
READ = {"coverage": ("coverage", "covered"), "equal": ("new", "parts")}  # logits and vectors by weighting
Images = Iterator[tuple[Image.Image, int]]
ENLARGED = "Tiny-ImageNet, enlarged"
BUNTING = 6, 14  # of the 20 birds the one that ImageNet has, too: its class among them, and there
VIEWS = {"photographs, ten views": 10}  # images in a row that are of the same photograph, by set


# ------------------------------------------------------------------------------------------------------- images


def photographs(root: Path) -> Images:
    """The 40 photographs with their classes of ImageNet."""
    with (root / "imagenet" / "photos.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            yield Image.open(root / "imagenet" / "photos" / row["file"]).convert("RGB"), int(row["label"])


def ten_views(root: Path) -> Images:
    """Ten images of each of the 40 photographs: seven eighths of it, middle and corners, and their mirror images."""
    for image, label in photographs(root):
        w, h = (7 * side // 8 for side in image.size)
        left, top = image.width - w, image.height - h
        for x, y in ((left // 2, top // 2), (0, 0), (left, 0), (0, top), (left, top)):
            part = image.crop((x, y, x + w, y + h))
            yield part, label
            yield part.transpose(Image.Transpose.FLIP_LEFT_RIGHT), label


def birds(root: Path, part: str, count: int) -> Images:
    """Photographs of 20 birds, spread over the classes."""
    yield from rows(root / "cub-20" / f"{part}.parquet", count)


def small(root: Path, part: str, count: int) -> Images:
    """Images of Tiny-ImageNet, 64x64."""
    yield from rows(next((root / "tiny-imagenet").glob(f"{part}-00000-*.parquet")), count)


def enlarged(root: Path, part: str, count: int) -> Images:
    """Images of Tiny-ImageNet with their classes of ImageNet."""
    numbers = imagenet_classes(root)
    for image, label in small(root, part, count):
        yield image, numbers[label]


def imagenet_classes(root: Path) -> list[int]:
    """The class of ImageNet for each of the 200."""
    from timm.data import ImageNetInfo

    place = {name: i for i, name in enumerate(ImageNetInfo().label_names())}
    with (root / "tiny-imagenet" / "classes.csv").open(encoding="utf-8", newline="") as stream:
        return [place[row["wnid"]] for row in csv.DictReader(stream)]


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

    for row in pq.read_table(path, columns=["image", "label"], use_threads=False).slice(start, count).to_pylist():
        yield opened(row["image"]), row["label"]


def opened(value: Any) -> Image.Image:
    """An image of a parquet file: bytes, or a table that has them."""
    return Image.open(io.BytesIO(value["bytes"] if isinstance(value, dict) else value)).convert("RGB")


def rows(path: Path, count: int) -> Images:
    """Every so many-th row of a file, as an image and its label."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["image", "label"], use_threads=False)
    for i in range(0, count):
        row = table.slice(i * len(table) // count, 1).to_pylist()[0]
        yield opened(row["image"]), row["label"]


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
        learn: images that it is distilled on, the first set of `fit`; 0 for none.
    """

    name: str
    build: Callable[[], nn.Module]
    resolution: str
    fit: dict[str, Callable[[], Images]]
    test: dict[str, Callable[[], Images]]
    birds: bool = False
    learn: int = 0


def cases(root: Path) -> list[Case]:
    """What is measured."""
    general = {"birds, train": partial(birds, root, "train", 600), "mosaics": partial(mosaics, root, 300)}
    own_birds = {"birds, train": general["birds, train"]}
    tests = {
        "photographs": partial(photographs, root), "photographs, ten views": partial(ten_views, root),
        "birds": partial(birds, root, "test", 585),
    }  # fmt: skip
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
        found.append(Case("efficientnet_lite0, 20 birds", lite, resolution, own_birds, tests, birds=True))
    # Images of the same kind as those of the test.
    for name, build, resolution, train, test, learn in (
        ("squeezenet1_0", squeezenet, "low", 1000, 1000, 0),
        ("efficientnet_lite0", lite, "low", 1000, 1000, 300),
        ("efficientnet_lite0", lite, "x4", 2000, 1000, 0),
    ):
        fit = {"Tiny-ImageNet, train": partial(enlarged, root, "train", train)}
        found.append(Case(name, build, resolution, fit, {ENLARGED: partial(enlarged, root, "val", test)}, learn=learn))
    return found


# ------------------------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def read(made: Any, images: Callable[[], Images], path: Path) -> dict[str, Tensor]:
    """What the classifiers read of a set of images, from one pass of the converted network: kept in a file.

    Returns:
        Logits of the network (N, K), by the law those of the old cells, of the converted one, and with parts by what
        they cover; the mean feature of the old cells and of all (N, C), parts of the converted one and those by what
        they cover (N, P * C), labels (N,).
    """
    if path.exists():
        kept: dict[str, Tensor] = torch.load(path, weights_only=True)
        return kept
    columns: dict[str, list[Tensor]] = {}
    waiting = list(images())
    made = made.to(memory_format=torch.channels_last)
    before, old = everywhere(made), old_cells(made.backbone)
    covering = copy.copy(made.head)
    covering._modules = {**made.head._modules, "attention": CoverageAttention(PARTS)}
    for start in range(0, len(waiting), BATCH):
        batch = waiting[start : start + BATCH]
        x = torch.stack([preprocess(image, made.spec) for image, _ in batch])
        features = made.backbone(x.contiguous(memory_format=torch.channels_last))
        new = {
            "old": before[2](before[1](features)), "new": made.head(features), "coverage": covering(features),
            "parts": made.head.embed(features), "covered": covering.embed(features),
            "mean": features[:, :, old, old].mean((2, 3)),
            "whole": features.mean((2, 3)),
            "label": torch.tensor([label for _, label in batch]),
        }  # fmt: skip
        for key, value in new.items():
            columns.setdefault(key, []).append(value)
    found = {key: torch.cat(values) for key, values in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        torch.save(found, temporary)
    return found


def changed(case: Case, made: Any, folder: Path) -> dict[str, Any]:
    """The converted network after the steps that change more than its classifier, by name; each leaves `made` alone."""
    (images, *_) = case.fit.values()
    found: dict[str, Any] = {}
    if case.resolution != "low":
        renewed = copy.deepcopy(made)
        chosen = itertools.islice(images(), FEW)
        with torch.no_grad():
            recalibrated(renewed, (x for (x,) in batches_of(chosen, made.spec)))
        found["recalibrated"] = renewed
    if case.learn:
        chosen = (image for image, _ in itertools.islice(images(), case.learn))
        options = ["--resolution", case.resolution, "--epochs", "1", "--lr", "0.0005", "--batch-size", "16"]
        options += ["--all-layers"] if case.resolution == "low" else []
        found["distilled"] = distilled(case.name, chosen, folder, *options)
    return found


def batches_of(images: Iterator[tuple[Image.Image, int]], spec: xattn.ModelSpec) -> Iterator[tuple[Tensor]]:
    """Images (N, 3, H, W) as a network takes them."""
    while batch := [preprocess(image, spec) for image, _ in itertools.islice(images, BATCH)]:
        yield (torch.stack(batch).contiguous(memory_format=torch.channels_last),)


def measure(case: Case, work: Path, own: list[int]) -> list[dict[str, Any]]:
    """Rows of one network and resolution: one for each set of test images, two where they have only some classes."""
    model: Any = case.build().eval()
    made = convert(model, parts=PARTS, resolution=case.resolution, weighting="equal")
    folder = work / f"{case.name.partition(',')[0]}-{case.resolution}"
    sets = {**case.fit, **case.test}
    seen = {name: read(made, images, folder / f"{name}.pt") for name, images in sets.items()}
    side = model.spec.input_size[0]
    row = {
        "network": case.name, "resolution": case.resolution, "parts": PARTS, "grid": grid(made, side),
        "cost": round(relative_cost(model, made, torch.zeros(1, 3, side, side)), 2),
        "fitted_on": {name: len(seen[name]["label"]) for name in case.fit},
    }  # fmt: skip
    later = changed(case, made, folder) if ENLARGED in case.test else {}
    if case.learn:
        row["distilled_on"] = case.learn
    if case.birds:
        seen = {
            name: of_birds(seen["birds, train"], one)
            for name, one in seen.items()
            if name not in ("photographs", *VIEWS)
        }
    fitted_on = [seen[name] for name in case.fit]
    matrices: dict[str, Tensor | None] = {}
    for weighting, (made_by, read_by) in READ.items():
        vectors, wanted, given = (torch.cat([one[key] for one in fitted_on]) for key in (read_by, "old", made_by))
        ridge, _ = best_ridge(vectors, wanted, given)
        matrices[weighting] = None if ridge is None else correction(vectors, wanted - given, ridge)
        row[f"ridge, {weighting}"] = ridge
    found = []
    for name, images in case.test.items():
        if name not in seen:
            continue
        test = seen[name]
        # The classes of the 20 birds are none of ImageNet's.
        labels = test["label"] if case.birds or name != "birds" else None
        answers = {}
        for weighting, (made_by, read_by) in READ.items():
            answers[weighting] = test[made_by]
            matrix = matrices[weighting]
            answers[f"{weighting}, fitted"] = test[made_by] + (0 if matrix is None else test[read_by] @ matrix.T)
        for stage, network in later.items():
            answers[stage] = read(network, images, folder / f"{name}, {stage}.pt")["new"]
        found.append(row | judged(name, test["old"], answers, labels))
        if name == "birds" and not case.birds:
            own_kind = test["label"] == BUNTING[0]
            kept = {stage: z[own_kind] for stage, z in answers.items()}
            labels = torch.full((int(own_kind.sum()),), BUNTING[1])
            found.append(row | judged("birds, indigo buntings", test["old"][own_kind], kept, labels))
        if name == ENLARGED:
            some = torch.tensor(sorted(own))
            places = torch.searchsorted(some, test["label"])
            answers = {stage: z[:, some] for stage, z in answers.items()}
            found.append(row | judged(f"{name}, its 200 classes", test["old"][:, some], answers, places))
    return found


def judged(name: str, old: Tensor, answers: dict[str, Tensor], labels: Tensor | None) -> dict[str, Any]:
    """What all stages say of one set of images, beside the network."""
    result: dict[str, Any] = {"images": name, "n": len(old)}
    if labels is not None:
        result["right"] = int((old.argmax(1) == labels).sum())
    views = VIEWS.get(name, 1)
    return result | {"stages": {stage: compared(old, new, labels, views) for stage, new in answers.items()}}


@torch.no_grad()
def grid(made: Any, side: int) -> list[int]:
    """Height and width of the map."""
    return list(made.backbone(torch.zeros(1, 3, side, side)).shape[2:])


def of_birds(train: dict[str, Tensor], one: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with a linear classifier of 20 birds in place of that of ImageNet, shared by the parts."""
    weight, bias = probe(train["mean"], train["label"])
    shared = weight.repeat(1, PARTS) / PARTS
    return one | {
        "old": one["mean"] @ weight.T + bias, "new": one["parts"] @ shared.T + bias,
        "coverage": one["whole"] @ weight.T + bias,
    }  # fmt: skip


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


def compared(old: Tensor, new: Tensor, labels: Tensor | None, views: int) -> dict[str, Any]:
    """Agreement with the network, divergence from it, and what is lost where labels are, with intervals of 95 %.

    That is points of top-1, and of the mean probability of the right class, which moves where no answer tips over. The
    intervals are over photographs, of which there are so many views in a row. Of few images it is told of those whose
    right answer is lost what the network itself gave the right class and the one that is named now, in percent.
    """
    result: dict[str, Any] = {
        "agrees": int((old.argmax(1) == new.argmax(1)).sum()),
        "kl": abs(round(float(divergence(old, new).mean()), 3)),
    }
    if labels is not None:
        right = (new.argmax(1) == labels).double()
        lost, half = mean_of((old.argmax(1) == labels).double() - right, views)
        result |= {"right": int(right.sum()), "lost": lost, "half": half}
        before, after = (z.double().softmax(1).gather(1, labels[:, None])[:, 0] for z in (old, new))
        lost, half = mean_of(before - after, views)
        result |= {"sure": round(100 * float(after.mean()), 2), "unsure": lost, "unsure_half": half}
        if len(labels) <= FEW:
            tipped = (old.argmax(1) == labels) & (new.argmax(1) != labels)
            named = old.double().softmax(1).gather(1, new.argmax(1)[:, None])[:, 0]
            result["tipped"] = [[round(100 * float(p[i]), 1) for p in (before, named)] for i in tipped.nonzero()]
    return result


def mean_of(lost: Tensor, views: int) -> tuple[float, float]:
    """The mean (N,) over photographs, and half of its interval of 95 %, in points."""
    lost = lost.unflatten(0, (-1, views)).mean(1)
    half = 1.96 * float(lost.std()) / math.sqrt(len(lost))
    return round(100 * float(lost.mean()), 2), round(100 * half, 2)


# --------------------------------------------------------------------------------------------------------- results


SURENESS = "\n\nPoints of the mean probability of the right class lost, which move also where no answer tips over:\n\n"
STAGES = ("coverage", "coverage, fitted", "equal", "equal, fitted", "recalibrated", "distilled")


def table(found: list[dict[str, Any]]) -> str:
    """All rows in Markdown: points lost, and answers that stayed."""
    stages = [stage for stage in STAGES if any(stage in row["stages"] for row in found)]
    lines = [
        "| network | grid | cost | test images | right, as published | " + " | ".join(stages) + " |",
        "| --- " * (5 + len(stages)) + "|",
    ]
    for row in found:
        cells = []
        for stage in stages:
            made = row["stages"].get(stage)
            cells.append("" if made is None else f"{told(made)}{made['agrees'] / row['n']:.1%}")
        right = f"{row['right'] / row['n']:.1%}" if "right" in row else ""
        lines.append(
            f"| {row['network']} | {row['grid'][0]}x{row['grid'][1]} | {row['cost']} | {row['images']}, n={row['n']} | "
            f"{right} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def sureness(found: list[dict[str, Any]]) -> str:
    """What is lost of the probability of the right class, in Markdown."""
    stages = STAGES[:4]
    lines = [
        "| network | grid | test images | probability, as published | " + " | ".join(stages) + " |",
        "| --- " * (4 + len(stages)) + "|",
    ]
    for row in found:
        made = [row["stages"].get(stage, {}) for stage in stages]
        if "sure" in made[0]:
            before = made[0]["sure"] + made[0]["unsure"]
            cells = " | ".join(points(m["unsure"], m["unsure_half"]) if m else "" for m in made)
            sizes = f"{row['grid'][0]}x{row['grid'][1]} | {row['images']}, n={row['n']}"
            lines.append(f"| {row['network']} | {sizes} | {before:.1f}% | {cells} |")
    return "\n".join(lines)


def told(stage: dict[str, Any]) -> str:
    """Points lost with their interval, where there are labels."""
    return points(stage["lost"], stage["half"]) + "; " if "lost" in stage else ""


def points(lost: float, half: float) -> str:
    """Points with their interval, which has no width to tell where nothing moved."""
    lost = round(lost, 1) + 0.0  # never -0.0
    return f"{lost:.1f} ± {half:.1f}" if round(half, 1) else f"{lost:.1f}"


def publish(found: list[dict[str, Any]]) -> None:
    """Write the JSON, in which other rows stay, and put the table into the page."""
    rows = {key(row): row for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]}
    rows |= {key(row): row for row in found}
    found = sorted(rows.values(), key=lambda row: (ORDER.index(row["network"].partition(",")[0]), *key(row)[1::-1]))
    head = {"torch": torch.__version__, "device": "CPU", "xattn": xattn.__version__}
    RESULTS.write_text(json.dumps(head | {"rows": found}, indent=1) + "\n", encoding="utf-8")
    put(DOCS / "convert.md", "gap.py", table(found) + SURENESS + sureness(found))


def key(row: dict[str, Any]) -> tuple[str, str, str]:
    """What a row is about."""
    return row["network"], row["resolution"], row["images"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with imagenet, cub-20 and tiny-imagenet")
    parser.add_argument("--only", default="", help="text that `NETWORK-RESOLUTION: TEST IMAGES` must contain")
    parser.add_argument("--work", type=Path, default=Path("runs/convert-gap"), help="what is kept of the passes")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for case in cases(options.data):
        if options.only in f"{case.name}-{case.resolution}: {', '.join(case.test)}":
            began = time.process_time()
            found = measure(case, options.work, imagenet_classes(options.data))
            print(table(found), f"{time.process_time() - began:.0f} s", flush=True)
            publish(found)


if __name__ == "__main__":
    main()
