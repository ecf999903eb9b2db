"""Tables of a panel, and how they are written: CSV, Markdown, LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xattn.benchmark.answers import Answer, Standing, answers, columns_in_words, standings
from xattn.benchmark.panels import SOUND, Panel, Summary, agreement, by_size, protocols
from xattn.benchmark.scores import Scores, shortened
from xattn.files import whole_file
from xattn.functional.statistics import ALPHA, INTERVAL, Array

MARK = "†"
"""Behind a score that is not shown to beat every control."""


Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """A table for CSV, Markdown and LaTeX.

    Args:
        title: what it shows.
        header: names of the columns.
        rows: numbers or texts; the files round numbers, CSV keeps them.
        notes: below it.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What it shows, without the name of the panel."""
        return self.title.split(": ")[0]

    def write(self, folder: Path, name: str) -> None:
        """Write `name.csv`, `name.md` and `name.tex`."""
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in (("csv", self.csv()), ("md", self.markdown()), ("tex", self.latex())):
            with whole_file(folder / f"{name}.{suffix}") as temporary:
                temporary.write_text(text, encoding="utf-8", newline="")

    def csv(self) -> str:
        """The table as CSV, which no spreadsheet takes for formulas."""
        stream = io.StringIO()
        rows = [self.header, *self.rows]
        csv.writer(stream, lineterminator="\n").writerows([["" if _nothing(c) else _csv(c) for c in r] for r in rows])
        return stream.getvalue()

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        numeric = [self._numeric(i) for i in range(len(self.header))]
        lines = [
            "| " + " | ".join(in_markdown(h) for h in self.header) + " |",
            "| " + " | ".join("---:" if n else "---" for n in numeric) + " |",
            *("| " + " | ".join(in_markdown(text_of(c)) for c in row) + " |" for row in self.rows),
        ]
        return "\n".join([*lines, "", *(f"{note}  " for note in self.notes)]).rstrip() + "\n"

    def latex(self) -> str:
        """The table as a `tabular` for `booktabs`."""
        align = "".join("r" if self._numeric(i) else "l" for i in range(len(self.header)))
        lines = [
            f"% {shortened(self.title, 200)}",
            f"\\begin{{tabular}}{{{align}}}",
            "\\toprule",
            " & ".join(_tex(h) for h in self.header) + " \\\\",
            "\\midrule",
            *(" & ".join(_tex(text_of(c)) for c in row) + " \\\\" for row in self.rows),
            "\\bottomrule",
            "\\end{tabular}",
            *(f"% {shortened(note, 1000)}" for note in self.notes),
        ]
        return "\n".join(lines) + "\n"

    def _numeric(self, column: int) -> bool:
        texts = [text_of(row[column]) for row in self.rows]
        return any(texts) and all(not text or text[:1] in "0123456789-<" for text in texts)


def _nothing(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def text_of(cell: Cell) -> str:
    """A cell for reading.

    >>> [text_of(c) for c in ("a", 3, 0.12345, 1234.5, float("nan"), None, 2e-7)]
    ['a', '3', '0.123', '1234', '', '', '2e-07']
    """
    if _nothing(cell):
        return ""
    if isinstance(cell, float):
        size = abs(cell)
        if size == 0:
            return "0"
        return f"{cell:.3f}" if 1e-3 <= size < 100 else f"{cell:.0f}" if 100 <= size < 1e6 else f"{cell:.0e}"
    return str(cell)


_NUMBERS = re.compile(r"[-\d.,e+\[\] ]+†?")


def _csv(cell: Cell) -> Cell:
    """A cell of a CSV file: a text that a spreadsheet would compute is marked as text."""
    formula = isinstance(cell, str) and cell[:1] in "=+-@\t\r" and not _NUMBERS.fullmatch(cell)
    return f"'{cell}" if cell and formula else cell


def in_markdown(text: str, longest: int = 1000) -> str:
    """A text from outside that stays text in Markdown: no markup, no link, one line."""
    plain = shortened(text, longest)
    for sign, instead in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`"), ("](", "]\\(")):
        plain = plain.replace(sign, instead)
    return plain


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", MARK: r"$^{\dagger}$", "<": "$<$", ">": "$>$", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "τ": r"$\tau$", "…": r"\ldots{}",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in shortened(text, 1000))


def rounded(mean: float, low: float, high: float, value: float | None = None) -> str:
    """A mean, or an end of its interval, to the digit of half the interval's width: the others mean nothing.

    >>> rounded(0.23144, 0.2112, 0.2501), rounded(12.3456, 11.9, 12.8), rounded(0.5, 0.5, 0.5)
    ('0.23', '12.3', '0.500')
    """
    half = (high - low) / 2
    if math.isnan(mean):
        return ""
    if not 1e-6 < half < 1e6:
        return text_of(mean if value is None else value)
    digits = min(max(-math.floor(math.log10(half)), 0), 6)
    return f"{round(mean if value is None else value, digits) + 0.0:.{digits}f}"  # no zero with a minus


def interval_text(summary: Summary, j: int) -> str:
    """Mean with its interval and the mark, as `0.512 [0.490, 0.533]†`; empty where there is no value."""
    spread = summary.spread
    if math.isnan(spread.mean[j]):
        return ""
    ends = float(spread.mean[j]), float(spread.low[j]), float(spread.high[j])
    inside = "{} [{}, {}]".format(*(rounded(*ends, end) for end in ends))
    return inside + (MARK if summary.marked(j) else "")


MARK_NOTE = f"{MARK} not shown to beat every control (one-sided paired t tests with Holm's correction, p < {ALPHA})."


_WITHHELD = "No score is shown of a method with more than a tenth of unsound maps: it would be of no explanation."


def standing_text(panel: Panel, at: Standing) -> str:
    """Where an entry stands, in a word or two."""
    return at.word if at.like == at.entry else f"= {panel.labels[at.like]}"


def leaderboard(panel: Panel, given: Sequence[Answer] | None = None) -> Table:
    """Entries by what the first question says of them, with the headline columns."""
    shown = panel.headline(8)
    header = ("method", "standing", "maps ok", *(s.column.arrow for s in shown))
    given = answers(panel) if given is None else given
    rows: list[tuple[Cell, ...]] = [
        (
            panel.labels[at.entry],
            standing_text(panel, at),
            f"{panel.coverage[at.entry]:.1%}",
            *(interval_text(s, at.entry) for s in shown),
        )
        for at in standings(panel, given)
    ]
    counts = "; ".join(f"{s.column.title}: {len(s.images)}" for s in shown if s.images)
    notes = (
        f"Mean over images [{INTERVAL} bootstrap interval], in the digits that it allows; arrows point to the better "
        "side; maps ok: share of maps that are neither constant nor NaN and add up to what they should.",
        *([f"Standing: {columns_in_words(given[0].columns)}; = has the scores of that method."] if given else []),
        MARK_NOTE,
        *([_WITHHELD] if (panel.coverage < SOUND).any() else []),
        f"Images: {counts}.",
    )
    return Table(f"Leaderboard: {panel.name}", header, rows, notes)


def full_table(panel: Panel) -> Table:
    """Everything about every column and entry, one row each."""
    header = (
        "metric", "column", "better", "method", "model", "n", "nan", "maps ok", "mean", "low", "high", "rank",
        "mean rank in images", "difference to best", "p (Holm)", "beats controls",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for s in panel.summaries.values():
        there = np.flatnonzero(~np.isnan(s.values).all(0)).tolist()
        for j in np.argsort(s.rank, kind="stable").tolist():  # NaN comes last
            in_images = s.friedman.mean_ranks[there.index(j)] if s.friedman is not None and j in there else math.nan
            rows.append(
                (
                    s.column.metric,
                    s.column.name,
                    s.column.direction.value,
                    panel.entries[j].method,
                    panel.entries[j].model,
                    int(s.spread.n[j]),
                    int(s.spread.missing[j]),
                    float(panel.coverage[j]),
                    float(s.spread.mean[j]),
                    float(s.spread.low[j]),
                    float(s.spread.high[j]),
                    float(s.rank[j]),
                    float(in_images),
                    float(s.best.difference[j]) if s.best is not None else None,
                    float(s.best.adjusted[j]) if s.best is not None else None,
                    _above_controls(panel, s, j),
                )
            )
    return Table(f"All scores: {panel.name}", header, rows)


def _above_controls(panel: Panel, s: Summary, j: int) -> str | None:
    if s.best is None or panel.entries[j].control or not panel.controls or math.isnan(s.spread.mean[j]):
        return None
    if not s.column.matched:  # they are not held against controls of another grid
        return None
    return "no" if s.unproven[j] else "yes"


def column_table(panel: Panel) -> Table:
    """One row for each directed column: who wins, whether methods differ at all, and whether images agree."""
    header = (
        "column",
        "images",
        "best",
        "best control",
        "methods above controls",
        "Friedman p",
        "Krippendorff's alpha",
        "low",
        "high",
    )
    rows: list[tuple[Cell, ...]] = []
    for s in panel.directed:
        turned = s.spread.mean * s.column.sign
        controls = [j for j in panel.controls if not math.isnan(turned[j])]
        methods = [j for j, e in enumerate(panel.entries) if not e.control and not math.isnan(turned[j])]
        best = int(np.nanargmax(turned))
        tested = controls and s.best is not None and s.column.matched
        above = f"{sum(not s.unproven[j] for j in methods)} of {len(methods)}" if tested else None
        rows.append(
            (
                s.column.arrow,
                len(s.images) or int(s.spread.n.max(initial=0)),
                panel.labels[best] + (" (control)" if panel.entries[best].control else ""),
                panel.labels[controls[int(np.argmax(turned[controls]))]] if controls else None,
                above,
                s.friedman.p if s.friedman is not None else None,
                s.reliability.alpha if s.reliability is not None else None,
                s.reliability.low if s.reliability is not None else None,
                s.reliability.high if s.reliability is not None else None,
            )
        )
    notes = (
        f"Krippendorff's alpha over the ranks of the methods in each image ({INTERVAL} bootstrap interval): 1 where "
        "images agree on the order of methods, 0 where they agree no more than at random. Friedman p: below "
        f"{ALPHA}, the methods are not all alike on these images.",
    )
    return Table(f"Columns: {panel.name}", header, rows, notes)


def protocol_table(panel: Panel) -> Table:
    """Who wins under each protocol, and how its ranking agrees with that of the others."""
    shown = protocols(panel)
    tau = agreement(shown)
    header = (
        "protocol",
        "best",
        "second",
        "rank of random",
        "controls among the first three",
        "median Kendall τ to the others",
    )
    rows: list[tuple[Cell, ...]] = []
    for i, s in enumerate(shown):
        order = [j for j in np.argsort(s.rank, kind="stable").tolist() if not math.isnan(s.rank[j])]
        random = next((s.rank[j] for j in order if panel.entries[j].method == "random"), math.nan)
        others = np.delete(tau[i], i)
        others = others[~np.isnan(others)]
        rows.append(
            (
                s.column.arrow,
                panel.labels[order[0]] if order else None,
                panel.labels[order[1]] if len(order) > 1 else None,
                f"{random:.0f} of {len(order)}" if not math.isnan(random) else None,
                ", ".join(panel.labels[j] for j in order[:3] if panel.entries[j].control) or "none",
                float(np.median(others)) if len(others) else None,
            )
        )
    notes = ("Kendall's τ between the rankings of the methods by their means.",)
    return Table(f"Protocols: {panel.name}", header, rows, notes)


def matrix_table(title: str, names: Sequence[str], values: Array) -> Table:
    """A square of numbers."""
    rows: list[tuple[Cell, ...]] = [
        (name, *(float(v) for v in row)) for name, row in zip(names, values.tolist(), strict=True)
    ]
    return Table(title, ("", *names), rows)


def size_table(panel: Panel, scores: Scores, shown: Iterable[Summary]) -> Table:
    """Means by the size of the object."""
    rows: list[tuple[Cell, ...]] = []
    header: tuple[str, ...] = ("column", "object covers", "images", *panel.labels)
    for s in shown:
        names, means, counts = by_size(panel, scores, s)
        rows += [
            (s.column.arrow, name, count, *(float(v) for v in row))
            for name, row, count in zip(names, means, counts, strict=True)
        ]
    return Table(f"By size of the object: {panel.name}", header, rows)


def cost_table(panel: Panel) -> Table:
    """What the methods cost alone."""
    header = ("method", "seconds per image", "forward passes", "backward passes", "peak memory per image (MiB)")
    order = sorted(range(len(panel.entries)), key=lambda j: panel.costs[j].get("seconds") or math.inf)
    rows: list[tuple[Cell, ...]] = [
        (panel.labels[j], *(panel.costs[j].get(name) for name in ("seconds", "forwards", "backwards", "peak_mb")))
        for j in order
        if panel.costs[j]
    ]
    return Table(f"Cost: {panel.name}", header, rows)
