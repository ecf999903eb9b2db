"""Are finer maps better ones? Maps by dilation beside enlarged coarse ones and beside those of earlier layers.

    python benchmarks/convert/resolution.py DATA [--only NETWORK] [--images 200] [--work FOLDER]

For each network and image the class that the network names is explained by Grad-CAM and BR-NPA on the grid of the last
layer, on the same moved to where its cells look, on those of copies that are dilated (x2, x4), by LayerCAM of earlier
layers with the same grids, and by LayerCAM of all of these layers fused as in its paper (Jiang et al. 2021,
doi:10.1109/TIP.2021.3089943, eq. 8: each map as tanh(2 m / max m), the largest of all at each pixel). A map is enlarged
bilinearly, then: the share of its energy in the object's box, whether its highest point lies there, and insertion and
deletion of the network itself on the common grid, where the number of cells is the same for all. Values
are kept by image in the work folder; results go to `resolution.json`, the table to `docs/resolution.md`: means, and
differences to Grad-CAM of the last layer with intervals of 95 % of the bootstrap over images.

DATA has `cub-20` (boxes of birds; EfficientNet-Lite0, Lite2 and SqueezeNet were trained on ImageNet, not on these
images), `magnetic-tile` (masks of defects) and `funnybirds-mini` (masks of rendered birds), each with
EfficientNet-Lite0 and a linear classifier that is trained here on features of its training images, explained for the
class of the label, on test images, and `tiny-imagenet` (images of its validation part; `tiny-cnn` was trained on the
others). Rows of networks that were not asked for stay as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gap import opened, probe, rows
from pages import DOCS, put
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import xattn
from xattn.data.preprocessing import preprocess
from xattn.explanation import Explanation
from xattn.functional import energy_pointing, pointing_hit
from xattn.functional.statistics import bootstrap_means
from xattn.metrics.deletion import Deletion, Insertion
from xattn.models import create_model
from xattn.models.agreement import relative_cost
from xattn.models.dilated_layers import old_cells
from xattn.models.dilation import dilated
from xattn.trace import record

RESULTS = Path(__file__).parent / "resolution.json"
STEPS = 8
BATCH, TRAINED_ON = 10, 390  # images for a linear classifier
COLUMNS = {"energy": "energy in the box ↑", "hit": "highest point in it ↑", "insertion": "insertion ↑",
           "deletion": "deletion ↓"}  # fmt: skip
REFERENCE = "gradcam"
# Of these insertion and deletion are measured; for one map they cost more passes than all maps together.
FAITHFUL = ("gradcam", "gradcam, moved", "gradcam x2", "gradcam x4", "brnpa", "brnpa x4", "layercam, fused", "centre")


@dataclass(frozen=True)
class Case:
    """One network on one set of images.

    Args:
        network: name for `create_model`.
        images: parquet file with `image` and one of `box`, `mask`, `part_map`.
        layers: the layers before the last two and the last one stride, whose grids are those of x4 and x2.
        faithful: methods for which insertion and deletion are measured.
        weights: file of the weights; empty for those of the name.
        train: parquet file that a linear classifier is trained on, which takes the place of the network's own.
    """

    network: str
    images: str
    layers: tuple[str, str]
    faithful: tuple[str, ...] = ()
    weights: str = ""
    train: str = ""


_LITE = "efficientnet_lite0", ("blocks.2", "blocks.4")
CASES = {
    "tiny-cnn": Case(
        "tiny-cnn", "tiny-imagenet/val-00000-of-00001.parquet", ("backbone.layer2", "backbone.layer3"), FAITHFUL
    ),
    "efficientnet_lite0": Case(_LITE[0], "cub-20/test.parquet", _LITE[1], FAITHFUL),
    "efficientnet_lite2": Case("efficientnet_lite2", "cub-20/test.parquet", _LITE[1]),
    "squeezenet1_0": Case(
        "squeezenet1_0", "cub-20/test.parquet", ("features.5", "features.10"), FAITHFUL,
        weights="imagenet/squeezenet1_0.safetensors",
    ),
    "efficientnet_lite0, tiles": Case(
        _LITE[0], "magnetic-tile/test.parquet", _LITE[1], train="magnetic-tile/train.parquet"
    ),
    "efficientnet_lite0, rendered birds": Case(
        _LITE[0], "funnybirds-mini/test.parquet", _LITE[1], train="funnybirds-mini/train.parquet"
    ),
}  # fmt: skip


def network_of(case: Case, root: Path) -> Any:
    """The network, with a classifier of its own where there are images to train it on."""
    weights = root / case.weights if case.weights else None
    model: Any = create_model(case.network, weights=weights).eval()
    if not case.train:
        return model
    found = list(rows(root / case.train, TRAINED_ON))
    vectors = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(found), BATCH):
            x = torch.stack([preprocess(image, model.spec) for image, _ in found[start : start + BATCH]])
            vectors.append(model.global_pool(model.forward_features(x)).float())
    weight, bias = probe(torch.cat(vectors), torch.tensor([label for _, label in found]))
    model.classifier = torch.nn.Linear(weight.shape[1], len(weight))
    model.classifier.weight.data, model.classifier.bias.data = weight, bias
    model.spec = dataclasses.replace(model.spec, classes=())
    return model


def images(path: Path, count: int) -> Iterator[tuple[Image.Image, Image.Image, int]]:
    """Images, what is to be found in them, white on black, and their labels: every so many-th of those that have it."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, use_threads=False)
    (place,) = {"box", "mask", "part_map"} & set(table.column_names)
    table = table.select(["image", place, "label"]).to_pylist()
    if place == "mask":
        table = [row for row in table if object_in(row[place], (0, 0)).getbbox()]
    count = min(count, len(table))
    for i in range(count):
        row = table[i * len(table) // count]
        image = opened(row["image"])
        yield image, object_in(row[place], image.size), row["label"]


def object_in(place: Any, size: tuple[int, int]) -> Image.Image:
    """White on black: a box in an image of that size, the pixels of a mask, or those of the six parts of a bird."""
    if isinstance(place, (list, tuple)):
        left, top, right, bottom = place
        drawn = Image.new("RGB", size)
        drawn.paste((255, 255, 255), (left, top, right + 1, bottom + 1))
        return drawn
    values = np.asarray(Image.open(io.BytesIO(place["bytes"] if isinstance(place, dict) else place)))
    inside = values if values.dtype == bool else (values > 0) & (values <= 6)
    return Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).convert("RGB")


