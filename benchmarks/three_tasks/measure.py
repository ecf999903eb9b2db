"""Measure the trained networks of the three tasks, each once, and keep what was found in results.json.

    python benchmarks/three_tasks/measure.py --runs runs/three-tasks
    python benchmarks/three_tasks/tables.py

Time and memory are those of a process of its own: time of the processor for a step of training and for a forward pass,
and by how much the largest resident set grows beyond what Python, torch and the weights take.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from runs import RUNS
from torch import Tensor
from torch.nn import functional as F

from xattn.files import whole_file
from xattn.functional.retrieval import retrieval_ranks
from xattn.models import create_model
from xattn.models.header import read_header
from xattn.models.heads import Classifier, Head
from xattn.training.data import Source, open_source
from xattn.training.evaluation import features_of, load_trained
from xattn.training.folder import processor_name, version_of
from xattn.training.recipe import DataSection
from xattn.training.tasks import tasks

RESULTS = Path(__file__).parent / "results.json"
SOURCES = {
    "cub-20": "$XATTN_DATA/cub-20",
    "holstein-reid": "reid-parquet:$XATTN_DATA/holstein-reid",
    "cifar-fs": "cifar-fs:$XATTN_DATA/cifar-fs",
}
SHOTS = (1, 5)
BATCH, STEPS, RESAMPLES = 16, 6, 2000
FROZEN: dict[str, tuple[tuple[str, str, str | None, tuple[int, int]], ...]] = {
    "holstein-reid": (
        ("Lite0", "efficientnet_lite0", "linear", (192, 96)),
        ("Lite0, BR-NPA", "efficientnet_lite0", "brnpa", (192, 96)),
        ("tiny-cnn", "tiny-cnn", None, (96, 48)),
        ("tiny-bcnn", "tiny-bcnn", None, (96, 48)),
        ("tiny-brnpa", "tiny-brnpa", None, (96, 48)),
    ),
    "cifar-fs": (
        ("tiny-cnn", "tiny-cnn", None, (64, 64)),
        ("tiny-cnn, BR-NPA", "tiny-cnn", "brnpa", (64, 64)),
        ("tiny-bcnn", "tiny-bcnn", None, (64, 64)),
        ("tiny-brnpa", "tiny-brnpa", None, (64, 64)),
    ),
}
"""Networks that are not trained on the task: their features are compared as they come."""


def source(task: str, part: str | None) -> Source:
    """Images of a part of the data of a task."""
    return open_source(DataSection(source=SOURCES[task]), part)


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n independent images (Wilson 1927, JASA 22, 209-212)."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return middle - half, middle + half


def clustered(values: Tensor, groups: Tensor, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of values (n,), drawing whole groups (n,): images of one cow are no two."""
    names = groups.unique()
    sums = torch.stack([values[groups == g].sum() for g in names])
    counts = torch.stack([(groups == g).sum() for g in names]).double()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(names), (RESAMPLES, len(names)), generator=generator)
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def classes(model: Classifier, ranks: Any) -> dict[str, Any]:
    """Accuracy with its interval, sparsity, accuracy by rank of the parts."""
    found, _ = tasks.parse("classify").evaluate(model, lambda part: source("cub-20", part), None, ranks=ranks)
    kept = ("images", "top1", "top5", "density", "sparsity", "ranks", "rank_heads")
    return {key: found[key] for key in kept} | {"interval": wilson(found["top1"], found["images"])}


def individuals(model: Classifier, ranks: Any) -> dict[str, Any]:
    """Rank-1, rank-5, rank-10, mAP; intervals over individuals."""
    query, gallery = source("holstein-reid", "query"), source("holstein-reid", "gallery")
    labels = (query.labels, gallery.labels, query.groups, gallery.groups)
    precision, first = retrieval_ranks(features_of(model, query), features_of(model, gallery), *labels)
    known = ~precision.isnan()
    who = query.labels[known]
    columns = {f"rank{k}": (first[known] <= k).double() for k in (1, 5, 10)} | {"mAP": precision[known]}
    facts: dict[str, Any] = {"queries": int(known.sum()), "gallery": len(gallery), "individuals": len(who.unique())}
    facts |= {key: float(value.mean()) for key, value in columns.items()}
    return facts | {"interval": {key: clustered(value, who) for key, value in columns.items()}}


def episodes(model: Classifier, ranks: Any) -> dict[str, Any]:
    """Accuracy over 2,000 episodes of one and of five shots."""
    shown: dict[str, Any] = {}
    for shot in SHOTS:
        task = tasks.parse(f"fewshot:shot={shot}")
        shown[str(shot)] = task.evaluate(model, lambda part: source("cifar-fs", part), None)[0]
    return shown


MEASURES = {"cub-20": classes, "holstein-reid": individuals, "cifar-fs": episodes}


