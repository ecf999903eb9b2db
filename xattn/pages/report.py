"""The page of a benchmark: which methods to trust, which cannot be told apart, what they cost, and all behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn.benchmark import answers, tables, verdict
from xattn.benchmark.charts import family_of
from xattn.benchmark.config import Config
from xattn.benchmark.panels import Panel, Summary, panels, protocols
from xattn.benchmark.report import PICTURES, folder_names, own_folder, write_report
from xattn.benchmark.scores import ARROWS, Scores, shortened
from xattn.benchmark.tables import MARK, Table, interval_text, rounded, text_of
from xattn.benchmark.verdict import Verdict, duration
from xattn.errors import ParameterError
from xattn.functional.statistics import ALPHA, INTERVAL
from xattn.labels import counted, listing
from xattn.looks import FAMILIES
from xattn.metric import NEITHER
from xattn.pages import charts, pictures
from xattn.pages.html import picture_uri, write
from xattn.places import is_remote

Array = NDArray[np.float64]

_KINDS = {
    answers.BEST: "yes",
    answers.BEATS: "yes",
    answers.PARTLY: "warn",
    answers.SOME: "warn",
    answers.FAILS: "no",
    answers.UNSOUND: "no",
}
_SHOWN = 6  # columns of the leaderboard at first
_COMPARED = 24  # columns whose rankings are compared
_CHEAPEST = 3  # methods that are named
_WIDE_PX = 1700  # width of the panels inside the page
_MOST_RESAMPLES = 100_000
_FILES = ("csv", "md", "tex", "png", "svg", "pdf")

_NO_PICTURES = (
    "The images that tell methods apart are not shown: for them data and models are opened again. Pass the "
    "configuration of the run, xattn report DIR --config FILE, if you trust what it names."
)


def full_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    count: int = 3,
    config: Config | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Everything about a run: tables and figures as files, panels of images, `report.md` and `report.html`.

    Nothing outside the folder of the run is read, and nothing that it names is imported, unless `config` is given.

    Args:
        run: folder of the scores.
        out: where to; None is `report` in it.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        count: most disputed, best and worst images of each model whose maps are shown, so many of each; 0 for none.
        config: the configuration of the run, by which its images are explained once more; without one none is shown.
        progress: called with the name of each part.

    Returns:
        The path of `report.html`.

    Raises:
        DataError: if there are no scores, or the files cannot be written.
        ParameterError: for more resamples than fit into memory.
    """
    if not 1 <= resamples <= _MOST_RESAMPLES:
        raise ParameterError(f"resamples must be at least 1 and at most {_MOST_RESAMPLES:,} but is {resamples}.")
    scores = Scores(run)
    if out is None and is_remote(scores.folder):
        raise ParameterError(f"'{run}' is not on this machine; pass a folder of this machine with --out.")
    home = own_folder(scores.store.report) if out is None else Path(out)
    compared = panels(scores, resamples=resamples, seed=seed)
    write_report(scores, compared, home, progress=progress)
    several = len(scores.datasets) > 1
    views = []
    for panel, name in zip(compared, folder_names(compared), strict=True):
        if progress is not None:
            progress(f"{panel.name}: page")
        judged = verdict.judge(panel)
        shown: list[pictures.Picture] = []
        notes: list[str] = []
        if count and len({entry.model for entry in panel.entries}) == 1:
            if config is None:
                notes = [_NO_PICTURES]
            else:
                shown, notes = pictures.draw(scores, config, judged, count, own_folder(home / PICTURES), name)
        view = _view(panel, judged, scores, home / name, shown, notes)
        views.append(view | {"tab": panel.name if several else panel.name.removeprefix(f"{panel.dataset}, ")})
    return write(
        home / "report.html",
        "report.html.j2",
        views=views,
        looks={name.lower(): look for name, look in FAMILIES.items()},
        interval=INTERVAL,
        facts=_facts(scores),
        details=_details(scores, resamples, seed),
        manifest=scores.manifest.model_dump_json(indent=1),
        unreadable=[(f"{dataset} {image}", note) for (dataset, image), note in sorted(scores.unreadable().items())],
        kinds=pictures.KINDS,
        alpha=ALPHA,
        margin=answers.MARGIN,
    )


