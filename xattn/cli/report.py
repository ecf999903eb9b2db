"""`xattn report`: tables, figures and a page from the scores of a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xattn.cli import console, options

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn report runs/x",
        "xattn report runs/x --config c.toml",
        "xattn report runs/x --out paper/figures",
        "It may be run while the benchmark is: it reads what is there.",
    )
)


def report(
    run: Annotated[str, typer.Argument(metavar="DIR", help="Folder of the scores, the --out of xattn benchmark.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to.", show_default="report in DIR")
    ] = None,
    panels: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=100,
            help="Show N each of the most disputed, best and worst images of each model, with the maps of all methods; "
            "0 for none. They need --config.",
        ),
    ] = 3,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="The configuration of the run. Its data and models are opened again to show images; without it "
            "nothing outside DIR is read, and nothing that a file in DIR names is opened.",
        ),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a value of the configuration, as in benchmark."),
    ] = None,
    resamples: Annotated[int, typer.Option(metavar="N", min=1, help="Of the bootstrap intervals.")] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the bootstrap.")] = 0,
    quiet: options.Quiet = False,
) -> None:
    """Turn scores into a page that says which methods to trust, with tables and figures beside it."""
    from xattn.benchmark.config import Config
    from xattn.pages.report import full_report

    trusted = None if config is None else Config.read(config, change or ())
    with console.working("reading", shown=not quiet) as tell:
        path = full_report(run, out, resamples=resamples, seed=seed, count=panels, config=trusted, progress=tell)
    console.say(f"{path}: open it in a browser; tables and figures are beside it")
    if panels and config is None and not quiet:
        console.say("Images are not shown without --config FILE, the configuration of the run.", err=True)
