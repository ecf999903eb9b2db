"""The page of a benchmark: which methods to trust, which cannot be told apart, what they cost, and all behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn.benchmark import tables, verdict
from xattn.benchmark.figures import curve_points
from xattn.benchmark.report import slug, write_report
from xattn.benchmark.statistics import critical_difference, pairwise
from xattn.benchmark.store import Store
from xattn.benchmark.tables import ALPHA, ARROWS, Panel, Scores, Summary, Table, text_of
from xattn.benchmark.verdict import Verdict, duration
from xattn.metric import HIGHER, LOWER, NEITHER
from xattn.pages import panels as pictures
from xattn.pages.html import picture_uri, write

Array = NDArray[np.float64]

_SHOWN = 6  # columns of the leaderboard at first
_COMPARED = 24  # columns whose rankings are compared
_TESTED = 8  # columns whose pairs can be looked at
_CHEAPEST = 3  # methods that are named
_WIDE_PX = 1700  # width of the panels inside the page
_FILES = ("csv", "md", "tex", "png", "svg", "pdf")


def full_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    count: int = 3,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Everything about a run: tables and figures as files, panels of images, `report.md` and `report.html`.

    Args:
        run: folder of the scores.
        out: where to; None is `report` in it.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        count: most disputed, best and worst images of each model whose maps are shown, so many of each; 0 for none.
        progress: called with the name of each part.

    Returns:
        The path of `report.html`.

    Raises:
        DataError: if there are no scores, or the files cannot be written.
    """
    scores = Scores(run)
    home = Store(run).report if out is None else Path(out)
    found = tables.panels(scores, resamples=resamples, seed=seed)
    write_report(scores, found, home, progress=progress)
    several = len(scores.datasets) > 1
    views = []
    for panel in found:
        if progress is not None:
            progress(f"{panel.name}: page")
        judged = verdict.judge(panel)
        shown: list[pictures.Picture] = []
        notes: list[str] = []
        if len({entry.model for entry in panel.entries}) == 1:
            shown, notes = pictures.draw(scores, judged, count, home / "panels", slug(panel.name))
        view = _view(panel, judged, scores, home, shown, notes)
        views.append(view | {"tab": panel.name if several else panel.name.removeprefix(f"{panel.dataset}, ")})
    return write(
        home / "report.html",
        "report.html.j2",
        views=[{k: v for k, v in view.items() if k != "data"} for view in views],
        data=[view["data"] for view in views],
        facts=_facts(scores),
        details=_details(scores, resamples, seed),
        manifest=json.dumps(scores.manifest, indent=1, ensure_ascii=False),
        unreadable=[(f"{dataset} {image}", note) for (dataset, image), note in sorted(scores.unreadable().items())],
        kinds=pictures.KINDS,
        alpha=ALPHA,
    )


def _view(
    panel: Panel, judged: Verdict, scores: Scores, home: Path, shown: Sequence[pictures.Picture], notes: Sequence[str]
) -> dict[str, Any]:
    """What the template shows of a panel."""
    name = slug(panel.name)
    columns = [s for s in panel.headline(_COMPARED, directed=True) if not np.isnan(s.spread.mean).all()]
    protocols = tables.protocols(panel)
    sized = [s for s in panel.headline(len(panel.summaries)) if len(s.images)]
    sized.sort(key=lambda s: s.column.family != "localization")  # what depends on sizes most
    sizes = [(s, *tables.by_size(panel, scores, s)) for s in sized]
    sizes = [item for item in sizes if len(item[1]) > 1]
    return {
        "id": name,
        "name": panel.name,
        "headline": verdict.headline(judged),
        "cards": _cards(panel, judged),
        "cautions": verdict.cautions(judged),
        "entries": _entries(panel),
        "board": _board(panel, judged),
        "questions": judged.asked,
        "columns": _sortable(tables.column_table(panel)) if panel.directed else None,
        "protocols": _sortable(tables.protocol_table(panel)) if len(protocols) > 1 else None,
        "sensitivity": verdict.sensitivity(judged),
        "agreement": verdict.agreement(panel, columns),
        "cost": _sortable(tables.cost_table(panel)) if any(panel.costs) else None,
        "has": {
            "cost": any(cost.get("seconds") for cost in panel.costs),
            "curves": bool(curve_points(panel)),
            "ranks": bool(_rank_diagrams(panel)),
            "agreement": len(columns) > 1 and len(panel.entries) > 2,
            "protocols": len(protocols) > 1,
            "sizes": bool(sizes),
        },
        "pictures": [
            {
                "kind": p.kind,
                "image": p.image,
                "predicted": p.predicted,
                "spread": text_of(p.spread),
                "file": f"panels/{p.path.name}",
                "source": picture_uri(_smaller(p.picture), quality=78),
                "width": p.picture.width,
                "height": p.picture.height,
            }
            for p in shown
        ],
        "notes": list(notes),
        "left_out": panel.left_out,
        "files": _files(home / name),
        "data": {
            "id": name,
            "methods": [
                {"label": label, "family": family_of(panel, j), "control": e.control}
                for j, (label, e) in enumerate(zip(panel.labels, panel.entries, strict=True))
            ],
            "order": [j for j in _order(panel, judged) if not math.isnan(judged.mean_rank[j])],
            "few": [*judged.order[:5], *panel.controls],
            "same": [[int(k) for k in judged.same(j)] for j in range(len(panel.entries))],
            "seconds": [cost.get("seconds") for cost in panel.costs],
            "columns": [_column(s) for s in _plotted(panel)],
            "pairs": _pairs(panel, judged),
            "ranks": _rank_diagrams(panel),
            "curves": _curves(panel),
            "agreement": _agreement(columns),
            "protocols": _agreement(protocols, panel),
            "sizes": [
                {"title": s.column.arrow, "names": names, "counts": counts, "means": _rounded(means.T)}
                for s, names, means, counts in sizes
            ],
        },
    }


