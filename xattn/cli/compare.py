"""`xattn compare`: methods side by side on one page that opens anywhere."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli import EXIT_INTERRUPTED, console, options
from xattn.cli.explain import Job, check_numbers, facts_of, view_of, wanted_classes
from xattn.errors import ParameterError
from xattn.looks import COLORMAP

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from xattn.cli.loading import Loaded
    from xattn.explanation import Explanation
    from xattn.metrics.deletion import CurveMetric
    from xattn.metrics.perturbation import Curve
    from xattn.pages.compare import Comparison
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
_SAME = "the same for every class"


def compare(
    paths: options.Paths,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME[:PARAMETER=VALUE,…]",
            show_default=", ".join(_METHODS),
            help="A method, a column each; 'all' for all that fit. See: xattn list methods",
        ),
    ] = None,
    controls: Annotated[
        bool, typer.Option(help=f"Also the maps that know nothing of the model: {', '.join(_CONTROLS)}.")
    ] = True,
    model: options.Model = None,
    weights: options.Weights = None,
    head: options.Head = None,
    resolution: options.Resolution = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page.")] = Path("comparison.html"),
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            metavar="INDEX|NAME",
            show_default="the predicted class",
            help="The class to explain; give it twice to see two classes side by side.",
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
    fit: options.Fit = "crop",
    score: options.Score = "logit",
    as_json: options.AsJson = False,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = 8,
) -> None:
    """Lay methods side by side on one page: a row an image, a column a method, controls beside them."""
    from xattn.device import find_device
    from xattn.metrics.deletion import Deletion
    from xattn.viz import colormap as find_colormap

    check_numbers({"--topk": topk, "--batch-size": batch_size, "--parts": parts, "--steps": steps}, alpha)
    find_colormap(colormap)
    check_page(out)
    # On a processor small batches are faster: the memory of large ones is asked from the system each time.
    metric = Deletion(steps=steps, chunk=16 if find_device(device).type == "cpu" else None) if curves else None
    named = list(dict.fromkeys(target or []))
    first = named[0] if named else None
    job = PageJob(
        out=out, topk=max(topk, len(named)), target=first, score=score, fit=fit, precision=precision,
        batch_size=batch_size, save_maps=False, style={"colormap": colormap, "alpha": alpha}, err=as_json,
        asked=topk, more=named[1:], metric=metric, title=title,
    )  # fmt: skip
    if files := job.find(paths):
        methods = method or list(_METHODS)
        job.prepare(with_controls(methods) if controls else methods, parts, model, weights, head, resolution, device)
        try:
            job.run(files)
        except KeyboardInterrupt:
            done = f"stopped after {len(job.entries)} of {len(files)} images"
            console.fail(f"{done}; nothing was written.")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        console.show_json(job.summary())
    raise typer.Exit(job.status())


@dataclasses.dataclass
class PageJob(Job):
    """A run that puts all images on one page; what differs from `explain` is where the maps go.

    Args:
        asked: classes that are explained at least; `topk` holds those that are named as well.
        more: classes that are named after the first one.
        metric: whose curves are drawn, if any.
        title: of the page.
        sheet: the page in the making.
        curves: deletion and insertion by the identity of the explanation, of the batch at work.
        row: index in the batch, picture and explanations of the image at work.
    """

    asked: int = 1
    more: Sequence[str] = ()
    metric: CurveMetric | None = None
    title: str | None = None
    sheet: Comparison | None = None
    curves: dict[int, tuple[Curve, Curve]] = dataclasses.field(default_factory=dict)
    row: tuple[int, Image, list[list[Explanation | str]]] | None = None

    def prepare(self, *given: Any) -> None:
        """As for `explain`; controls stand at the end."""
        from xattn.explainer import Family
        from xattn.pages.compare import Column, Comparison

        super().prepare(*given)
        self.columns.sort(key=lambda c: c.method.family is Family.CONTROL)
        several = len({id(c.network) for c in self.columns}) > 1
        shown = [c for c in self.columns if c.refused is None]
        names = list(dict.fromkeys(c.network.name for c in shown or self.columns))
        steps = 0 if self.metric is None else self.metric.steps
        self.sheet = Comparison(
            [Column(c.method, c.network.name if several else "") for c in self.columns],
            heading=self.title or f"What {listed(names)} look{'' if len(names) > 1 else 's'} at",
            colormap=self.style["colormap"],
            alpha=self.style["alpha"],
            shares=[i / steps for i in range(steps + 1)] if steps else (),
        )
        for network in {id(c.network): c.network for c in self.columns}.values():
            if network.random:
                self.sheet.warnings.append(f"{network.name} has random weights, so its maps mean nothing.")

    def run(self, files: Sequence[Path]) -> None:
        """Explain the images, then write the page."""
        check_page(self.out)
        self.work(files)
        sheet = self.sheet
        if sheet is None or not sheet.blocks:
            return
        for j, column in enumerate(self.columns):
            if column.refused is not None:
                sheet.leave_out(j, column.refused)
                self.say(f"left out: {column.refused}")
        sheet.facts = self._facts()
        sheet.notes += [f"{f['file']}: {f['reason']}" for f in self.failed]
        self.written.append(sheet.write(self.out))
        self.say(f"wrote {self.out} ({self.out.stat().st_size / 1e6:.1f} MB): open it in a browser")

    def _facts(self) -> list[str]:
        """What stands below the heading."""
        from xattn.explainer import Family

        shown = [c.method for c in self.columns if c.refused is None]
        control = sum(m.family is Family.CONTROL for m in shown)
        counts = [_count(len(self.entries), "image"), _count(len(shown) - control, "method")]
        counts += [_count(control, "control")] if control else []
        wanted = [t for t in (self.target, *self.more) if t is not None]
        if self.asked > max(len(wanted), 1):
            first = f"{listed(wanted)}, then the" if wanted else f"the {self.asked}"
            counts.append(f"{first} most probable classes explained")
        else:
            counts.append(f"{listed(wanted) or 'the predicted class'} explained")
        if self.score != "logit":
            counts.append(f"score: {self.score}")
        return counts

    # -------------------------------------------------------------------------------------------------- hooks

    def _classes(self, trace: Trace) -> Tensor:
        from xattn.trace import check_target

        named = [trace.spec.class_index(name) for name in self.more]
        for index in named:
            check_target(index, trace.logits)
        first = int(trace.target[0])  # a named one is the same in all images
        return wanted_classes(trace, self.asked, [c for c in dict.fromkeys(named) if c != first])

    def _batch(self, files: Sequence[Path]) -> None:
        self.curves.clear()
        super()._batch(files)

    def _pass(
        self,
        network: Loaded,
        x: Tensor,
        target: Tensor | None,
        slot: list[Explanation | str | None],
        seconds: Counter[str],
        first: bool,
    ) -> Trace | None:
        from xattn.cli.loading import at_precision

        before = {id(found) for found in slot}
        trace = super()._pass(network, x, target, slot, seconds, first)
        fresh: list[Any] = [s for s in slot if s is not None and not isinstance(s, str) and id(s) not in before]
        if trace is not None and self.metric is not None and fresh:
            with at_precision(self.precision, x.device):
                deletion = self.metric.curves(fresh, trace, "morf")
                insertion = self.metric.curves(fresh, trace, "insertion")
            self.curves |= {id(e): (d, i) for e, d, i in zip(fresh, deletion, insertion, strict=True)}
        return trace

    def _picture(
        self,
        entry: dict[str, Any],
        i: int,
        image: Image,
        slot: Sequence[Explanation | str | None],
        k: int,
        count: int,
        seconds: Counter[str],
    ) -> None:
        if self.row is None or k == 0:
            self.row = i, view_of(image, self.columns[0].network, self.fit), []
        self.row[2].append([_SAME if found is None else found for found in slot])
        for column, found in zip(self.columns, slot, strict=True):
            if found is not None and not isinstance(found, str):
                facts = {**facts_of(column, found, i), "seconds": round(seconds[column.label] / count, 6)}
                entry["maps"].append(facts)

    def _tell(self, entry: dict[str, Any]) -> None:
        """Put the image on the page."""
        from xattn.pages.compare import pair_of

        if self.sheet is None or self.row is None:
            return
        i, view, lines = self.row
        drawn = [[pair_of(*self.curves[id(e)], i) if id(e) in self.curves else None for e in line] for line in lines]
        self.sheet.add(entry["file"], view, lines, i, predicted=entry["predicted"], curves=drawn)

    def summary(self) -> dict[str, Any]:
        """The machine-readable result."""
        found = {**super().summary(), "page": str(self.out) if self.written else None}
        del found["panels"]
        return found


def check_page(path: Path) -> None:
    """Refuse a place where no page can be written, before the work.

    Raises:
        ParameterError: for a folder, another suffix, or a folder that cannot be made.
    """
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise ParameterError(f"--out {path}: expected the name of a file that ends in .html.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParameterError(f"--out {path}: {path.parent} cannot be made a folder ({error.strerror}).") from error


def with_controls(texts: Sequence[str]) -> list[str]:
    """Methods of the command line and the controls that are not among them."""
    from xattn.explainers import resolve

    given = {method.name for method in resolve(list(texts))}
    return [*texts, *(name for name in _CONTROLS if name not in given)]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["a", "b", "c"]), listed(["a"]), listed([])
    ('a, b and c', 'a', '')
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