def _view(
    panel: Panel, judged: Verdict, scores: Scores, folder: Path, shown: Sequence[pictures.Picture], notes: Sequence[str]
) -> dict[str, Any]:
    """What the template shows of a panel."""
    asked, given = protocols(panel), judged.given
    columns = [s for s in panel.headline(_COMPARED, directed=True) if not np.isnan(s.spread.mean).all()]
    order = [j for j in answers.order(panel, given) if not all(math.isnan(s.spread.mean[j]) for s in judged.questions)]
    lines = charts.line_looks(panel, order)
    return {
        "id": folder.name,
        "name": panel.name,
        "headline": verdict.headline(judged) if judged.mixed else answers.headline(panel, given),
        "beside": answers.beside(panel, given),
        "cards": _cards(panel, judged, given),
        "cautions": verdict.cautions(judged),
        "entries": _entries(panel),
        "board": _board(panel, judged),
        "questions": judged.asked,
        "columns": _sortable(tables.column_table(panel)) if panel.directed else None,
        "protocols": _sortable(tables.protocol_table(panel)) if len(asked) > 1 else None,
        "sensitivity": verdict.sensitivity(judged),
        "agreement": verdict.agreement(panel, columns),
        "cost": _sortable(tables.cost_table(panel)) if any(panel.costs) else None,
        "charts": charts.of_panel(panel, scores, order),
        "lines": [(j, charts.themed(lines[j][0]), j in charts.shown_first(panel, order)) for j in order],
        "timed": any(cost.get("seconds") for cost in panel.costs),
        "pictures": [
            {
                "kind": p.kind,
                "image": p.image,
                "predicted": p.predicted,
                "spread": text_of(p.spread),
                "file": f"{PICTURES}/{p.path.name}",
                "source": picture_uri(_smaller(p.picture), quality=78),
                "width": p.picture.width,
                "height": p.picture.height,
            }
            for p in shown
        ],
        "notes": list(notes),
        "left_out": panel.left_out,
        "files": _files(folder),
    }


# The answer


def _cards(panel: Panel, judged: Verdict, given: Sequence[answers.Answer]) -> list[dict[str, Any]]:
    """A card for each question: the best methods, those of equal scores together, and what there is to say."""
    seconds = {j: panel.costs[j].get("seconds") for j in judged.order}
    cheap = sorted((j for j in judged.order if seconds[j]), key=lambda j: seconds[j] or 0)[:_CHEAPEST]
    cards: list[dict[str, Any]] = [
        {
            "title": answer.question.text,
            "kind": "good" if answer.proven else "plain" if answer.named else "bad",
            "methods": [
                (first, f"= {listing([panel.labels[j] for j in others])}" if others else "")
                for first, *others in answer.named
            ],
            "sentences": answers.sentences(panel, answer),
        }
        for answer in given
    ]
    if cheap:
        cards.append(
            {
                "title": "What does it cost?",
                "kind": "plain",
                "methods": [(j, duration(seconds[j] or 0)) for j in cheap],
                "sentences": verdict.costs(judged)[1:],
            }
        )
    return cards


def _entries(panel: Panel) -> list[dict[str, Any]]:
    return [
        {"label": label, "family": family_of(panel, j).lower(), "control": entry.control}
        for j, (label, entry) in enumerate(zip(panel.labels, panel.entries, strict=True))
    ]


# The leaderboard


