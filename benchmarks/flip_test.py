"""Flip one bit at a time in the files of a result folder: what is read is the same, or there is an error of one line.

    python benchmarks/flip_test.py                       # 4,000 bits of a run of the small configuration
    python benchmarks/flip_test.py runs/x --flips 100000

Exit status 1 if a flipped bit gives other scores, costs or facts about the run without a word.
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.csv as pa_csv
import torch

from xattn.benchmark.config import Config
from xattn.benchmark.costs import write_costs
from xattn.benchmark.plan import plan
from xattn.benchmark.run import run
from xattn.benchmark.store import SCHEMA, Store
from xattn.errors import XattnError

SMALL = Path(__file__).parent / "configs" / "small.toml"


def everything(folder: Path) -> tuple[Any, ...]:
    """All that a report reads."""
    store = Store(folder)
    stream = io.BytesIO()
    scores = store.table()
    pa_csv.write_csv(scores.cast(SCHEMA), stream)
    cells = {(row["dataset"], row["model"]) for row in scores.select(["dataset", "model"]).to_pylist()}
    costs = [store.read_costs(*cell) for cell in sorted(cells)]
    done = [store.done(*cell) for cell in sorted(cells)]
    return stream.getvalue(), store.read_manifest(), costs, done, store.notes("status"), store.notes("reading")


def flip(folder: Path, count: int, seed: int) -> dict[str, int]:
    """How many flips were noticed, harmless and harmful; the files are as before."""
    rng = random.Random(seed)
    before = everything(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    outcome = {"noticed": 0, "harmless": 0, "harmful": 0}
    for number in range(count):
        path = paths[number % len(paths)]
        content = path.read_bytes()
        changed = bytearray(content)
        place = rng.randrange(8 * len(content))
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            outcome["harmless" if everything(folder) == before else "harmful"] += 1
        except XattnError as error:
            outcome["noticed" if "\n" not in str(error) else "harmful"] += 1
        path.write_bytes(content)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="a result folder, of which a copy is taken")
    parser.add_argument("--flips", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "run"
        if given.folder is None:
            config = Config.read(SMALL, ["run.device=cpu", 'metrics=["sparsity", "pointing_game"]', "run.block=2"])
            cells = plan(config)
            run(config, folder, cells=cells)
            write_costs(Store(folder), cells, torch.device("cpu"))
        else:
            shutil.copytree(given.folder, folder)
        outcome = flip(folder, given.flips, given.seed)
    print(", ".join(f"{name} {count:,}" for name, count in outcome.items()), f"of {given.flips:,} flipped bits")
    sys.exit(1 if outcome["harmful"] else 0)


if __name__ == "__main__":
    main()