# The answer


def _cards(panel: Panel, judged: Verdict) -> list[dict[str, Any]]:
    """Four answers: title, how it is meant, methods each with a word, sentences."""
    top, seconds = judged.top, {j: panel.costs[j].get("seconds") for j in judged.order}
    cheap = sorted((j for j in judged.order if seconds[j]), key=lambda j: seconds[j] or 0)[:_CHEAPEST]
    first = verdict.ties(judged)
    if len(top) > 1:  # the others are shown, so need not be named again
        first[0] = f"{panel.labels[top[0]]} comes first; on {judged.any_asked} the others cannot be told from it."
    cards = [
        ("Beat the controls", "good" if judged.trusted else "plain", judged.trusted, verdict.trust(judged)),
        ("First, and not told from it", "plain", top, first),
        (
            "Not shown to beat the controls",
            "bad" if judged.unproven else "plain",
            judged.unproven,
            verdict.unproven(judged),
        ),
        ("Cheapest", "plain", cheap, verdict.costs(judged)[1:]),
    ]
    return [
        {
            "title": title,
            "kind": kind,
            "methods": [(j, duration(seconds[j] or 0) if methods is cheap else "") for j in methods],
            "said": said,
        }
        for title, kind, methods, said in cards
        if said or methods
    ]


def family_of(panel: Panel, j: int) -> str:
    """Family of an entry as styles call it."""
    family = panel.entries[j].family
    return "other" if family is None else family.value.lower()


def _entries(panel: Panel) -> list[dict[str, Any]]:
    return [
        {"label": label, "family": family_of(panel, j), "control": entry.control}
        for j, (label, entry) in enumerate(zip(panel.labels, panel.entries, strict=True))
    ]


# The leaderboard


def _order(panel: Panel, judged: Verdict) -> list[int]:
    """All entries by the columns that decide, then by the headline."""
    key = judged.mean_rank
    return sorted(panel.order, key=lambda j: (math.isnan(key[j]), key[j]))


def _board(panel: Panel, judged: Verdict) -> dict[str, Any]:
    shown = panel.headline(_SHOWN)
    more = [s for s in panel.directed if s not in shown]
    columns = [*shown, *more]
    scales = [_scale(s) for s in columns]
    rows = [
        {
            "j": j,
            "won": int(judged.won[j]) if judged.tested and not panel.entries[j].control else None,
            "won_of": [
                f"{verdict.name_of(s)}: {'not shown' if s.unproven[j] else 'better'}"
                for s in judged.questions
                if not math.isnan(s.spread.mean[j])
            ],
            "rank": float(judged.mean_rank[j]),
            "same": judged.same(j),
            "ok": float(panel.coverage[j]),
            "seconds": panel.costs[j].get("seconds"),
            "time": duration(panel.costs[j]["seconds"]) if panel.costs[j].get("seconds") else "",
            "passes": [panel.costs[j].get(name) for name in ("forwards", "backwards")],
            "cells": [_cell(s, j, scale, bar=s in shown) for s, scale in zip(columns, scales, strict=True)],
        }
        for j in _order(panel, judged)
    ]
    return {
        "columns": [
            {
                "title": s.column.title,
                "name": s.column.title.partition(" (")[0],
                "parameters": s.column.title.partition(" (")[2].removesuffix(")"),
                "arrow": ARROWS[s.column.direction],
                "better": s.column.direction.value if s.column.direction is not NEITHER else "",
                "extra": s not in shown,
                "images": int(s.spread.n.max(initial=0)),
            }
            for s in columns
        ],
        "rows": rows,
        "more": len(more),
        "tested": judged.tested,
        "asked": len(judged.questions),
        "timed": any(cost.get("seconds") for cost in panel.costs),
    }


