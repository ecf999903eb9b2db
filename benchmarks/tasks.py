"""Measure networks on a task and keep what was measured with its circumstances, one JSON file a data set.

    python benchmarks/tasks.py --data reid-parquet:$XATTN_DATA/holstein-reid --task reid --size 192x96 \
        --title "Holstein re-ID" --out benchmarks/results/tasks/holstein-reid.json untrained=efficientnet_lite0 \
        linear=runs/holstein-reid/linear/best.safetensors brnpa=runs/holstein-reid/brnpa/best.safetensors

A name without a file is a network with the weights that it comes with and mean pooling, at --size.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from xattn.cli.options import sides
from xattn.files import whole_file
from xattn.models import create_model
from xattn.models.header import read_header
from xattn.spec import sides_of
from xattn.training.data import Source, open_source
from xattn.training.evaluation import load_trained
from xattn.training.folder import processor_name, version_of
from xattn.training.recipe import DataSection
from xattn.training.tasks import tasks

RETRIEVAL = {"rank-1": "rank1", "rank-5": "rank5", "rank-10": "rank10", "mAP": "mAP"}


def measured(name: str, data: str, tests: list[str], size: str) -> dict[str, object]:
    """What is known of a network, and what each task measures of it."""
    about: dict[str, object] = {}
    if name.endswith(".safetensors"):
        model, _ = load_trained(name)
        extra = read_header(name).extra
        recipe = extra["recipe"]
        about = {
            "epoch": extra["epoch"],
            "held_out": extra["held_out"],
            "seed": recipe["run"]["seed"],
            "recipe": recipe,
        }
    else:
        model = create_model(name, head="linear", num_classes=2, weights="DEFAULT")
        input_size = sides_of(sides(size, "--size"))
        model.spec = dataclasses.replace(model.spec, input_size=input_size, crop=1.0)

    def open_part(part: str | None) -> Source:
        return open_source(DataSection(source=data), part)

    about["architecture"] = model.architecture
    about["input_size"] = model.spec.input_size
    about["parameters"] = sum(p.numel() for p in model.parameters())
    about["measures"] = [
        {"task": test, **tasks.parse(test).evaluate(model, open_part, None, batch_size=64)[0]} for test in tests
    ]
    return about


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="LABEL=NAME|FILE")
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", action="append", required=True)
    parser.add_argument("--title", required=True, help="name of the data set in the table")
    parser.add_argument("--size", default="224")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    result = json.loads(args.out.read_text()) if args.out.is_file() else {"networks": {}}
    data = os.path.expandvars(args.data)
    for entry in args.networks:
        label, _, name = entry.partition("=")
        result["networks"][label] = {"name": Path(name).name, **measured(name, data, args.task, args.size)}
    result["title"] = args.title
    root = os.environ.get("XATTN_DATA", "")
    result["data"] = data.replace(root, "$XATTN_DATA") if root else data
    result["device"] = f"{processor_name()}, {torch.get_num_threads()} thread"
    result["versions"] = {p: version_of(p) for p in ("torch", "timm", "xattn")}
    result["date"] = datetime.now(UTC).date().isoformat()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(args.out) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    write_tables(args.out.parent)


def write_tables(folder: Path) -> None:
    """The tables of all results in a folder as its README."""
    text = [
        "# Tasks",
        "",
        "Written by `python benchmarks/tasks.py`; what each network is stands in the JSON files.",
        "",
    ]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        text += [f"## {result['title']}", "", *table(result), ""]
    with whole_file(folder / "README.md") as temporary:
        temporary.write_text("\n".join(text))


def table(result: dict[str, Any]) -> list[str]:
    """A row for each network, and below it under which circumstances it was measured."""
    lines: list[str] = []
    for label, network in result["networks"].items():
        values: dict[str, str] = {}
        for m in network["measures"]:
            if "mAP" in m:
                values |= {k: f"{100 * m[key]:.1f} %" for k, key in RETRIEVAL.items()}
            else:
                values |= {
                    f"{m['way']}-way {m['shot']}-shot, {kind}": f"{100 * m[kind]['accuracy']:.1f} ± "
                    f"{100 * m[kind]['interval']:.1f} %"
                    for kind in ("cosine", "euclidean")
                }
        if not lines:
            head = ["network", "head", "input", "parameters", "best epoch", *values]
            lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
        architecture, size = network["architecture"], network["input_size"]
        trained = f"{network['epoch']} of {network['recipe']['run']['epochs']}" if "recipe" in network else "none here"
        row = [label, f"{architecture['backbone']}, {architecture['head']}", f"{size[0]} x {size[1]} px"]
        row += [f"{network['parameters'] / 1e6:.1f} M", trained, *values.values()]
        lines.append(f"| {' | '.join(row)} |")
    first = next(iter(result["networks"].values()))["measures"][0]
    what = (
        f"{first['queries']:,} queries in {first['gallery']:,} images, {first['identities']} individuals"
        if "mAP" in first
        else f"{first['images']:,} images of {first['classes']} classes, {first['episodes']:,} episodes"
    )
    return [*lines, "", f"Measured on {what}, none of them trained on; one seed. {result['device']}; {result['date']}."]


if __name__ == "__main__":
    main()
