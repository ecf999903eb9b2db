"""Replays of `xattn select` on stored scores: does it say what all images say, and for how much less?

Every image of a benchmark was scored by every method (`scores.py`). From these scores the race is run again and again,
each time with the images in another order, and its answer is held against that of all images.

    python benchmarks/select/scores.py runs/select && python benchmarks/select/replay.py runs/select
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xattn.benchmark.race import Race, Rules, replay
from xattn.benchmark.scores import Scores
from xattn.benchmark.select import DEAR, QUESTIONS, UNSOUND
from xattn.benchmark.statistics import pairwise
from xattn.functional.statistics import ALPHA, holm

HERE = Path(__file__).parent
STEPS = 10  # forward passes of a curve, of which each question takes two


@dataclass(frozen=True, eq=False)
class Stored:
    """The scores of one model.

    Args:
        model: its name.
        names: methods and controls (K,).
        controls: (K,).
        scores: (N, Q, K), high is good.
        passes: (K,), forward and backward passes of a map.
    """

    model: str
    names: list[str]
    controls: np.ndarray
    scores: np.ndarray
    passes: np.ndarray


def stored(folder: Path) -> list[Stored]:
    """The scores of every model of a run, without the methods whose maps are not fine."""
    scores = Scores(folder)
    (dataset,) = scores.datasets
    result = []
    for model in scores.models(dataset):
        entries = [e for e in scores.entries(dataset, model) if e.control or scores.share(dataset, e) >= 1 - UNSOUND]
        columns = [scores.values(dataset, entries, q.label, q.column) for q in QUESTIONS]
        (images,) = {tuple(images) for _, images in columns}
        costs = scores.costs(dataset, model)
        passes = [sum(costs.get(e.method, {}).get(kind) or 0.0 for kind in ("forwards", "backwards")) for e in entries]
        values = np.stack([q.sign * values for q, (values, _) in zip(QUESTIONS, columns, strict=True)], axis=1)
        assert len(images) == len(values)
        result.append(
            Stored(model, [e.method for e in entries], np.array([e.control for e in entries]), values, np.array(passes))
        )
    return result


def whole(data: Stored) -> dict[str, Any]:
    """What all images say by paired Wilcoxon tests with Holm's correction over pairs and questions, as in the report.

    A method is in the group of the best if none is significantly better in either question, and sound if it is
    significantly better than every control in both.
    """
    k, mean = len(data.names), np.nanmean(data.scores, axis=0)  # (Q, K)
    upper = np.triu_indices(k, 1)
    raw = np.stack([pairwise(data.scores[:, q], correct=False).p[upper] for q in range(len(QUESTIONS))])
    better = np.zeros((len(QUESTIONS), k, k), bool)
    significant = holm(raw) < ALPHA
    for q in range(len(QUESTIONS)):
        for i, j, found in zip(*upper, significant[q], strict=True):
            better[q, i, j] = found and mean[q, i] > mean[q, j]
            better[q, j, i] = found and mean[q, j] > mean[q, i]
    methods = ~data.controls
    best = methods & ~better.any(0).any(0)
    sound = methods & better[:, :, data.controls].all(2).all(0)
    name = np.array(data.names)
    return {
        "group": name[best].tolist(), "beats_controls": name[sound].tolist(),
        "means": {n: mean[:, j].round(4).tolist() for j, n in enumerate(data.names)},
    }  # fmt: skip


def passes_of(data: Stored, counts: np.ndarray) -> float:
    """Passes for maps, and forward passes for scores, of so many images (Q, K)."""
    return float((counts.max(0) * data.passes).sum() + 2 * STEPS * counts.sum())


def once(data: Stored, images: int, seed: int, truth: dict[str, Any]) -> dict[str, Any]:
    """One race on images in random order, and how its answer compares."""
    order = np.random.default_rng(seed).permutation(len(data.scores))[:images]
    race = Race(
        data.names, data.controls, [q.what for q in QUESTIONS], cost=data.passes, late=data.passes > DEAR
    )  # fmt: skip
    replay(race, data.scores[order])
    winners = race.winners()
    proven = [j for j in winners if all(race.beats_controls(q, j) for q in range(len(QUESTIONS)))]
    named = data.names[proven[0]] if proven else None
    group = {data.names[i] for j in winners for i in (j, *race.joined(j))}
    good, sound = set(truth["group"]), set(truth["beats_controls"])
    same = named in good & sound if named is not None else not good & sound
    out = {data.names[j] for j in np.flatnonzero(race.beaten.any(0)) if not data.controls[j]}
    return {
        "named": named, "same": same, "group": sorted(group), "images": race.images, "decided": race.decided,
        "holds_the_best": bool(group & good), "false": bool(out & good),
        "share_of_passes": passes_of(data, race.counts()) / passes_of(data, np.full((len(QUESTIONS), len(data.names)),
                                                                                      len(data.scores))),
    }  # fmt: skip


def main() -> None:
    """Replay, print and write `replay.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the benchmark of scores.toml")
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--images", type=int, nargs="+", default=[60, 80, 100, 120, 160, 200])
    options = parser.parse_args()
    rows = []
    for data in stored(options.run):
        truth = whole(data)
        print(
            data.model, len(data.scores), "images; group:", truth["group"], "beats controls:", truth["beats_controls"]
        )
        for images in options.images:
            races = [once(data, images, seed, truth) for seed in range(options.replays)]
            named = [r["named"] or "none" for r in races]
            row = {
                "model": data.model, "most_images": images, "replays": len(races),
                "same_verdict": float(np.mean([r["same"] for r in races])),
                "group_holds_the_best": float(np.mean([r["holds_the_best"] for r in races])),
                "decided": float(np.mean([r["decided"] for r in races])),
                "share_of_passes": float(np.mean([r["share_of_passes"] for r in races])),
                "largest_share": float(np.max([r["share_of_passes"] for r in races])),
                "images": float(np.mean([r["images"] for r in races])),
                "group_size": float(np.mean([len(r["group"]) for r in races])),
                "with_a_best_one_out": float(np.mean([r["false"] for r in races])),
                "named": {n: named.count(n) for n in sorted(set(named), key=named.count, reverse=True)},
            }  # fmt: skip
            rows.append(row)
            print(json.dumps(row))
        rows[-1]["whole"] = truth
    about = {"images": len(data.scores), "rules": vars(Rules()), "replays": options.replays}
    text = json.dumps({"about": about, "rows": rows}, indent=1) + "\n"
    (HERE / "replay.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