def _scale(s: Summary) -> tuple[float, float]:
    low, high = (s.spread.low, s.spread.high)
    if np.isnan(low).all():
        return 0.0, 1.0
    bottom, top = float(np.nanmin(low)), float(np.nanmax(high))
    return bottom, max(top - bottom, 1e-12)


def _cell(s: Summary, j: int, scale: tuple[float, float], *, bar: bool) -> dict[str, Any]:
    """One mean with its interval: texts, marks, and where the interval lies in its column, in percent."""
    mean, low, high = (float(end[j]) for end in (s.spread.mean, s.spread.low, s.spread.high))
    if math.isnan(mean):
        return {"value": None, "text": "", "marks": "", "tip": "no value"}
    best = s.best is not None and s.best.best == j
    close = s.best is not None and not best and not s.best.adjusted[j] < ALPHA
    weak = s.marked(j)
    tip = [f"{s.column.arrow}: {text_of(mean)} [{text_of(low)}, {text_of(high)}]", f"{int(s.spread.n[j]):,} images"]
    if s.spread.missing[j]:
        tip[-1] += f", {int(s.spread.missing[j]):,} without a value"
    if best:
        tip.append("the best mean")
    elif s.best is not None and not math.isnan(s.best.adjusted[j]):
        tip.append(f"{'not told from' if close else 'worse than'} the best, p = {text_of(float(s.best.adjusted[j]))}")
    if weak:
        tip.append("not shown to beat the best control")
    found: dict[str, Any] = {
        "value": mean,
        "text": text_of(mean),
        "marks": ("best " if best else "close " if close else "") + ("weak" if weak else ""),
        "tip": "\n".join(tip),
    }
    if bar:
        found |= {
            name: round(100 * (v - scale[0]) / scale[1], 1) for name, v in zip("mlh", (mean, low, high), strict=True)
        }
        found["interval"] = f"{text_of(low)} to {text_of(high)}"
    return found


# Tables and plots


def _sortable(table: Table) -> dict[str, Any]:
    """A table for the page: texts with the values to sort by."""
    numbers = [any(isinstance(row[i], (int, float)) for row in table.rows) for i in range(len(table.header))]
    return {
        "title": table.title.partition(":")[0],
        "header": [{"text": h, "num": n} for h, n in zip(table.header, numbers, strict=True)],
        "rows": [
            [{"text": text_of(c), "value": c if isinstance(c, (int, float)) else text_of(c)} for c in row]
            for row in table.rows
        ],
        "notes": table.notes,
    }


def _plotted(panel: Panel) -> list[Summary]:
    """Columns that can be an axis: the headline first."""
    first = panel.headline(len(panel.summaries))
    return [s for s in (*first, *(s for s in panel.directed if s not in first)) if not np.isnan(s.spread.mean).all()]


def _column(s: Summary) -> dict[str, Any]:
    ends = {name: _rounded(getattr(s.spread, name)) for name in ("mean", "low", "high")}
    return {"title": s.column.arrow, "lower": s.column.direction is LOWER, **ends}


def _pairs(panel: Panel, judged: Verdict) -> list[dict[str, Any]]:
    """Who beats whom: for each pair the sign of the difference where it is proven, by column."""
    order = [j for j in _order(panel, judged) if not math.isnan(judged.mean_rank[j])]
    found = []
    for s in panel.headline(_TESTED, directed=True):
        if not len(s.values) or len(order) < 2:
            continue
        tested = pairwise(s.values[:, order])
        found.append(
            {
                "title": s.column.arrow,
                "better": (np.sign(tested.difference) * s.column.sign * (tested.adjusted < ALPHA)).astype(int).tolist(),
                "difference": _rounded(tested.difference),
                "p": _rounded(tested.adjusted),
            }
        )
    return found


def _rank_diagrams(panel: Panel) -> list[dict[str, Any]]:
    """Critical-difference diagrams (Demšar 2006, JMLR 7, fig. 1)."""
    found = []
    for s in panel.headline(_TESTED, directed=True):
        f = s.friedman
        if f is None or f.n < 2 or len(f.mean_ranks) < 2:
            continue
        there = np.flatnonzero(~np.isnan(s.values).all(0)).tolist()
        found.append(
            {
                "title": s.column.arrow,
                "methods": there,
                "ranks": _rounded(f.mean_ranks),
                "groups": [[there[k] for k in group] for group in f.groups(ALPHA) if len(group) > 1],
                "width": critical_difference(len(f.mean_ranks), f.n, ALPHA),
                "p": f.p,
                "images": f.n,
            }
        )
    return found


