"""How well metrics find the order of maps that were degraded on purpose, per network and data set.

    python benchmarks/known_orders/run.py score --scorer runs/tiny-imagenet/cnn-scorer/best.safetensors
    python benchmarks/known_orders/run.py score --only tiny-vit tiny-brnpa --images 32
    python benchmarks/known_orders/run.py score --only lite0 --images 16
    python benchmarks/known_orders/run.py score --only funnybirds tiles --images 32
    python benchmarks/known_orders/run.py page

`score` needs `$XATTN_DATA`, and for `funnybirds` and `tiles` the networks that the recipes of these names train, in the
folder that `--networks` names; it goes on where it was stopped, and more images (`--images`) are added to those there.
What `results.json` has of other pairs of network and data set stays.
`page` makes `README.md` and `results.png` from `results.json` alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xattn.benchmark.config import Config
from xattn.benchmark.ladder import SHARES, Recovery, recoveries
from xattn.benchmark.run import run
from xattn.benchmark.scores import Scores
from xattn.training.folder import processor_name

HERE = Path(__file__).parent
FAITHFUL = [
    "idsds",
    "idsds:baseline=blur",
    "f_fidelity:sizes=3,samples=5",
    "f_fidelity:baseline=blur,sizes=3,samples=5",
    "insertion:steps=16",
    "deletion:steps=16",
    "insertion:baseline=mean,steps=16",
    "deletion:baseline=mean,steps=16",
    "road:steps=5",
    "faithfulness_correlation:samples=40",
    "faithfulness_correlation:baseline=blur,samples=40",
]
PLACES = ["energy_pointing_game", "pixel_auc"]
MAIN = (  # metric without its grid and network, column
    ("idsds", "idsds"),
    ("f_fidelity", "f_fidelity"),
    ("insertion", "insertion"),
    ("deletion", "deletion"),
    ("road", "road"),
    ("faithfulness_correlation", "faithfulness_correlation"),
    ("energy_pointing_game", "energy"),
    ("pixel_auc", "average_precision"),
)
HEADER = (
    "| metric | replaced by | judged by | τ of the means | mean τ of single images | means at 0 to 100 % |",
    "|---|---|---|---|---|---|",
)
INTRODUCTION = """
# Known orders

