"""What a panel answers: for each question the best methods, what they beat, and what failed; no mean over questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xattn.benchmark.equivalence import beats, compare, duplicates
from xattn.benchmark.panels import Panel, Summary
from xattn.labels import Label, listing

MARGIN = 0.01
"""Methods whose means differ by less are as good as each other."""
SOUND = 0.9
"""A method with a smaller share of sound maps is ranked apart."""


@dataclass(frozen=True)
class Question:
    """A question and the columns that answer it.

    Args:
        name: one word.
        text: as a person asks it.
        columns: metric and column; those that were measured on one grid for all methods are asked together.
        held: against which controls methods are held: all, those that are `blind` to the model, or `none`.
        failing: what it means that a method does not beat them.
    """

    name: str
    text: str
    columns: tuple[tuple[str, str], ...]
    held: str
    failing: str


QUESTIONS = (
    Question("faithful", "Is it faithful, at equal grid?", (("insertion", "insertion"), ("deletion", "deletion")),
             "all", "not shown to beat every control in any column"),
    Question("object", "Does it point at the object?",
             (("energy_pointing_game", "energy"), ("pointing_game", "hit"), ("grid_pointing_game", "cell")),
             "all", "not shown to beat every control in any column"),
    Question("class", "Does it depend on the class?", (("class_sensitivity", "spearman"),),
             "blind", "the same map for every class, as far as is shown"),
    Question("weights", "Does it depend on the weights?", (("parameter_randomization", "spearman"),),
             "blind", "the same map for random weights, as far as is shown"),
    Question("stable", "Is it stable?", (("max_sensitivity", "max_sensitivity"),), "none", ""),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Answer:
    """What the scores say to a question.

    Args:
        question: which.
        columns: that were measured, each with all methods on one grid.
        best: groups of methods with equal scores, none of which is shown worse than another method by the margin in
            any column; only those that beat the controls, where some do.
        proven: the best ones are shown to beat every control in every column; None where none is held against them.
        shown: all best ones are shown to lie within the margin of each other.
        beat: other groups that beat the controls in every column.
        some: groups that do so in some columns.
        failed: groups that do so in none.
        unsound: methods whose maps are unsound on more than a tenth of the images, which are compared with nothing.
        images: fewest images of a column.
    """

    question: Question
    columns: list[Summary]
    best: list[list[int]]
    proven: bool | None
    shown: bool
    beat: list[list[int]]
    some: list[list[int]]
    failed: list[list[int]]
    unsound: list[int]
    images: int


def answers(panel: Panel) -> list[Answer]:
    """The answers to the questions that were measured; none across models, which have controls of their own."""
    if len({entry.model for entry in panel.entries}) > 1:
        return []
    asked = [(question, _columns(panel, question)) for question in QUESTIONS]
    return [_answer(panel, question, columns) for question, columns in asked if columns]


def _columns(panel: Panel, question: Question) -> list[Summary]:
    """The columns of a question; for faithfulness what else was measured, where the usual ones were not."""
    there = [s for s in panel.directed if len(s.values) and s.column.matched]
    columns = [s for key in question.columns for s in there if (s.column.base, s.column.name) == key]
    if question.name == "faithful":
        # One score decides: logits and margins of the same curves are other units, in which the margin means nothing.
        columns = [s for s in columns if "score=" not in s.column.metric]
        columns = columns or [s for s in there if s.column.family == "perturbation"][:2]
    return columns


def _answer(panel: Panel, question: Question, columns: list[Summary]) -> Answer:
    control = np.array([e.control for e in panel.entries])
    known = np.all([~np.isnan(s.spread.mean) for s in columns], axis=0)
    sound = ~(panel.coverage < SOUND)
    compared = [j for j in range(len(control)) if known[j] and sound[j] and not control[j]]
    held = [j for j in panel.controls if known[j] and question.held != "none"]
    if question.held == "blind":
        held = [j for j in held if panel.entries[j].blind]
    places = [*compared, *held]
    tables = [s.values[:, places] * s.column.sign for s in columns]
    m = len(compared)
    won = beats(tables, range(m, len(places)))[:, :m] if held else np.ones((len(columns), m), np.bool_)
    pairs = compare([t[:, :m] for t in tables], MARGIN) if m else None
    groups = duplicates([t[:, :m] for t in tables], MARGIN) if m else []
    everywhere = np.asarray(won.all(axis=0))
    field = [g for g in groups if everywhere[g[0]]] or groups if held else groups
    best = [g for g in field if pairs is not None and not pairs.worse[g[0], [f[0] for f in field]].any()]
    means = np.array([np.nanmean(t[:, :m], axis=0) for t in tables])

    def in_order(some: list[list[int]]) -> list[list[int]]:
        short = (means.max(axis=1, keepdims=True) - means).sum(axis=0)
        return [[compared[j] for j in g] for g in sorted(some, key=lambda g: short[g[0]])]

    rest = [g for g in groups if g not in best]
    heads = [g[0] for g in best]
    return Answer(
        question,
        columns,
        best=in_order(best),
        proven=bool(best and everywhere[heads].all()) if held else None,
        shown=pairs is not None and bool(pairs.same[np.ix_(heads, heads)][~np.eye(len(heads), dtype=np.bool_)].all()),
        beat=in_order([g for g in rest if held and everywhere[g[0]]]),
        some=in_order([g for g in rest if held and won[:, g[0]].any() and not everywhere[g[0]]]),
        failed=in_order([g for g in groups if held and not won[:, g[0]].any()]),
        unsound=[j for j in range(len(control)) if known[j] and not sound[j] and not control[j]],
        images=min((len(s.images) for s in columns), default=0),
    )


def names(panel: Panel, groups: Sequence[Sequence[int]], most: int = 5) -> str:
    """Groups in a sentence: methods with equal scores are one.

    Those that score the same are joined by an equals sign.
    """
    return listing([" = ".join(panel.labels[j] for j in group) for group in groups], most)


def columns_in_words(answer: Answer) -> str:
    """The columns of an answer in a sentence, each with the baselines that it was measured with."""
    found: dict[str, list[str]] = {}
    for s in answer.columns:
        label = Label.parse(s.column.metric)
        baseline = dict(part.split("=", 1) for part in label.settings.split(",") if "=" in part).get("baseline")
        name = label.name.replace("_", " ")
        found.setdefault(name, []).append(baseline or ("blur" if label.name in ("insertion", "deletion") else ""))
    baselines = sorted({b for own in found.values() for b in own if b})
    return listing(list(found)) + (f" (baseline {listing(baselines)})" if baselines else "")


def sentences(panel: Panel, answer: Answer) -> list[str]:
    """What there is to say beside the names of the best."""
    on = columns_in_words(answer)
    number = sum(map(len, answer.best))
    lines = []
    if not answer.best:
        return [f"No method has a sound map and a score on {on}."]
    if answer.proven is False:
        lines.append(f"No method is shown to beat every control on {on} ({answer.images:,} images).")
        lines.append(f"First by their means, which more images may confirm: {names(panel, answer.best, 3)}.")
    elif answer.proven:
        lines.append(f"{'It beats' if number == 1 else 'They beat'} every control on {on} ({answer.images:,} images).")
    else:
        lines.append(f"By {on} ({answer.images:,} images).")
    if len(answer.best) > 1 and answer.proven is not False:
        equal = f"All are shown to lie within {MARGIN} of each other."
        lines.append(
            equal if answer.shown else f"None is shown to be {MARGIN} worse than another, nor all to be equal."
        )
    if answer.beat:
        lines.append(f"These beat the controls too, but less: {names(panel, answer.beat)}.")
    if answer.some:
        lines.append(f"In some columns alone: {names(panel, answer.some)}.")
    if answer.failed and answer.proven is not False:
        lines.append(f"Failed ({answer.question.failing}): {names(panel, answer.failed)}.")
    if answer.unsound:
        lines.append(f"Not ranked, as more than a tenth of their maps are unsound: {names(panel, [answer.unsound])}.")
    return lines


def headline(panel: Panel, given: Sequence[Answer]) -> str:
    """The answer in one sentence: what to use, and why."""
    first = next((a for a in given if a.question.name == "faithful"), None)
    if first is None or not first.best:
        return "No method was scored on one grid for all by which it could be judged."
    on = columns_in_words(first)
    if first.proven is None:
        return f"{names(panel, first.best, 3)} {_is(first.best)} best on {on}; no control was scored to beat."
    if not first.proven:
        return f"No method is shown to beat every control on {on}."
    if len(first.best) == 1 and not first.beat:
        return f"Use {names(panel, first.best)}: alone it is shown to beat every control on {on}."
    if len(first.best) == 1:
        return (
            f"Use {names(panel, first.best)}: it beats every control on {on} and is better than the others that do so."
        )
    return f"Use any of {names(panel, first.best, 3)}: each beats every control on {on}; none is shown better."


def _is(groups: Sequence[Sequence[int]]) -> str:
    return "is" if sum(map(len, groups)) == 1 else "are"
