"""Write README.md: tables in the shape of those of the BR-NPA paper, from what was measured here.

python benchmarks/three_tasks/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xattn.files import whole_file

FOLDER = Path(__file__).parent
HEADS = {"linear": "mean", "bcnn": "B-CNN", "brnpa": "BR-NPA"}
GRIDS = ("7 x 7", "14 x 14")
BIRDS = {"linear": "-", "bcnn": "82.9 (14 x 14), 84.6 (56 x 56)", "brnpa": "85.2 (14 x 14), 85.5 (56 x 56)"}
COWS = {"linear": "-", "bcnn": "78.4", "brnpa": "93.6 (16 x 8), 88.2 (64 x 32)"}
FEW = {"linear": "61.7 (MTL)", "bcnn": "58.1", "brnpa": "69.9 (10 x 10), 65.7 (40 x 40)"}
RANKS = {"": 79.5, "1+2": 79.1, "2+3": 77.9, "1": 77.3, "2": 73.2, "3": 56.8}
SPARSITY = {"7 x 7": "85.2 / 7.46 (14 x 14)", "14 x 14": "85.5 / 21.3 (56 x 56, distilled)"}


def read(name: str) -> dict[str, Any]:
    """A file of results; empty where it is not there."""
    path = FOLDER / name
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.1f}"


def between(interval: Sequence[float]) -> str:
    """An interval in percent."""
    return f"[{percent(interval[0])}, {percent(interval[1])}]"


def seeds_of(row: Mapping[str, Any]) -> str:
    """Mean accuracy over seeds with the lowest and highest, and the seeds."""
    values = [s["accuracy"] for s in row["seeds"]]
    text = percent(sum(values) / len(values))
    return text if len(values) == 1 else f"{text} ({percent(min(values))} to {percent(max(values))})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *(f"| {' | '.join(row)} |" for row in rows), ""]


def cost(row: Mapping[str, Any]) -> list[str]:
    """Time and memory of a network."""
    spent = row["cost"]
    return [
        f"{spent['forward_ms']:.1f} / {spent['step_ms']:.1f}",
        f"{spent['forward_mb']:.0f} / {spent['step_mb']:.0f}",
    ]


def networks(rows: Mapping[str, Any]) -> Iterable[tuple[str, str, str, Mapping[str, Any]]]:
    """Name, head, whether it was trained on the task, and what was measured, of the networks of a task."""
    for name, seeds in rows.items():
        for seed, row in seeds.items():
            head = row["architecture"]["head"]
            trained = f"trained, seed {seed}, epoch {row['epoch']} of {row['planned']}" if seed != "-" else ""
            label = name.partition(",")[0] if not trained else row["architecture"]["backbone"]
            label += ", plain triplets" if name.endswith("-plain") else ""
            yield label, head, trained or "as it comes", row


COST = ["ms an image: forward / step", "MB: forward / step"]
COSTS = """Time of one thread of the processor, beside other work, and memory beyond that of program and weights, for a
batch of 16."""
SEEDS = "Mean over the seeds, in parentheses the lowest and the highest."


def birds(results: Mapping[str, Any], frozen: Mapping[str, Any]) -> list[str]:
    """Table 1."""
    rows = []
    for name, row in frozen["rows"].items():
        head, _, grid = name.partition(", ")
        if head in HEADS:
            rows.append(
                ["Lite0, frozen", HEADS[head], grid, seeds_of(row), str(len(row["seeds"])), *["-"] * 2, BIRDS[head]]
            )
    for name, head, how, row in networks(results.get("cub-20", {})):
        shown = f"{percent(row['top1'])} {between(row['interval'])}"
        grid = "{} x {}".format(*row["grid"])
        rows.append([f"{name}, {how}", HEADS[head], grid, shown, "1", *cost(row), BIRDS[head]])
    head = ["network", "attention", "cells", "accuracy, %", "seeds", *COST, "published, all of CUB"]
    note = f"""585 test photographs of 20 kinds of birds. {SEEDS} In brackets the 95 % interval over photographs,
about 3 points to each side where it is not given. Of the frozen network only the head
learned, for 40 epochs, that of B-CNN for 10. {COSTS}"""
    return ["## Table 1: fine-grained", "", *table(head, rows), note, ""]


def cows(results: Mapping[str, Any]) -> list[str]:
    """Table 2."""
    rows = []
    for name, head, how, row in networks(results.get("holstein-reid", {})):
        first, mean = (f"{percent(row[k])} {between(row['interval'][k])}" for k in ("rank1", "mAP"))
        grid = "{} x {}".format(*row["grid"])
        rows.append([f"{name}, {how}", HEADS[head], grid, first, percent(row["rank5"]), mean, *cost(row), COWS[head]])
    head = ["network", "attention", "cells", "rank-1, %", "rank-5, %", "mAP, %", *COST, "published rank-1, Market-1501"]
    note = f"""322 queries of 41 cows in 1,561 photographs, none of these cows trained on. In brackets 95 % bootstrap
