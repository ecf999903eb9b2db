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
    """When something is decided.

    Args:
        alpha: probability of any false decision in the whole race.
        clip: a difference of the scores of two methods on an image counts as this much at most, so that no image
            decides by itself, and that bets are on bounded numbers, whatever the scores are.
        twins: methods that scored alike, to a thousandth, on so many images and all others, count as one.
        first: images on which only the methods that start at once are scored, by the first question alone.
    """

    alpha: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = ALPHA
    clip: Annotated[float, Range(0, 1e6, open_low=True)] = 0.1
    twins: Annotated[int, Range(1, 1_000_000)] = 16
    first: Annotated[int, Range(0, 1_000_000)] = 16

    def __post_init__(self) -> None:
        check_fields(self, "rules")


class Race:
    """What is known of some methods after some images.

    A method is out when it is shown, in a question that decides, that another or a control is better; of two that
    scored alike on every image the one that costs less goes on. A control stops when all that are left have beaten it.

    Hypotheses are tested by betting (`betting.log_growth`), all of them corrected together (`betting.adjusted`). For
    each question and method these are two. That none is better than it: bets are on the rival that was furthest ahead
    of it on the images before, and cannot win on average against the best. And that it is not better than every
    control: of the bets against each control the least counts. So there is a hypothesis for each method, not for each
    pair. Two are compared on the images where both have a score.

    Args:
        names: what is compared (K,).
        controls: (K,), which are controls.
        questions: names of the columns (Q,).
        deciding: (Q,), which of them decide who is out.
        cost: (K,), of a map, to choose between equals.
        late: (K,), methods that start after `rules.first` images.
        rules: when something is decided.
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
        self._taken: dict[int, int] = {}  # methods taken out, and after how many images
        self.names, self.questions = list(names), list(questions)
        self.controls: Marks = np.array(controls, np.bool_)
        k = len(names)
        self.deciding: Marks = np.ones(len(questions), np.bool_) if deciding is None else np.array(deciding, np.bool_)
        self.cost = np.zeros(k) if cost is None else np.array(cost, np.float64)
        self.late: Marks = np.zeros(k, np.bool_) if late is None else np.array(late, np.bool_)
        self.rules = rules or Rules()
        self._begin()

    def _begin(self) -> None:
        """As before the first image."""
        k, q = len(self.names), len(self.questions)
        self.images = 0
        self.beaten: Marks = np.zeros((q, k), np.bool_)
        """(Q, K): another is shown to be better."""
        self.above: Marks = np.zeros((q, k), np.bool_)
        """(Q, K): it is shown to be better than every control."""
        self.same = np.arange(k)
        """(K,): the method that goes on in place of each, itself at first."""
        self.stopped = np.full(k, -1)
        """(K,): images after which each stopped, or -1."""
        for j, images in self._taken.items():
            self.stopped[j] = images
        self._scores: list[Array] = []
        self._beaten = np.zeros((q, k, len(STAKES)))  # logarithms of wealth
        self._above = np.zeros((q, k, k, len(STAKES)))
        self._lead = np.zeros((q, k, k))  # sums of differences, as they are counted
        self._apart = np.zeros((q, k, k))  # largest difference on an image
        self._shared = np.zeros((q, k, k), np.int64)  # images with both scores

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
        x[:, :, [*self._taken]] = np.nan
        self._scores.append(x)
        difference = x[..., :, None] - x[..., None, :]  # (n, Q, K, K): how far the first is ahead
        for one in difference:
            y = np.clip(one / self.rules.clip, -1, 1)
            # Whoever was furthest ahead before this image; a bet may depend on the past alone.
            rival = np.where(np.isnan(y), -np.inf, self._lead).argmax(-2)
            self._beaten += log_growth(np.take_along_axis(y, rival[:, None], axis=-2)[:, 0])
            self._above += log_growth(y)
            self._lead += np.nan_to_num(y)
        self._apart = np.maximum(self._apart, np.nan_to_num(np.abs(difference)).max(0, initial=0.0))
        self._shared += (~np.isnan(difference)).sum(0)
        self.images += len(x)
        self._decide()
        self._stop()

    def _decide(self) -> None:
        """What is shown by now; what was shown before stays."""
        against = wealth(self._above)[:, :, self.controls]
        least = against.min(-1) if against.shape[-1] else np.full(self.beaten.shape, np.nan)
        tested = np.stack([wealth(self._beaten), least])
        tested[:, :, self.controls] = np.nan
        shown = reached(adjusted(tested), self.rules.alpha)
        self.beaten |= shown[0]
        self.above |= shown[1]

    def drop(self, j: int) -> None:
        """Take a method out that cannot be scored, with all that was shown by its scores.

        What they put out comes back, since nothing that is said may rest on maps that are not fine.
        """
        self._taken[j] = self.images
        done = self._scores
        self._begin()
        for scores in done:
            self.add(scores)

    def _stop(self) -> None:
        """Stop what can no longer win, what scores like another, and controls that all have beaten for sure."""
        deciding = self.deciding
        self._halt(self.beaten[deciding].any(0) & ~self.controls)
        alike = (self._apart <= _ALIKE) & ((self._shared >= self.rules.twins) | (self._shared == 0))
        twins = alike[deciding].all(0) & (self._shared[deciding] > 0).any(0)
        for a in sorted(np.flatnonzero(self.left), key=lambda j: (self.cost[j], j)):
            dearer = (self.cost > self.cost[a]) | ((self.cost == self.cost[a]) & (np.arange(len(self.names)) > a))
            joining = twins[a] & self.left & dearer
            if self.stopped[a] < 0 and joining.any():
                self.same[joining] = a
                self._halt(joining)
        # So large that the correction leaves it large enough: the bets may end there.
        enough = wealth(self._above) * self.rules.alpha >= 2 * len(self.questions) * (~self.controls).sum()
        left = self.left
        self._halt(self.controls & (enough[deciding][:, left].all(0).all(0) if left.any() else True))

    def _halt(self, some: Marks) -> None:
        self.stopped[some & (self.stopped < 0)] = self.images

    def beats_controls(self, question: int, j: int) -> bool:
        """Whether a method, or the one that goes on in its place, is shown to be better than every control."""
        return bool(self.above[question, self.end(j)])

    def behind(self, question: int, j: int, first: int) -> tuple[float, float, float]:
        """How far a method is behind another: the mean of the differences as they are counted, and an interval for it.

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