def mask_of(box: Image.Image, spec: xattn.ModelSpec) -> Tensor:
    """The box (1, H, W), cut and resized as the image is."""
    grey = (0.5 - spec.mean[0]) / spec.std[0]
    return preprocess(box, spec)[:1] > grey


def fused(maps: list[Explanation]) -> Explanation:
    """The largest of several maps at each pixel, each as tanh(2 m / max m)."""
    scaled = [m.resized() for m in maps]
    scaled = [torch.tanh(2 * m / m.amax((2, 3), keepdim=True).clamp(min=1e-12)) for m in scaled]
    return dataclasses.replace(maps[0], maps=torch.stack(scaled).amax(0))


def moved(explanation: Explanation, copy: Any, factor: int) -> Explanation:
    """A coarse map drawn where its cells stand among those of a dilated copy, and not in equal shares of the image.

    So that a finer map is not called better for standing where it looks: the cells of a network that pads one side
    alone, or not at all, look beside their share of the image.
    """
    cells, (height, width) = old_cells(copy), explanation.input_size
    places = []
    for side, count in ((height, explanation.maps.shape[2]), (width, explanation.maps.shape[3])):
        pixels = (torch.arange(side) + 0.5) / side * factor * count - 0.5  # in cells of the finer map
        places.append(2 * ((pixels - cells.start) / factor) / (count - 1) - 1)
    grid = torch.stack(torch.meshgrid(*places, indexing="ij")[::-1], dim=-1)[None]
    drawn = F.grid_sample(explanation.maps, grid, align_corners=True, padding_mode="border")
    return dataclasses.replace(explanation, maps=drawn)


