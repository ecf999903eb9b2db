"""`xattn report`: tables and figures from the scores of a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn report runs/x",
        "xattn report runs/x --out paper/figures",
        "It may be run while the benchmark is: it reads what is there.",
    )
)


def report(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the scores, the --out of xattn benchmark.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to.", show_default="report in DIR")
    ] = None,
    resamples: Annotated[int, typer.Option(metavar="N", min=1, help="Of the bootstrap intervals.")] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the bootstrap.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the result.")] = False,
) -> None:
    """Turn scores into leaderboards with intervals and tests, tables and figures."""
    from rich.console import Console

    from xattn.benchmark.report import write_report

    with Console(stderr=True, quiet=quiet).status("reading") as status:
        path = write_report(run, out, resamples=resamples, seed=seed, progress=status.update)
    typer.echo(f"{path}: open it, or the figures and tables beside it")
