"""A folder of tables and figures from the scores of a run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from xattn.benchmark import answers, figures, tables, verdict
from xattn.benchmark.ladder import recoveries
from xattn.benchmark.ladder import table as known_orders
from xattn.benchmark.panels import Panel, agreement, protocols
from xattn.benchmark.scores import Scores
from xattn.benchmark.tables import Table, in_markdown
from xattn.errors import DataError
from xattn.files import whole_file
from xattn.labels import counted, slug

PICTURES = "panels"
"""Folder of the images with the maps of all methods."""
_WITH_TABLE = ("leaderboard", "columns", "protocols", "cost", "box_size")


def folder_names(panels: Sequence[Panel]) -> list[str]:
    """A folder for each panel, no two the same."""
    names: list[str] = []
    for panel in panels:
        plain = slug(panel.name)
        candidates = (plain if n == 1 else f"{plain}-{n}" for n in itertools.count(1))
        names.append(next(c for c in candidates if c.lower() not in {PICTURES, *map(str.lower, names)}))
    return names


def own_folder(folder: Path) -> Path:
    """A folder to write to, inside one that anybody may have made: no link to another place.

    Raises:
        DataError: if there is a link in its place.
    """
    if folder.is_symlink():
        raise DataError(f"'{folder}' is a link to another place; remove it, or write elsewhere with --out.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_report(
    scores: Scores, panels: Sequence[Panel], home: Path, *, progress: Callable[[str], None] | None = None
) -> Path:
    """Write tables (CSV, Markdown, LaTeX), figures (PNG, SVG, PDF) and `report.md`, which shows them in order.

    Args:
        scores: of the run.
        panels: their statistics, as from `panels.panels`.
        home: folder to write to.
        progress: called with the name of each part.

    Returns:
        The path of `report.md`.
    """
    home.mkdir(parents=True, exist_ok=True)
    lines = ["# Benchmark report", "", *_about(scores), ""]
    for panel, name in zip(panels, folder_names(panels), strict=True):
        if progress is not None:
            progress(panel.name)
        lines += _section(panel, scores, own_folder(home / name))
    lines += _known_orders(scores, home)
    path = home / "report.md"
    with whole_file(path) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def _known_orders(scores: Scores, home: Path) -> list[str]:
    """How well each metric finds the order of the degraded maps, for each model that has them."""
    lines: list[str] = []
    for dataset in scores.datasets:
        for model in scores.models(dataset):
            if found := recoveries(scores, dataset, model):
                table = known_orders(found, f"Known orders: {dataset}, {model}")
                table.write(own_folder(home / slug(f"{dataset}-{model}-known-orders")), "known_orders")
                lines += [f"## {in_markdown(table.title)}", "", table.markdown(), ""]
    return lines


def _about(scores: Scores) -> list[str]:
    lines = [f"{scores.rows:,} scores of {scores.images:,} images."]
    for where in scores.manifest.environments:
        versions = ", ".join(f"{name} {v}" for name, v in where.versions.items() if v)
        commit = f", commit {where.commit}" if where.commit else ""
        lines += [
            "",
            in_markdown(f"Made with {versions}{commit} on {where.device} ({counted(where.threads, 'thread')})."),
        ]
    judged = [scores.scorer(dataset, model) for dataset in scores.datasets for model in scores.models(dataset)]
    lines += [line for text in judged if text for line in ("", in_markdown(f"{text}."))]
    bad = scores.unreadable()
    if bad:
        lines += ["", f"{len(bad)} images could not be read:", ""]
        lines += [f"- {in_markdown(f'{dataset} {image}: {note}')}" for (dataset, image), note in sorted(bad.items())]
    return lines


def _section(panel: Panel, scores: Scores, folder: Path) -> list[str]:
    name = folder.name
    lines = [f"## {in_markdown(panel.name)}", "", *_answer(panel), ""]
    drawn = figures.draw_all(panel, scores)
    for key, (_, figure) in drawn.items():
        figures.save(figure, folder, key)
    written = _tables(panel, scores)
    for key, table in written.items():
        table.write(folder, key)
    for method, reason in panel.left_out.items():
        lines += [in_markdown(f"Left out: {method}: {reason}"), ""]
    for key in _WITH_TABLE:
        if key in written:
            lines += [f"### {written[key].kind}", "", written[key].markdown(), ""]
        if key in drawn:
            lines += _picture(name, key, drawn[key][0])
    for key, (caption, _) in drawn.items():
        if key not in _WITH_TABLE:
            lines += [f"### {key.replace('_', ' ').capitalize()}", "", *_picture(name, key, caption)]
    lines += [f"Every column of every method with its tests: [{name}/scores.csv]({name}/scores.csv)", ""]
    return lines


def _answer(panel: Panel) -> list[str]:
    """The answer in bold, then one to each question, then what else there is to say."""
    given = answers.answers(panel)
    judged = verdict.judge(panel, given)
    first = verdict.headline(judged) if judged.mixed else answers.headline(panel, given)
    lines = [in_markdown(f"**{first}** {' '.join(answers.beside(panel, given))}".rstrip(), 10_000), ""]
    for answer in given:
        best = answers.names(panel, answer.named)
        said = " ".join(answers.sentences(panel, answer))
        lines.append(in_markdown(f"- *{answer.question.text}* **{best or 'none'}.** {said}", 10_000))
    _, *others = verdict.summary(panel, given)
    return [*lines, "", in_markdown(" ".join(others), 10_000)]


def _picture(folder: str, key: str, caption: str) -> list[str]:
    return [f"![{caption}]({folder}/{key}.png)", "", f"*{caption}*", ""]


def _tables(panel: Panel, scores: Scores) -> dict[str, Table]:
    written = {"leaderboard": tables.leaderboard(panel), "scores": tables.full_table(panel)}
    if panel.directed:
        names = [s.column.arrow for s in panel.directed]
        written["columns"] = tables.column_table(panel)
        written["agreement"] = tables.matrix_table(f"Kendall's τ: {panel.name}", names, agreement(panel.directed))
    if len(protocols(panel)) > 1:
        written["protocols"] = tables.protocol_table(panel)
    if any(panel.costs):
        written["cost"] = tables.cost_table(panel)
    by_size = tables.size_table(panel, scores, [s for s in panel.headline(8) if len(s.images)])
    if by_size.rows:
        written["box_size"] = by_size
    return written
