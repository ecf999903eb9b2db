"""Tasks that run beside the computation: in order, bounded, with their errors, and with no thread left."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from xattn.benchmark.ahead import ahead


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("xattn-reading")]


def test_in_order_and_never_more_than_the_depth_ahead() -> None:
    begun: list[int] = []

    def tasks() -> Iterator[Callable[[], int]]:
        for i in range(20):
            yield lambda i=i: begun.append(i) or i  # type: ignore[misc, func-returns-value]

    with ahead(tasks(), depth=3) as results:
        for i, result in enumerate(results):
            assert result == i
            time.sleep(0.002)
            assert len(begun) <= i + 3
    assert begun == list(range(20))
    assert threads() == []


def test_the_next_is_read_while_one_is_used() -> None:
    second = threading.Event()
    with ahead([lambda: 1, lambda: second.set() or 2]) as results:  # type: ignore[func-returns-value]
        assert next(results) == 1
        assert second.wait(10)
        assert next(results) == 2


def test_an_error_comes_where_its_result_would() -> None:
    with ahead([lambda: 1, lambda: 1 // 0, lambda: 3]) as results:
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)
    assert threads() == []


def test_what_is_not_needed_any_more_is_not_begun() -> None:
    begun: list[int] = []

    def slow(i: int) -> int:
        begun.append(i)
        time.sleep(0.05)
        return i

    def interrupted() -> None:
        with ahead((partial(slow, i) for i in range(50)), depth=4) as results:
            next(results)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(begun) <= 3
    assert threads() == []


def test_a_process_that_ends_in_the_middle_ends_well() -> None:
    code = (
        "import torch\nfrom xattn.benchmark.ahead import ahead\n"
        "work = lambda: torch.randn(300, 300) @ torch.randn(300, 300)\n"
        "context = ahead(work for _ in range(1000))\n"  # kept, so that nothing closes it
        "next(context.__enter__())\nraise SystemExit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (3, "")
