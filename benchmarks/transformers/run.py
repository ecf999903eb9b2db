"""Test two claims about explanations of vision transformers on the embedded tiny-vit and images of Tiny-ImageNet.

    python benchmarks/transformers/run.py [--root $XATTN_DATA] [--images 4000] [--pairs 200] [--device cuda]

T10: AGCAM localises better than transformer attribution and rollout (Leem and Seo 2024, AAAI). Validation images that
the network classifies correctly, their boxes, the class explained is the label.

T11: class-specific methods move with the class, class-agnostic ones do not. Two images of different classes that the
network is sure of stand side by side; each of the two classes is explained, and `shift` is the share of positive
relevance on the half of a class when it is explained, less the share there when the other one is.

`results.json`, `README.md` and `results.png` are written beside this file; what is found is what is published.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import xattn
from xattn.benchmark.run import seed_of
from xattn.benchmark.statistics import Intervals, holm, intervals, wilcoxon
from xattn.data.opening import open_dataset
from xattn.data.sample import Sample, collate
from xattn.explainer import Explainer
from xattn.explainers import resolve
from xattn.explaining import explain_trace, record_for
from xattn.functional.localization import energy_share
from xattn.metrics import metrics
from xattn.score import probabilities
from xattn.training.folder import processor_name

HERE = Path(__file__).parent
CLAIMED = "agcam"
RIVALS = ("transformer-attribution", "rollout")
METHODS = (
    CLAIMED,
    *RIVALS,
    "attention-x-gradient",
    "legrad",
    "raw-attention",
    "gradcam",
    "hirescam",
    "random",
    "center",
)
LOCALIZATION = {
    "threshold_overlap": "iou",
    "energy_pointing_game": "energy",
    "pointing_game:tolerance_px=4": "hit",
    "pixel_auc": "average_precision",
}
BATCH = 50

Values = NDArray[np.float64]


def batches(dataset: Any, count: int) -> Iterator[list[Sample]]:
    """A seeded choice of so many images in batches."""
    order = np.random.default_rng(0).permutation(len(dataset))[:count]
    for start in range(0, len(order), BATCH):
        yield [dataset[int(i)] for i in order[start : start + BATCH]]


def explained(model: Any, x: Tensor, target: Tensor, methods: list[Explainer], seeds: list[int]) -> list[Any]:
    """Explanations of one shared pass, with the trace."""
    trace = record_for(model, x, methods, target, spec=model.spec, grad=True, seeds=seeds)
    return [trace, *explain_trace(trace, methods)]


def localization(
    model: Any, dataset: Any, count: int, methods: list[Explainer], device: str
) -> tuple[dict[str, Values], list[tuple[Tensor, int, float]]]:
    """Scores (images, methods) by column over correctly classified images; and these images with their class."""
    found: dict[str, list[Tensor]] = {name: [] for name in LOCALIZATION}
    right: list[tuple[Tensor, int, float]] = []
    for samples in batches(dataset, count):
        batch = collate(samples, model.spec).to(device)
        with torch.no_grad():
            chance = probabilities(model(batch.x))
        keep = (chance.argmax(1) == batch.target).nonzero()[:, 0].tolist()
        if not keep:
            continue
        batch = collate([samples[i] for i in keep], model.spec).to(device)
        right += [
            (x.cpu(), int(label), float(p))
            for x, label, p in zip(batch.x, batch.target, chance[keep].amax(1), strict=True)
        ]
        trace, *explanations = explained(
            model, batch.x, batch.target, methods, [seed_of(0, image) for image in batch.ids]
        )
        for name, column in LOCALIZATION.items():
            metric = metrics.parse(name)
            rows = metric.measure_many(explanations, trace, batch)
            found[name].append(torch.stack([row[column] for row in rows], dim=1))
    return {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}, right


def shifts(
    model: Any, right: list[tuple[Tensor, int, float]], count: int, methods: list[Explainer], device: str
) -> Values:
    """How far positive relevance moves to the half of the class that is explained: (pairs, methods)."""
    sure = sorted(right, key=lambda found: -found[2])
    rng = np.random.default_rng(0)
    pool = [sure[i] for i in rng.permutation(min(len(sure), 4 * count))]
    pairs = [(a, b) for a, b in zip(pool[::2], pool[1::2], strict=False) if a[1] != b[1]][:count]
    parts = []
    for start in range(0, len(pairs), BATCH):
        some = pairs[start : start + BATCH]
        x = torch.stack([torch.cat([a[0], b[0]], dim=2) for a, b in some]).to(device)
        half = torch.zeros(len(some), 1, *x.shape[2:], dtype=torch.bool, device=device)
        half[..., : x.shape[3] // 2] = True
        seeds = list(range(start, start + len(some)))
        shares = []
        for side in (0, 1):
            target = torch.tensor([pair[side][1] for pair in some], device=device)
            _, *explanations = explained(model, x, target, methods, seeds)
            shares.append([energy_share(e.resized(), half) for e in explanations])
        parts.append(torch.stack([left - other for left, other in zip(*shares, strict=True)], dim=1))
    return torch.cat(parts).double().cpu().numpy()


def against(values: Values, names: list[str], first: str) -> dict[str, dict[str, float]]:
    """One method less each other: mean, interval and Holm-adjusted p of the paired Wilcoxon test."""
    place = names.index(first)
    differences = values[:, place : place + 1] - values
    others = [j for j in range(len(names)) if j != place]
    spread = intervals(differences[:, others])
    adjusted = holm(wilcoxon(differences[:, others]))
    return {
        names[j]: {"mean": float(spread.mean[k]), "low": float(spread.low[k]), "high": float(spread.high[k]),
                   "p": float(adjusted[k])}
        for k, j in enumerate(others)
    }  # fmt: skip


def facts(spread: Intervals, names: list[str]) -> dict[str, dict[str, float]]:
    """Intervals by name."""
    return {
        name: {"mean": float(spread.mean[j]), "low": float(spread.low[j]), "high": float(spread.high[j]),
               "n": int(spread.n[j])}
        for j, name in enumerate(names)
    }  # fmt: skip


def verdict(difference: dict[str, float]) -> str:
    """What a paired difference says."""
    if not difference["p"] < 0.05:
        return "cannot be told apart"
    return "better" if difference["mean"] > 0 else "worse"


def page(results: dict[str, Any]) -> str:
    """The results as text, made from the JSON alone."""
    about, names = results["environment"], results["methods"]
    lines = [
        "# Explanations of a vision transformer",
        "",
        "Written by `run.py` from `results.json`; do not edit. The network is the embedded `tiny-vit` (8x8 tokens at",
        f"64 pixels); {about['device']}, torch {about['versions']['torch']}.",
        "",
        "![Localisation and class sensitivity with intervals](results.png)",
        "",
        f"## T10: localisation on {results['localization_images']:,} correctly classified images",
        "",
        "Claim: AGCAM localises better than transformer attribution and rollout.",
        f"Of {results['looked_at']:,} validation images those that the network gets right; the label is explained.",
        "Means with 95 % bootstrap intervals. The IoU is that of the rectangles around what lies above half of the",
        "range, as AGCAM's paper measures it: for a map that is scattered all over the image, as the random control,",
        "the rectangle is the image, and the IoU is the share of it that the object fills.",
        "",
        "| method | IoU at 0.5 | energy in the box | pointing game (4 px) | average precision of pixels |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        cells = [results["localization"][metric][name] for metric in LOCALIZATION]
        lines.append(
            f"| `{name}` | " + " | ".join(f"{c['mean']:.3f} [{c['low']:.3f}, {c['high']:.3f}]" for c in cells) + " |"
        )
    lines += [
        "",
        "AGCAM against each rival (paired Wilcoxon tests, Holm's correction over all methods of a column):",
        "",
    ]
    for metric, column in LOCALIZATION.items():
        words = []
        for rival in (*RIVALS, "random", "center"):
            d = results["agcam_against"][metric][rival]
            words.append(
                f"{verdict(d)} than {rival}" if verdict(d) != "cannot be told apart" else f"{verdict(d)} from {rival}"
            )
            words[-1] += f" ({d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}])"
        lines.append(f"- {metric.split(':')[0]} ({column}): {'; '.join(words)}")
    lines += [
        "",
        f"## T11: {results['pairs']} pairs of images side by side",
        "",
        "Claim: class-specific methods move with the class, class-agnostic ones do not. `shift` is the share of",
        "positive relevance on the half of a class when it is explained, less the share there when the other class",
        "is: 0 does not move, 1 moves all.",
        "",
        "| method | class-specific | shift [95 % interval] |",
        "|---|---|---|",
    ]
    for name in names:
        s = results["shift"][name]
        specific = "yes" if results["class_specific"][name] else "no"
        lines.append(f"| `{name}` | {specific} | {s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}] |")
    moved = [n for n in names if results["shift"][n]["low"] > 0]
    still = [n for n in names if results["class_specific"][n] and n not in moved]
    lines += [
        "",
        f"The interval lies above zero for {', '.join(f'`{n}`' for n in moved) or 'no method'}"
        + (f"; it does not for {', '.join(f'`{n}`' for n in still)}, which should." if still else "."),
        "",
    ]
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Two panels: energy in the box, and shift."""
    names = results["methods"]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, constrained_layout=True)
    columns = (
        ("IoU at 0.5", results["localization"]["threshold_overlap"]),
        ("energy in the box", results["localization"]["energy_pointing_game"]),
        ("shift with the class", results["shift"]),
    )
    for axis, (title, values) in zip(axes, columns, strict=True):
        for row, name in enumerate(names):
            v = values[name]
            control = name in ("random", "center")
            color = "#999999" if control else "#c0392b" if name == CLAIMED else "#2c5d8a"
            axis.plot([v["low"], v["high"]], [row, row], color=color, lw=2.5, solid_capstyle="round")
            axis.plot(v["mean"], row, "o", color=color, ms=5)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", color="#dddddd")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(length=0)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("XATTN_DATA", "data")))
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--model", default="tiny-vit")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", action="store_true", help="write the page from results.json alone")
    given = parser.parse_args()
    path = HERE / "results.json"
    if not given.report:
        model = xattn.create_model(given.model).eval().to(given.device)
        methods = resolve(list(METHODS))
        names = [method.name for method in methods]
        dataset = open_dataset(f"tiny-imagenet:{given.root}/tiny-imagenet", "val")
        scores, right = localization(model, dataset, given.images, methods, given.device)
        moved = shifts(model, right, given.pairs, methods, given.device)
        cuda = given.device.startswith("cuda")
        results = {
            "environment": {
                "device": torch.cuda.get_device_name() if cuda else processor_name(),
                "versions": {"python": platform.python_version(), "torch": version("torch")},
            },
            "model": given.model,
            "looked_at": given.images,
            "localization_images": len(right),
            "pairs": len(moved),
            "methods": names,
            "class_specific": {method.name: method.class_specific for method in methods},
            "localization": {name: facts(intervals(values), names) for name, values in scores.items()},
            "agcam_against": {name: against(values, names, CLAIMED) for name, values in scores.items()},
            "shift": facts(intervals(moved), names),
        }
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(path.read_text(encoding="utf-8"))
    (HERE / "README.md").write_text(page(results), encoding="utf-8")
    draw(results, HERE / "results.png")


if __name__ == "__main__":
    main()
