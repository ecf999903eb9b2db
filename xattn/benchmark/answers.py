"""What a panel answers: for each question the best methods, what they beat, and what failed; no mean over questions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xattn.benchmark.equivalence import FEWEST, beats, compare, duplicates
from xattn.benchmark.panels import SOUND, Panel, Summary
from xattn.labels import Label, listing

Marks = NDArray[np.bool_]
MARGIN = 0.01
"""Methods whose means differ by less are as good as each other."""


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
    Question("parts", "Does it mark the parts that count?",
             (("part_deletion", "single_deletion"), ("part_checks", "preservation"), ("part_checks", "deletion_check"),
              ("distractibility", "distractibility")),
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
        won: bool (columns, M), entries that are shown to beat every control; all False where none is held against them.
        pairs: bool (M, M), the two are shown to differ by more than the margin in some column.
        groups: all methods that were compared, those of equal scores together, by their distance from the best means.
        best: groups of methods with equal scores, to none of which another method is shown better by the margin in some
            column and worse in none; only those that beat every control in as many columns as any.
        proven: the best ones are shown to beat every control in every column; None where none is held against them.
        shown: all best ones are shown to lie within the margin of each other.
        crossed: some of the best ones are shown better than each other, by one column and by another.
        beat: other groups that beat the controls in every column.
        some: groups that do so in some columns.
        failed: groups that do so in none.
        unsound: methods whose maps are unsound on more than a tenth of the images, which are compared with nothing.
        partial: methods that lack a score in some of the columns, or have fewer than `FEWEST`, likewise.
        images: fewest images of a column.
    """

    question: Question
    columns: list[Summary]
    won: Marks
    pairs: Marks
    groups: list[list[int]]
    best: list[list[int]]
    proven: bool | None
    shown: bool
    crossed: bool
    beat: list[list[int]]
    some: list[list[int]]
    failed: list[list[int]]
    unsound: list[int]
    partial: list[int]
    images: int

    @property
    def held(self) -> bool:
        """There is a control that methods have to beat."""
        return self.proven is not None

    @property
    def where(self) -> list[Summary]:
        """The columns in which all of the best are shown to beat every control."""
        members = [j for group in self.best for j in group]
        return [s for s, won in zip(self.columns, self.won, strict=True) if members and won[members].all()]

    @property
    def named(self) -> list[list[int]]:
        """The best, where they may be named: they beat the controls in some column, or there is none to beat."""
        return self.best if self.proven is None or self.where else []


BEST, BEATS, PARTLY, SOME, FAILS, FIRST, REST = (
    "best", "beats the controls", "best in some columns", "in some columns", "fails", "not told from first", "behind",
)  # fmt: skip
UNSOUND, PARTIAL, CONTROL, UNASKED = "unsound maps", "lacks a score", "control", ""


@dataclass(frozen=True)
class Standing:
    """Where an entry stands.

    Args:
        entry: its place in the panel.
        word: what the first question says of it.
        like: the first of its group, where its scores are those of another; itself otherwise.
    """

    entry: int
    word: str
    like: int


def standings(panel: Panel, given: Sequence[Answer] | None = None) -> list[Standing]:
    """All entries in the order in which they are shown: by the answer to one question, the first that was asked.

    What is best comes first, then what beats the controls in all columns, in some, in none; then methods of unsound
    maps and of missing scores, and the controls. Within one of these the distance from the best means decides, in the
    columns of that question alone. Where nothing was answered it is the mean of the first column.
    """
    given = answers(panel) if given is None else given
    count = len(panel.entries)
    if not given:
        shown = panel.headline(1, directed=True)
        mean = shown[0].spread.mean * shown[0].column.sign if shown else np.full(count, np.nan)
        order = sorted(range(count), key=lambda j: (math.isnan(mean[j]), -mean[j] if not math.isnan(mean[j]) else 0, j))
        return [Standing(j, CONTROL if panel.entries[j].control else UNASKED, j) for j in order]
    first = given[0]
    found = {j: s for s in _of_methods(first) for j in [s.entry]}
    for word, some in ((UNSOUND, first.unsound), (PARTIAL, first.partial)):
        found |= {j: Standing(j, word, j) for j in some}
    found |= {j: Standing(j, UNASKED, j) for j in range(count) if j not in found and not panel.entries[j].control}
    found |= {j: Standing(j, CONTROL, j) for j in panel.controls}
    return list(found.values())


