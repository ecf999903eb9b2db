"""The page of the five orderings, from the numbers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xattn.functional.statistics import ALPHA
from xattn.labels import listing

Result = dict[str, Any]
LEARNED = 0.8  # share that a network has to have right for its maps to count, as in the paper

INTRODUCTION = """
Written by `benchmarks/orderings/run.py`; do not edit. Five statements of papers about which method or metric is
better, each tried on small networks that run on a processor. A statement that is not found here is not refuted:
networks, images and their number differ, as each part says. Means with 95 % bootstrap intervals over images;
"shown" is a one-sided paired t test with Holm's correction over the pairs of the part, p < 0.05. No image was in
the training of a network.
"""
TRIS = """
Clark et al. 2024, [arXiv:2306.12816](https://arxiv.org/abs/2306.12816). One network of three convolutions for each
of {} tasks, 4,000 drawn images to train on, 400 others to score; the share of the evidence's K pixels among the K
highest of the map (`relevance_rank`). A method counts if it beats the random map and the edges of the image. Other
than in the paper: one kind of network, maps with their signs, precision alone and not the earth mover's distance,
tests per task. Tasks of which a network has less than 80 % right are shown and not counted.
"""
GRIDPG = """
Böhle et al. 2021, [arXiv:2104.00032](https://arxiv.org/abs/2104.00032), and Rao et al. 2022,
[arXiv:2205.10435](https://arxiv.org/abs/2205.10435). Mosaics of 2 x 2 images of Tiny-ImageNet's validation part,
`tiny-cnn` (trained on the training part), {} mosaics. Other than in the papers: a small network, images that need
not be classified with confidence, one random cell of each mosaic, and maps of a layer are enlarged before they are
measured, so that one at the border of its cell reaches over it.
"""
IDSDS = """
Hesse et al. 2024, [arXiv:2407.11910](https://arxiv.org/abs/2407.11910). Spearman's correlation of a cell's share of
the map with the fall of the logit without it, 16 cells, mean colour. `tiny-cnn`, validation images of
Tiny-ImageNet, {} images. Other than in the paper: the network was not fine-tuned to images that lack a cell, and is
small.
"""
RUNGS = """
Zheng et al. 2025, [arXiv:2410.02970](https://arxiv.org/abs/2410.02970). Kendall's τ within single images between
the known order of five degrees of degradation and the score, the better of two replacements for each metric, judged
by the network itself. Other than in the paper: cells are shuffled rather than noise mixed in, networks were not
fine-tuned, and F-Fidelity has 3 sizes and 5 draws rather than 20 and 50. With a scorer, and by every replacement:
`benchmarks/known_orders/`.
"""
EXPECTED = """
Klein et al. 2024, [arXiv:2409.16756](https://arxiv.org/abs/2409.16756). The place of `gradient-shap` (16 samples)
among {} methods, `tiny-cnn`, the images of part 3. Other than in the paper: maps are compared on one grid for all,
where a finer map has no advantage; seven columns rather than twenty metrics, one network, one data set, and no rank
is averaged over columns.
"""


def write(result: Result, ladder: Path, page: Path) -> None:
    """Write the page.

    Args:
        result: what `run.py` found.
        ladder: JSON file of the known orders.
        page: to write.
    """
    lines = [
        "# Published orderings",
        "",
        *INTRODUCTION.strip().splitlines(),
        "",
        f"{result['device']}, torch {result['torch']}.",
        "",
    ]
    parts = (
        tris(result["tris"]), gridpg(result["gridpg"]), idsds(result["faithful"]),
        rungs(json.loads(ladder.read_text(encoding="utf-8"))), expected(result["faithful"]),
    )  # fmt: skip
    lines += ["| | statement | here |", "| --- | --- | --- |"]
    lines += [f"| {i} | {said} | {found} |" for i, (_, said, found, _) in enumerate(parts, 1)]
    for i, (title, _, _, text) in enumerate(parts, 1):
        lines += ["", f"## {i}. {title}", "", *text]
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def interval(row: Result) -> str:
    """A mean with its interval; a dash where a method has no value."""
    if row["mean"] is None:
        return "-"
    return f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def table(rows: list[Result], head: str) -> list[str]:
    """Methods from the best mean on."""
    ordered = sorted(rows, key=lambda row: -row["mean"])
    return [f"| method | {head} |", "| --- | --- |", *(f"| {r['method']} | {interval(r)} |" for r in ordered), ""]


def tris(found: list[Result]) -> tuple[str, str, str, list[str]]:
    """XAI-TRIS."""
    methods = [
        r["method"] for r in found[0]["rows"] if r["method"] not in ("random", "edges", "center", "pooled-gradient")
    ]
    learned = [task for task in found if task["accuracy"] >= LEARNED]
    won = sum(len(task["beats_both"]) for task in learned)
    every = len(learned) * len(methods)
    said = "popular methods are often not shown to beat random maps and edge detection (XAI-TRIS, 8 x 8)"
    here = f"found: {every - won} of {every} pairs of method and task are not shown to"
    if every - won < every / 4:
        here = f"hardly: {every - won} of {every} pairs of method and task are not shown to"
    text = [
        *TRIS.format(len(found)).strip().splitlines(),
        "",
        "| task | background | network right | beat random and edges | best mean | random | edges |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task in found:
        by = {row["method"]: row for row in task["rows"]}
        best = max(methods, key=lambda m: by[m]["mean"])
        text.append(
            f"| {task['scenario']} | {task['background']} | {task['accuracy']:.0%} | {len(task['beats_both'])} of "
            f"{len(methods)} | {best} {interval(by[best])} | {by['random']['mean']:.2f} | {by['edges']['mean']:.2f} |"
        )
    missed = sorted(methods, key=lambda m: sum(m in task["beats_both"] for task in learned))
    counts = [f"{m} {sum(m in task['beats_both'] for task in learned)}" for m in reversed(missed)]
    text += ["", f"Of {len(learned)} tasks each method beats both in: {listing(counts)}.", ""]
    return "XAI-TRIS 8 x 8", said, here, text


def gridpg(found: Result) -> tuple[str, str, str, list[str]]:
    """Grid pointing, DiFull and DiPart."""
    shown = [t["second"] for t in found["gradcam_above"] if t["p"] < ALPHA]
    pixels = [t["second"] for t in found["gradcam_above"]]
    columns = {name: {row["method"]: row for row in rows} for name, rows in found["rows"].items()}
    full = columns["difull"]
    exact = [m for m in (*pixels, "layercam", "hirescam") if m in full and (full[m]["mean"] or 0) > 0.95]
    said = (
        "in the grid pointing game Grad-CAM at the last layer is above methods at the image; cut off from the other "
        "cells (DiFull) backpropagation and LayerCAM are nearly perfect"
    )
    here = f"Grad-CAM is shown above {listing(shown) or 'none'} of {len(pixels)}"
    here += f"; nearly perfect: {listing(exact) or 'none'}"
    order = sorted(columns["grid_pointing_game"].values(), key=lambda row: -row["mean"])
    text = [
        *GRIDPG.format(order[0]["images"]).strip().splitlines(),
        "",
        "| method | grid pointing | DiFull | DiPart |",
        "| --- | --- | --- | --- |",
    ]
    for row in order:
        name = row["method"]
        cells = [interval(columns[c][name]) for c in ("grid_pointing_game", "difull", "dipart")]
        text.append(f"| {name} | {' | '.join(cells)} |")
    return "Grid pointing", said, here, [*text, ""]


def idsds(found: Result) -> tuple[str, str, str, list[str]]:
    """In-domain single deletion."""
    shown = [t for t in found["signs"] if t["p"] < ALPHA]
    said = "attributions with their signs are better than their absolute values by single deletion (IDSDS)"
    words = [
        f"{t['first']} is {abs(t['difference']):.2f} {'above' if t['difference'] > 0 else 'below'} {t['second']}"
        for t in found["signs"]
    ]
    here = ("found: " if len(shown) == len(words) else "partly: " if shown else "not found: ") + listing(words)
    images = max(row["images"] for row in found["idsds"])
    text = [
        *IDSDS.format(images).strip().splitlines(),
        "",
        *table(found["idsds"], "correlation"),
    ]
    return "In-domain single deletion", said, here, text


def rungs(known: Result) -> tuple[str, str, str, list[str]]:
    """F-Fidelity's ladder."""
    chosen = ("f_fidelity", "idsds", "insertion", "deletion", "road", "faithfulness_correlation")
    lines = ["| network | maps of | images | " + " | ".join(chosen) + " |", "| --- " * (3 + len(chosen)) + "|"]
    pairs = list(dict.fromkeys((c["dataset"], c["model"], c["maps_of"]) for c in known["columns"]))
    first = wins = 0
    for pair in pairs:
        own = [c for c in known["columns"] if (c["dataset"], c["model"], c["maps_of"]) == pair]
        best: dict[str, Result] = {}
        for c in own:
            name = c["metric"].partition(":")[0]
            if name != c["column"] or name not in chosen or "scorer=" in c["metric"]:
                continue
            if name not in best or c["single_tau"] > best[name]["single_tau"]:
                best[name] = c
        others = max(c["single_tau"] for name, c in best.items() if name != "f_fidelity")
        first += best["f_fidelity"]["single_tau"] > others
        wins += 1
        cells = [_tau(best[n]) if n in best else "" for n in chosen]
        lines.append(f"| {pair[1]}, {pair[0]} | {pair[2]} | {own[0]['images']} | {' | '.join(cells)} |")
    said = "F-Fidelity recovers the order of degraded maps better than metrics that leave the training distribution"
    here = f"not found: of {wins} ladders it has the best mean τ of single images in {first}"
    if first > wins / 2:
        here = f"found: of {wins} ladders it has the best mean τ of single images in {first}"
    text = [
        *RUNGS.strip().splitlines(),
        "",
        *lines,
        "",
    ]
    return "F-Fidelity's ladder", said, here, text


def _tau(c: Result) -> str:
    low, high = c["single_tau_interval"]
    return f"{c['single_tau']:.2f} [{low:.2f}, {high:.2f}]"


def expected(found: Result) -> tuple[str, str, str, list[str]]:
    """LATEC."""
    places = found["expected"]
    first = sum(p["place"] == 1 for p in places)
    beaten = sum(bool(p["shown_better"]) for p in places)
    said = "expected gradients come first over many metrics (LATEC)"
    here = (
        f"not found: first by the mean in {first} of {len(places)} columns, shown worse than another method in {beaten}"
    )
    if first > len(places) / 2:
        here = f"found: first by the mean in {first} of {len(places)} columns"
    text = [
        *EXPECTED.format(places[0]["of"]).strip().splitlines(),
        "",
        "| column | place | first by the mean | shown better than expected gradients |",
        "| --- | --- | --- | --- |",
    ]
    for p in places:
        text.append(
            f"| {p['metric']} | {p['place']} of {p['of']} | {p['first']} | {listing(p['shown_better'], 4) or 'none'} |"
        )
    return "Expected gradients first", said, here, [*text, ""]
