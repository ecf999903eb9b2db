"""Test claims T1 to T5 and T7 of the BR-NPA paper (arXiv:2106.02566) on a part of Tiny-ImageNet.

    python benchmarks/attention/run.py --data tiny-imagenet:$XATTN_DATA/tiny-imagenet

Every network starts from the backbone of the embedded tiny-cnn and has the same number of epochs and images and the
same learning rates. Each run is one folder under --runs: the command may be stopped and goes on where it was. At the
end, and with --report at any time, `results.json`, `results.png` and `README.md` are written from the complete runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import lightning.fabric  # noqa: F401
import torch
from torch import Tensor
from torch.nn import functional as F

from xattn.functional.sparsity import attention_density, map_density
from xattn.models.embedded import FOLDER
from xattn.models.heads import BCNNHead, BRNPAHead, Classifier, Head
from xattn.training.augment import finish
from xattn.training.data import Source, open_source
from xattn.training.evaluation import load_trained, measure
from xattn.training.folder import processor_name
from xattn.training.loop import train
from xattn.training.recipe import AugmentSection, Recipe

HERE = Path(__file__).parent
HEADS = {"linear": "CNN", "bcnn": "B-CNN", "brnpa": "BR-NPA"}
KINDS = {"low": "low", "high": "high, cross-entropy only", "distilled": "high, distilled"}
ABLATIONS: dict[str, dict[str, Any]] = {
    "brnpa-random": {"seed": "random"},
    "brnpa-unrefined": {"refine": False},
    "brnpa-random-unrefined": {"seed": "random", "refine": False},
}
TEMPERATURE, WEIGHT = 6.0, 0.5


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is trained.

    Args:
        data: as `data.source` of a recipe.
        start: weights whose backbone every low-resolution network starts from.
        runs: folder of the runs.
        classes: first so many classes.
        per_class: training images of each, those held out included.
        epochs: of every network.
        batch_size: images in a step.
        lr: highest learning rate.
        seeds: repetitions: split, order, augmentation and new weights differ.
    """

    data: str
    start: str
    runs: str
    classes: int = 50
    per_class: int = 60
    epochs: int = 3
    batch_size: int = 64
    lr: float = 0.02
    seeds: int = 3


def jobs(plan: Plan) -> Iterator[tuple[str, Recipe]]:
    """Name and recipe of every run, teachers before their students, one seed after the other."""
    for seed in range(plan.seeds):
        for head in HEADS:
            yield f"{head}-low-{seed}", recipe(plan, f"{head}-low-{seed}", seed, head, start=plan.start)
        for name, options in ABLATIONS.items():
            yield f"{name}-{seed}", recipe(plan, f"{name}-{seed}", seed, "brnpa", start=plan.start, **options)
        for head in HEADS:
            low = str(Path(plan.runs) / f"{head}-low-{seed}" / "best.safetensors")
            name = f"{head}-high-{seed}"
            yield name, recipe(plan, name, seed, head, start=low, resolution="high")
            name = f"{head}-distilled-{seed}"
            yield name, recipe(plan, name, seed, head, start=low, teacher=low, resolution="high")


def recipe(plan: Plan, name: str, repetition: int, head: str, *, teacher: str = "", **model: Any) -> Recipe:
    """One run. Both high-resolution networks start from their low-resolution one: they differ in the loss alone."""
    return Recipe.build(
        {
            "data": {
                "source": plan.data,
                "held_out": 0.1,
                "classes": plan.classes,
                "per_class": plan.per_class,
            },
            "model": {"backbone": "tiny-cnn", "head": head, "ranks": head == "brnpa", **model},
            "distill": {"teacher": teacher, "temperature": TEMPERATURE, "weight": WEIGHT},
            "optimizer": {"lr": plan.lr, "warmup_epochs": 0.3, "ema": 0.99},
            "run": {
                "out": str(Path(plan.runs) / name),
                "epochs": plan.epochs,
                "batch_size": plan.batch_size,
                "image_size": 64,
                "seed": repetition,
                "precision": "bf16-mixed",
                "tensorboard": False,
            },
        }
    )


def run(plan: Plan) -> None:
    """Train and measure what is not there yet."""
    test = None
    for name, each in jobs(plan):
        result = Path(plan.runs) / name / "result.json"
        if result.is_file():
            continue
        began = time.perf_counter()
        done = train(each)
        test = test or open_source(each.data.model_copy(update={"per_class": 0}), "test")
        torch.manual_seed(0)  # random seeds of the parts
        model, ranks = load_trained(done.best)
        columns, speed = measure(model, test, ranks=ranks)
        values: dict[str, Any] = {
            "name": name,
            "held_out_accuracy": done.value,
            "best_epoch": done.epoch,
            "images_per_second": speed,
            "seconds": time.perf_counter() - began,
            "columns": {k: [round(v, 6) for v in c.tolist()] for k, c in columns.items()},
        }
        if name.rpartition("-")[0].endswith("-low"):
            values["columns"]["density_upsampled"] = [round(v, 6) for v in upsampled(model, test).tolist()]
        temporary = result.with_suffix(".tmp")
        temporary.write_text(json.dumps(values))
        temporary.replace(result)
        print(f"{name}: top-1 {columns['top1'].mean():.3f}, {values['seconds']:.0f} s", flush=True)


