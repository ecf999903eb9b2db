"""What came of a race of methods, in words and numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xattn.benchmark.config import Config
from xattn.benchmark.race import Race
from xattn.benchmark.schemas import MethodCost
from xattn.explanation import Explanation
from xattn.labels import counted, label_of, listing
from xattn.metric import LOWER
from xattn.metrics import metrics as known_metrics

_NAMED = 5  # methods of a long list that are named


@dataclass(frozen=True)
class Question:
    """A column that methods are compared by.

    Args:
        metric: as in a configuration.
        column: of its columns.
        what: in a sentence, after "is the most".
        head: of a table.
        deciding: methods can lose by it.
        full: the same at full resolution, for the benchmark of all images; empty where it is `metric`.
    """

    metric: str
    column: str
    what: str
    head: str
    deciding: bool = True
    full: str = ""

    @property
    def label(self) -> str:
        """Label of the metric, under which its scores are."""
        return label_of(known_metrics.parse(self.metric))

    @property
    def sign(self) -> int:
        """Turns values so that higher is better."""
        return -1 if known_metrics.parse(self.metric).columns[self.column] is LOWER else 1


@dataclass(eq=False)
class Selection:
    """What came of a race.

    Args:
        race: with the scores.
        questions: of its columns.
        model: its name.
        data: what the images are.
        available: how many there are.
        left_out: reason by name for each method that did not run, or was taken out.
        costs: of each method, by name.
        config: what would be the full benchmark.
        unreadable: the reason for each image that could not be read.
        over: minutes that were over before it was decided, or before all images were seen.
        passes: images that went through the network.
        seconds: all of it took.
        explanations: of some images by the methods that are left, the best first.
    """

    race: Race
    questions: tuple[Question, ...]
    model: str
    data: str
    available: int
    left_out: dict[str, str]
    costs: dict[str, MethodCost]
    config: Config
    unreadable: list[str] = field(default_factory=list)
    over: float | None = None
    passes: int = 0
    seconds: float = 0.0
    explanations: list[Explanation] = field(default_factory=list)

    @property
    def deciding(self) -> list[int]:
        """Places of the questions that decide."""
        return [q for q, question in enumerate(self.questions) if question.deciding]

    @property
    def winners(self) -> list[int]:
        """Methods that nothing is shown to be better than, the one with the best mean first."""
        return self.race.winners()

    @property
    def proven(self) -> list[int]:
        """Those of them that are shown to be better than every control in every question that decides."""
        return [j for j in self.winners if all(self.race.beats_controls(q, j) for q in self.deciding)]

    @property
    def best(self) -> str | None:
        """The method to use, if one can be named."""
        return self.race.names[self.proven[0]] if self.proven else None

    @property
    def group(self) -> list[str]:
        """Methods that cannot be told from the best, itself first, those that scored the same behind each."""
        first = self.proven or self.winners
        order = [*first, *(j for j in self.winners if j not in first)]
        return [self.race.names[i] for j in order for i in (j, *self.race.joined(j))]

    def sentence(self) -> str:
        """The answer."""
        race, names = self.race, self.race.names
        images = counted(race.images, "image")
        if not race.images:
            return f"No answer: the time ({self._time()}) was over before one image was scored by all methods."
        if not self.winners:
            return f"No method is best in both questions after {images}: {self._apart()}."
        if not self.proven:
            order = listing([names[j] for j in self.winners], _NAMED)
            ahead = self._controls_ahead()
            then = f"; {listing(ahead)} scored higher" if ahead else ""
            return f"No method is shown to beat every control on {images}: trust none yet. Best so far: {order}{then}."
        best = self.proven[0]
        equal = [names[i] for i in race.joined(best)]
        others = [name for name in self.group if name not in (names[best], *equal)]
        same = f"; {listing(equal, _NAMED)} scored the same"
        if others:
            rest = f"{listing(others, _NAMED)} cannot be told from it yet"
            return f"Use {names[best]}, above every control on {images}; {rest}{same if equal else ''}."
        return (
            f"Use {names[best]}: the best of all methods, and above every control, on {images}{same if equal else ''}."
        )

    def _controls_ahead(self) -> list[str]:
        """Controls with a better mean than the best method in a question that decides."""
        race, first = self.race, self.winners[0]
        means = race.means()
        return [
            race.names[c]
            for c in range(len(race.names))
            if race.controls[c] and any(means[q, c] > means[q, first] for q in self.deciding)
        ]

    def _time(self) -> str:
        return "no limit" if self.over is None else f"{self.over:g} minute{'' if self.over == 1 else 's'}"

    def _so_far(self) -> str:
        """How far the best method on average is ahead of the best control, and how sure that is."""
        race, first = self.race, self.winners[0]
        means = np.nan_to_num(race.means(), nan=-np.inf)
        controls = np.flatnonzero(race.controls)
        parts, doubt = [], False
        for q in self.deciding:
            if not len(controls) or not race.counts()[q, first]:
                continue
            control = int(controls[means[q, controls].argmax()])
            # As far behind is a control as the method is ahead.
            mean, low, high = race.behind(q, control, first)
            doubt |= low <= 0
            side = "ahead of" if mean > 0 else "behind"
            parts.append(
                f"{abs(mean):.3f} {side} {race.names[control]} {self.questions[q].what} "
                f"({100 * (1 - race.rules.alpha):.3g} % sure: between {low:.3f} and {high:.3f})"
            )
        chance = " Where 0 lies between, it may be chance." if doubt else ""
        return f"Beside the best control {race.names[first]} is {', and '.join(parts)}.{chance}" if parts else ""

    def _apart(self) -> str:
        """Which methods are unbeaten in each question, where none is in all."""
        race = self.race
        parts = []
        for q in self.deciding:
            unbeaten = [
                race.names[j]
                for j in range(len(race.names))
                if race.counts()[q, j]
                and not (race.beaten[q, j] or race.controls[j])
                and race.names[j] not in self.left_out
            ]
            parts.append(f"{listing(unbeaten, 3) or 'none'} {self.questions[q].what}")
        return ", ".join(parts)

    def notes(self) -> list[str]:
        """What else is to be said, a line each."""
        race = self.race
        alpha = race.rules.alpha
        if not race.images:
            lines = ["More minutes, fewer methods or smaller images bring one; nothing is known so far."]
        elif race.decided or not self.winners:
            lines = [f"Chance that any of this is wrong: {100 * alpha:.2g} % at most, however long it ran."]
        else:
            more = race.images + len(self.unreadable) < self.available
            when = "" if self.over is None else f", when the time ({self._time()}) was over"
            lines = [
                f"Undecided after {counted(race.images, 'image')}, of {self.available:,}{when}: "
                f"{'more may tell' if more else 'there are no more'}. Chance that what is said is wrong: "
                f"{100 * alpha:.2g} % at most."
            ]
            if not self.proven and (known := self._so_far()):
                lines.insert(0, known)
        if self.unreadable:
            lines.append(f"{counted(len(self.unreadable), 'image')} could not be read (first: {self.unreadable[0]}).")
        for q, question in enumerate(self.questions):
            if not question.deciding and self.winners:
                means = race.means()[q]
                there = [j for j in range(len(race.names)) if not math.isnan(means[j]) and race.stopped[j] < 0]
                if there:
                    first = max(there, key=lambda j: means[j])
                    kind = ", a control" if race.controls[first] else ""
                    lines.append(f"Most {question.what}, of those left: {race.names[first]}{kind}.")
        shown = [name for name in self.left_out if name in race.names]
        lines += [f"Left out: {name}: {self.left_out[name].removeprefix(f'{name}: ')}" for name in shown]
        unfit = [name for name in self.left_out if name not in race.names]
        if unfit:
            lines.append(f"Not defined for {self.model}: {listing(unfit, 8)}.")
        return lines

    def standing(self, j: int) -> str:
        """What became of a method or control, in a word or two."""
        race = self.race
        if race.names[j] in self.left_out:
            return "maps not fine" if self.left_out[race.names[j]].startswith("its maps") else "refused"
        if race.stopped[j] < 0 and not race.counts()[:, j].any():
            return "not scored yet"
        end = race.end(j)
        if race.controls[j]:
            return "control" if race.stopped[j] < 0 else "control, beaten"
        if end != j:
            return f"same as {race.names[end]}"
        if race.stopped[j] >= 0:
            return "out"
        if self.proven and j == self.proven[0]:
            return "best"
        return "not told apart" if j in self.proven else "not above controls"

    def order(self) -> list[int]:
        """Places in the table: what is left, those that are out from the last to the first, controls."""
        race = self.race
        first = [*self.proven, *(j for j in self.winners if j not in self.proven)]
        joined = [i for j in first for i in race.joined(j)]
        rest = [j for j in range(len(race.names)) if j not in first and j not in joined]
        means = race.means()[self.deciding]
        rest.sort(key=lambda j: (bool(race.controls[j]), -race.stopped[j], -float(_mean(means[:, j]))))
        return [*first, *joined, *rest]

    def to_dict(self) -> dict[str, Any]:
        """Everything, in plain values."""
        race = self.race
        means, counts = race.means(), race.counts()
        first = (self.proven or self.winners or [0])[0]
        methods = []
        for j in self.order():
            cost = self.costs.get(race.names[j])
            methods.append(
                {
                    "method": race.names[j],
                    "control": bool(race.controls[j]),
                    "standing": self.standing(j),
                    "stopped_after": None if race.stopped[j] < 0 else int(race.stopped[j]),
                    "images": int(counts[:, j].max()),
                    "scores": {
                        question.head: question.sign * float(means[q, j]) for q, question in enumerate(self.questions)
                    },
                    "behind_first": {
                        question.head: dict(zip(("mean", "low", "high"), race.behind(q, j, first), strict=True))
                        for q, question in enumerate(self.questions)
                        if j != first
                    },
                    "beats_controls": {
                        question.head: race.beats_controls(q, j)
                        for q, question in enumerate(self.questions)
                        if not race.controls[j]
                    },
                    "seconds": None if cost is None else cost.seconds,
                    "passes": None if cost is None else cost.forwards + cost.backwards,
                }
            )
        return {
            "model": self.model,
            "data": self.data,
            "sentence": self.sentence(),
            "best": self.best,
            "group": self.group,
            "decided": race.decided,
            "images": race.images,
            "available": self.available,
            "passes": self.passes,
            "seconds": self.seconds,
            "minutes_over": self.over,
            "alpha": race.rules.alpha,
            "questions": {question.head: f"{question.label} {question.column}" for question in self.questions},
            "methods": methods,
            "left_out": self.left_out,
            "unreadable": self.unreadable,
        }


def _mean(values: Any) -> float:
    known = [float(v) for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else -math.inf
