"""Train the networks of the three tasks, one after the other; what is done is passed over, what was stopped goes on.

python benchmarks/three_tasks/train.py --out runs/three-tasks --seeds 0 --only cub-20/brnpa-low
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from runs import RECIPES, RUNS

from xattn.training.loop import Silent, train
from xattn.training.recipe import Recipe


class Told(Silent):
    """One line an epoch."""

    def epoch(self, row: dict[str, float], best: bool) -> None:
        values = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "image_size")
        print(f"  {values}{' best' if best else ''}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", metavar="TASK/NAME", help="all of them, where it is not given")
    args = parser.parse_args()
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for seed in args.seeds:
        for run in RUNS:
            name = f"{run.task}/{run.name}"
            if args.only and name not in args.only:
                continue
            began, used = time.perf_counter(), time.process_time()
            recipe = Recipe.read(RECIPES / f"{run.recipe}.toml", run.overrides(args.out, seed))
            print(f"{name}, seed {seed}", flush=True)
            result = train(recipe, Told())
            seconds = f"{time.perf_counter() - began:.0f} s, {time.process_time() - used:.0f} s of the processor"
            print(f"{name}, seed {seed}: {result.measure} {result.value:.4f}, {seconds}", flush=True)


if __name__ == "__main__":
    main()
