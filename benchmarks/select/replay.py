"""Replays of `xattn select` on stored scores: does it say what all images say, and for how much less?

Every image of a benchmark was scored by every method, by curves of ten steps and, as the race does, of five
(`scores.py`). From the latter the race is run again and again, each time with the images in another order, and its
answer is held against what the former say on all images.

    python benchmarks/select/scores.py runs/select && python benchmarks/select/replay.py runs/select

`--curve full` races by the curves of ten steps instead.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xattn.benchmark.answers import MARGIN
from xattn.benchmark.equivalence import beats, compare, duplicates
from xattn.benchmark.race import Race, Rules, replay
from xattn.benchmark.scores import Scores
from xattn.benchmark.select import DEAR, QUESTIONS, UNSOUND
from xattn.benchmark.statistics import pairwise
from xattn.functional.statistics import ALPHA, holm
from xattn.labels import label_of
from xattn.metrics import metrics

HERE = Path(__file__).parent
MODEL_CONTROL = "pooled-gradient"  # the map of a method that races itself, which `select` does not take for a control


@dataclass(frozen=True, eq=False)
class Stored:
    """The scores of one model.

    Args:
        model: its name.
        names: methods and controls (K,).
        controls: (K,).
        cheap: (N, Q, K), as the race takes them, high is good.
        full: (N, Q, K), as a benchmark takes them.
        passes: (K,), forward and backward passes of a map.
    """

    model: str
    names: list[str]
    controls: np.ndarray
    cheap: np.ndarray
    full: np.ndarray
    passes: np.ndarray


def steps_of(metric: str) -> int:
    """Forward passes of a curve."""
    return int(metrics.parse(metric).steps)  # type: ignore[attr-defined]


def stored(folder: Path) -> list[Stored]:
    """The scores of every model of a run, without the methods whose maps are not fine, on the images that have all."""
    scores = Scores(folder)
    (dataset,) = scores.datasets
    result = []
    for model in scores.models(dataset):
        entries = [e for e in scores.entries(dataset, model) if e.control or scores.share(dataset, e) >= 1 - UNSOUND]
        entries = [e for e in entries if e.method != MODEL_CONTROL]
        costs = scores.costs(dataset, model)
        passes = [sum(costs.get(e.method, {}).get(kind) or 0.0 for kind in ("forwards", "backwards")) for e in entries]
        tables = []
        for kind in ("metric", "full"):
            labels = [label_of(metrics.parse(getattr(q, kind))) for q in QUESTIONS]
            tables.append(
                [scores.values(dataset, entries, label, q.column) for label, q in zip(labels, QUESTIONS, strict=True)]
            )
        shared = sorted(set.intersection(*(set(images) for table in tables for _, images in table)))
        cheap, full = (
            np.stack(
                [q.sign * v[[images.index(i) for i in shared]] for q, (v, images) in zip(QUESTIONS, t, strict=True)], 1
            )
            for t in tables
        )
        names = [e.method for e in entries]
        result.append(Stored(model, names, np.array([e.control for e in entries]), cheap, full, np.array(passes)))
    return result


def by_report(data: Stored) -> set[str]:
    """The methods to use as the report has it: they beat every control in both questions, and none is better by 0.01.

    Those with equal scores are one group, and one is better that is shown so in a question and worse in none
    (`benchmark.answers`). Empty where none beats every control.
    """
    places = [*np.flatnonzero(~data.controls), *np.flatnonzero(data.controls)]
    m = int((~data.controls).sum())
    tables = [data.full[:, q][:, places] for q in range(len(QUESTIONS))]
    won = beats(tables, range(m, len(places)))[:, :m]
    worse = compare([t[:, :m] for t in tables], MARGIN).worse
    field = [g for g in duplicates([t[:, :m] for t in tables], MARGIN) if won[:, g].all()]
    heads = [g[0] for g in field]
    behind = worse & ~worse.T
    return {data.names[places[j]] for g in field if not behind[g[0], heads].any() for j in g}


def strictly(data: Stored) -> set[str]:
    """The methods than which none is significantly better at all in either question, and that beat every control.

    Paired Wilcoxon tests with Holm's correction over pairs and questions, without a margin.
    """
    k, mean = len(data.names), np.nanmean(data.full, axis=0)  # (Q, K)
    upper = np.triu_indices(k, 1)
    raw = np.stack([pairwise(data.full[:, q], correct=False).p[upper] for q in range(len(QUESTIONS))])
    better = np.zeros((len(QUESTIONS), k, k), bool)
    significant = holm(raw) < ALPHA
    for q in range(len(QUESTIONS)):
        for i, j, found in zip(*upper, significant[q], strict=True):
            better[q, i, j] = found and mean[q, i] > mean[q, j]
            better[q, j, i] = found and mean[q, j] > mean[q, i]
    methods = ~data.controls
    best = methods & ~better.any(0).any(0)
    sound = methods & better[:, :, data.controls].all(2).all(0)
    return {name for name, b, s in zip(data.names, best, sound, strict=True) if b and s}


def passes_of(data: Stored, counts: np.ndarray, steps: list[int]) -> float:
    """Passes for maps, and forward passes for the two curves of a question, of so many images (Q, K)."""
    return float((counts.max(0) * data.passes).sum() + sum(2 * s * c.sum() for s, c in zip(steps, counts, strict=True)))


def once(data: Stored, images: int, seed: int, curve: str, truths: dict[str, set[str]]) -> dict[str, Any]:
    """One race on images in random order, and how its answer compares."""
    scores = data.cheap if curve == "race" else data.full
    order = np.random.default_rng(seed).permutation(len(scores))[:images]
    race = Race(
        data.names, data.controls, [q.what for q in QUESTIONS], cost=data.passes, late=data.passes > DEAR
    )  # fmt: skip
    replay(race, scores[order])
    winners = race.winners()
    proven = [j for j in winners if all(race.beats_controls(q, j) for q in range(len(QUESTIONS)))]
    named = data.names[proven[0]] if proven else None
    group = {data.names[i] for j in winners for i in (j, *race.joined(j))}
    out = {data.names[j] for j in np.flatnonzero(race.beaten.any(0)) if not data.controls[j]}
    everything = np.full((len(QUESTIONS), len(data.names)), len(scores))
    cost = passes_of(data, race.counts(), [steps_of(q.metric if curve == "race" else q.full) for q in QUESTIONS])
    return {
        "named": named, "group": group, "images": race.images, "decided": race.decided,
        "same": {name: named in truth if named is not None else not truth for name, truth in truths.items()},
        "holds_the_best": {name: truth <= group for name, truth in truths.items()},
        "false": bool(out & truths["strict"]),
        "share": cost / passes_of(data, everything, [steps_of(q.full) for q in QUESTIONS]),
    }  # fmt: skip


def interval(count: int, n: int) -> list[float]:
    """Exact 95 % interval of a share (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    found = binomtest(count, n).proportion_ci(0.95, "exact")
    return [round(float(found.low), 3), round(float(found.high), 3)]


def main() -> None:
    """Replay, print and write `replay.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="folders of benchmarks, as `scores.py` makes them")
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--images", type=int, nargs="+", default=[60, 100, 140, 160, 180, 200])
    parser.add_argument("--curve", choices=["race", "full"], nargs="+", default=["race", "full"])
    options = parser.parse_args()
    rows, wholes = [], []
    for data in [data for folder in options.run for data in stored(folder)]:
        truths = {"report": by_report(data), "strict": strictly(data)}
        means = {n: np.nanmean(data.full, axis=0)[:, j].round(4).tolist() for j, n in enumerate(data.names)}
        whole = {"model": data.model, "images": len(data.full), "means": means}
        wholes.append(whole | {name: sorted(truth) for name, truth in truths.items()})
        print(json.dumps(wholes[-1]))
        for curve, images in [(c, i) for c in options.curve for i in options.images]:
            races = [once(data, images, seed, curve, truths) for seed in range(options.replays)]
            named = [r["named"] or "none" for r in races]
            n = len(races)
            row = {"model": data.model, "curve": curve, "most_images": images, "replays": n}
            for name in truths:
                count = sum(r["same"][name] for r in races)
                row |= {f"same_{name}": round(count / n, 3), f"same_{name}_interval": interval(count, n)}
                row[f"group_holds_all_{name}"] = round(float(np.mean([r["holds_the_best"][name] for r in races])), 3)
            row |= {
                "decided": float(np.mean([r["decided"] for r in races])),
                "share_of_passes": round(float(np.mean([r["share"] for r in races])), 4),
                "largest_share": round(float(np.max([r["share"] for r in races])), 4),
                "images": float(np.mean([r["images"] for r in races])),
                "group_size": float(np.mean([len(r["group"]) for r in races])),
                "with_a_best_one_out": float(np.mean([r["false"] for r in races])),
                "named": {m: named.count(m) for m in sorted(set(named), key=named.count, reverse=True)},
            }
            rows.append(row)
            print(json.dumps(row))
    about = {"rules": vars(Rules()), "replays": options.replays, "margin": MARGIN}
    text = json.dumps({"about": about, "whole": wholes, "rows": rows}, indent=1) + "\n"
    (HERE / "replay.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