def _curves(panel: Panel) -> list[dict[str, Any]]:
    found = []
    for title, points in curve_points(panel).items():
        kind, _, parameters = title.partition(" ")
        deletion = kind == "deletion"
        found.append(
            {
                "title": f"{kind} {f'({parameters}) ' if parameters else ''}{ARROWS[LOWER if deletion else HIGHER]}",
                "x": [share for share, _ in points],
                "label": "share of the pixels " + ("replaced" if deletion else "put back"),
                **{
                    name: _rounded(np.stack([getattr(s.spread, name) for _, s in points], 1))
                    for name in ("mean", "low", "high")
                },
            }
        )
    return found


def _agreement(shown: Sequence[Summary], panel: Panel | None = None) -> dict[str, Any]:
    """Kendall's tau between rankings, with the winner of each."""
    if len(shown) < 2:
        return {}
    winners = [int(np.nanargmin(s.rank)) for s in shown] if panel is not None else None
    return {"names": [s.column.arrow for s in shown], "tau": _rounded(tables.agreement(shown)), "winners": winners}


def _rounded(values: Array) -> Any:
    """Numbers as lists, to four digits: more are not seen."""
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [float(f"{v:.4g}") for v in values.tolist()]


def _smaller(picture: Any) -> Any:
    small = picture.copy()
    small.thumbnail((_WIDE_PX, _WIDE_PX * 4))
    return small


# The run


def _facts(scores: Scores) -> list[str]:
    models = {model for dataset in scores.datasets for model in scores.models(dataset)}
    found = [", ".join(scores.datasets), f"{scores.images:,} images", _many(len(models), "model")]
    methods = {e.method for d in scores.datasets for m in scores.models(d) for e in scores.entries(d, m)}
    return [*found, _many(len(methods), "method"), f"{scores.rows:,} scores"]


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _details(scores: Scores, resamples: int, seed: int) -> list[tuple[str, list[str]]]:
    """The manifest for reading."""
    config, identity = (scores.manifest.get(name) or {} for name in ("config", "identity"))
    found: list[tuple[str, list[str]]] = []
    for where in scores.manifest.get("environments", ()):
        versions = [f"{name} {v}" for name, v in where.get("versions", {}).items() if v]
        device = f"{where.get('device')}, {_many(where.get('threads') or 0, 'thread')}"
        extra = [f"{name} {where[name]}" for name in ("commit", "started") if where.get(name)]
        found.append(("Made with", [device, *versions, *extra]))
    run = {**config.get("run", {}), **identity.get("run", {})}
    if run:
        found.append(("Settings", [f"{name} {value}" for name, value in run.items()]))
    for data in config.get("data", ()):
        name = data.get("label") or data.get("source", "")
        known = identity.get("data", {}).get(name, {})
        said = [str(data.get("source", "")), f"split {data.get('split') or 'to test on'}", f"fit {data.get('fit')}"]
        said.append(f"{data['limit']:,} of {known.get('images', 0):,} images" if data.get("limit") else "all images")
        if data.get("mosaic"):
            said.append(f"mosaics of {data['mosaic']} x {data['mosaic']}")
        found.append((f"Data {name}", said))
    for model in config.get("models", ()):
        name = model.get("label") or model.get("name", "")
        digest = identity.get("models", {}).get(name, {}).get("weights")
        said = [str(model.get("name", "")), *([f"weights {digest}"] if digest else [])]
        found.append((f"Model {name}", said))
    found.append(
        (
            "Statistics",
            [
                f"95 % BCa bootstrap intervals, {resamples:,} resamples, seed {seed}",
                f"paired Wilcoxon tests with Holm's correction, p < {ALPHA}",
                "Friedman and Nemenyi tests of ranks",
                "Krippendorff's alpha of ranks",
            ],
        )
    )
    return found


def _files(folder: Path) -> list[dict[str, Any]]:
    """Tables and figures beside the page."""
    stems: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        if path.suffix[1:] in _FILES and not path.name.startswith("."):
            stems.setdefault(path.stem, []).append(path.suffix[1:])
    return [
        {
            "name": stem.replace("_", " "),
            "links": [(kind, f"{folder.name}/{stem}.{kind}") for kind in sorted(kinds, key=_FILES.index)],
        }
        for stem, kinds in stems.items()
    ]