@torch.no_grad()
def upsampled(model: Classifier, source: Source, factor: int = 4) -> Tensor:
    """Density (n,) of low-resolution maps after bilinear interpolation: the control of T1, which must not gain."""
    section = AugmentSection(crop="none")
    mean, std = torch.tensor(model.spec.mean), torch.tensor(model.spec.std)
    indices = list(torch.arange(len(source)).split(250))
    attention = getattr(model.head, "attention", None)
    parts = []

    def larger(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    for images in source.batches(indices, [None] * len(indices), section, model.spec.input_size[0]):
        features = model.backbone(finish(images, section, None, mean, std))
        if attention is None:
            best = model.head(features).argmax(1)
            cam = torch.einsum("nchw,nc->nhw", features, cast("Head", model.head).classifier.weight[best])[:, None]
            parts.append(map_density(larger(cam)))
        else:
            norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
            parts.append(attention_density(larger(attention(features)), larger(norm)))
    return torch.cat(parts).double()


def cost(channels: int, grid: int, batch: int = 2, repeats: int = 5) -> dict[str, Any]:
    """T5: parameters and median seconds of the attention modules alone, forward, at equal resolution."""
    x = torch.rand(batch, channels, grid, grid)
    row: dict[str, Any] = {"channels": channels, "grid": grid, "batch": batch}
    with torch.no_grad():
        for head in (BCNNHead(channels, 10), BRNPAHead(channels, 10)):
            module = head.eval().attention
            module(x)
            times = []
            for _ in range(repeats):
                began = time.perf_counter()
                module(x)
                times.append(time.perf_counter() - began)
            row[head.kind] = {
                "parameters": sum(p.numel() for p in module.parameters()),
                "median_seconds": statistics.median(times),
            }
    return row


def collect(plan: Plan) -> dict[str, Any]:
    """All results that are there, by configuration."""
    done: dict[str, dict[str, dict[str, Any]]] = {}
    for name, _ in jobs(plan):
        path = Path(plan.runs) / name / "result.json"
        if path.is_file():
            configuration, _, seed = name.rpartition("-")
            done.setdefault(seed, {})[configuration] = json.loads(path.read_text())
    most = max(map(len, done.values()), default=0)
    found: dict[str, list[dict[str, Any]]] = {}
    for runs in done.values():
        if len(runs) == most:  # a seed with fewer networks than another one waits: comparisons are within seeds
            for configuration, row in runs.items():
                found.setdefault(configuration, []).append(row)
    networks = {name: summary(rows) for name, rows in found.items()}
    columns = {name: mean_columns(rows) for name, rows in found.items()}
    return {
        "command": "python benchmarks/attention/run.py",
        "plan": {k: v for k, v in dataclasses.asdict(plan).items() if k not in ("runs", "start")},
        "distillation": {"temperature": TEMPERATURE, "weight": WEIGHT},
        "device": processor_name(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "lightning", "numpy")}},
        "networks": networks,
        "differences": differences(columns),
        "cost": [cost(256, 16), cost(2048, 14)],
    }


