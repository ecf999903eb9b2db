"""Every method of two checkouts of xattn in one run: is one of them slower than the other?

    python benchmarks/speed/versions.py --before CHECKOUT [--after CHECKOUT] [--rounds 7] [--methods gradcam rise]

Each checkout has a process of its own, which imports xattn from there. Both hold the same network and photographs, and
are asked in turn for one explanation at a time, in an order that rotates, so that what else the machine does strikes
both. The ratio is taken within a round: after / before. `--after` is the checkout of this file by default.

A method that is missing or refused in either is recorded with the reason. A run of all methods writes
`results/versions.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import IO, Any, cast

SPENT = 8.0  # seconds for one method on one network, after which there is no further round
LONG = 300.0  # milliseconds on the first network, from which on a method is not tried on the second
# Fewer samples where the default takes many seconds: what one of them costs is compared.
FEWER = {
    "rise": "rise:samples=200",
    "lime": "lime:samples=200",
    "integrated-gradients": "integrated-gradients:steps=20",
}
FEWER |= {
    "blur-ig": "blur-ig:steps=20",
    "guided-ig": "guided-ig:steps=20",
}  # their default steps are chosen otherwise now
NETWORKS = ["tiny-cnn", "resnet18", "tiny-brnpa", "tiny-bcnn", "tiny-vit"]
PHOTOS = [str(Path(__file__).resolve().parents[2] / "examples" / name) for name in ("chelsea.jpg", "coffee.jpg")]


def serve() -> None:
    """Answer requests from standard input: a network and a method to explain with, once; the answer is its seconds."""
    if hasattr(os, "sched_setaffinity"):  # both on one core, since cores are not alike on a machine that others use
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    import xattn
    from xattn.explainers import explainers

    warnings.simplefilter("ignore")
    networks: dict[str, Any] = {}
    replies, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any]
        if request["do"] == "names":
            reply = {"names": list(explainers), "file": xattn.__file__}
        else:
            name, batch = request["network"], request["batch"]
            try:
                if name not in networks:
                    torch.manual_seed(0)
                    networks[name] = xattn.create_model(name)
                model = networks[name]
                torch.manual_seed(1)
                size = model.spec.input_size
                x = torch.randn(batch, 3, *((size, size) if isinstance(size, int) else size))
                start = time.perf_counter()
                if request["method"] == "forward":
                    with torch.no_grad():
                        model(x)
                else:
                    xattn.explain(model, x, request["method"], 0, spec=model.spec)
                reply = {"seconds": time.perf_counter() - start}
            except Exception as error:  # one method must not cost the run
                reply = {"reason": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps(reply), file=replies, flush=True)


class Checkout:
    """A process that imports xattn from a folder."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request and its answer."""
        print(json.dumps(request), file=cast("IO[str]", self.process.stdin), flush=True)
        answer: dict[str, Any] = json.loads(cast("IO[str]", self.process.stdout).readline())
        return answer


def compare(sides: dict[str, Checkout], network: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """The ratio of one method on one network."""
    import numpy as np

    request = {"do": "explain", "network": network, "method": method, "batch": options.batch}
    first = {side: checkout.ask(**request) for side, checkout in sides.items()}  # not counted: imports, allocation
    refused = {side: answer["reason"] for side, answer in first.items() if "reason" in answer}
    if refused:
        return {"refused": refused}
    rounds: dict[str, list[float]] = {side: [] for side in sides}
    start = time.perf_counter()
    # Two calls a side in a round, nested (A B B A), take out a drift within it; long methods are asked less often.
    inner = max(1, min(20, round(0.05 / max(1e-4, first["after"]["seconds"]))))
    while len(rounds["after"]) < options.rounds and (time.perf_counter() - start < SPENT or len(rounds["after"]) < 3):
        order = list(sides) if len(rounds["after"]) % 2 else list(sides)[::-1]
        spent = dict.fromkeys(sides, 0.0)
        calls = [*order, *order[::-1]] * inner if first["after"]["seconds"] < 1 else order
        for side in calls:
            spent[side] += sides[side].ask(**request)["seconds"]
        for side, seconds in spent.items():
            rounds[side].append(seconds / len(calls) * len(sides))
    ratios = np.array(rounds["after"]) / np.array(rounds["before"])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return {
        "ratio": float(middle), "q25": float(low), "q75": float(high), "rounds": len(ratios),
        "before_ms": float(np.median(rounds["before"]) * 1e3), "after_ms": float(np.median(rounds["after"]) * 1e3),
    }  # fmt: skip


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="folder with the other xattn/")
    parser.add_argument("--after", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--methods", nargs="+", help="names, with parameters; all by default")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    if options.before is None:
        parser.error("--before FOLDER is missing: the checkout to compare with, as made by git worktree add")
    import timing

    sides = {"before": Checkout(options.before.resolve()), "after": Checkout(options.after.resolve())}
    names = {side: checkout.ask(do="names") for side, checkout in sides.items()}
    for side, answer in names.items():
        print(f"{side}: {answer['file']}", flush=True)
    both = [FEWER.get(name, name) for name in names["after"]["names"] if name in names["before"]["names"]]
    methods = options.methods or ["forward", *both]
    start = time.perf_counter()
    results: dict[str, dict[str, Any]] = {}
    for network in options.networks:
        done = {method for rows in results.values() for method, row in rows.items() if "ratio" in row}
        # The networks after the second are for the methods that only they have.
        wanted = methods if network in NETWORKS[:2] or options.methods else [m for m in methods if m not in done]
        if not options.methods and network == NETWORKS[1]:
            usual = results[NETWORKS[0]]
            wanted = [m for m in methods if usual[m].get("after_ms", 0.0) < LONG]
        results[network] = {}
        for method in wanted:
            row = results[network][method] = compare(sides, network, method, options)
            if "ratio" in row:
                print(
                    f"{network:12s} {method:26s} {row['before_ms']:9.1f} -> {row['after_ms']:9.1f} ms   "
                    f"{row['ratio']:.3f} [{row['q25']:.3f}, {row['q75']:.3f}]  {row['rounds']} rounds", flush=True
                )  # fmt: skip
            else:
                print(f"{network:12s} {method:26s} {row['refused']}", flush=True)
    if options.methods is None:
        content = {
            "environment": timing.environment("cpu", "torchvision", "captum", "timm") | {"threads": 1},
            "minutes": (time.perf_counter() - start) / 60,
            "networks": results,
        }
        print(f"wrote {timing.write('versions', content)}")


if __name__ == "__main__":
    main()
