"""Results of slow tasks, such as reading images, that are made beside the computation which uses them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def ahead(tasks: Iterable[Callable[[], T]], depth: int = 2) -> Iterator[Iterator[T]]:
    """An iterator over the results of tasks, in their order, the next ones of which are under way in a thread.

    Tasks run one after the other, so that what they share needs no lock. An error comes where its result would have
    come. When the context ends, for whatever reason, no further task is begun and the thread has ended.

    Args:
        tasks: what is to be done, made as they are needed.
        depth: results that wait at most, which bounds the memory.

    >>> with ahead([lambda: 1, lambda: 2]) as results:
    ...     list(results)
    [1, 2]
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="xattn-reading")
    waiting: deque[Future[T]] = deque()
    rest = iter(tasks)

    def results() -> Iterator[T]:
        while True:
            while len(waiting) < depth and (task := next(rest, None)) is not None:
                waiting.append(thread.submit(task))
            if not waiting:
                return
            yield waiting.popleft().result()

    try:
        yield results()
    finally:
        # Python waits for such a thread at its end, so that none is inside of a library that is already gone.
        thread.shutdown(wait=True, cancel_futures=True)