def explained(
    model: Any, copies: dict[str, Any], layers: tuple[str, str], x: Tensor, target: Tensor | None
) -> dict[str, Explanation]:
    """Maps of one image (1, C, H, W) by name; without a target those of the class that the network names."""
    names = ["gradcam", "brnpa", "layercam", *(f"layercam:layer={layer}" for layer in layers), "centre"]
    found = xattn.explain(model, x, names, target=target)
    target = found[0].target
    made = dict(zip(("gradcam", "brnpa", "layercam", "layercam, x4 grid", "layercam, x2 grid", "centre"), found,
                    strict=True))  # fmt: skip
    for resolution, copy in copies.items():
        finer = xattn.explain(copy, x, ["gradcam", "brnpa"], target=target, spec=copy.spec)
        made |= {f"{m.method.name} {resolution}": m for m in finer}
    for name in ("gradcam", "brnpa"):
        made[f"{name}, moved"] = moved(made[name], copies["x4"], 4)
    made["layercam, fused"] = fused([made["layercam"], made["layercam, x2 grid"], made["layercam, x4 grid"]])
    return made


def measure(name: str, root: Path, count: int, work: Path) -> dict[str, Any]:
    """All values of one network: (images, columns) for each method, and what copies cost."""
    case = CASES[name]
    model = network_of(case, root)
    side = model.spec.input_size
    copies: dict[str, Any] = {}
    costs = {"": 1.0}
    for resolution, factor in (("x2", 2), ("x4", 4)):
        copy = dilated(model, factor, feature_layer=model.spec.feature_layer, input_size=side)
        copy.spec = dataclasses.replace(model.spec, ran={})
        copies[resolution] = copy
        costs[resolution] = round(relative_cost(model, copy, torch.zeros(1, 3, *side)), 2)
    metrics = (Insertion(steps=STEPS), Deletion(steps=STEPS))
    path = work / f"{name}-{count}.json"
    seen: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    for number, (image, box, label) in enumerate(images(root / case.images, count)):
        if number < len(seen):
            continue
        x, mask = preprocess(image, model.spec)[None], mask_of(box, model.spec)[None]
        if not bool(mask.any()):  # cut off with the border of the image
            seen.append({})
            continue
        made = explained(model, copies, case.layers, x, torch.tensor([label]) if case.train else None)
        trace = record(model, x, made["gradcam"].target, spec=model.spec, grad=False)
        asked = [name for name in made if name in case.faithful]
        scores = {
            name: values
            for name, *values in zip(
                asked, *(m.measure_many([made[name] for name in asked], trace, None) for m in metrics), strict=True
            )
        }
        row: dict[str, Any] = {"box": round(float(mask.float().mean()), 3), "agrees": {}}
        for resolution, copy in copies.items():
            with torch.no_grad():
                row["agrees"][resolution] = bool(copy(x).argmax() == trace.logits.argmax())
        row["right"] = bool(trace.logits.argmax() == label) if case.train else None
        for method, explanation in made.items():
            insertion, deletion = scores.get(method, ({"insertion": torch.nan}, {"deletion": torch.nan}))
            row[method] = {
                "energy": float(energy_pointing(explanation.resized(), mask)),
                "hit": float(pointing_hit(explanation.resized(), mask, 0)),
                "insertion": float(insertion["insertion"]), "deletion": float(deletion["deletion"]),
                "grid": list(explanation.maps.shape[2:]),
            }  # fmt: skip
        seen.append(row)
        work.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(seen))
    return summary(name, seen, costs)


