"""The figure of the main README, from the published table of the run on the embedded networks.

python benchmarks/main_figure.py     # reads benchmarks/results/embedded, writes docs/images/benchmark.png
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from xattn.explainers import resolve
from xattn.labels import Label
from xattn.looks import FAMILIES

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks" / "results" / "embedded" / "tiny-imagenet-tiny-cnn" / "leaderboard.csv"
PICTURE = ROOT / "docs" / "images" / "benchmark.png"
COLUMNS = ("insertion (steps=16) ↑", "deletion (steps=16) ↓", "energy_pointing_game ↑")
TITLES = ("insertion ↑", "deletion ↓", "energy in the object's box ↑")
_CELL = re.compile(r"(\S+) \[(\S+), (\S+?)\](†?)")


def main() -> None:
    """Draw."""
    with TABLE.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    values = [[_CELL.fullmatch(row[column]) for column in COLUMNS] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: -float(values[i][0][1]))
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 8.6), sharey=True, layout="constrained")
    names = [rows[i]["method"].removesuffix(" (control)") for i in order]
    families = [resolve(name)[0].family.value for name in names]
    for k, (axis, title) in enumerate(zip(axes, TITLES, strict=True)):
        for y, (i, family) in enumerate(zip(order, families, strict=True)):
            mean, low, high = (float(values[i][k][part]) for part in (1, 2, 3))
            proven = not values[i][k][4] and family != "control"
            axis.plot([low, high], [y, y], color=FAMILIES[family].color, lw=1.6)
            axis.plot(
                mean, y, "o", ms=5, color=FAMILIES[family].color, mfc=FAMILIES[family].color if proven else "white"
            )
        controls = [float(values[i][k][1]) for i, f in zip(order, families, strict=True) if f == "control"]
        axis.axvline(min(controls) if "↓" in title else max(controls), color="#555555", lw=0.8, ls="--")
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", color="#e5e5e5")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(length=0, labelsize=8)
    axes[0].set_yticks(range(len(order)), [Label.parse(name).name for name in names])
    axes[0].invert_yaxis()
    axes[0].margins(y=0.01)
    handles = [
        plt.Line2D([], [], color=look.color, marker="o", ls="", label=name)
        for name, look in FAMILIES.items()
        if name in families
    ]
    handles.append(plt.Line2D([], [], color="#555555", marker="o", mfc="white", ls="", label="not above the controls"))
    handles.append(plt.Line2D([], [], color="#555555", ls="--", lw=0.8, label="best control"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main()
