"""`xattn report`: tables, figures and a page from the scores of a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xattn.cli import console

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn report runs/x",
        "xattn report runs/x --out paper/figures --panels 0",
        "It may be run while the benchmark is: it reads what is there.",
    )
)


def report(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the scores, the --out of xattn benchmark.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to.", show_default="report in DIR")
    ] = None,
    panels: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Show N each of the most disputed, best and worst images of each model, with the maps of all methods; "
            "0 for none. Data and models are opened again for them.",
        ),
    ] = 3,
    resamples: Annotated[int, typer.Option(metavar="N", min=1, help="Of the bootstrap intervals.")] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the bootstrap.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the result.")] = False,
) -> None:
    """Turn scores into a page that says which methods to trust, with tables and figures beside it."""
    from xattn.pages.report import full_report

    with console.working("reading", shown=not quiet) as tell:
        path = full_report(run, out, resamples=resamples, seed=seed, count=panels, progress=tell)
    console.say(f"{path}: open it in a browser; tables and figures are beside it")