Written by `run.py` from `results.json`; do not edit. The map of one method, brought to the common grid, with 0, 25, 50,
75 and 100 % of its cells shuffled: does a metric put these five in the right order? Kendall's τ between the known order
and the means over images (1: right, 0: no order, -1: reversed), and the mean τ within single images, which tells
metrics apart that all get the means right; 95 % bootstrap intervals over images. `scorer` is a copy of the network that
was fine-tuned to images that lack cells (`benchmarks/configs/train/tiny-imagenet-cnn-scorer.toml`).
"""
SETTINGS = {"block": 16, "batch": 16, "fast": True, "controls": False, "device": "cpu"}
BIRDS = {"source": "funnybirds:$XATTN_DATA/funnybirds-mini", "label": "FunnyBirds"}
TILES = {"source": "parquet:$XATTN_DATA/magnetic-tile", "label": "magnetic tiles"}
CUB = {"source": "parquet:$XATTN_DATA/cub-20", "label": "CUB-20"}
TINY = {"source": "tiny-imagenet:$XATTN_DATA/tiny-imagenet", "label": "tiny-imagenet"}


def configs(images: int, scorer: str, networks: Path) -> dict[str, Config]:
    """The run of each pair of network and data set."""

    def one(data: dict[str, Any], model: dict[str, Any], ladder: list[str]) -> Config:
        entry = {"data": [data | {"limit": images}], "models": [model], "ladder": ladder}
        return Config.build(entry | {"methods": ladder[:1], "metrics": FAITHFUL + PLACES, "run": SETTINGS})

    def trained(name: str) -> dict[str, Any]:
        return {"name": str(networks / name / "best.safetensors"), "label": f"tiny-cnn, {name}"}

    judged = {"scorer": scorer} if scorer else {}
    return {
        "tiny-cnn": one(TINY, {"name": "tiny-cnn"} | judged, ["gradcam", "input-x-gradient"]),
        "synthetic": one(
            {"source": "synthetic:length=256", "label": "synthetic"},
            {"name": "xattn.data.synthetic:ColourModel", "label": "by-hand"},
            ["input-x-gradient"],
        ),
        "tiny-vit": one(TINY, {"name": "tiny-vit"}, ["gradcam"]),
        "tiny-bcnn": one(TINY, {"name": "tiny-bcnn"}, ["gradcam"]),
        "tiny-brnpa": one(TINY, {"name": "tiny-brnpa"}, ["gradcam"]),
        "lite0": one(CUB, {"name": "efficientnet_lite0"}, ["gradcam"]),
        "funnybirds": one(BIRDS, trained("funnybirds"), ["gradcam", "input-x-gradient"]),
        "tiles": one(TILES, trained("magnetic-tile"), ["gradcam"]),
    }


def score(out: Path, images: int, scorer: str, networks: Path, only: list[str]) -> None:
    """Score the pairs and write what the metrics recover."""
    found: list[dict[str, Any]] = []
    known = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    about: dict[str, str] = known["scorers"]
    here = {"device": f"{processor_name()}, one thread", "torch": torch.__version__}
    for name, config in configs(images, scorer, networks).items():
        if name in only:
            run(config, out / name)
        if not list((out / name).glob("parts/*/*.parquet")):
            continue
        scores = Scores(out / name)
        for dataset in scores.datasets:
            for model in scores.models(dataset):
                about |= {f"{dataset}, {model}": text for text in [scores.scorer(dataset, model)] if text}
                found += [
                    {"dataset": dataset, "model": model, **here, **row(r, scores, dataset)}
                    for r in recoveries(scores, dataset, model)
                ]
    done = {(entry["dataset"], entry["model"]) for entry in found}
    kept = [entry for entry in known["columns"] if (entry["dataset"], entry["model"]) not in done]
    result = {"shares": SHARES, "scorers": about, "columns": kept + found}
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def row(r: Recovery, scores: Scores, dataset: str) -> dict[str, Any]:
    """One column as plain values, with its mean at each rung."""
    rungs = sorted((e for e in scores.rungs(dataset, r.model) if e.method.endswith(f"of={r.method}")), key=str)
    values, _ = scores.values(dataset, rungs, r.column.metric, r.column.name)
    values = values[~np.isnan(values).any(1)]
    return {
        "maps_of": r.method,
        "metric": r.column.metric,
        "column": r.column.name,
        "images": r.images,
        "tau": round(r.tau, 4),
        "tau_interval": [round(v, 4) for v in r.interval],
        "single_tau": round(r.single, 4),
        "single_tau_interval": [round(v, 4) for v in r.single_interval],
        "means": [round(float(v), 6) for v in values.mean(0)],
    }


def named(metric: str) -> tuple[str, str, bool]:
    """Name, baseline and whether the scorer judged, of a metric's label."""
    name, _, settings = metric.partition(":")
    given = dict(pair.split("=") for pair in settings.split(",") if pair)
    usual = {"idsds": "mean", "f_fidelity": "mean", "faithfulness_correlation": "mean", "road": "imputed"}
    own = "" if name in ("energy_pointing_game", "pixel_auc") else usual.get(name, "blur")
    return name, given.get("baseline", own), given.get("scorer") == "in-domain"


