"""`xattn publish`: the scores of a run as a data set for others."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from xattn.cli import console, options

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn publish runs/x --out published/x --title 'Saliency on pets' --license CC-BY-4.0",
        "cd published/x; sha256sum -c checksums.txt     [dim]# whole, as it was written[/dim]",
        "xattn report published/x --out report          [dim]# the same tables as from the run[/dim]",
        "The folder can be given to any host of data sets as it is. Nothing in it names a file of this machine but "
        "manifest.json, by the sources and weights of the run, and the notes of images that could not be read.",
    )
)


def publish(
    run: Annotated[str, typer.Argument(metavar="DIR", help="Folder of the scores, the --out of xattn benchmark.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="A new folder of this machine.")],
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Of the data set.", show_default="the name of DIR")
    ] = None,
    description: Annotated[
        str, typer.Option(metavar="TEXT", help="In a sentence or two.", show_default="what is in it")
    ] = "",
    license: Annotated[str, typer.Option(metavar="NAME", help="Identifier of SPDX, as CC-BY-4.0.")] = "other",
    url: Annotated[str, typer.Option(metavar="URL", help="Where it will be found.", show_default="none")] = "",
    quiet: options.Quiet = False,
) -> None:
    """Write the scores of a run as parquet, with a card, checksums and a Croissant description."""
    from xattn.benchmark.publication import About
    from xattn.benchmark.publication import publish as write

    with console.working("reading", shown=not quiet):
        home = write(run, out, About(title or Path(run).name or "scores", description, license, url))
    console.say(
        f"{home}: parquet, README.md, croissant.json and checksums.txt; next: xattn report {shlex.quote(str(home))}"
    )