def _of_methods(answer: Answer) -> Iterator[Standing]:
    """Those of the methods that were compared."""
    tiers: dict[str, list[list[int]]] = {}
    for group in answer.groups:
        won = answer.won[:, group]
        if not answer.held:
            word = FIRST if group in answer.best else REST
        elif won.all():
            word = BEST if group in answer.best else BEATS
        else:
            word = FAILS if not won.any() else PARTLY if group in answer.named else SOME
        tiers.setdefault(word, []).append(group)
    for word in (BEST, BEATS, PARTLY, SOME, FAILS, FIRST, REST):
        for group in tiers.get(word, []):
            yield from (Standing(j, word, group[0]) for j in group)


def order(panel: Panel, given: Sequence[Answer] | None = None) -> list[int]:
    """Entries in the order in which they are shown (`standings`)."""
    return [s.entry for s in standings(panel, given)]


def answers(panel: Panel) -> list[Answer]:
    """The answers to the questions that were measured; none across models, which have controls of their own."""
    if len({entry.model for entry in panel.entries}) > 1:
        return []
    asked = [(question, _columns(panel, question)) for question in QUESTIONS]
    return [_answer(panel, question, columns) for question, columns in asked if columns]


def _columns(panel: Panel, question: Question) -> list[Summary]:
    """The columns of a question; for faithfulness what else was measured, where the usual ones were not."""
    there = [s for s in panel.directed if len(s.values) and s.column.matched]
    if question.name == "faithful":
        # One score decides: logits and margins of the same curves are other units, in which the margin means nothing.
        there = [s for s in there if "score=" not in s.column.metric]
    columns = [s for key in question.columns for s in there if (s.column.base, s.column.name) == key]
    if question.name == "faithful":
        columns = columns or [s for s in there if s.column.family == "perturbation"][:2]
    return columns


def _answer(panel: Panel, question: Question, columns: list[Summary]) -> Answer:
    control = np.array([e.control for e in panel.entries])
    there = np.array([~np.isnan(s.spread.mean) for s in columns])
    enough = np.array([s.spread.n >= min(FEWEST, len(s.images)) for s in columns])
    known = np.asarray((there & enough).all(axis=0))
    sound = ~(panel.coverage < SOUND)
    compared = [j for j in range(len(control)) if known[j] and sound[j] and not control[j]]
    held = [j for j in panel.controls if there[:, j].any() and question.held != "none"]  # where it has a score
    if question.held == "blind":
        held = [j for j in held if panel.entries[j].blind]
    places = [*compared, *held]
    tables = [s.values[:, places] * s.column.sign for s in columns]
    m = len(compared)
    won = beats(tables, range(m, len(places)))[:, :m] if held else np.ones((len(columns), m), np.bool_)
    pairs = compare([t[:, :m] for t in tables], MARGIN) if m else None
    groups = duplicates([t[:, :m] for t in tables], MARGIN) if m else []
    count = [int(won[:, g].all(axis=1).sum()) for g in groups]
    field = [g for g, wins in zip(groups, count, strict=True) if not held or wins == max(count)]
    heads = [g[0] for g in field]
    worse = np.zeros((m, m), np.bool_) if pairs is None else pairs.worse
    behind = worse & ~worse.T
    best = [g for g in field if not behind[g[0], heads].any()] or field
    means = np.array([np.nanmean(t[:, :m], axis=0) for t in tables])

    def in_order(some: list[list[int]]) -> list[list[int]]:
        if not some:  # nor has any method a mean, where each has too few scores
            return []
        short = (means.max(axis=1, keepdims=True) - means).sum(axis=0)
        return [[compared[j] for j in g] for g in sorted(some, key=lambda g: short[g[0]])]

    rest = [g for g in groups if g not in best]
    shown, apart = np.zeros((len(columns), len(control)), np.bool_), np.zeros((len(control),) * 2, np.bool_)
    if held:
        shown[:, compared] = won
    apart[np.ix_(compared, compared)] = worse | worse.T
    heads = [g[0] for g in best]
    return Answer(
        question,
        columns,
        won=shown,
        pairs=apart,
        groups=in_order(groups),
        best=in_order(best),
        proven=bool(best and all(won[:, g].all() for g in best)) if held else None,
        shown=pairs is not None and bool(pairs.same[np.ix_(heads, heads)][~np.eye(len(heads), dtype=np.bool_)].all()),
        crossed=bool((worse & worse.T)[np.ix_(heads, heads)].any()),
        beat=in_order([g for g in rest if held and won[:, g].all()]),
        some=in_order([g for g in rest if held and won[:, g].any() and not won[:, g].all()]),
        failed=in_order([g for g in groups if held and not won[:, g].any()]),
        unsound=[j for j in range(len(control)) if not sound[j] and not control[j]],
        partial=[j for j in range(len(control)) if there[:, j].any() and not (known[j] or control[j])],
        images=min((len(s.images) for s in columns), default=0),
    )


