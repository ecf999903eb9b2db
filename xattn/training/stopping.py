"""Runs that are stopped from outside: what is noted, and what is raised once the state is written."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xattn.errors import XattnError


class RunStoppedError(XattnError):
    """A run that was stopped from outside after its state was written.

    Args:
        message: what was kept.
        number: of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


@dataclasses.dataclass
class Stop:
    """The signal that asked for an end, 0 before there was one."""

    number: int = 0


@contextmanager
def stop_signal() -> Iterator[Stop]:
    """What the first Ctrl-C or SIGTERM is noted in; the second one ends the process at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        stop.number = number
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
