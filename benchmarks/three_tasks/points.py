"""Which of the 15 points of a bird lies in which part map, and whether it is the same part in every photograph.

    python benchmarks/three_tasks/points.py --runs runs/three-tasks

Two controls: the parts of each photograph exchanged at random, which leaves the maps as they are and is what chance
alone gives, and three bands of the image, upper, middle and lower third, which know nothing of the photograph.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from measure import SOURCES
from torch import Tensor

from xattn.data import open_dataset
from xattn.data.parquet import Parquet
from xattn.data.preprocessing import place, to_batch
from xattn.files import whole_file
from xattn.functional.points import part_counts, part_entropy, part_information, parts_at
from xattn.models import convert, create_model
from xattn.models.heads import Classifier
from xattn.training.evaluation import load_trained
from xattn.training.folder import processor_name

RESULTS = Path(__file__).parent / "points.json"
BATCH, SHUFFLES, PARTS = 16, 20, 3
CONVERTED = {"Lite0, converted": "low", "Lite0, converted, twice as fine": "x2"}


def points_of(data: Parquet, places: list[int], model: Classifier) -> Tensor:
    """Points (n, 15, 2) of some photographs as shares of what the network sees; NaN where they are not seen."""
    columns = data.column("parts")
    found = []
    for index in places:
        image = data[index].image
        at = place((image.shape[1], image.shape[0]), model.spec)
        rows = np.array(columns[index], np.float32)
        moved = at.points(rows[:, :2]) / np.array(at.size, np.float32)
        moved[rows[:, 2] == 0] = np.nan
        found.append(torch.from_numpy(moved))
    return torch.stack(found)


@torch.no_grad()
def assigned(model: Classifier, data: Parquet) -> tuple[Tensor, Tensor]:
    """Part (n, 15) of each point of all photographs by the network's maps, and by three bands of the image."""
    by_maps, by_bands = [], []
    bands = torch.eye(PARTS).view(1, PARTS, PARTS, 1)
    for places in torch.arange(len(data)).split(BATCH):
        points = points_of(data, places.tolist(), model)
        x = to_batch([data[i].image for i in places.tolist()], model.spec)
        maps = cast("Any", model.head).attention(model.backbone(x))
        by_maps.append(parts_at(maps.double(), points.double()))
        by_bands.append(parts_at(bands.expand(len(points), -1, -1, -1), points))
    return torch.cat(by_maps), torch.cat(by_bands)


def exchanged(parts: Tensor, generator: torch.Generator) -> Tensor:
    """The parts (n, K) of each image under other numbers, drawn for each image."""
    numbers = torch.rand(len(parts), PARTS, generator=generator).argsort(1)
    return numbers.gather(1, parts.clamp(min=0)).masked_fill(parts < 0, -1)


def summary(parts: Tensor, names: list[str]) -> dict[str, Any]:
    """How stable the part of each point is."""
    counts = part_counts(parts, PARTS)
    return {
        "information": float(part_information(counts)),
        "entropy": float(part_entropy(counts).nanmean()),
        "points": {name: {"counts": row.tolist()} for name, row in zip(names, counts, strict=True)},
        "sightings": int(counts.sum()),
    }


def measured(model: Classifier, data: Parquet, names: list[str]) -> dict[str, Any]:
    """A network and its two controls."""
    found, bands = assigned(model.eval(), data)
    generator = torch.Generator().manual_seed(0)
    chance = [summary(exchanged(found, generator), names) for _ in range(SHUFFLES)]
    controls = {key: sum(c[key] for c in chance) / SHUFFLES for key in ("information", "entropy")}
    controls["highest_information"] = max(c["information"] for c in chance)
    with torch.no_grad():
        grid = tuple(model.backbone(torch.zeros(1, 3, *model.spec.input_size)).shape[2:])
    return {
        "grid": grid,
        "input_size": model.spec.input_size,
        "images": len(data),
        **summary(found, names),
        "exchanged": controls,
        "bands": summary(bands, names),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = cast("Parquet", open_dataset(os.path.expandvars(SOURCES["cub-20"]), "test"))
    names = (data.home / "parts.txt").read_text().split("\n")[:15]
    result = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"networks": {}}
    for label, resolution in CONVERTED.items():
        if label not in result["networks"]:
            model = convert(create_model("efficientnet_lite0"), parts=PARTS, weighting="equal", resolution=resolution)
            result["networks"][label] = measured(model, data, names)
            _write(result)
    for file in sorted((args.runs / "cub-20").glob("*/best.safetensors")):
        model, _ = load_trained(file)
        if model.spec.attention is not None:
            result["networks"][file.parent.name] = measured(model, data, names)
            _write(result)


def _write(result: dict[str, Any]) -> None:
    result["device"] = f"{processor_name()}, 1 thread"
    result["date"] = datetime.now(UTC).date().isoformat()
    with whole_file(RESULTS) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