def _board(panel: Panel, judged: Verdict) -> dict[str, Any]:
    shown = panel.headline(_SHOWN)
    more = [s for s in panel.directed if s not in shown]
    columns = [*shown, *more]
    scales = [_scale(s) for s in columns]
    seconds = [cost.get("seconds") or None for cost in panel.costs]
    rows = [
        {
            "j": j,
            "place": place,
            "standing": tables.standing_text(panel, at),
            "kind": _KINDS.get(at.word, ""),
            "won_of": [
                f"{s.column.arrow}: {'better than every control' if won else 'not shown'}"
                for s, won in zip(judged.questions, judged.given[0].won[:, j].tolist(), strict=True)
            ]
            if judged.tested and judged.given and at.word in _KINDS
            else [],
            "same": judged.same(j),
            "ok": float(panel.coverage[j]),
            "seconds": seconds[j],
            "time": duration(seconds[j] or 0) if seconds[j] else "",
            "passes": [panel.costs[j].get(name) for name in ("forwards", "backwards")],
            "cells": [_cell(s, j, scale, bar=s in shown) for s, scale in zip(columns, scales, strict=True)],
        }
        for place, at in enumerate(answers.standings(panel, judged.given))
        for j in [at.entry]
    ]
    return {
        "columns": [
            {
                "title": s.column.title,
                "name": shortened(s.column.label.name),
                "parameters": shortened(s.column.label.settings),
                "arrow": ARROWS[s.column.direction],
                "better": s.column.direction.value if s.column.direction is not NEITHER else "",
                "extra": s not in shown,
                "images": int(s.spread.n.max(initial=0)),
            }
            for s in columns
        ],
        "rows": rows,
        "more": len(more),
        "answered": bool(judged.given),
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
    tip = [f"{s.column.arrow}: {interval_text(s, j).rstrip(MARK)}", f"{int(s.spread.n[j]):,} images"]
    if s.spread.missing[j]:
        tip[-1] += f", {int(s.spread.missing[j]):,} without a value"
    if best:
        tip.append("the best mean")
    elif s.best is not None and not math.isnan(s.best.adjusted[j]):
        where = "statistically tied with" if close else "significantly worse than"
        tip.append(f"{where} the best (p = {text_of(float(s.best.adjusted[j]))})")
    if weak:
        tip.append(f"not significantly better than every control with {counted(int(s.spread.n[j]), 'image')}")
    cell: dict[str, Any] = {
        "value": mean,
        "text": rounded(mean, low, high),
        "marks": ("best " if best else "close " if close else "") + ("weak" if weak else ""),
        "tip": "\n".join(tip),
    }
    if bar:
        cell |= {
            name: round(100 * (v - scale[0]) / scale[1], 1) for name, v in zip("mlh", (mean, low, high), strict=True)
        }
        cell["interval"] = f"{rounded(mean, low, high, low)} to {rounded(mean, low, high, high)}"
    return cell


# Tables and plots


def _sortable(table: Table) -> dict[str, Any]:
    """A table for the page: texts with the values to sort by."""
    numbers = [any(isinstance(row[i], (int, float)) for row in table.rows) for i in range(len(table.header))]
    return {
        "title": table.kind,
        "header": [{"text": h, "num": n} for h, n in zip(table.header, numbers, strict=True)],
        "rows": [
            [{"text": text_of(c), "value": c if isinstance(c, (int, float)) else text_of(c)} for c in row]
            for row in table.rows
        ],
        "notes": table.notes,
    }


def _smaller(picture: Any) -> Any:
    small = picture.copy()
    small.thumbnail((_WIDE_PX, _WIDE_PX * 4))
    return small


# The run


def _facts(scores: Scores) -> list[str]:
    models = {model for dataset in scores.datasets for model in scores.models(dataset)}
    facts = [", ".join(scores.datasets), f"{scores.images:,} images", counted(len(models), "model")]
    entries = {(e.method, e.control) for d in scores.datasets for m in scores.models(d) for e in scores.entries(d, m)}
    controls = sum(control for _, control in entries)
    methods = counted(len(entries) - controls, "method")
    return [*facts, methods, *([counted(controls, "control")] if controls else []), f"{scores.rows:,} scores"]


def _details(scores: Scores, resamples: int, seed: int) -> list[tuple[str, list[str]]]:
    """The manifest for reading."""
    config, identity = scores.manifest.config, scores.manifest.identity
    details: list[tuple[str, list[str]]] = []
    for where in scores.manifest.environments:
        versions = [f"{name} {v}" for name, v in where.versions.items() if v]
        extra = [f"{name} {v}" for name, v in (("commit", where.commit), ("started", where.started)) if v]
        details.append(("Made with", [f"{where.device}, {counted(where.threads, 'thread')}", *versions, *extra]))
    settings = {**(config.run.model_dump() if config else {}), **(identity.run.model_dump() if identity else {})}
    if settings:
        details.append(("Settings", [f"{name} {value}" for name, value in settings.items()]))
    for data in config.data if config else ():
        known = identity.data.get(data.name) if identity else None
        facts = [data.source, f"split {data.split or 'to test on'}", f"fit {data.fit}"]
        facts.append(f"{data.limit:,} of {known.images if known else 0:,} images" if data.limit else "all images")
        if data.mosaic:
            facts.append(f"mosaics of {data.mosaic} x {data.mosaic}")
        details.append((f"Data {data.name}", facts))
    for model in config.models if config else ():
        weights = identity.models.get(model.title) if identity else None
        facts = [model.name, *([f"weights {weights.weights}"] if weights else [])]
        if weights and weights.scorer:
            facts += [f"scorer {weights.scorer}", *(f"{k} {v}" for k, v in weights.scorer_file.items())]
            facts += filter(None, (scores.scorer(dataset, model.title) for dataset in scores.datasets))
        details.append((f"Model {model.title}", facts))
    details.append(
        (
            "Statistics",
            [
                f"{INTERVAL} BCa bootstrap intervals, {resamples:,} resamples, seed {seed}",
                f"the answers: paired t tests with a margin of {answers.MARGIN} and Holm's correction, p < {ALPHA}",
                "pairs in one column, and those not told from its best: paired Wilcoxon tests with Holm's correction",
                "Friedman and Nemenyi tests of ranks",
                "Krippendorff's alpha of ranks",
            ],
        )
    )
    return details


def _files(folder: Path) -> list[dict[str, Any]]:
    """Tables and figures beside the page."""
    stems: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        if path.suffix[1:] in _FILES and not path.name.startswith(".") and path.is_file() and not path.is_symlink():
            stems.setdefault(path.stem, []).append(path.suffix[1:])
    return [
        {
            "name": stem.replace("_", " "),
            "links": [(kind, f"{folder.name}/{stem}.{kind}") for kind in sorted(kinds, key=_FILES.index)],
        }
        for stem, kinds in stems.items()
    ]
