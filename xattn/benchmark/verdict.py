"""What the scores of a panel say, in words: which methods to trust, which cannot be told apart, what they cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xattn.benchmark.answers import MARGIN, Answer, answers, order
from xattn.benchmark.equivalence import compare
from xattn.benchmark.panels import Panel, Summary, protocols
from xattn.benchmark.panels import agreement as tau_of
from xattn.benchmark.scores import shortened
from xattn.labels import listing

_QUESTIONS = 2  # the headline pair, insertion and deletion
_NAMED = 5  # methods of a long list that are named


@dataclass(frozen=True, eq=False)
class Verdict:
    """What can be said of a panel: the answer to its first question, and what is left to say beside it.

    Args:
        panel: of which.
        questions: the columns of the first question; insertion and deletion where none was answered.
        order: methods with a value, controls left out, as they are shown (`answers.standings`).
        won: (M,), in how many of the columns each entry is shown to beat every control.
        controls: for each column the control with the best mean; None without one.
        apart: (M, M), pairs that are shown to differ by more than the margin in at least one column.
        given: the answers.
    """

    panel: Panel
    questions: list[Summary]
    order: list[int]
    won: NDArray[np.int64]
    controls: list[int | None]
    apart: NDArray[np.bool_]
    given: Sequence[Answer]

    @property
    def trusted(self) -> list[int]:
        """Methods that beat the best control in every question."""
        return [j for j in self.order if self.won[j] == len(self.questions)]

    @property
    def partly(self) -> list[int]:
        """Methods that beat it in some."""
        return [j for j in self.order if 0 < self.won[j] < len(self.questions)]

    @property
    def unproven(self) -> list[int]:
        """Methods that beat it in none."""
        return [j for j in self.order if self.won[j] == 0] if self.tested else []

    @property
    def tested(self) -> bool:
        """There are controls to beat, on the grid of the methods."""
        return bool(self.questions) and self.matched and all(control is not None for control in self.controls)

    @property
    def matched(self) -> bool:
        """All maps were ranked on one grid."""
        return all(s.column.matched for s in self.questions)

    @property
    def mixed(self) -> bool:
        """The methods explain several models, each held against the controls of its own."""
        return len({entry.model for entry in self.panel.entries}) > 1

    @property
    def top(self) -> list[int]:
        """The first of the trusted (of all, where none is), and the others of them that differ from it in nothing."""
        field = self.trusted or self.order
        return [j for j in field if not self.apart[field[0], j]]

    def same(self, j: int) -> list[int]:
        """Methods that cannot be told from one."""
        return [k for k in self.order if k != j and not self.apart[j, k]]

    @property
    def images(self) -> int:
        """How many images the answers rest on."""
        return max((len(s.images) for s in self.questions), default=0)

    def names(self, places: Sequence[int], most: int = _NAMED) -> str:
        """Labels of entries in a sentence."""
        return listing([self.panel.labels[j] for j in places], most)

    @property
    def asked(self) -> str:
        """All questions in a sentence."""
        return ("both " if len(self._asked) == 2 else "") + listing(self._asked, _NAMED)

    @property
    def any_asked(self) -> str:
        """Any of the questions in a sentence."""
        return " or ".join(self._asked)

    @property
    def _asked(self) -> list[str]:
        return list(dict.fromkeys(name_of(s) for s in self.questions))


def judge(panel: Panel, given: Sequence[Answer] | None = None) -> Verdict:
    """What can be said of a panel, from the answers to its questions.

    Across models, which have controls of their own, nothing is answered: each column is judged by itself.
    """
    given = answers(panel) if given is None else given
    questions = given[0].columns if given else _questions(panel)
    control = np.array([e.control for e in panel.entries])
    known = np.zeros((len(questions), len(control)), np.bool_)
    for q, s in enumerate(questions):
        known[q] = ~np.isnan(s.spread.mean)
    best = [np.where(control, s.spread.mean * s.column.sign, np.nan) for s in questions]
    controls = [None if np.isnan(turned).all() else int(np.nanargmax(turned)) for turned in best]
    if given:
        won, apart = given[0].won, given[0].pairs
    else:
        won = known & ~control
        for q, (s, c) in enumerate(zip(questions, controls, strict=True)):
            won[q] &= ~s.unproven & (s.column.matched and c is not None)
        worse = compare([s.values * s.column.sign for s in questions], MARGIN).worse if questions else known[:0]
        apart = worse | worse.T if questions else np.zeros((len(control),) * 2, np.bool_)
    methods = [j for j in order(panel, given) if not control[j] and known[:, j].any()]
    return Verdict(panel, questions, methods, won.sum(0), controls, apart, given)


def _questions(panel: Panel) -> list[Summary]:
    asked = [s for s in panel.headline(len(panel.summaries), directed=True) if len(s.values)]
    faithful = [s for s in asked if s.column.family == "perturbation"]
    faithful = [s for s in faithful if s.column.matched] or faithful
    pair = [s for s in faithful if s.column.name in ("insertion", "deletion")]
    return (pair or faithful or asked)[:_QUESTIONS]


def name_of(summary: Summary) -> str:
    """A column in a sentence, without its parameters."""
    return shortened(summary.column.label.name).replace("_", " ")


def duration(seconds: float) -> str:
    """A short time for people.

    >>> duration(0.00384), duration(0.25), duration(12.34)
    ('3.8 ms', '250 ms', '12 s')
    """
    value, unit = (seconds * 1e3, "ms") if seconds < 1 else (seconds, "s")
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"


def headline(verdict: Verdict) -> str:
    """The answer in one line."""
    if not verdict.order:
        return "There is no score yet by which methods could be judged."
    top, trusted = verdict.top, verdict.trusted
    if not verdict.tested:
        why = "no control was scored to beat" if verdict.matched else "each map was ranked on a grid of its own"
        return f"{verdict.names(top, 3)} {_is(top, 'comes', 'come')} first; {why}."
    if trusted:
        return f"{verdict.names(trusted, 3)} {_is(trusted, 'beats', 'beat')} every control on {verdict.asked}."
    return f"No method is shown to beat the controls on {verdict.asked}."


def trust(verdict: Verdict) -> list[str]:
    """Which methods beat the controls."""
    if not verdict.tested:
        return []
    trusted, count = verdict.trusted, len(verdict.order)
    beat = "beats" if len(trusted) < 2 else "beat"
    lines = [f"{len(trusted) or 'None'} of {count} methods {beat} the best control on {verdict.asked}."]
    for s in verdict.questions:
        some = [j for j in verdict.partly if not s.unproven[j]]
        if some:
            lines.append(f"{verdict.names(some)} {_is(some, 'does', 'do')} so on {name_of(s)} alone.")
    return lines


def controls_ahead(verdict: Verdict) -> list[str]:
    """In which columns a control has the best mean of all."""
    ahead = [
        (s.column.arrow, verdict.panel.labels[c])
        for s, c in zip(verdict.questions, verdict.controls, strict=True)
        if c is not None and int(np.nanargmax(s.spread.mean * s.column.sign)) == c
    ]
    return [f"On {column} a control, {name}, has the best mean of all." for column, name in ahead]


def unproven(verdict: Verdict) -> list[str]:
    """Which methods do not beat the controls, and which controls these are."""
    if not verdict.matched:
        return []  # as the cautions say
    if not verdict.tested:
        return ["No control was scored, so nothing shows that a method is better than a map that knows nothing."]
    some, count, asked = verdict.unproven, len(verdict.order), verdict.any_asked
    if some:
        lines = [f"{len(some)} of {count} methods {_is(some, 'does', 'do')} not beat the best control on {asked}."]
    else:
        lines = [f"Every method beats the best control on {asked}."]
    if verdict.mixed:
        return [*lines, "Each is held against the controls on its own model."]
    best = [(name_of(s), c) for s, c in zip(verdict.questions, verdict.controls, strict=True) if c is not None]
    lines.append(
        "The best control is " + listing([f"{verdict.panel.labels[c]} on {name}" for name, c in best], _NAMED) + "."
    )
    return lines


def ties(verdict: Verdict) -> list[str]:
    """Which methods cannot be told apart."""
    order = verdict.order
    if len(order) < 2:
        return []
    first, *others = verdict.top
    name = verdict.panel.labels[first]
    if others:
        lines = [f"{name} comes first; {verdict.names(others)} cannot be told from it on {verdict.any_asked}."]
    else:
        rest = "every other that beats the controls" if len(verdict.trusted) > 1 else "every other method"
        alone = not verdict.same(first) or len(verdict.trusted) > 1
        lines = [f"{name} comes first and can be told from {rest}." if alone else f"{name} comes first."]
    weaker = [j for j in verdict.same(first) if j not in verdict.top]
    if weaker:
        lines.append(f"{verdict.names(weaker)} cannot be told from it either, though not shown to beat the controls.")
    return lines


def pairs(verdict: Verdict) -> list[str]:
    """How many pairs of methods can be told apart."""
    order = verdict.order
    if len(order) < 2:
        return []
    apart = int(np.triu(verdict.apart[np.ix_(order, order)], 1).sum())
    count = len(order) * (len(order) - 1) // 2
    return [
        f"{apart} of {count} pairs of methods are shown to differ by more than {MARGIN} on "
        f"{verdict.any_asked} ({verdict.images:,} images)."
    ]


def costs(verdict: Verdict) -> list[str]:
    """What methods cost."""
    panel = verdict.panel
    seconds = {j: panel.costs[j].get("seconds") or math.nan for j in verdict.order}
    known = sorted((j for j, s in seconds.items() if not math.isnan(s)), key=seconds.__getitem__)
    if not known:
        return []
    first, last = known[0], known[-1]
    lines = [f"{panel.labels[first]} is the cheapest with {duration(seconds[first])} an image."]
    top = [j for j in known if j in verdict.top]
    best = top[0] if top else first
    if best != first:
        who = f"Of those that come first {panel.labels[best]} is the cheapest"
        lines.append(f"{who}: {duration(seconds[best])}{_times(seconds, best, first)}.")
    if last not in (first, best):
        took = f"{duration(seconds[last])}{_times(seconds, last, first)}"
        lines.append(f"{panel.labels[last]} is the most expensive: {took}.")
    return lines


def _times(seconds: dict[int, float], j: int, first: int) -> str:
    ratio = seconds[j] / seconds[first]
    return f", {ratio:,.0f} times as long" if ratio >= 10 else f", {ratio:.1f} times as long" if ratio >= 1.15 else ""


def sensitivity(verdict: Verdict) -> list[str]:
    """How far the winner depends on the protocol."""
    panel, shown = verdict.panel, protocols(verdict.panel)
    if len(shown) < 2:
        return []
    wins = Counter(int(np.nanargmin(s.rank)) for s in shown)
    best = listing([f"{panel.labels[j]} ({count})" for j, count in wins.most_common()], _NAMED)
    lines = [f"Of {len(shown)} protocols these are won by: {best}."]
    by_control = sum(count for j, count in wins.items() if panel.entries[j].control)
    if by_control:
        lines.append(f"A control wins {by_control} of them, by which no method should be judged.")
    return lines


def agreement(panel: Panel, shown: Sequence[Summary]) -> list[str]:
    """Which columns order the methods alike, and on which the images agree."""
    if len(shown) < 2:
        return []
    lines = []
    tau = np.where(np.triu(np.ones((len(shown), len(shown))), 1) > 0, tau_of(shown), np.nan)
    if not np.isnan(tau).all():
        ends = [divmod(int(f(tau)), len(shown)) for f in (np.nanargmax, np.nanargmin)]
        most, least = (f"{name_of(shown[i])} and {name_of(shown[k])} (τ = {tau[i, k]:.2f})" for i, k in ends)
        lines.append(f"{most} order the methods most alike" + (f", {least} least." if most != least else "."))
    known = [(s.reliability.alpha, s) for s in shown if s.reliability and not math.isnan(s.reliability.alpha)]
    if len(known) > 1:
        known.sort(key=lambda pair: pair[0])
        (low, least_of), (high, most_of) = known[0], known[-1]
        lines.append(
            f"Images agree most on the order by {name_of(most_of)} (alpha = {high:.2f}), "
            f"least on that by {name_of(least_of)} (alpha = {low:.2f})."
        )
    return lines


def cautions(verdict: Verdict) -> list[str]:
    """What to keep in mind: maps that are not fine, and few images."""
    panel = verdict.panel
    methods = [j for j, entry in enumerate(panel.entries) if not entry.control]
    bad = sorted((j for j in methods if panel.coverage[j] < 1), key=lambda j: panel.coverage[j])
    lines = ["Scores of different models tell as much of the models as of the methods."] if verdict.mixed else []
    if bad:
        shares = listing([f"{100 * (1 - panel.coverage[j]):.2g} % of {panel.labels[j]}" for j in bad], most=3)
        lines.append(f"Some maps are constant, undefined or do not add up: {shares}.")
    if not verdict.matched:
        lines.append(
            "Maps were ranked on pixels, or each on its own grid, where a finer one scores otherwise whatever it says: "
            "nothing is held against the controls. Run again for scores on one grid."
        )
    elif verdict.tested and not verdict.trusted and verdict.images:
        lines.append(
            f"{verdict.images:,} images may be too few: that no difference is shown does not show that there is none."
        )
    return lines


def summary(panel: Panel, given: Sequence[Answer] | None = None) -> list[str]:
    """What else there is to say beside the answers, as sentences; where nothing was answered, all of it."""
    given = answers(panel) if given is None else given
    verdict = judge(panel, given)
    alone = () if given else (trust, unproven, ties)
    parts = (*alone, *(() if verdict.mixed else (controls_ahead,)), pairs, costs, sensitivity, cautions)
    return [headline(verdict), *(text for part in parts for text in part(verdict) if verdict.order)]


def _is(things: Sequence[int], one: str, many: str) -> str:
    """The form of a verb."""
    return one if len(things) == 1 else many