def main_columns(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The columns that are shown, one for each metric, baseline and network that judges."""
    chosen = []
    for entry in result["columns"]:
        name, baseline, judged = named(entry["metric"])
        if (name, entry["column"]) in MAIN:
            chosen.append(entry | {"name": name, "baseline": baseline, "judge": "scorer" if judged else "model"})
    return chosen


def page() -> None:
    """The page and the figure, from the JSON alone."""
    result = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    chosen = main_columns(result)
    pairs = list(dict.fromkeys(map(ladder, chosen)))
    lines = [
        *INTRODUCTION.strip().splitlines(),
        "",
        "`score --only NETWORK --images N`, N told below. No image was in the training of a network: those of",
        "Tiny-ImageNet are validation images, those of FunnyBirds and of magnetic tiles are of the test part, on whose",
        "training part the networks were trained by the recipes of these names, EfficientNet-Lite0 was trained on",
        "ImageNet, and `by-hand` has weights set by hand that look at the evidence alone. The scorer was stopped after",
        "the first of two epochs.",
        *(f"{text}." for text in result["scorers"].values()),
        "",
        "![mean τ of single images](results.png)",
        "",
        *over_all(chosen),
    ]
    for dataset, model, method in pairs:
        own = [c for c in chosen if ladder(c) == (dataset, model, method)]
        own.sort(key=lambda c: -c["single_tau"])
        lines += [f"## {model} on {dataset}, maps of {method} ({max(c['images'] for c in own)} images)", ""]
        lines += [f"{own[0]['device']}, torch {own[0]['torch']}.", "", *HEADER]
        lines += [
            f"| {c['name']} | {c['baseline']} | {c['judge'] if c['baseline'] else ''} | {shown(c, 'tau')} "
            f"| {shown(c, 'single_tau')} | {', '.join(f'{v:.3f}' for v in c['means'])} |"
            for c in own
        ]
        lines.append("")
    (HERE / "README.md").write_text("\n".join(lines), encoding="utf-8")
    draw(chosen, pairs)


def over_all(chosen: list[dict[str, Any]]) -> list[str]:
    """How each column does over the ladders of networks that were trained, as the network itself judges."""
    ladders = list(dict.fromkeys(ladder(c) for c in chosen if c["model"] != "by-hand"))
    found: dict[tuple[str, str], dict[tuple[str, ...], dict[str, Any]]] = {}
    for c in chosen:
        if ladder(c) in ladders and c["judge"] == "model" and c["baseline"]:
            found.setdefault((c["name"], c["baseline"]), {})[ladder(c)] = c
    best = {at: {n: max(r[at]["single_tau"] for (m, _), r in found.items() if m == n and at in r)
                 for n in ("road", "insertion")} for at in ladders}  # fmt: skip
    lines = [
        "## Over all ladders",
        "",
        f"{len(ladders)} ladders of networks that were trained, judged by the network itself: on how many a column has",
        "its means in the right order, on how many the interval of that τ begins at 0.9 or above, its mean τ within",
        "single images (the lowest of the ladders, and their mean), and on how many ladders that is above ROAD and",
        "above the better of the two insertions.",
        "",
        "| metric | replaced by | in order | shown to be | lowest single τ | mean | above ROAD | above insertion |",
        "|---|---|---|---|---|---|---|---|",
    ]
    mean = {key: sum(c["single_tau"] for c in own.values()) / len(own) for key, own in found.items()}
    for (name, baseline), own in sorted(found.items(), key=lambda item: -mean[item[0]]):
        taus = {at: c["single_tau"] for at, c in own.items()}
        above = [sum(tau > best[at][n] for at, tau in taus.items()) for n in ("road", "insertion")]
        lines.append(
            f"| {name} | {baseline} | {sum(c['tau'] >= 0.9 for c in own.values())} of {len(own)} "
            f"| {sum(c['tau_interval'][0] >= 0.9 for c in own.values())} | {min(taus.values()):.2f} "
            f"| {mean[name, baseline]:.2f} | {above[0]} | {above[1]} |"
        )
    high = sum(tau["single_tau"] >= 0.9 for own in found.values() for tau in own.values())
    return [
        *lines,
        "",
        f"Within single images τ is at 0.9 or more in {high or 'none'} of these columns and ladders.",
        "",
    ]


def ladder(column: dict[str, Any]) -> tuple[str, str, str]:
    """The ladder that a column is of: data set, network and method."""
    return column["dataset"], column["model"], column["maps_of"]


def shown(entry: dict[str, Any], key: str) -> str:
    """A tau with its interval."""
    low, high = entry[f"{key}_interval"]
    return f"{entry[key]:.2f} [{low:.2f}, {high:.2f}]"


def draw(chosen: list[dict[str, Any]], pairs: list[tuple[str, str, str]]) -> None:
    """Mean tau of single images of every column, a panel for each pair."""
    import matplotlib.pyplot as plt

    labels = sorted({(c["name"], c["baseline"], c["judge"]) for c in chosen}, reverse=True)
    figure, axes = plt.subplots(
        1, len(pairs), figsize=(3 + 2.4 * len(pairs), 0.28 * len(labels) + 1.2), sharey=True, layout="constrained"
    )
    for axis, pair in zip(np.atleast_1d(axes), pairs, strict=True):
        for c in chosen:
            if ladder(c) != pair:
                continue
            y = labels.index((c["name"], c["baseline"], c["judge"]))
            low, high = c["single_tau_interval"]
            colour = "#c44e52" if c["judge"] == "scorer" else "#4c72b0"
            axis.plot([low, high], [y, y], color=colour, lw=2)
            axis.plot(c["single_tau"], y, "o", color=colour, ms=5)
        axis.axvline(0, color="#888888", lw=0.8)
        axis.set_title(f"{pair[1]}, {pair[0]}\nmaps of {pair[2]}", fontsize=9)
        axis.set_xlim(-0.45, 1.05)
        axis.grid(axis="x", alpha=0.3)
    texts = [f"{n} {b}{', scorer' if j == 'scorer' else ''}".replace("_", " ") for n, b, j in labels]
    np.atleast_1d(axes)[0].set_yticks(range(len(labels)), texts, fontsize=8)
    figure.supxlabel("mean Kendall's τ of single images with the known order", fontsize=9)
    figure.savefig(HERE / "results.png", dpi=110)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["score", "page"])
    parser.add_argument("--out", type=Path, default=Path("runs/known-orders"))
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--scorer", default="")
    parser.add_argument("--networks", type=Path, default=Path("runs"), help="where the trained networks are")
    parser.add_argument("--only", nargs="*", default=["tiny-cnn", "synthetic"])
    given = parser.parse_args()
    if given.what == "score":
        score(given.out, given.images, given.scorer, given.networks, given.only)
    page()


if __name__ == "__main__":
    main()
