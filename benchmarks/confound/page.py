"""The page about the grid, from the numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xattn.labels import counted, listing

Row = dict[str, Any]
COMMON = {64: "8", 224: "14"}  # cells a side of the common grid, by the side of the input
BASELINES = ("blur", "mean", "black")
SIDES = {"tiny-cnn": 64, "tiny-vit": 64, "efficientnet_lite0": 224}

INTRODUCTION = """
# What the grid of a map does to its score

Written by `run.py` from `confound.json`; do not edit. `python benchmarks/confound/run.py runs/confound` scores the
same maps on ever coarser grids, with a random map, the centre and edges as controls; every map is averaged to the grid,
so that a column of a plot compares like with like. Input x gradient on cells is the pooled gradient. Intervals are of
95 %. A method is said to beat the controls where it is shown better than each of them on that grid (one-sided paired t
tests with Holm's correction over its columns): what a report on that grid alone would say.
"""


def write(found: dict[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        found: what `run.py` found, by configuration.
        path: to write.
    """
    lines = [*INTRODUCTION.strip().splitlines(), "", "## What holds on every network here", "", *together(found)]
    for name, entry in found.items():
        lines += ["", f"## {entry['panel']}", "", f"![{entry['panel']}]({name}.png)", "", *of_network(entry)]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def pick(entry: dict[str, Any], column: str, baseline: str, grid: str) -> dict[str, Row]:
    """The rows of one column on one grid, by method."""
    wanted = (column, baseline, grid)
    return {r["method"]: r for r in entry["rows"] if (r["column"], r["baseline"], r["grid"]) == wanted}


def common(entry: dict[str, Any]) -> str:
    """The grid that is common to all methods by default."""
    return COMMON[SIDES[entry["model"]]]


def fraction(count: int, of: int) -> str:
    """So many of so many."""
    return f"{'all' if count == of else count or 'none'} of {of}"


def together(found: dict[str, Any]) -> list[str]:
    """What is counted over networks and the two baselines."""
    pairs = [(entry, baseline) for entry in found.values() for baseline in BASELINES[:2]]
    falls = first = lost = 0
    for entry, baseline in pairs:
        pixels, cells = (pick(entry, "insertion", baseline, g) for g in ("pixels", common(entry)))
        falls += cells["input-x-gradient"]["from_pixels"][2] < 0
        first += max(pixels, key=lambda m: pixels[m]["mean"]) == "input-x-gradient"
        lost += pixels["input-x-gradient"]["beats_controls"] and not cells["input-x-gradient"]["beats_controls"]
    edges = [
        pick(entry, "deletion", baseline, common(entry))["edges"]["from_pixels"][2] < 0 for entry, baseline in pairs
    ]
    n = len(pairs)
    return [
        f"{counted(len(found), 'network')}, against a blur and against the mean colour, so {n} pairs; ranked pixels",
        "are held against the common grid.",
        "",
        f"- Insertion of input x gradient falls when its pixels are averaged: {fraction(falls, n)}. (The interval of",
        "  the paired difference is below zero.)",
        f"- With pixels ranked it has the highest insertion of all: {fraction(first, n)}.",
        f"- With pixels ranked it beats every control by insertion, on the common grid not: {fraction(lost, n)}.",
        f"- Edges, which know nothing of the network, have a better deletion when averaged: {fraction(sum(edges), n)}.",
    ]


def of_network(entry: dict[str, Any]) -> list[str]:
    """Sentences and tables of one network."""
    rows: list[Row] = entry["rows"]
    baselines = [b for b in BASELINES if any(r["baseline"] == b for r in rows)]
    grids = sorted({r["grid"] for r in rows}, key=lambda grid: -int(grid) if grid.isdecimal() else -(10**9))
    methods = list(dict.fromkeys(r["method"] for r in rows))
    text = f"`{entry['model']}`, {entry['network']}; {rows[0]['images']} images, {entry['device'].upper()}."
    lines = [text, ""]
    for column, arrow in (("insertion", "\u2191"), ("deletion", "\u2193")):
        for baseline in baselines:
            lines += [f"| {column} {arrow}, {baseline} | " + " | ".join(f"{_cells(g)}" for g in grids) + " |"]
            lines += ["|---|" + "---|" * len(grids)]
            for method in methods:
                cells = [pick(entry, column, baseline, g)[method] for g in grids]
                name = f"{method.split(':')[0]} (control)" if cells[0]["control"] else method
                lines.append(f"| {name} | " + " | ".join(_shown(c) for c in cells) + " |")
            lines.append("")
    lines += ["**Bold**: beats every control on that grid.", ""]
    for baseline in baselines:
        said = []
        for grid in grids:
            won = [m for m, r in pick(entry, "insertion", baseline, grid).items() if r["beats_controls"]]
            said.append(f"{listing(won) or 'nothing'} on {_cells(grid)}")
        lines.append(f"- Insertion, {baseline}: the controls are beaten by {'; '.join(said)}.")
    return lines


def _cells(grid: str) -> str:
    return "pixels" if grid == "pixels" else f"{grid} x {grid}"


def _shown(row: Row) -> str:
    text = f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    return f"**{text}**" if row["beats_controls"] else text
