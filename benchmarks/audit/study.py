"""Does `xattn audit` find what a network is known to rely on, and does it stay silent where there is nothing?

    python benchmarks/audit/train.py runs/audit     (the networks)
    python benchmarks/audit/study.py runs/audit     (audits them, then writes results.json beside this file)

`$XATTN_DATA` is the folder that holds Tiny-ImageNet. The images are those that the networks were not trained on: all of
the class with the mark, which is audited, and one in four of the other classes. What is there is not done again;
`--again` audits anew. `--development` audits the networks that the audit was made with, into development.json.

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
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rivals import rivals
from runs import DEVELOPMENT, RUNS, Run

from xattn.audit import Audit, Finding, audit
from xattn.data.dataset import Subset
from xattn.data.planted import Planted
from xattn.files import whole_file
from xattn.models.factory import load_model
from xattn.training.folder import processor_name

HERE = Path(__file__).parent
CARRY, COVER = 0.75, 0.5
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


def covered_by(finding: Finding, masks: Callable[[int], NDArray[np.bool_]]) -> NDArray[np.float64]:
    """Share of the mark's pixels that lie in the replaced cells of each member (n,)."""
    shares = []
    for member in finding.group.members:
        mask = masks(member.index)
        rows, columns = (np.arange(n) * m // n for n, m in zip(mask.shape, member.cells.shape, strict=True))
        shares.append(float(member.cells[rows[:, None], columns[None, :]][mask].mean()))
    return np.array(shares)


def judged(found: Audit, run: Run, data: Planted, places: NDArray[np.int64]) -> dict[str, Any]:
    """What the audit of one network found.

    Args:
        found: in the images at some places of the data.
        run: what was planted.
        data: all images.
        places: of those that were audited (n,).

    Returns:
        `rank`: of the first finding that shows the mark, None if there is none; `candidate`: whether it is a shortcut
        candidate; `candidates`: their number; `all`: the findings; `chance`: share of permutations of the
        marked images, among those of the class, with which one of the first three would show it.
    """
    full, has = data.everywhere(), data.marked[places]
    masks = cache(lambda index: full.mask_of(int(places[index])))
    own = [f for f in found.findings if f.group.class_index == run.label]
    covered = {f.id: covered_by(f, masks) for f in own}
    index = {f.id: np.array([m.index for m in f.group.members]) for f in own}
    showing = [f for f in own if shows(f, run, has[index[f.id]], covered[f.id])]
    rng = np.random.default_rng(run.seed)
    seen = np.unique(np.concatenate([*index.values(), np.zeros(0, np.int64)])).astype(np.int64)
    by_chance = 0
    for _ in range(PERMUTATIONS if run.planted else 0):
        marked = np.zeros(len(places), np.bool_)
        marked[seen] = rng.permutation(has[seen])
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
                "carry": float(has[[m.index for m in f.group.members]].mean()),
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
    places = run.audited(data)
    found = audit(load_model(path), Subset(data, places), classes=[run.label])
    seconds = time.process_time() - began
    return {"audit": judged(found, run, data, np.array(places)), "processor_seconds": round(seconds, 1)}


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
    parser.add_argument("--development", action="store_true", help="the networks that the audit was made with")
    parser.add_argument("--collect", action="store_true", help="the results of what was audited, and nothing else")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    runs = DEVELOPMENT if given.development else RUNS
    half = len(runs) // 2
    for run in (run for pair in zip(runs[:half], runs[half:], strict=True) for run in pair):  # so that a part is fair
        folder = given.folder / run.name
        if not run.name.startswith(given.only) or not (folder / "use.json").exists():
            continue
        if given.collect and not (folder / "audit.json").exists():
            continue
        weights, data = folder / "best.safetensors", run.to_look_at(str(Path(given.data) / "tiny-imagenet"))
        values: dict[str, Any] = {}
        if run.planted and (given.rivals or (folder / "rivals.json").exists()):
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
        with whole_file(HERE / ("development.json" if given.development else "results.json")) as temporary:
            temporary.write_text(json.dumps({"device": device, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