def cost(architecture: dict[str, Any], size: tuple[int, int]) -> dict[str, float]:
    """Milliseconds of the processor an image and megabytes, for a batch of 16 on one thread; in this process."""
    torch.set_num_threads(1)
    given = {k: v for k, v in architecture.items() if k in ("head", "parts", "resolution", "options")}
    model = create_model(architecture["backbone"], num_classes=architecture["classes"], **given)
    model.to(memory_format=torch.channels_last)
    x = torch.rand(BATCH, 3, *size).to(memory_format=torch.channels_last)
    target = torch.arange(BATCH) % architecture["classes"]
    spent: dict[str, list[float]] = {"forward_ms": [], "step_ms": []}
    base = peak_mb()
    for _ in range(STEPS):
        with torch.no_grad():
            began = time.process_time()
            model.eval()(x)
            spent["forward_ms"].append(time.process_time() - began)
    forward_mb = peak_mb() - base
    for _ in range(STEPS):
        began = time.process_time()
        model.train().zero_grad()
        F.cross_entropy(model(x), target).backward()
        spent["step_ms"].append(time.process_time() - began)
    found = {key: 1000 * sorted(values)[STEPS // 2] / BATCH for key, values in spent.items()}
    return found | {"forward_mb": forward_mb, "step_mb": peak_mb() - base}


def peak_mb() -> float:
    """Largest resident set of this process; that of `getrusage` would be the one of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


def cost_apart(architecture: dict[str, Any], size: tuple[int, int]) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--cost", json.dumps([architecture, list(size)])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return cast("dict[str, float]", json.loads(done.stdout.splitlines()[-1]))


def about(model: Classifier) -> dict[str, Any]:
    """What a network is, and what it costs."""
    size = model.spec.input_size
    with torch.no_grad():
        grid = tuple(model.backbone(torch.zeros(1, 3, *size)).shape[2:])
    return {
        "architecture": model.architecture,
        "input_size": size,
        "grid": grid,
        "parts": cast("Head", model.head).parts,
        "parameters": sum(p.numel() for p in model.parameters()),
        "cost": cost_apart(model.architecture, size),
    }


def trained(task: str, folder: Path) -> dict[str, Any]:
    """What is known of a trained network."""
    file = folder / "best.safetensors"
    model, ranks = load_trained(file)
    extra = read_header(file).extra
    last = json.loads((folder / "run.json").read_text())
    return {
        **about(model),
        "epoch": extra["epoch"],
        "epochs": last["epochs_done"],
        "planned": extra["recipe"]["run"]["epochs"],
        "held_out": extra["held_out"],
        **MEASURES[task](model.eval(), ranks),
    }


def untrained(task: str, name: str, head: str | None, size: tuple[int, int]) -> dict[str, Any]:
    """A network with the weights that it comes with, with another head where one is named."""
    options = {} if head is None else {"head": head, "num_classes": 2, "weights": "DEFAULT"}
    model = cast("Classifier", create_model(name, **options))  # type: ignore[arg-type]
    model.spec = dataclasses.replace(model.spec, input_size=size, crop=1.0)
    return {**about(model), **MEASURES[task](model.eval(), None)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--only", nargs="+", metavar="TASK/NAME", help="all of them, where it is not given")
    parser.add_argument("--again", action="store_true", help="measure what was measured too")
    parser.add_argument("--cost", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cost:
        architecture, size = json.loads(args.cost)
        print(json.dumps(cost(architecture, tuple(size))))
        return
    if args.runs is None:
        parser.error("--runs is needed: the folder of train.py --out")
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    wanted = [(t, name, "-") for t, rows in FROZEN.items() for name, *_ in rows]
    for run in RUNS:
        folders = sorted((args.runs / run.task).glob(f"{run.name}-[0-9]"))
        wanted += [
            (run.task, run.name, f.name.rpartition("-")[2]) for f in folders if (f / "best.safetensors").is_file()
        ]
    for task, name, seed in wanted:
        if args.only and f"{task}/{name}" not in args.only:
            continue
        known = result.setdefault(task, {}).setdefault(name, {})
        done = seed in known and known[seed].get("epochs") == known[seed].get("planned")
        if done and not args.again and "cost" in known[seed]:
            continue
        if seed in known and "cost" not in known[seed]:
            known[seed]["cost"] = cost_apart(known[seed]["architecture"], tuple(known[seed]["input_size"]))
        elif seed == "-":
            known[seed] = untrained(task, *next(row[1:] for row in FROZEN[task] if row[0] == name))
        else:
            known[seed] = trained(task, args.runs / task / f"{name}-{seed}")
        result["circumstances"] = {
            "device": f"{processor_name()}, 1 thread",
            "versions": {p: version_of(p) for p in ("torch", "timm", "xattn")},
            "date": datetime.now(UTC).date().isoformat(),
        }
        with whole_file(RESULTS) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")
        print(task, name, seed, flush=True)


if __name__ == "__main__":
    main()
