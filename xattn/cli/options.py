"""Options that several commands have, each written once."""

from __future__ import annotations

from typing import Annotated

import typer

Paths = Annotated[
    list[str],
    typer.Argument(metavar="PATHS", help="Images, folders and patterns such as 'photos/*.jpg'.", show_default=False),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|PACKAGE.MODULE:FACTORY|FILE",
        show_default="a small network inside the package",
        help="A model by name (xattn list models), one of your own, or a weights file that xattn wrote.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="DEFAULT|FILE", help="Weights of a model by name: those its library offers, or a file."),
]
Head = Annotated[
    str | None, typer.Option(metavar="linear|bcnn|brnpa", help="Put this head on the backbone of --model.")
]
Resolution = Annotated[
    str | None, typer.Option(metavar="low|high", help="high: without the strides of the last two stages.")
]
TopK = Annotated[
    int, typer.Option(metavar="K", help="Explain K classes: the target if there is one, then the most probable.")
]
Parts = Annotated[int | None, typer.Option(metavar="N", help="Number of parts, for methods and heads that have parts.")]
Alpha = Annotated[
    float | None, typer.Option(metavar="0-1", help="How much the map covers the image.", show_default="by method")
]
Colormap = Annotated[str, typer.Option(metavar="NAME", help="Colour map of single maps.")]
Fit = Annotated[
    str, typer.Option(metavar="crop|squash|whole", help="How an image of another shape fits the model's input.")
]
Score = Annotated[str, typer.Option(metavar="NAME", help="The number to explain: logit, prob, sigmoid or margin.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print a machine-readable summary; what people read goes to stderr.")
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where to compute.")]
Precision = Annotated[str, typer.Option(metavar="fp32|bf16|fp16", help="Of the model's arithmetic.")]
BatchSize = Annotated[int, typer.Option(metavar="N", help="Images that go through the model together.")]
