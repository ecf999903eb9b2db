"""`xattn compare`: methods side by side on one page that opens anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xattn.cli import EXIT_INTERRUPTED, console, options
from xattn.cli.work import Work, facts_of
from xattn.labels import counted, listing
from xattn.looks import COLORMAP

if TYPE_CHECKING:
    from xattn.explanation import Explanation
    from xattn.file_loop import Column, Measure
    from xattn.metrics.deletion import CurveMetric
    from xattn.pages.compare import Comparison, Pair
    from xattn.trace import Trace

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn compare photos/ --out page.html",
        "xattn compare photos/ -m gradcam -m layercam -m brnpa:parts=4 --model resnet50 --weights DEFAULT",
        "xattn compare cat.jpg -m all --target tabby --target 'tiger cat' --no-curves",
        "xattn compare photos/ --model runs/birds/best.safetensors --topk 2 --title 'What birds look like to it'",
        "The page is one file: send it, put it on the web, open it from disk. It asks the network for nothing.",
        "Exit status: 0 fine, 2 nothing could be explained, 3 some of the images could not, 130 interrupted.",
    )
)

_METHODS = ("brnpa", "gradcam", "layercam", "saliency")
_CONTROLS = ("random", "center", "edges")
_WITH_GRADIENT = "pooled-gradient"


def compare(
    paths: options.Paths,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME[:PARAMETER=VALUE,…][@x2|@x4|@x8]",
            show_default=", ".join(_METHODS),
            help="A method, a column each; 'all' for all that fit. See: xattn list methods",
        ),
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(help=f"Also maps that know nothing: {', '.join(_CONTROLS)}; beside gradients, {_WITH_GRADIENT}."),
    ] = True,
    model: options.Models = None,
    weights: options.ManyWeights = None,
    head: options.Head = None,
    resolution: options.Finer = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page.")] = Path("comparison.html"),
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            metavar="INDEX|NAME",
            show_default="the predicted class",
            help="The class to explain, twice to see two side by side; 'scalar' is a number, 'a - b' a difference.",
        ),
    ] = None,
    topk: options.TopK = 1,
    parts: options.Parts = None,
    curves: Annotated[
        bool, typer.Option(help="Deletion and insertion of every map; most of the time goes into them.")
    ] = True,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of these curves.")] = 10,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Heading of the page.", show_default="by model")
    ] = None,
    alpha: options.Alpha = None,
    colormap: options.Colormap = COLORMAP,
    mean: options.Mean = None,
    std: options.Std = None,
    classes: options.Classes = None,
    size: options.Size = None,
    transform: options.Transform = None,
    window: options.Window = None,
    fit: options.Fit = None,
    score: options.Score = "logit",
    as_json: options.AsJson = False,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = 8,
) -> None:
    """Lay methods side by side on one page: a row an image, a column a method, controls beside them."""
    from xattn.cli.choosing import asks_for_all, choose_columns

    texts = method or list(_METHODS)
    options.check_numbers({"--topk": topk, "--batch-size": batch_size, "--parts": parts, "--steps": steps}, alpha)
    options.check_file(out, (".html", ".htm"), "a file that ends in .html")
    settings = options.settings(
        targets=tuple(dict.fromkeys(target or [])), topk=topk, fit=fit, score=score, precision=precision,
        window=options.window_of(window), transform=(prepare := options.transform_of(transform, fit, window, size)),
        batch_size=batch_size, tolerant=asks_for_all(texts), device=device, colormap=colormap,
    )  # fmt: skip
    metric = curve_metric(steps, device) if curves else None
    work = Work(settings, err=as_json)
    page = None
    if files := work.find(paths):
        columns = choose_columns(
            with_controls(texts) if controls else texts,
            parts=parts, models=model or (), weights=weights or (), head=head, resolution=resolution, device=device,
            given=options.given(mean, std, classes, size), transform=prepare,
        )  # fmt: skip
        work.columns = in_order(columns)
        try:
            comparison = sheet(work, title, colormap, alpha, steps if curves else 0)
            fill(work, files, comparison, metric)
            page = write(work, comparison, out) if work.entries else None
        except KeyboardInterrupt:
            console.fail(f"stopped after {len(work.entries)} of {len(files)} images; nothing was written.")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        console.show_json({**work.summary(), "page": None if page is None else str(page)})
    raise typer.Exit(work.status())


def fill(
    work: Work, files: Sequence[Path], comparison: Comparison, metric: CurveMetric | None,
    watch: Callable[[int], None] | None = None,
) -> None:  # fmt: skip
    """Explain the images and lay them on the page.

    Args:
        work: with its columns, controls at the end.
        files: the images.
        comparison: the page.
        metric: of the curves; None draws none.
        watch: called with the number of images that are done.
    """
    work.tell_labels()
    for result, entry in work.results(files, None if metric is None else curves_by(metric)):
        entry["maps"] = [
            {**facts_of(column, explanation), "seconds": round(seconds, 6)}
            for line in result.lines
            for column, explanation, seconds in zip(work.columns, line, result.seconds, strict=True)
            if not isinstance(explanation, str)
        ]
        comparison.add(
            str(result.file), [result.views[column.network.name] for column in work.columns], result.lines,
            predicted=entry["predicted"], curves=result.measured, label=entry.get("label", ""),
        )  # fmt: skip
        if watch is not None:
            watch(len(work.entries) + 1)


def curve_metric(steps: int, device: str) -> CurveMetric:
    """What draws the curves; on a processor small batches are faster: the memory of large ones is asked each time."""
    from xattn.device import find_device
    from xattn.metrics.deletion import Deletion

    return Deletion(steps=steps, chunk=16 if find_device(device).type == "cpu" else None)


def in_order(columns: Sequence[Column]) -> list[Column]:
    """Columns with the controls at the end."""
    from xattn.explainer import Family

    return sorted(columns, key=lambda column: column.method.family is Family.CONTROL)


def curves_by(metric: CurveMetric) -> Measure:
    """Deletion and insertion of each explanation, image by image."""
    from xattn.pages.compare import pair_of

    def measure(explanations: list[Explanation], trace: Trace) -> list[list[Pair]]:
        both = metric.curves(explanations, trace, "morf"), metric.curves(explanations, trace, "insertion")
        return [[pair_of(*curves, i) for i in range(len(trace.x))] for curves in zip(*both, strict=True)]

    return measure


def sheet(work: Work, title: str | None, colormap: str, alpha: float | None, steps: int) -> Comparison:
    """The page before any image is on it."""
    from xattn.pages.compare import Column as Shown
    from xattn.pages.compare import Comparison

    networks = dict.fromkeys(column.network for column in work.columns)
    shown = [column for column in work.columns if column.refused is None]
    names = list(dict.fromkeys(column.network.name for column in shown or work.columns))
    return Comparison(
        [Shown(column.method, column.network.name if len(networks) > 1 else "") for column in work.columns],
        heading=title or f"What {listing(names)} look{'' if len(names) > 1 else 's'} at",
        colormap=colormap,
        alpha=alpha,
        shares=[i / steps for i in range(steps + 1)] if steps else (),
        warnings=[
            f"{n.name} has random weights{' in its head' * (n.random == 'head')}, so its maps mean nothing."
            for n in networks
            if n.random
        ],
    )


def write(work: Work, comparison: Comparison, out: Path) -> Path:
    """Write the page and say what there is."""
    for j, column in enumerate(work.columns):
        if column.refused is not None:
            comparison.leave_out(j, column.refused)
    work.tell_left_out()
    comparison.facts = facts(work)
    comparison.notes += work.agreements()
    for tally in work.tallies():
        work.say(tally)
        comparison.notes.append(f"{tally}.")
    comparison.notes += [f"{failed['file']}: {failed['reason']}" for failed in work.failed]
    page = comparison.write(out)
    work.say(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser")
    return page


def facts(work: Work) -> list[str]:
    """What stands below the heading."""
    from xattn.explainer import Family

    shown = [column.method for column in work.columns if column.refused is None]
    control = sum(method.family is Family.CONTROL for method in shown)
    texts = [counted(len(work.entries), "image"), counted(len(shown) - control, "method")]
    texts += [counted(control, "control")] if control else []
    settings = work.settings
    if settings.topk > max(len(settings.targets), 1):
        first = f"{listing(settings.targets)}, then the" if settings.targets else f"the {settings.topk}"
        texts.append(f"{first} most probable classes explained")
    else:
        texts.append(f"{listing(settings.targets) or 'the predicted class'} explained")
    return [*texts, f"score: {settings.score}"] if settings.score != "logit" else texts


def with_controls(texts: Sequence[str]) -> list[str]:
    """Methods of the command line and the controls that are not among them."""
    from xattn.cli.choosing import chosen_with_resolution

    methods = [method for method, _ in chosen_with_resolution(texts, None)]
    given = {method.name for method in methods}
    controls = (*_CONTROLS, _WITH_GRADIENT) if any(method.grad for method in methods) else _CONTROLS
    return [*texts, *(name for name in controls if name not in given)]
