"""How far the grid of a map moves its score: the same maps ranked on ever coarser grids, with the controls.

python benchmarks/confound/run.py runs/confound scores the two configurations (what is scored is not scored again) and
writes confound.json and a picture of each beside this file; --figure leaves out the scoring.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

from xattn.benchmark.config import Config
from xattn.benchmark.figures import grids, style_of_figures
from xattn.benchmark.panels import Panel, panels
from xattn.benchmark.run import run
from xattn.benchmark.scores import Scores
from xattn.files import whole_file
from xattn.labels import slug

HERE = Path(__file__).parent
CONFIGS = ("confound-tiny", "confound-vit", "confound-lite0")
NETWORKS = {
    ("Tiny-ImageNet", "tiny-cnn"): "trained on Tiny-ImageNet, not on these images",
    ("CUB-20", "efficientnet_lite0"): "trained on ImageNet, not on these images",
}


def rows_of(panel: Panel) -> list[dict[str, Any]]:
    """Mean and interval of each method for each column and grid."""
    return [
        {
            "column": s.column.name,
            "metric": s.column.metric,
            "grid": s.column.grid,
            "method": panel.labels[j],
            "mean": round(float(s.spread.mean[j]), 4),
            "low": round(float(s.spread.low[j]), 4),
            "high": round(float(s.spread.high[j]), 4),
            "images": int(s.spread.n[j]),
        }
        for s in panel.directed
        if s.column.name in ("insertion", "deletion")
        for j in range(len(panel.entries))
    ]


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
    found: dict[str, Any] = {}
    for name in CONFIGS:
        folder = given.folder / name
        if not given.figure and name in given.only:
            run(Config.read(HERE.parent / "configs" / f"{name}.toml"), folder)
        if not folder.is_dir():
            continue
        scores = Scores(folder)
        device = ", ".join(dict.fromkeys(where.device for where in scores.manifest.environments))
        compared = panels(scores)
        for panel in compared:
            (model,) = {e.model for e in panel.entries}
            network = NETWORKS[panel.dataset, model]
            key = name if len(compared) == 1 else f"{name}-{slug(panel.dataset)}"
            found[key] = {"panel": panel.name, "device": device, "network": network, "rows": rows_of(panel)}
            draw(panel, HERE / f"{key}.png")
    with whole_file(HERE / "confound.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
