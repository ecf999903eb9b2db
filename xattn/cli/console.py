"""The one place that prints: lines, warnings, failures, tables, progress. Nothing shown can act on the terminal.

Text comes from file names, weights, data sets and other people's errors. Whatever it holds is made visible and bounded
by `xattn.errors.printable`, and rich never reads markup in it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from xattn.errors import printable
from xattn.schema import finite

if TYPE_CHECKING:
    from rich.progress import Progress

_LINE = 600  # characters of a line
_CELL = 300  # of a cell of a table
_BAR = 80  # of the words beside a progress bar

Cell = str | tuple[str, str]
"""Text of a table, or text and the style of it."""


def say(text: str, *, err: bool = False, limit: int = _LINE) -> None:
    """Print a line for people, on stderr where stdout is for machines; `limit` bounds its characters."""
    typer.echo(printable(text, limit), err=err)


def fail(text: str) -> None:
    """Print what went wrong as one line on stderr that names the program."""
    typer.echo(f"xattn: {printable(text, _LINE).strip()}", err=True)


def warn(text: str) -> None:
    """Print a warning as one line on stderr."""
    fail(f"warning: {text}")


def show_json(value: Any) -> None:
    """Print plain values as JSON that any reader takes: ASCII alone, numbers that are not finite become null."""
    typer.echo(json.dumps(finite(value), indent=2, allow_nan=False))


def table(
    rows: Sequence[Sequence[Cell]],
    *columns: Mapping[str, Any],
    title: str = "",
    heads: bool = True,
    frame: bool = False,
) -> None:
    """Print a table.

    Args:
        rows: a text for each column; an empty row draws a line.
        columns: arguments of rich's `Table.add_column`, one mapping a column.
        title: above the table.
        heads: show the headers of the columns.
        frame: draw lines around the headers.
    """
    from rich.box import HEAVY_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def text(cell: Cell) -> Text:
        words, style = (cell, "") if isinstance(cell, str) else cell
        return Text(printable(words, _CELL), style)

    drawn = Table(
        title=Text(printable(title, _CELL)) if title else None,
        title_justify="left", box=HEAVY_HEAD if frame else None, pad_edge=frame, show_header=heads,
        header_style="bold", show_lines=False,
    )  # fmt: skip
    for column in columns:
        drawn.add_column(**{**column, "header": text(column.get("header", ""))})
    for row in rows:
        if row:
            drawn.add_row(*map(text, row))
        else:
            drawn.add_section()
    Console(highlight=False).print(drawn)


class Bar:
    """A progress bar on stderr, or nothing of the kind."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task = None if progress is None else progress.add_task("", total=None, note="")

    def update(
        self,
        *,
        done: float | None = None,
        more: float | None = None,
        total: float | None = None,
        what: str | None = None,
        note: str | None = None,
    ) -> None:
        """Move the bar.

        Args:
            done: how much is done.
            more: how much is done since the last time.
            total: of how much.
            what: words before the bar.
            note: words behind it.
        """
        if self._progress is None or self._task is None:
            return
        extra: dict[str, Any] = {} if note is None else {"note": printable(note, _BAR)}
        self._progress.update(
            self._task, completed=done, advance=more, total=total,
            description=None if what is None else printable(what, _BAR), **extra,
        )  # fmt: skip

    def say(self, text: str) -> None:
        """Print a line above the bar; nothing where there is no bar."""
        from rich.text import Text

        if self._progress is not None:
            self._progress.console.print(Text(printable(text, _LINE)))


@contextmanager
def progress(*, shown: bool = True, count: bool = False, speed_s: float = 30) -> Iterator[Bar]:
    """A bar that goes away at the end.

    Args:
        shown: draw it at all.
        count: tell how many of how many rather than percents.
        speed_s: seconds from which the remaining time is estimated.
    """
    if not shown:
        yield Bar(None)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn() if count else TaskProgressColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, transient=True, speed_estimate_period=speed_s) as drawn:
        yield Bar(drawn)


@contextmanager
def working(text: str, *, shown: bool = True) -> Iterator[Callable[[str], None]]:
    """Words that change while something takes its time; yields what changes them."""
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True, quiet=not shown).status(Text(printable(text, _BAR))) as status:
        yield lambda text: status.update(Text(printable(text, _BAR)))


def is_watched() -> bool:
    """Whether stderr is a terminal, so that somebody may be looking at a bar."""
    return sys.stderr.isatty()


@contextmanager
def own_streams(*, alone: bool) -> Iterator[None]:
    """Streams that take any text; with `alone` nobody but this module writes to stderr.

    Libraries in C, such as libtiff on a damaged file, write lines of their own to the descriptor of stderr. It leads
    nowhere then, and `sys.stderr` to where it led; what a crash has to say still goes there.

    Args:
        alone: keep others from stderr, where it is the real one.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal of few characters is no reason to fail
    before = sys.stderr
    try:
        real = alone and before.fileno() == 2
    except (AttributeError, OSError, ValueError):  # tests and notebooks put other objects there
        real = False
    if not real:
        yield
        return
    before.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    watched = faulthandler.is_enabled()
    with open(kept, "w", encoding=before.encoding, errors="backslashreplace", buffering=1, closefd=False) as stream:
        sys.stderr = stream
        faulthandler.enable(stream)
        try:
            yield
        finally:
            stream.flush()
            os.dup2(kept, 2)
            sys.stderr = before
            (faulthandler.enable if watched else faulthandler.disable)()
    os.close(kept)