intervals over cows. Networks as they come were trained on ImageNet (Lite0) or Tiny-ImageNet, never on cows. {COSTS}"""
    return ["## Table 2: re-identification", "", *table(head, rows), note, ""]


def few(results: Mapping[str, Any]) -> list[str]:
    """Table 3."""
    rows = []
    for name, head, how, row in networks(results.get("cifar-fs", {})):
        shown = [
            f"{percent(row[shot][kind]['accuracy'])} ± {percent(row[shot][kind]['interval'])}"
            for shot, kind in (("1", "cosine"), ("1", "learned"), ("5", "cosine"), ("5", "learned"))
        ]
        rows.append([f"{name}, {how}", HEADS[head], "{} x {}".format(*row["grid"]), *shown, *cost(row), FEW[head]])
    head = ["network", "attention", "cells", "1-shot, cosine, %", "1-shot, learned layer, %", "5-shot, cosine, %"]
    head += ["5-shot, learned layer, %", *COST, "published 1-shot, %"]
    note = f"""2,000 episodes of five of the 20 test classes, 15 questions a class, the same for all networks, with the
95 % interval over episodes. Networks as they come were trained on Tiny-ImageNet, whose classes are partly the same as
those of CIFAR: they show what a head does to features, not what can be learned from the 64 training classes. {COSTS}"""
    return ["## Table 3: few-shot", "", *table(head, rows), note, ""]


def ranks(results: Mapping[str, Any], frozen: Mapping[str, Any]) -> list[str]:
    """Table 5."""
    rows = []
    grids = [grid for grid in GRIDS if f"brnpa 3, {grid}" in frozen["rows"]]
    whole = results.get("cub-20", {}).get("brnpa-low", {}).get("0", {})
    for subset, published in RANKS.items():
        found = [frozen["rows"].get(f"{f'brnpa {subset}'.strip()}, {grid}") for grid in grids]
        shown = ["-" if row is None else seeds_of(row) for row in found]
        learned = [percent(whole["ranks"][subset or "1+2+3"])] if whole else []
        rows.append([f"{{{subset.replace('+', ', ') or '1, 2, 3'}}}", *shown, *learned, f"{published}"])
    head = ["parts", *(f"frozen, {grid}, %" for grid in grids)]
    head += [*(["trained, {} x {}, %".format(*whole["grid"])] if whole else []), "published, all of CUB"]
    note = f"""EfficientNet-Lite0; a linear layer of its own for each subset. 585 test photographs. {SEEDS}
The trained network is one of Table 1, of one seed, about 3.6 points to each side."""
    return ["## Table 5: rank of the parts", "", *table(head, rows), note, ""]


def resolution(results: Mapping[str, Any], frozen: Mapping[str, Any]) -> list[str]:
    """Table 6."""
    rows = []
    for grid in GRIDS:
        if row := frozen["rows"].get(f"brnpa, {grid}"):
            rows.append(
                [
                    *("Lite0, frozen", "BR-NPA", grid, seeds_of(row)),
                    *(f"{row['sparsity']:.1f}", f"{row['density']:.3f}", SPARSITY[grid]),
                ]
            )
    for name, head, how, row in networks(results.get("cub-20", {})):
        if head != "linear":
            grid = "{} x {}".format(*row["grid"])
            shown = [f"{percent(row['top1'])} {between(row['interval'])}", f"{row['sparsity']:.1f}"]
            rows.append([f"{name}, {how}", HEADS[head], grid, *shown, f"{row['density']:.3f}", "-"])
    head = ["network", "attention", "cells", "accuracy, %", "sparsity 1/x", "density x"]
    note = f"""585 test photographs. {SEEDS}"""
    return ["## Table 6: resolution", "", *table([*head, "published accuracy / sparsity"], rows), note, ""]


def points(found: Mapping[str, Any]) -> list[str]:
    """The 15 points beside the parts."""
    rows = []
    for name, row in found.get("networks", {}).items():
        by = (row, row["exchanged"], row["bands"])
        told = [row["information"], row["exchanged"]["highest_information"], row["bands"]["information"]]
        shown = [*(f"{v:.3f}" for v in told), *(f"{each['entropy']:.2f}" for each in by)]
        rows.append([name, "{} x {}".format(*row["grid"]), *shown])
    head = ["network", "cells", "information", "parts exchanged", "three bands", "entropy", "parts exchanged"]
    note = """585 test photographs, up to 15 points each. Information is the normalized mutual information of points and
parts, 1 if a part is a point; entropy says how far a point changes its part, 0 if it never does, mean over the points.
Beside them the controls: the parts exchanged at random in each photograph (the highest of 20 draws, and for the entropy
their mean), and the upper, middle and lower third of the image in place of parts."""
    return ["## The points of the birds and the parts", "", *table([*head, "three bands"], rows), note, ""]


def main() -> None:
    """Write."""
    results, frozen, found = read("results.json"), read("frozen.json"), read("points.json")
    where = results["circumstances"]
    versions = ", ".join(f"{name} {value}" for name, value in where["versions"].items())
    made = f"Written by `python benchmarks/three_tasks/tables.py`. {where['device']}; {versions}; {where['date']}."
    text = ["# The three tasks", "", made, ""]
    if frozen:
        text += [*birds(results, frozen)]
    text += [*cows(results), *few(results)]
    if frozen:
        text += [*ranks(results, frozen), *resolution(results, frozen)]
    if found:
        text += points(found)
    with whole_file(FOLDER / "README.md") as temporary:
        temporary.write_text("\n".join(text).rstrip() + "\n")


if __name__ == "__main__":
    main()
