"""A race of methods: images come in random order, and a method stops when it can no longer win.

Nothing here runs a network: `Race` takes scores and says what to score next, `replay` feeds it scores that are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from xattn.benchmark.betting import STAKES, adjusted, confidence_sequence, log_growth, reached, wealth
from xattn.errors import ShapeError
from xattn.functional.statistics import ALPHA, Array
from xattn.schema import Range, check_fields

Marks = NDArray[np.bool_]
_ALIKE = 1e-3  # difference of scores on an image that is none


@dataclass(frozen=True)
class Rules:
    """When a pair is decided.

    Args:
        alpha: probability of any false decision in the whole race.
        clip: a difference of the scores of two methods on an image counts as this much at most, so that no image
            decides by itself, and that bets are on bounded numbers, whatever the scores are.
        margin: methods whose scores differ by less on average are as good as each other.
        twins: methods that scored alike, to a thousandth, on so many images and all others, count as one.
        first: images on which only the methods that start at once are scored, by the first question alone.
    """

    alpha: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = ALPHA
    clip: Annotated[float, Range(0, 1e6, open_low=True)] = 0.25
    margin: Annotated[float, Range(0, 1e6, open_low=True)] = 0.02
    twins: Annotated[int, Range(1, 1_000_000)] = 16
    first: Annotated[int, Range(0, 1_000_000)] = 16

    def __post_init__(self) -> None:
        check_fields(self, "rules")


class Race:
    """What is known of some methods after some images.

    A method is out when another, or a control, is shown to be better in a question that decides; of two that are as
    good as each other in all of these, or scored alike on every image, the one that costs less goes on. A control stops
    when all that are left have beaten it.

    Hypotheses are tested by betting (`betting.log_growth`), all of them corrected together (`betting.adjusted`): for
    each question and ordered pair that a is not better than b, and for two methods that a is better than b by the
    margin. A pair is compared on the images where both have a score.

    Args:
        names: what is compared (K,).
        controls: (K,), which are controls.
        questions: names of the columns (Q,).
        deciding: (Q,), which of them decide who is out.
        cost: (K,), of a map, to choose between equals.
        late: (K,), methods that start after `rules.first` images.
        rules: when a pair is decided.
    """

    def __init__(
        self,
        names: Sequence[str],
        controls: Sequence[bool],
        questions: Sequence[str],
        *,
        deciding: Sequence[bool] | None = None,
        cost: Sequence[float] | None = None,
        late: Sequence[bool] | None = None,
        rules: Rules | None = None,
    ) -> None:
        k, q = len(names), len(questions)
        self.names, self.questions = list(names), list(questions)
        self.controls: Marks = np.array(controls, np.bool_)
        self.deciding: Marks = np.ones(q, np.bool_) if deciding is None else np.array(deciding, np.bool_)
        self.cost = np.zeros(k) if cost is None else np.array(cost, np.float64)
        self.late: Marks = np.zeros(k, np.bool_) if late is None else np.array(late, np.bool_)
        self.rules = rules or Rules()
        self.images = 0
        self.better: Marks = np.zeros((q, k, k), np.bool_)
        """(Q, K, K): the first is shown to be better than the second."""
        self.near: Marks = np.zeros((q, k, k), np.bool_)
        """(Q, K, K): the first is shown not to be better by the margin."""
        self.same = np.arange(k)
        """(K,): the method that goes on in place of each, itself at first."""
        self.stopped = np.full(k, -1)
        """(K,): images after which each stopped, or -1."""
        self._scores: list[Array] = []
        self._logs = np.zeros((2, q, k, k, len(STAKES)))
        self._apart = np.zeros((q, k, k))  # largest difference on an image
        self._shared = np.zeros((q, k, k), np.int64)  # images with both scores
        method = ~self.controls
        either = (method[:, None] | method[None, :]) & ~np.eye(k, dtype=bool)
        both = method[:, None] & method[None, :] & ~np.eye(k, dtype=bool)
        self._tested = np.broadcast_to(np.stack([either, both])[:, None], (2, q, k, k))

    @property
    def scores(self) -> Array:
        """(N, Q, K), NaN where nothing was scored."""
        return np.concatenate([np.full((0, len(self.questions), len(self.names)), np.nan), *self._scores])

    @property
    def left(self) -> Marks:
        """(K,): methods that can still win, started or not."""
        return ~self.controls & (self.stopped < 0)

    @property
    def racing(self) -> Marks:
        """(K,): what the next image is to be scored for."""
        return (self.stopped < 0) & ((self.images >= self.rules.first) | ~self.late)

    @property
    def asked(self) -> Marks:
        """(Q,): the questions that the next image is to be scored by: the first alone in the beginning."""
        if self.images >= self.rules.first:
            return np.ones(len(self.questions), np.bool_)
        return ~self.deciding | (np.cumsum(self.deciding) == 1)

    @property
    def decided(self) -> bool:
        """Nothing more can change who wins."""
        left = self.left
        return not left.any() or bool(left.sum() == 1 and not (self.controls & (self.stopped < 0)).any())

    def add(self, scores: Array) -> None:
        """Scores of further images.

        Args:
            scores: (n, Q, K), turned so that higher is better; NaN where there is none.

        Raises:
            ShapeError: for another shape.
        """
        x = np.array(scores, np.float64)
        if x.ndim != 3 or x.shape[1:] != (len(self.questions), len(self.names)):
            raise ShapeError(f"race: expected scores (n, {len(self.questions)}, {len(self.names)}) but got {x.shape}.")
        racing, asked = self.racing, self.asked
        x[:, ~asked] = np.nan
        x[:, :, ~racing] = np.nan
        self._scores.append(x)
        difference = x[..., :, None] - x[..., None, :]
        self._apart = np.maximum(self._apart, np.nan_to_num(np.abs(difference)).max(0, initial=0.0))
        self._shared += (~np.isnan(difference)).sum(0)
        y = np.clip(difference / self.rules.clip, -1, 1)
        m = min(self.rules.margin / self.rules.clip, 0.99)
        self._logs[0] += log_growth(y).sum(0)
        self._logs[1] += log_growth((m - y) / (1 - m)).sum(0)
        self.images += len(x)
        shown = reached(adjusted(np.where(self._tested, wealth(self._logs), np.nan)), self.rules.alpha)
        self.better |= shown[0]
        self.near |= shown[1]
        self._stop()

    def drop(self, j: int) -> None:
        """Take a method out that cannot be scored."""
        self.stopped[j] = self.images if self.stopped[j] < 0 else self.stopped[j]

    def _stop(self) -> None:
        """Stop what can no longer win, what is as good as another, and controls that all have beaten."""
        deciding = self.deciding
        beaten = self.better[deciding].any(0).any(0) & ~self.controls
        self._halt(beaten)
        equal = (self.near & self.near.transpose(0, 2, 1))[deciding].all(0)
        alike = (self._apart <= _ALIKE) & ((self._shared >= self.rules.twins) | (self._shared == 0))
        equal |= alike[deciding].all(0) & (self._shared[deciding] > 0).any(0)
        for a in sorted(np.flatnonzero(self.left), key=lambda j: (self.cost[j], j)):
            twins = equal[a] & self.left
            if self.stopped[a] < 0 and twins.any():
                twins &= (self.cost > self.cost[a]) | ((self.cost == self.cost[a]) & (np.arange(len(twins)) > a))
                self.same[twins] = a
                self._halt(twins)
        left = self.left
        won = self.better[deciding][:, left].all(0).all(0) if left.any() else np.ones(len(left), np.bool_)
        self._halt(self.controls & won)

    def _halt(self, some: Marks) -> None:
        self.stopped[some & (self.stopped < 0)] = self.images

    def beats_controls(self, question: int, j: int) -> bool:
        """Whether a method, or the one that goes on in its place, is shown to be better than every control."""
        there = np.flatnonzero(self.controls)
        return len(there) > 0 and bool(self.better[question, self.end(j), there].all())

    def behind(self, question: int, j: int, first: int) -> tuple[float, float, float]:
        """How far a method is behind another: the mean of the clipped differences, and an interval for it.

        Intervals of all pairs and questions hold at all times together.
        """
        both = self.scores[:, question][:, [first, j]]
        y = np.clip((both[:, 0] - both[:, 1]) / self.rules.clip, -1, 1)
        y = y[~np.isnan(y)]
        k = len(self.names)
        low, high = confidence_sequence(y, self.rules.alpha / (len(self.questions) * k * (k - 1) / 2))
        mean = float(y.mean()) if len(y) else float("nan")
        clip = self.rules.clip
        return mean * clip, low * clip, high * clip

    def means(self) -> Array:
        """Mean score (Q, K) of each on the images where it has one; NaN where there is none."""
        x = self.scores
        there = ~np.isnan(x)
        with np.errstate(invalid="ignore"):
            mean: Array = np.where(there, x, 0).sum(0) / there.sum(0)
        return mean

    def counts(self) -> NDArray[np.int64]:
        """Images (Q, K) on which each has a score."""
        counts: NDArray[np.int64] = (~np.isnan(self.scores)).sum(0)
        return counts

    def winners(self) -> list[int]:
        """Methods that nothing is shown to be better than, the best first; those as good as another stand behind it."""
        left = np.flatnonzero(self.left & (self.counts()[self.deciding] > 0).any(0))
        if not len(left):
            return []
        x = self.scores[:, self.deciding][:, :, left]
        x = np.where(np.isnan(x).any(2, keepdims=True), np.nan, x)  # on the images that all have
        x = x if not np.isnan(x).all() else self.scores[:, self.deciding][:, :, left]
        there = ~np.isnan(x)
        per_question = np.where(there, x, 0).sum(0) / np.maximum(there.sum(0), 1)
        mean = np.where(there.any(0), per_question, 0).sum(0) / np.maximum(there.any(0).sum(0), 1)
        return [int(j) for j in left[np.argsort(-mean, kind="stable")]]

    def joined(self, j: int) -> list[int]:
        """Methods in whose place one goes on."""
        return [i for i in range(len(self.names)) if i != j and self.end(i) == j]

    def end(self, j: int) -> int:
        """The method that goes on in the place of another, itself if none does."""
        while self.same[j] != j:
            j = int(self.same[j])
        return j


def replay(race: Race, scores: Array, *, batch: int = 8) -> Race:
    """Run a race on scores that are stored: images (N, Q, K) in the order in which they come."""
    for start in range(0, len(scores), batch):
        if race.decided:
            break
        race.add(scores[start : start + batch])
    return race
