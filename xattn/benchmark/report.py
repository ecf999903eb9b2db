"""A folder of tables and figures from the scores of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from xattn.benchmark import figures, tables, verdict
from xattn.benchmark.tables import Panel, Scores, Table
from xattn.files import whole_file

_WITH_TABLE = ("leaderboard", "columns", "protocols", "cost", "box_size")


def slug(name: str) -> str:
    """A name as part of a path.

    >>> slug("tiny-imagenet, across models")
    'tiny-imagenet-across-models'
    """
    return "-".join("".join(c if c.isalnum() or c in "-_." else " " for c in name).split())


def write_report(
    scores: Scores, panels: Sequence[Panel], home: Path, *, progress: Callable[[str], None] | None = None
) -> Path:
    """Write tables (CSV, Markdown, LaTeX), figures (PNG, SVG, PDF) and `report.md`, which shows them in order.

    Args:
        scores: of the run.
        panels: their statistics, as from `tables.panels`.
        home: folder to write to.
        progress: called with the name of each part.

    Returns:
        The path of `report.md`.
    """
    home.mkdir(parents=True, exist_ok=True)
    lines = ["# Benchmark report", "", *_about(scores), ""]
    for panel in panels:
        if progress is not None:
            progress(panel.name)
        lines += _section(panel, scores, home)
    path = home / "report.md"
    with whole_file(path) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def _about(scores: Scores) -> list[str]:
    lines = [f"{scores.rows:,} scores of {scores.images:,} images."]
    for where in scores.manifest.get("environments", ()):
        versions = ", ".join(f"{name} {v}" for name, v in where["versions"].items() if v)
        commit = f", commit {where['commit']}" if where.get("commit") else ""
        lines += ["", f"Made with {versions}{commit} on {where['device']} ({where['threads']} threads)."]
    bad = scores.unreadable()
    if bad:
        lines += ["", f"{len(bad)} images could not be read:", ""]
        lines += [f"- {dataset} {image}: {note}" for (dataset, image), note in sorted(bad.items())]
    return lines


def _section(panel: Panel, scores: Scores, home: Path) -> list[str]:
    name = slug(panel.name)
    folder = home / name
    lines = [f"## {panel.name}", "", *_said(panel), ""]
    drawn = figures.draw_all(panel, scores)
    for key, (_, figure) in drawn.items():
        figures.save(figure, folder, key)
    written = _tables(panel, scores)
    for key, table in written.items():
        table.write(folder, key)
    for method, reason in panel.left_out.items():
        lines += [f"Left out: {method}: {reason}", ""]
    for key in _WITH_TABLE:
        if key in written:
            lines += [f"### {written[key].title.split(':')[0]}", "", written[key].markdown(), ""]
        if key in drawn:
            lines += _picture(name, key, drawn[key][0])
    for key, (caption, _) in drawn.items():
        if key not in _WITH_TABLE:
            lines += [f"### {key.replace('_', ' ').capitalize()}", "", *_picture(name, key, caption)]
    lines += [f"Every column of every method with its tests: [{name}/scores.csv]({name}/scores.csv)", ""]
    return lines


def _said(panel: Panel) -> list[str]:
    """The answer in bold, then what else can be said."""
    first, *others = verdict.summary(panel)
    return [f"**{first}** {' '.join(others)}"]


def _picture(folder: str, key: str, caption: str) -> list[str]:
    return [f"![{caption}]({folder}/{key}.png)", "", f"*{caption}*", ""]


def _tables(panel: Panel, scores: Scores) -> dict[str, Table]:
    found = {"leaderboard": tables.leaderboard(panel), "scores": tables.full_table(panel)}
    if panel.directed:
        names = [s.column.arrow for s in panel.directed]
        found["columns"] = tables.column_table(panel)
        found["agreement"] = tables.matrix_table(f"Kendall's τ: {panel.name}", names, tables.agreement(panel.directed))
    if len(tables.protocols(panel)) > 1:
        found["protocols"] = tables.protocol_table(panel)
    if any(panel.costs):
        found["cost"] = tables.cost_table(panel)
    by_size = tables.size_table(panel, scores, [s for s in panel.headline(8) if len(s.images)])
    if by_size.rows:
        found["box_size"] = by_size
    return found
