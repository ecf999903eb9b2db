"""Bad input of every kind: does it get one line and the right status, and bounded time and memory?

    python benchmarks/robustness/fuzz.py --kind weights --seed 3 --count 200 --out weights.json
    python benchmarks/robustness/fuzz.py --kind all --seed 3 --count 50
    python benchmarks/robustness/fuzz.py --kind weights --seed 3 --only 17 --keep case    # one case, its files kept

Each case runs in a forked process under limits of time and memory. A case is right if it is read (status 0, or 3 where
some of the images failed) or refused (status 2, one line for each fault, bounded, without control characters). It is
wrong with a traceback, after a hang, above 1 GB, with another status, with a table that silently is another one, or if
something ran that was only to be read. Exit status 1 if any case is wrong.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.robustness.cases import KINDS, SOME_FAILED
from benchmarks.robustness.harness import SECONDS, Verdict, load, run_case


def try_kind(kind: str, seed: int, numbers: range | list[int], seconds: float, *, show: bool = True) -> dict[str, Any]:
    """Counts of a kind, and its wrong cases with a command that repeats them."""
    counts = collections.Counter({"tried": 0, "read": 0, "refused": 0, "wrong": 0})
    wrong = []
    began = time.monotonic()
    for number in numbers:
        verdict = run_case(kind, seed, number, seconds=seconds)
        counts["tried"] += 1
        if verdict.faults:
            counts["wrong"] += 1
            wrong.append(_told(verdict, seed))
            if show:
                print(f"{kind} {number} {verdict.name}: {'; '.join(verdict.faults)}", file=sys.stderr, flush=True)
        else:
            counts["read" if verdict.status in (0, SOME_FAILED) else "refused"] += 1
    return {**counts, "seed": seed, "seconds": round(time.monotonic() - began, 1), "cases": wrong}


def _told(verdict: Verdict, seed: int) -> dict[str, Any]:
    here = (
        f"python benchmarks/robustness/fuzz.py --kind {verdict.kind} --seed {seed} --only {verdict.number} --keep case"
    )
    argv = [word if len(word) <= 300 else word[:20] + "…" for word in verdict.argv]
    command = shlex.join(["xattn", *argv]) if argv else "Python interface"
    told = dataclasses.asdict(verdict) | {"argv": argv, "command": command, "repeat": here}
    return json.loads(json.dumps(told).encode("utf-8", "backslashreplace"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("all", *KINDS), default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--only", type=int, help="one case, with what it printed")
    parser.add_argument("--keep", type=Path, help="folder for the files of --only")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    parser.add_argument(
        "--serve", action="store_true", help="read lines KIND SEED COUNT, answer each with a line of JSON"
    )
    given = parser.parse_args()
    load()
    if given.serve:
        for line in sys.stdin:
            kind, seed, count = line.split()
            print(json.dumps(try_kind(kind, int(seed), range(int(count)), given.seconds, show=False)), flush=True)
        return
    if given.only is not None:
        verdict = run_case(given.kind, given.seed, given.only, seconds=given.seconds, keep=given.keep)
        print(json.dumps(dataclasses.asdict(verdict), indent=1))
        sys.exit(bool(verdict.faults))
    kinds = KINDS if given.kind == "all" else (given.kind,)
    results = {kind: try_kind(kind, given.seed, range(given.count), given.seconds) for kind in kinds}
    for kind, result in results.items():
        print(kind, *(f"{name} {result[name]}" for name in ("tried", "refused", "read", "wrong")), sep="\t")
    if given.out:
        versions = {name: version(name) for name in ("torch", "pillow", "pyarrow", "safetensors")}
        about = {"python": platform.python_version(), "machine": platform.machine(), **versions}
        given.out.write_text(json.dumps({"about": about, "kinds": results}, indent=1) + "\n")
    sys.exit(any(result["wrong"] for result in results.values()))


if __name__ == "__main__":
    main()