def mean_columns(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Each column (n,), mean over the seeds; 1/x is made before the mean."""
    columns = {k: torch.tensor([row["columns"][k] for row in rows], dtype=torch.float64) for k in rows[0]["columns"]}
    for name in ("density", "density_upsampled"):
        if name in columns:
            columns[name.replace("density", "sparsity")] = 1 / columns[name]
    return {k: v.nanmean(0) for k, v in columns.items()}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over images and seeds, the value of every seed, and the standard error over images."""
    columns = mean_columns(rows)
    out: dict[str, Any] = {"seeds": len(rows), "images": len(columns["top1"])}
    for name, values in columns.items():
        kept = values[~values.isnan()]
        out[name] = {"mean": float(kept.mean()), "standard_error": float(kept.std() / len(kept) ** 0.5)}
    out["top1"]["by_seed"] = [statistics.fmean(row["columns"]["top1"]) for row in rows]
    out["images_per_second"] = statistics.median(row["images_per_second"] for row in rows)
    out["seconds"] = statistics.fmean(row["seconds"] for row in rows)
    return out


PAIRS: list[tuple[str, str, str, str, str]] = [
    # claim, column, more, less, what it says
    ("T1", "sparsity", "brnpa-distilled", "brnpa-low", "BR-NPA: high, distilled, is sparser than low"),
    ("T1", "sparsity", "bcnn-distilled", "bcnn-low", "B-CNN: high, distilled, is sparser than low"),
    ("T2", "top1", "brnpa-distilled", "brnpa-high", "BR-NPA: distilled is better than cross-entropy only"),
    ("T2", "top1", "bcnn-distilled", "bcnn-high", "B-CNN: distilled is better than cross-entropy only"),
    ("T2", "top1", "linear-distilled", "linear-high", "CNN: distilled is better than cross-entropy only"),
    ("T2", "top1", "brnpa-low", "brnpa-distilled", "BR-NPA: low is not far from high, distilled"),
    ("T4", "top1", "brnpa-low", "bcnn-low", "BR-NPA is at least as good as B-CNN at low resolution"),
    ("T4", "top1", "brnpa-low", "linear-low", "control: BR-NPA against the plain CNN at low resolution"),
    ("T7", "top1", "brnpa-low", "brnpa-random", "the most active cell is a better seed than a random one"),
    ("T7", "top1", "brnpa-low", "brnpa-unrefined", "refinement is better than the seed alone"),
    ("T7", "top1", "brnpa-unrefined", "brnpa-random-unrefined", "without refinement: active seed against random"),
]
RANK_PAIRS = [("1+2+3", "1+2"), ("1+2", "2+3"), ("1", "2"), ("2", "3")]


def differences(columns: dict[str, dict[str, Tensor]]) -> list[dict[str, Any]]:
    """Paired differences over the same images, with their standard error."""
    rows = []
    for claim, column, more, less, text in PAIRS:
        if more in columns and less in columns:
            rows.append(
                {"claim": claim, "column": column, "text": text, **paired(columns[more][column], columns[less][column])}
            )
    for name in ("brnpa-low", "brnpa-distilled"):
        for more, less in RANK_PAIRS:
            if name in columns:
                text = f"{name}: parts {{{more}}} tell more than {{{less}}}"
                rows.append(
                    {"claim": "T3", "column": "top1", "text": text, **paired(columns[name][more], columns[name][less])}
                )
    for head in ("brnpa", "bcnn"):
        if f"{head}-low" in columns:
            low = columns[f"{head}-low"]
            text = f"control: {HEADS[head]} low, upsampled 4x, against low as it is"
            rows.append(
                {
                    "claim": "T1",
                    "column": "sparsity",
                    "text": text,
                    **paired(low["sparsity_upsampled"], low["sparsity"]),
                }
            )
    return sorted(rows, key=lambda row: row["claim"])


def paired(more: Tensor, less: Tensor) -> dict[str, Any]:
    """Means, their difference, its standard error over images, and a verdict at two standard errors."""
    difference = more - less
    difference = difference[~difference.isnan()]
    mean, error = float(difference.mean()), float(difference.std() / len(difference) ** 0.5)
    verdict = "higher" if mean > 2 * error else "lower" if mean < -2 * error else "no difference seen"
    return {
        "first": float(more.nanmean()),
        "second": float(less.nanmean()),
        "difference": mean,
        "standard_error": error,
        "verdict": verdict,
    }


def draw_figure(results: dict[str, Any], path: Path) -> None:
    """Accuracy and sparsity of the nine networks."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, column, title, scale in zip(
        axes, ("top1", "sparsity"), ("top-1 accuracy (%)", "sparsity 1/x"), (100, 1), strict=True
    ):
        for i, (kind, label) in enumerate(KINDS.items()):
            for j, head in enumerate(HEADS):
                network = results["networks"].get(f"{head}-{kind}")
                if network is None:
                    continue
                value, error = (network[column][k] * scale for k in ("mean", "standard_error"))
                axis.bar(
                    j + 0.27 * (i - 1), value, 0.25, yerr=2 * error, color=f"C{i}", label=label if j == 2 else None
                )
        axis.set_xticks(range(len(HEADS)), list(HEADS.values()))
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes:
        axis.set_ylim(0, 1.35 * axis.get_ylim()[1])  # room for the legend
    axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def page(results: dict[str, Any]) -> str:
    """The results as text, made from the JSON alone."""
    plan, networks = results["plan"], results["networks"]
    seeds = max((n["seeds"] for n in networks.values()), default=0)
    fewest = min((n["seeds"] for n in networks.values()), default=0)
    complete = len(networks) == len(HEADS) * len(KINDS) + len(ABLATIONS) and fewest == plan["seeds"]
    lines = [
        "# Attention heads: claims of the BR-NPA paper on Tiny-ImageNet",
        "",
        "Written by `run.py` from `results.json`; do not edit.",
        "",
        f"`{results['command']}` on {results['device']}, {results['threads']} threads, torch "
        f"{results['versions']['torch']}.",
        "",
        f"{'All' if complete else 'Part of the'} runs are in: {sum(n['seeds'] for n in networks.values())} networks, "
        f"{seeds} of {plan['seeds']} seeds{'' if complete else ' at most'}.",
        "",
        "## What was done",
        "",
        f"The first {plan['classes']} classes of Tiny-ImageNet, {plan['per_class']} training images of each (a tenth "
        "of them held out to choose the epoch), all their validation images as the test set. A processor was all there "
        "was, so this is a small study: every network starts from the backbone of the embedded `tiny-cnn`, which has "
        f"seen all 200 classes, and is trained for {plan['epochs']} epochs with the same images, augmentation and "
        "learning rate. Low-resolution maps are 4x4, high-resolution ones 16x16. Both high-resolution networks start "
        "from their own low-resolution one and differ in the loss alone; that one has had as many epochs before, so "
        "low and high are not of equal budget. Distillation: "
        f"temperature {results['distillation']['temperature']:g}, weight {results['distillation']['weight']:g}.",
        "",
        *([results["note"], ""] if "note" in results else []),
        "The standard errors are over images, for the mean over seeds; a verdict needs two of them. They do not "
        "contain the variation between seeds beyond those that were run.",
        "",
        "![accuracy and sparsity](results.png)",
        "",
        "## Networks",
        "",
        "| network | seeds | top-1 (%) | by seed | sparsity 1/x | x | images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, n in networks.items():
        by_seed = ", ".join(f"{100 * v:.1f}" for v in n["top1"]["by_seed"])
        lines.append(
            f"| {name} | {n['seeds']} | {100 * n['top1']['mean']:.1f} ± {100 * n['top1']['standard_error']:.1f} | "
            f"{by_seed} | {n['sparsity']['mean']:.2f} | {n['density']['mean']:.3f} | {n['images_per_second']:.0f} |"
        )
    lines += [
        "",
        "The sparsity of the CNN is that of the class activation map of the predicted class, with the formula for a "
        "single map; it must not be compared with that of attention maps.",
        "",
        "## Claims",
        "",
        "| claim | comparison | first | second | difference | first is |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["differences"]:
        scale, digits = (100, 1) if row["column"] == "top1" else (1, 2)
        first, second, gap, error = (
            f"{scale * row[k]:.{digits}f}" for k in ("first", "second", "difference", "standard_error")
        )
        lines.append(f"| {row['claim']} | {row['text']} | {first} | {second} | {gap} ± {error} | {row['verdict']} |")
    lines += ["", "T5, the attention module alone, forward, at equal resolution:", ""]
    lines += [
        "| C | grid | B-CNN parameters | BR-NPA parameters | B-CNN ms | BR-NPA ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["cost"]:
        b, r = row["bcnn"], row["brnpa"]
        lines.append(
            f"| {row['channels']} | {row['grid']}x{row['grid']} | {b['parameters']:,} | {r['parameters']} | "
            f"{1e3 * b['median_seconds']:.2f} | {1e3 * r['median_seconds']:.2f} | "
            f"{b['median_seconds'] / r['median_seconds']:.0f} |"
        )
    lines += [
        "",
        "The paper's own numbers are for ResNet-50 at 448 px on CUB-200-2011: sparsity 7.46 to 21.3 for BR-NPA",
        "(T1), accuracy of {1,2,3} 79.5, {1,2} 79.1, {2,3} 77.9, {1} 77.3, {2} 73.2, {3} 56.8 (T3).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fields = {f.name: f.default for f in dataclasses.fields(Plan)}
    parser.add_argument("--data", default="tiny-imagenet:$XATTN_DATA/tiny-imagenet")
    parser.add_argument("--start", default=str(FOLDER / "tiny-cnn.safetensors"))
    parser.add_argument("--runs", default="runs/attention")
    for name in ("classes", "per_class", "epochs", "batch_size", "seeds"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=fields[name])
    parser.add_argument("--lr", type=float, default=fields["lr"])
    parser.add_argument("--results", type=Path, default=HERE, help="folder of the report")
    parser.add_argument("--report", action="store_true", help="only write the report of what is there")
    arguments = vars(parser.parse_args())
    results, report = arguments.pop("results"), arguments.pop("report")
    plan = Plan(**arguments)
    for name in ("lightning.fabric", "lightning.pytorch"):  # after the import, which sets another level
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not report:
        run(plan)
    found = collect(plan)
    results.mkdir(parents=True, exist_ok=True)
    (results / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    draw_figure(found, results / "results.png")
    (results / "README.md").write_text(page(found))
    print(f"wrote {results / 'README.md'}")


if __name__ == "__main__":
    main()
