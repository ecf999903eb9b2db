"""Time and memory of an audit against the number of images: whole classes of Tiny-ImageNet (val) with tiny-cnn.

Each measurement is a process of its own, whose largest resident set the system tells; the time is that of `audit()`
alone, by the clock and by the processor.

    python benchmarks/speed/audit.py --counts 500 2000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "audit.json"


def one(root: str, count: int, threads: int) -> None:
    """Audit so many images and print what it took."""
    import resource

    import numpy as np
    import torch

    from xattn.audit import audit
    from xattn.data.opening import open_dataset
    from xattn.models import create_model

    torch.set_num_threads(threads)
    whole = open_dataset(f"tiny-imagenet:{root}", "val")
    order = np.argsort(whole.labels, kind="stable")
    dataset = whole.subset(order[:count])
    model = create_model("tiny-cnn")
    clock, processor = time.perf_counter(), time.process_time()
    result = audit(model, dataset)
    row = {
        "images": count, "classes": len(result.provenance["classes"]), "groups": result.provenance["groups"],
        "candidates": len(result.candidates), "seconds": round(time.perf_counter() - clock, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, 1),
    }  # fmt: skip
    print(json.dumps(row))


def main() -> None:
    """Measure each count in a process of its own, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("XATTN_DATA", "data"), help="root that holds tiny-imagenet")
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    root = str(Path(given.data) / "tiny-imagenet")
    if given.one is not None:
        one(root, given.one, given.threads)
        return
    rows: list[dict[str, Any]] = []
    for count in given.counts:
        command = [sys.executable, __file__, "--data", given.data, "--one", str(count), "--threads", str(given.threads)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(run.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    environment = {
        "device": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": given.threads,
        "versions": {name: version(name) for name in ("torch", "scikit-learn", "numpy")},
        "load_before": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    results = {"environment": environment, "model": "tiny-cnn, trained on Tiny-ImageNet (train)", "rows": rows}
    given.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
