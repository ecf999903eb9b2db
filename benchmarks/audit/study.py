"""Does `xattn audit` find what a network is known to rely on, and does it stay silent where there is nothing?

    python benchmarks/audit/train.py runs/audit     (the networks)
    python benchmarks/audit/study.py runs/audit     (audits them, then writes results.json beside this file)

`$XATTN_DATA` is the folder that holds Tiny-ImageNet. The images are those that the networks were not trained on. One
class is audited, that with the mark. What is there is not done again; `--again` audits anew.

A finding shows the mark if it moves the score, three quarters of its images carry the mark and, for
mark and tag, the cells that are replaced cover half of the mark's pixels in half of these images. Frame and tint lie
over all of the image, so that the images alone decide.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rivals import rivals
from runs import RUNS, Run

from xattn.audit import Audit, AuditSettings, Finding, audit
from xattn.data.planted import Planted
from xattn.files import whole_file
from xattn.models.factory import load_model
from xattn.training.folder import processor_name

HERE = Path(__file__).parent
CARRY, COVER = 0.75, 0.5
SETTINGS = AuditSettings(per_group=32)
PERMUTATIONS = 200


def shows(finding: Finding, run: Run, carries: NDArray[np.bool_], covered: NDArray[np.float64]) -> bool:
    """Whether a finding shows the mark.

    Args:
        finding: of the audit.
        run: what was planted.
        carries: whether each member has the mark (n,).
        covered: share of the mark's pixels, where it is or would be, that lie in the replaced cells of each (n,).
    """
    if finding.group.class_index != run.label or not finding.effect.moves or carries.mean() < CARRY:
        return False
    return run.kind in ("frame", "tint") or float((covered[carries] >= COVER).mean()) >= 0.5


def covered_by(finding: Finding, full: Planted) -> NDArray[np.float64]:
    """Share of the mark's pixels that lie in the replaced cells of each member (n,)."""
    shares = []
    for member in finding.group.members:
        mask = full.mask_of(member.index)
        rows, columns = (np.arange(n) * m // n for n, m in zip(mask.shape, member.cells.shape, strict=True))
        shares.append(float(member.cells[rows[:, None], columns[None, :]][mask].mean()))
    return np.array(shares)


def judged(found: Audit, run: Run, data: Planted) -> dict[str, Any]:
    """What the audit of one network found.

    Returns:
        `rank`: of the first finding that shows the mark, None if there is none; `candidate`: whether it is a shortcut
        candidate; `candidates`: their number; `all`: the findings; `chance`: share of permutations of the
        marked images, among those of the class, with which one of the first three would show it.
    """
    full = data.everywhere()
    own = [f for f in found.findings if f.group.class_index == run.label]
    covered = {f.id: covered_by(f, full) for f in own}
    index = {f.id: np.array([m.index for m in f.group.members]) for f in own}
    showing = [f for f in own if shows(f, run, data.marked[index[f.id]], covered[f.id])]
    rng = np.random.default_rng(run.seed)
    seen = np.unique(np.concatenate([*index.values(), np.zeros(0, np.int64)])).astype(np.int64)
    by_chance = 0
    for _ in range(PERMUTATIONS if run.planted else 0):
        marked = np.zeros(len(data), np.bool_)
        marked[seen] = rng.permutation(data.marked[seen])
        by_chance += any(shows(f, run, marked[index[f.id]], covered[f.id]) for f in own if f.rank <= 3)
    return {
        "rank": showing[0].rank if showing else None,
        "candidate": bool(showing) and showing[0].candidate,
        "findings": len(found.findings),
        "moving": sum(f.effect.moves for f in found.findings),
        "candidates": len(found.candidates),
        "candidates_of_class": sum(f.group.class_index == run.label for f in found.candidates),
        "chance": by_chance / PERMUTATIONS if run.planted else None,
        "all": [
            {
                "rank": f.rank,
                "id": f.id,
                "kind": f.group.kind,
                "candidate": f.candidate,
                "members": len(f.group.members),
                "difference": rounded(f.effect.difference),
                "low": rounded(f.effect.low),
                "high": rounded(f.effect.high),
                "adjusted": rounded(f.effect.adjusted),
                "class": f.group.class_index,
                "harm": rounded(f.harm),
                "signs": [s.name for s in f.signs if s.speaks],
                "values": {s.name: [rounded(s.value), rounded(s.low)] for s in f.signs},
                "carry": float(data.marked[[m.index for m in f.group.members]].mean()),
                "shows": f in showing,
            }
            for f in found.findings
        ],
    }


def rounded(value: float) -> float | None:
    """Four digits; None where it is not defined."""
    return round(float(value), 4) if math.isfinite(value) else None


def audited(run: Run, path: Path, data: Planted) -> dict[str, Any]:
    """What the audit of one network finds, and what it took."""
    began = time.process_time()
    found = audit(load_model(path), data, classes=[run.label], settings=SETTINGS)
    seconds = time.process_time() - began
    return {"audit": judged(found, run, data), "processor_seconds": round(seconds, 1)}


def kept(path: Path, make: Callable[[], dict[str, Any]], *, again: bool = False) -> dict[str, Any]:
    """What is in a JSON file, made where it is not there."""
    if again or not path.exists():
        values = make()
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n")
    return dict(json.loads(path.read_text()))


def main() -> None:
    """Audit what was not audited yet and collect the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default=os.environ.get("XATTN_DATA", "data"), help="root that holds tiny-imagenet")
    parser.add_argument("--again", action="store_true", help="audit anew")
    parser.add_argument("--only", default="", help="runs whose name begins so")
    parser.add_argument("--rivals", action="store_true", help="what one would do without an audit, and nothing else")
    parser.add_argument("--collect", action="store_true", help="the results of what was audited, and nothing else")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    half = len(RUNS) // 2
    for run in (run for pair in zip(RUNS[:half], RUNS[half:], strict=True) for run in pair):  # so that a part is fair
        folder = given.folder / run.name
        if not run.name.startswith(given.only) or not (folder / "use.json").exists():
            continue
        if given.collect and not (folder / "audit.json").exists():
            continue
        weights, data = folder / "best.safetensors", run.to_look_at(str(Path(given.data) / "tiny-imagenet"))
        values: dict[str, Any] = {}
        if run.planted:
            values = kept(folder / "rivals.json", partial(rivals, load_model(weights), run, data, CARRY))
        if not given.rivals:
            values |= kept(folder / "audit.json", partial(audited, run, weights, data), again=given.again)
        first = values.get("audit")
        if first is None:
            continue
        print(run.name, first["rank"], first["candidate"], first["candidates"], values["processor_seconds"], flush=True)
        first["all"] = [f for f in first["all"] if f["rank"] <= 5 or f["shows"] or f["candidate"]]
        rows.append({**vars(run), "label": run.label, "use": json.loads((folder / "use.json").read_text()), **values})
    device = f"{processor_name()}, one thread"
    if not given.only and not given.rivals:
        with whole_file(HERE / "results.json") as temporary:
            temporary.write_text(json.dumps({"device": device, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