def summary(name: str, rows: list[dict[str, Any]], costs: dict[str, float]) -> dict[str, Any]:
    """Means, and differences to the reference with their intervals."""
    rows = [row for row in rows if row]
    methods = [key for key in rows[0] if key not in ("box", "agrees", "right")]
    values = {m: np.array([[row[m][c] for c in COLUMNS] for row in rows]) for m in methods}
    found: dict[str, Any] = {
        "network": name, "n": len(rows), "box": round(float(np.mean([row["box"] for row in rows])), 3),
        "agrees": {r: sum(row["agrees"][r] for row in rows) for r in rows[0]["agrees"]}, "costs": costs, "methods": {},
    }  # fmt: skip
    if rows[0].get("right") is not None:
        found["right"] = sum(row["right"] for row in rows)
    for method in methods:
        columns = []
        for column, difference in zip(values[method].T, (values[method] - values[REFERENCE]).T, strict=True):
            known = ~np.isnan(difference)
            if not known.any():
                columns.append(None)
                continue
            low, high = np.quantile(bootstrap_means(difference[known, None], 2000, seed=0), (0.025, 0.975))
            numbers = (np.nanmean(column), difference[known].mean(), low, high)
            columns.append([round(float(number), 3) for number in numbers])
        found["methods"][method] = {"grid": rows[0][method]["grid"], **dict(zip(COLUMNS, columns, strict=True))}
    return found


def table(found: list[dict[str, Any]]) -> str:
    """All networks in Markdown; a difference whose interval excludes zero is bold."""
    lines = []
    for one in found:
        agreed = ", ".join(f"{count} of {one['n']} at {r}" for r, count in one["agrees"].items())
        lines += [
            f"**{one['network']}**, {one['n']} images, whose boxes or masks cover {one['box']:.1%} on average. "
            + (f"The network has {one['right']} right. " if "right" in one else "")
            + f"The copy names the class of the network on {agreed}.",
            "",
            "| method | grid | passes | " + " | ".join(COLUMNS.values()) + " |",
            "| --- " * (3 + len(COLUMNS)) + "|",
        ]
        for method, row in one["methods"].items():
            cells = []
            for column in COLUMNS:
                if row[column] is None:
                    cells.append("")
                    continue
                mean, d, low, high = row[column]
                told = f"({d:+.3f} [{low:+.3f}, {high:+.3f}])"
                told = f" **{told}**" if low > 0 or high < 0 else f" {told}"
                cells.append(f"{mean:.3f}" + ("" if method == REFERENCE else told))
            cost = next((c for r, c in one["costs"].items() if r and method.endswith(f" {r}")), 1.0)
            grid = "x".join(map(str, row["grid"]))
            lines.append(f"| {method} | {grid} | {cost:.1f} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with cub-20, funnybirds-mini, magnetic-tile, tiny-imagenet")
    parser.add_argument("--only", default="", help="text that the name of the network must contain")
    parser.add_argument("--images", type=int, default=200, help="of each network, at most")
    parser.add_argument("--work", type=Path, default=Path("runs/convert-resolution"), help="what is kept by image")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = {}
    for name in CASES:
        if options.only in name:
            began = time.process_time()
            made[name] = measure(name, options.data, options.images, options.work)
            print(f"{name}: {time.process_time() - began:.0f} s", flush=True)
    known = {one["network"]: one for one in json.loads(RESULTS.read_text(encoding="utf-8"))["networks"]}
    known |= made
    found = [known[name] for name in CASES if name in known]
    head = {"torch": torch.__version__, "device": "CPU", "xattn": xattn.__version__, "steps": STEPS}
    RESULTS.write_text(json.dumps(head | {"networks": found}, indent=1) + "\n", encoding="utf-8")
    put(DOCS / "resolution.md", "resolution.py", table(found))


if __name__ == "__main__":
    main()
