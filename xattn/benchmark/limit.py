"""A limit of time that holds inside the work: it is looked at before every pass of a network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

SHARE = 0.1  # of the limit, that the images scored at a time may take: so much is lost where it ends amid them


class TimeOver(BaseException):
    """The time is over. It is no error, and what turns any error into a reason to go on without must let it pass."""


class Limit:
    """How long some work may take, on the clock of the wall, whatever else the machine does.

    Args:
        minutes: that it may take; None sets no limit.
        begun: when it began, as `clock` tells; now, if None.
        clock: seconds that only grow.

    >>> now = iter([0.0, 50.0, 50.0, 58.0])
    >>> limit = Limit(1, clock=lambda: next(now))
    >>> limit.keep(0.1)  # for what comes after
    >>> limit.left(), limit.images(None, most=8), limit.images(2.0, most=8)
    (4.0, 1, 2)
    >>> limit.check()
    Traceback (most recent call last):
    xattn.benchmark.limit.TimeOver
    """

    def __init__(
        self, minutes: float | None, *, begun: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.minutes, self.clock = minutes, clock
        self.begun = clock() if begun is None else begun
        self._kept = 0.0

    def keep(self, share: float) -> None:
        """From now on the time is over when so much of it is left."""
        self._kept = share

    def spent(self) -> float:
        """Seconds since it began."""
        return self.clock() - self.begun

    def left(self) -> float:
        """Seconds until the time is over."""
        return math.inf if self.minutes is None else 60 * self.minutes * (1 - self._kept) - self.spent()

    def check(self) -> None:
        """Go on.

        Raises:
            TimeOver: if the time is over.
        """
        if self.left() <= 0:
            raise TimeOver

    def images(self, each: float | None, most: int) -> int:
        """How many images to score at a time: one until it is known what one takes, then what is soon done.

        Args:
            each: seconds that one of the last images took.
            most: of them.

        Raises:
            TimeOver: if not even one can be expected to be done in time.
        """
        if self.minutes is None:
            return most
        if each is None:
            return 1
        left = self.left()
        if each >= left:
            raise TimeOver
        soon = min(left, 60 * self.minutes * SHARE)
        return most if each * most <= soon else max(1, int(soon / each))