def names(panel: Panel, groups: Sequence[Sequence[int]], most: int = 5) -> str:
    """Groups in a sentence: methods with equal scores are one.

    Those that score the same are joined by an equals sign.
    """
    return listing([" = ".join(panel.labels[j] for j in group) for group in groups], most)


def columns_in_words(columns: Sequence[Summary]) -> str:
    """Columns in a sentence, with the baselines that they were measured with."""
    found: dict[str, list[str]] = {}
    for s in columns:
        label = Label.parse(s.column.metric)
        baseline = dict(part.split("=", 1) for part in label.settings.split(",") if "=" in part).get("baseline")
        name = label.name.replace("_", " ")
        found.setdefault(name, []).append(baseline or ("blur" if label.name in ("insertion", "deletion") else ""))
    scorers = {"scorer=in-domain" in s.column.metric for s in columns}
    judges = {(True,): "judged by its scorer", (False, True): "judged by the network and by its scorer"}
    judged = [judges[key]] if (key := tuple(sorted(scorers))) in judges else []

    def with_baselines(names: str, own: Iterable[str]) -> str:
        known = sorted({b for b in own if b})
        about = [f"baseline {listing(known)}", *judged] if known else judged
        return names + (f" ({', '.join(about)})" if about else "")

    if len({frozenset(own) for own in found.values()}) > 1:  # one that was measured with fewer says so
        return listing([with_baselines(name, own) for name, own in found.items()])
    return with_baselines(listing(list(found)), (b for own in found.values() for b in own))


def sentences(panel: Panel, answer: Answer) -> list[str]:
    """What there is to say beside the names of the best."""
    on = columns_in_words(answer.columns)
    number = sum(map(len, answer.best))
    it = "It beats" if number == 1 else "They beat"
    lines = []
    few = f"lack a score in some column, or have fewer than {FEWEST}"
    partial = f"Not compared, as they {few}: {names(panel, [[j] for j in answer.partial])}."
    if not answer.best:
        return [f"No method has a sound map and a score on {on}.", *([partial] if answer.partial else [])]
    if answer.proven is False and answer.where:
        lines.append(f"{it} every control on {columns_in_words(answer.where)} ({answer.images:,} images).")
        lines.append(f"None is shown to do so on all of {on}.")
    elif answer.proven is False:
        lines.append(f"No method is shown to beat every control on {on} ({answer.images:,} images).")
        lines.append(f"First by their means, which more images may confirm: {names(panel, answer.best, 3)}.")
    elif answer.proven:
        lines.append(f"{it} every control on {on} ({answer.images:,} images).")
    else:
        lines.append(f"By {on} ({answer.images:,} images).")
    if len(answer.named) > 1:
        equal = f"All are shown to lie within {MARGIN} of each other."
        undecided = f"None is shown to be {MARGIN} worse than another, nor all to be equal."
        crossed = "Which is better depends on the column."
        lines.append(equal if answer.shown else crossed if answer.crossed else undecided)
    if answer.beat:
        lines.append(f"These beat the controls too, but less: {names(panel, answer.beat)}.")
    if answer.some:
        lines.append(f"In some columns alone: {names(panel, answer.some)}.")
    if answer.failed and answer.named:
        lines.append(f"Failed ({answer.question.failing}): {names(panel, answer.failed)}.")
    if answer.unsound:
        each = [[j] for j in answer.unsound]
        lines.append(f"Not ranked, as more than a tenth of their maps are unsound: {names(panel, each)}.")
    if answer.partial:
        lines.append(partial)
    return lines


