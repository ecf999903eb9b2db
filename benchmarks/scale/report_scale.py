"""Time and memory of `xattn report` over made-up scores, 10, 30 and 100 million of them by default.

    python benchmarks/scale/report_scale.py --out benchmarks/scale/results.json
    python benchmarks/scale/report_scale.py --millions 1 --home /tmp

Each run has 40 methods, among them the four controls, and about 50 columns, in parts of 64 images as a benchmark writes
them; the number of images makes the number of rows. The report is that of the command, without pictures of images, in a
process of its own whose peak memory the system tells. Runs are made in a temporary folder and removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xattn.benchmark.config import Config
from xattn.benchmark.plan import CONTROLS
from xattn.benchmark.schemas import Manifest
from xattn.benchmark.store import KEYS, SCHEMA, Store
from xattn.explainers import explainers
from xattn.files import whole_file
from xattn.labels import label_of
from xattn.metric import LOWER
from xattn.metrics import metrics as known

METHODS = 40
BLOCK = 64
METRICS = (
    "insertion", "deletion", "insertion:baseline=mean", "deletion:baseline=mean", "insertion:baseline=black",
    "deletion:baseline=black", "energy_pointing_game", "pointing_game", "sparsity", "gini", "road", "average_drop",
    "max_sensitivity", "class_sensitivity", "parameter_randomization", "pixel_auc",
)  # fmt: skip
DATA, MODEL = "made-up", "cnn"


def labels() -> tuple[list[str], list[tuple[str, str]]]:
    """Methods and, for each column, the metric and its name; pooled metrics and curves of many columns are left out."""
    names = [n for n in explainers.names() if n not in CONTROLS and "/" not in n][: METHODS - len(CONTROLS)]
    methods = sorted({*CONTROLS, *(label_of(explainers.create(n)) for n in names)})
    columns = [
        (label_of(metric), column)
        for metric in map(known.parse, METRICS)
        for column in metric.columns
        if not metric.pooled
    ]
    return methods, [*columns, ("status", "ok")]


def make(folder: Path, rows: int, seed: int = 0) -> dict[str, int]:
    """A run of at least so many rows; how large it is."""
    methods, columns = labels()
    images = -(-rows // (len(methods) * len(columns)))
    rng = np.random.default_rng(seed)
    keys = sorted((method, metric, column) for method in methods for metric, column in columns)
    good = rng.normal(0.5, 0.1, len(keys))
    sign = np.array([-1 if m != "status" and known.parse(m).columns[c] is LOWER else 1 for _, m, c in keys])
    sure = np.array([m == "status" for _, m, _ in keys])
    pairs = {(method, metric): BLOCK for method, metric, _ in keys}
    store, count = Store(folder), 0
    for block in range(-(-images // BLOCK)):
        own = min(BLOCK, images - block * BLOCK)
        easy = rng.normal(0, 0.1, own)  # images differ more than methods do
        values = good[:, None] + sign[:, None] * (easy + rng.normal(0, 0.1, (len(keys), own)))
        values[sure] = 1.0
        texts: dict[str, Any] = {
            name: pa.array(np.repeat([key[i] for key in keys], own))
            for i, name in enumerate(("method", "metric", "column"))
        }
        names = [f"image-{block * BLOCK + i:08d}" for i in range(own)]
        filled = len(keys) * own
        table = pa.table(
            {
                "dataset": pa.array([DATA]).take(pa.array(np.zeros(filled, np.int64))),
                "model": pa.array([MODEL]).take(pa.array(np.zeros(filled, np.int64))),
                "image": pa.array(np.tile(names, len(keys))),
                "target": np.zeros(filled, np.int64),
                **texts,
                "value": values.ravel(),
                "note": pa.array(np.repeat(np.where(sure, "ok", ""), own)),
            },
            schema=SCHEMA,
        )
        store.write_table(DATA, MODEL, block, table, pairs)
        count += filled
    config = Config.build(
        {"data": [{"source": DATA}], "models": [{"name": MODEL}], "methods": methods, "metrics": list(METRICS)}
    )
    store.replace_manifest(Manifest(config=config))
    size = sum(path.stat().st_size for path in store.parts())
    return {"rows": count, "images": images, "methods": len(methods), "columns": len(columns), "bytes": size}


def reported(folder: Path, out: Path) -> dict[str, float]:
    """What the report takes: seconds of the clock and of the processor, and the peak of resident memory in MiB."""
    words = [sys.executable, "-m", "xattn", "report", str(folder), "--out", str(out), "--panels", "0", "--quiet"]
    start = time.perf_counter()
    pid = os.spawnvpe(os.P_NOWAIT, words[0], words, {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"})
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"the report ended with status {os.waitstatus_to_exitcode(status)}")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def main() -> None:
    """Make, report, measure, remove; results are written after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[10, 30, 100], help="rows of the runs")
    parser.add_argument("--home", type=Path, help="where runs are made; 100 million rows need some 3 GB")
    parser.add_argument("--out", type=Path, help="JSON of the results")
    given = parser.parse_args()
    results: list[dict[str, float]] = []
    for millions in given.millions:
        home = Path(tempfile.mkdtemp(prefix="xattn-scale-", dir=given.home))
        try:
            start = time.perf_counter()
            made = make(home / "run", round(millions * 1e6))
            print(f"{made} made in {time.perf_counter() - start:.0f} s", flush=True)
            results.append({**made, **reported(home / "run", home / "report")})
        finally:
            shutil.rmtree(home)
        print(results[-1], flush=True)
        if given.out is not None:
            about = {
                "processor": platform.processor() or platform.machine(),
                "processors": os.cpu_count(),
                "threads": 1,
            }
            with whole_file(given.out) as temporary:
                temporary.write_text(json.dumps({**about, "keys": list(KEYS), "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
