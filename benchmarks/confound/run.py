"""How far the grid of a map moves its score: the same maps ranked on ever coarser grids, with the controls.

python benchmarks/confound/run.py runs/confound scores the configurations (what is scored is not scored again) and
writes confound.json and, beside this file, a picture of each and README.md; --figure leaves out the scoring. What
confound.json has of other configurations stays.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from page import write

from xattn.benchmark.config import Config
from xattn.benchmark.equivalence import beats
from xattn.benchmark.figures import grids, style_of_figures
from xattn.benchmark.panels import Panel, Summary, panels
from xattn.benchmark.run import run
from xattn.benchmark.scores import Scores
from xattn.benchmark.statistics import intervals
from xattn.files import whole_file
from xattn.labels import label_of
from xattn.metric import LOWER
from xattn.metrics import metrics

HERE = Path(__file__).parent
CONFIGS = ("confound-tiny", "confound-vit", "confound-lite0")
NETWORKS = {
    ("Tiny-ImageNet", "tiny-cnn"): "trained on Tiny-ImageNet, not on these images",
    ("Tiny-ImageNet", "tiny-vit"): "trained on Tiny-ImageNet, not on these images",
    ("CUB-20", "efficientnet_lite0"): "trained on ImageNet, not on these images",
}


def rows_of(panel: Panel) -> list[dict[str, Any]]:
    """Of each method, column and grid: mean, how far it is from that of ranked pixels, and whether it beats controls.

    Intervals are of 95 %; the difference is paired.
    """
    columns = {s.column.metric: s for s in panel.directed if s.column.name in ("insertion", "deletion")}
    found = []
    above = above_controls(panel, columns)
    for metric, s in columns.items():
        known = metrics.parse(metric)
        pixels = columns[label_of(type(known)(**{**vars(known), "grid": "pixels"}))]
        apart = intervals(s.values - pixels.values, resamples=1000, seed=0)
        for j in range(len(panel.entries)):
            found.append(
                {
                    "column": s.column.name,
                    "metric": metric,
                    "baseline": known.baseline,
                    "grid": s.column.grid,
                    "method": panel.labels[j],
                    "control": panel.entries[j].control,
                    "mean": round(float(s.spread.mean[j]), 4),
                    "low": round(float(s.spread.low[j]), 4),
                    "high": round(float(s.spread.high[j]), 4),
                    "from_pixels": [round(float(v[j]), 4) for v in (apart.mean, apart.low, apart.high)],
                    "beats_controls": above[metric][j],
                    "images": int(s.spread.n[j]),
                }
            )
    return found


def above_controls(panel: Panel, columns: dict[str, Summary]) -> dict[str, list[bool]]:
    """For each metric whether an entry is shown better than every control, as a report on that grid would say."""
    found: dict[str, list[bool]] = {}
    for grid in dict.fromkeys(s.column.grid for s in columns.values()):
        own = {metric: s for metric, s in columns.items() if s.column.grid == grid}
        better = beats([-s.values if s.column.direction is LOWER else s.values for s in own.values()], panel.controls)
        found |= {metric: row.tolist() for metric, row in zip(own, better, strict=True)}
    return found


def draw(panel: Panel, path: Path) -> None:
    """Score against grid, one plot for each metric and baseline."""
    with style_of_figures():
        figure = grids(panel)
        if figure is not None:
            with whole_file(path) as temporary:
                figure.savefig(temporary, dpi=90, format="png")


def main() -> None:
    """Score what is not there yet, then write figures and numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--figure", action="store_true", help="of the scores that are there")
    parser.add_argument("--only", nargs="*", default=CONFIGS, choices=CONFIGS, help="configurations to score")
    given = parser.parse_args()
    mpl.use("Agg")
    path = HERE / "confound.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name in given.only:
        folder = given.folder / name
        if not given.figure:
            run(Config.read(HERE.parent / "configs" / f"{name}.toml"), folder)
        if not folder.is_dir():
            continue
        scores = Scores(folder)
        device = ", ".join(dict.fromkeys(where.device for where in scores.manifest.environments))
        (panel,) = panels(scores)
        (model,) = {e.model for e in panel.entries}
        found[name] = {
            "panel": panel.name,
            "model": model,
            "device": device,
            "network": NETWORKS[panel.dataset, model],
            "rows": rows_of(panel),
        }
        draw(panel, HERE / f"{name}.png")
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write(found, HERE / "README.md")


if __name__ == "__main__":
    main()