_MEANING = {
    "insertion": "shown only the places that its map marks first, the network recognises the class sooner",
    "deletion": "without the places that its map marks first, the network loses the class sooner",
}
_BOTH = (
    "shown only the places that its map marks first, the network recognises the class sooner, and without them it "
    "loses it sooner,"
)
_CONTROLS = {
    "random": "a random map", "center": "a spot in the middle", "edges": "an edge detector",
    "pooled-gradient": "the plain gradient",
}  # fmt: skip


def headline(panel: Panel, given: Sequence[Answer]) -> str:
    """The answer in one sentence, for a person who knows none of the columns: what to use, and why."""
    first = _first(given)
    if first is None or not first.best:
        return "No method was scored on one grid for all by which it could be judged."
    on = columns_in_words(first.columns)
    if first.proven is None:
        return f"{names(panel, first.best, 3)} {_is(first.best)} best on {on}; no control was scored to beat."
    controls = _controls(panel)
    if not first.where:
        return f"None can be recommended: no map is shown to mark what the network goes by better than {controls} do."
    asked = {s.column.base for s in first.where}
    if asked == _MEANING.keys():
        why = _BOTH
    elif asked < _MEANING.keys():
        why = _MEANING[min(asked)]
    else:
        why = f"its scores are better on {columns_in_words(first.where)}"
    return f"Use {panel.labels[first.best[0][0]]}: {why} than with {controls}."


def beside(panel: Panel, given: Sequence[Answer]) -> list[str]:
    """What belongs to the headline: by which columns, on how many images, and which methods are as good."""
    first = _first(given)
    if first is None or not first.best or first.proven is None:
        return []
    on, images = columns_in_words(first.columns), f"{first.images:,} images"
    if not first.where:
        return [f"No method is shown to beat every control on {on} ({images})."]
    lines = [f"That is by {columns_in_words(first.where)}, on {images}."]
    if not first.proven:
        lines.append(f"No method is shown to beat every control on all of {on}.")
    (head, *same), *others = first.best
    if same:
        verb = "scores" if len(same) == 1 else "score"
        lines.append(f"{listing([panel.labels[j] for j in same], 5)} {verb} the same as {panel.labels[head]}.")
    if others:
        crossed = (
            "is better in some columns and worse in others"
            if len(others) == 1
            else ("which is better depends on the column")
        )
        each = names(panel, others, 3)
        lines.append(
            f"As good: {each}." if first.shown else f"Beside it, {each}: {crossed}." if first.crossed
            else f"Not told from it: {each}."
        )  # fmt: skip
    elif first.proven and not first.beat:
        lines.append("No other method is shown to beat every control.")
    elif first.proven:
        lines.append("It is better than the others that beat the controls.")
    return lines


def _first(given: Sequence[Answer]) -> Answer | None:
    """The answer that the headline is about."""
    return next((a for a in given if a.question.name == "faithful"), None)


def _controls(panel: Panel) -> str:
    """The controls of a panel in words."""
    found = list(dict.fromkeys(panel.labels[j].partition(":")[0] for j in panel.controls))
    return listing([_CONTROLS.get(name, name) for name in found], 6).replace(" and ", " or ")


def _is(groups: Sequence[Sequence[int]]) -> str:
    return "is" if sum(map(len, groups)) == 1 else "are"
