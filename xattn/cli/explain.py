"""`xattn explain`: from photographs to pictures of what a classifier looks at."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn import __version__
from xattn.cli import EXIT_INTERRUPTED, console, options
from xattn.errors import DataError, NotApplicableError, ParameterError, XattnError
from xattn.labels import file_stems
from xattn.looks import COLORMAP, RANKS

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from xattn.cli.loading import Loaded
    from xattn.explainer import Explainer
    from xattn.explanation import Explanation
    from xattn.trace import Trace
    from xattn.viz import Cell

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn explain cat.jpg",
        "xattn explain photos/ 'more/*.png' -m gradcam -m brnpa:parts=4 --out out/",
        "xattn explain cat.jpg -m all --model resnet50 --weights DEFAULT --target tabby --topk 3",
        "xattn explain cat.jpg -m gradcam:layer=layer3 --model mypackage.nets:build --weights mine.safetensors",
        "xattn explain photos/ --model runs/birds/best.safetensors --save-maps --json > summary.json",
        "Files: one picture an image and method, STEM.METHOD.png; several methods or classes also give panel.png.",
        "Exit status: 0 fine, 2 nothing could be explained, 3 some of the images could not, 130 interrupted.",
    )
)

# Which embedded network shows a method when no model is given: by its name, by what it serves, else the plain one.
_EMBEDDED = {
    "brnpa": "tiny-brnpa",
    "B-CNN and BR-NPA heads": "tiny-brnpa",
    "B-CNN heads": "tiny-bcnn",
    "vision transformers": "tiny-vit",
}
_EMBEDDED_ELSE = "tiny-cnn"

_VIEW_PX = 448  # longer side of a picture
_PAGE_CELLS = 72  # pictures on a page of the panel, so that they stay legible
_PAGE_ROWS = 4, 10  # least and most rows of a page
_FOLD = 8  # methods beside one image; more are folded into several rows
_SAME = "the same for every class"


def explain(
    paths: options.Paths,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME[:PARAMETER=VALUE,…]",
            show_default="brnpa",
            help="A method; give it several times for several, 'all' for all that fit. See: xattn list methods",
        ),
    ] = None,
    model: options.Model = None,
    weights: options.Weights = None,
    head: options.Head = None,
    resolution: options.Resolution = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for pictures and maps.")] = Path(
        "xattn-out"
    ),
    target: Annotated[
        str | None,
        typer.Option(
            "--target", "-t", metavar="INDEX|NAME", show_default="the predicted class", help="The class to explain."
        ),
    ] = None,
    topk: options.TopK = 1,
    parts: options.Parts = None,
    alpha: options.Alpha = None,
    colormap: options.Colormap = COLORMAP,
    fit: options.Fit = "crop",
    score: options.Score = "logit",
    save_maps: Annotated[bool, typer.Option("--save-maps", help="Also write the raw maps, as .npz.")] = False,
    as_json: options.AsJson = False,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = 8,
) -> None:
    """Show where a classifier looks: explain images with one or more methods and write pictures."""
    from xattn.viz import colormap as find_colormap

    check_numbers({"--topk": topk, "--batch-size": batch_size, "--parts": parts}, alpha)
    find_colormap(colormap)
    job = Job(
        out=out, topk=topk, target=target, score=score, fit=fit, precision=precision, batch_size=batch_size,
        save_maps=save_maps, style={"colormap": colormap, "alpha": alpha}, err=as_json,
    )  # fmt: skip
    if files := job.find(paths):
        job.prepare(method or ["brnpa"], parts, model, weights, head, resolution, device)
        try:
            job.run(files)
        except KeyboardInterrupt:
            done = f"wrote {job.outputs()}" if job.written else "nothing was written"
            console.fail(f"stopped after {len(job.entries)} of {len(files)} images; {done}.")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        console.show_json(job.summary())
    raise typer.Exit(job.status())


@dataclasses.dataclass
class Column:
    """A method and the network that it explains.

    Args:
        method: the explainer.
        label: its name in messages and file names, unique in the run.
        network: the model, with its spec.
        refused: why it cannot be used, found out while it runs.
    """

    method: Explainer
    label: str
    network: Loaded
    refused: str | None = None


@dataclasses.dataclass
class Job:
    """One run of the command: what to do, and what came of it."""

    out: Path
    topk: int
    target: str | None
    score: str
    fit: str
    precision: str
    batch_size: int
    save_maps: bool
    style: dict[str, Any]
    err: bool
    tolerant: bool = False
    columns: list[Column] = dataclasses.field(default_factory=list)
    entries: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failed: list[dict[str, str]] = dataclasses.field(default_factory=list)
    written: list[Path] = dataclasses.field(default_factory=list)
    panels: list[Path] = dataclasses.field(default_factory=list)
    names: Counter[str] = dataclasses.field(default_factory=Counter)
    page: list[tuple[list[Explanation | str], int, Image]] = dataclasses.field(default_factory=list)
    page_rows: int = _PAGE_ROWS[1]
    page_total: int = 0

    # ------------------------------------------------------------------------------------------------ preparation

    def prepare(
        self,
        texts: Sequence[str],
        parts: int | None,
        model: str | None,
        weights: str | None,
        head: str | None,
        resolution: str | None,
        device: str,
    ) -> None:
        """Turn names into methods and networks; everything that can be wrong with them is found here."""
        from xattn.cli.loading import at_precision, load
        from xattn.device import find_device
        from xattn.explainers import applicable
        from xattn.score import find_score

        place = find_device(device)
        with at_precision(self.precision, place):
            find_score(self.score)
        self.tolerant = any(text.strip().lower() == "all" for text in texts)
        methods = chosen_methods(texts, parts if head is None else None)
        if parts is not None and head is None and not any(hasattr(m, "parts") for m in methods):
            raise ParameterError(f"--parts {parts}: none of the methods has parts; brnpa does.")
        if model is None:
            given = {"--weights": weights, "--head": head, "--resolution": resolution}
            if named := [option for option, value in given.items() if value is not None]:
                hint = f" For a weights file that xattn wrote: --model {weights}" if weights and not head else ""
                raise ParameterError(f"{' and '.join(named)} needs --model.{hint}")
        networks: dict[str, Loaded] = {}
        for method, label in zip(methods, file_stems(methods), strict=True):
            name = model or _EMBEDDED.get(method.name) or _EMBEDDED.get(method.serves, _EMBEDDED_ELSE)
            if name not in networks:
                networks[name] = load(
                    name, weights=weights, head=head, resolution=resolution, parts=parts, device=place
                )
            self.columns.append(Column(method, label, networks[name]))
        for network in networks.values():
            self._advise(network)
        for column in self.columns:
            reason = applicable(column.method, column.network.spec)
            if reason is not None and not self.tolerant:
                raise NotApplicableError(reason)
            column.refused = reason

    def _advise(self, network: Loaded) -> None:
        if network.random:
            self.warn(f"{network.name} has random weights, so its maps mean nothing; pass --weights DEFAULT or a file.")
        if network.spec.mean is None:
            self.warn(
                f"{network.name} does not say how its images are normalized; they are passed as they are, from 0 to 1. "
                "Give the model a `spec` with mean and std if it was trained otherwise."
            )

    def say(self, text: str) -> None:
        """Tell people something: on stdout, or on stderr where stdout is for machines."""
        console.say(text, err=self.err)

    def warn(self, text: str) -> None:
        """Tell people on stderr."""
        console.warn(text)

    # -------------------------------------------------------------------------------------------------- the work

    def find(self, paths: Sequence[str]) -> list[Path]:
        """The images that the paths stand for; the rest is noted."""
        from xattn.data.finding import find_images

        files, problems = find_images(list(paths))
        for problem in problems:
            if problem.note:
                self.warn(str(problem))
            else:
                self.fail(problem.path, problem.reason)
        return files

    def run(self, files: Sequence[Path]) -> None:
        """Explain the images and write what was found."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ParameterError(f"--out {self.out}: cannot be made a folder ({error.strerror}).") from error
        width = 1 + sum(column.refused is None for column in self.columns)
        self.page_rows = min(max(_PAGE_CELLS // width, _PAGE_ROWS[0]), _PAGE_ROWS[1])
        self.page_total = -(-len(files) * self.topk // self.page_rows)
        self.work(files)
        self._flush()
        for column in self.columns:
            if column.refused is not None:
                self.say(f"left out: {column.refused}")
        if self.written or self.panels:
            self.say(f"wrote {self.outputs()}")

    def work(self, files: Sequence[Path]) -> None:
        """Explain the images, batch by batch."""
        with console.progress(shown=len(files) >= 4 and console.is_watched(), count=True) as bar:
            bar.update(what="explaining", total=len(files))
            for start in range(0, len(files), self.batch_size):
                chunk = files[start : start + self.batch_size]
                self._batch(chunk)
                bar.update(more=len(chunk))

    def fail(self, path: str | Path, reason: str) -> None:
        """Note an image that could not be explained."""
        self.failed.append({"file": str(path), "reason": reason})
        console.fail(f"{path}: {reason}")

    def _batch(self, files: Sequence[Path]) -> None:
        from xattn.data.reading import read_image

        read: list[tuple[Path, Image]] = []
        for file in files:
            try:
                read.append((file, read_image(file)))
            except DataError as error:
                self.fail(file, str(error).removeprefix(f"{file}: "))
        if not read:
            return
        images = [image for _, image in read]
        seconds: Counter[str] = Counter()
        predicted: dict[str, list[dict[str, Any]]] = {}
        slots: list[list[Explanation | str | None]] = [[None] * len(self.columns) for _ in range(self.topk)]
        wanted: Tensor | None = None  # (N, topk) classes, the same for all networks
        for network in {id(c.network): c.network for c in self.columns}.values():
            x = self._input(images, network)
            first = self._pass(network, x, None if wanted is None else wanted[:, 0], slots[0], seconds, True)
            if first is None:
                continue
            if wanted is None:
                wanted = self._classes(first)
            predicted[network.name] = predictions(first)
            for k in range(1, wanted.shape[1]):
                self._pass(network, x, wanted[:, k], slots[k], seconds, False)
        if wanted is None:
            if not self.tolerant:
                return
            raise NotApplicableError("no method fits the model; `xattn doctor` says why for each.")
        for i, (file, image) in enumerate(read):
            entry = self._entry(file, {name: rows[i] for name, rows in predicted.items()})
            for k in range(wanted.shape[1]):
                self._picture(entry, i, image, slots[k], k, len(read), seconds)
            self.entries.append(entry)
            self._tell(entry)

    def _classes(self, trace: Trace) -> Tensor:
        """The classes (N, k) to explain in the images of the first pass."""
        return wanted_classes(trace, self.topk)

    def _input(self, images: Sequence[Image], network: Loaded) -> Tensor:
        from xattn.data.preprocessing import to_batch
        from xattn.trace import place_of

        if self.fit not in ("crop", "squash", "whole"):
            raise ParameterError(f"--fit must be crop, squash or whole but is '{self.fit}'.")
        return to_batch(images, network.spec, fit=self.fit).to(place_of(network.model)[0])  # type: ignore[arg-type]

    def _pass(
        self,
        network: Loaded,
        x: Tensor,
        target: Tensor | None,
        slot: list[Explanation | str | None],
        seconds: Counter[str],
        first: bool,
    ) -> Trace | None:
        """One recorded pass for all methods of a network; fills the slot with explanations, or why there is none."""
        mine = [(j, c) for j, c in enumerate(self.columns) if c.network is network]
        for j, column in mine:
            if column.refused is not None:
                slot[j] = reason_of(column)
            elif not first and not column.method.class_specific:
                slot[j] = _SAME
        todo = [(j, c) for j, c in mine if slot[j] is None]
        if not todo:
            return None
        chosen: Any = target
        if target is None and self.target is not None:
            chosen = network.spec.class_index(self.target)
        start = time.perf_counter()
        trace = self._record(network, x, chosen, [c for _, c in todo])
        if trace is None:
            return self._pass(network, x, target, slot, seconds, first)  # without the methods that it refused
        seconds[f"pass {network.name}"] += time.perf_counter() - start  # type: ignore[assignment]
        for j, column in todo:
            start = time.perf_counter()
            try:
                slot[j] = column.method.explanation(trace)
            except NotApplicableError as error:
                if not self.tolerant:
                    raise
                column.refused = str(error)
                slot[j] = reason_of(column)
            seconds[column.label] += time.perf_counter() - start  # type: ignore[assignment]
        return trace

    def _record(self, network: Loaded, x: Tensor, target: Any, columns: Sequence[Column]) -> Trace | None:
        """The recorded pass; None if it refused some of the methods, which are then marked."""
        import torch

        from xattn.cli.loading import at_precision
        from xattn.trace import record

        def attempt(some: Sequence[Column], x: Tensor, target: Any) -> Trace:
            layers = [layer for c in some for layer in c.method.layers(network.spec)]
            grad = any(c.method.grad for c in some)
            with at_precision(self.precision, x.device):
                trace = record(network.model, x, target, spec=network.spec, layers=layers, grad=grad, score=self.score)
                if grad and layers:
                    trace.gradient(next(la for c in some if c.method.grad for la in c.method.layers(network.spec)))
            return trace

        try:
            return attempt(columns, x, target)
        except XattnError:
            if not self.tolerant:
                raise
        except torch.OutOfMemoryError:
            raise ParameterError(
                f"out of memory with {len(x)} images at once; pass a smaller --batch-size, or --device cpu."
            ) from None
        except RuntimeError as error:  # whatever a foreign forward pass raises
            reason = str(error).split("\n", maxsplit=1)[0]
            raise NotApplicableError(
                f"{network.name} failed on images of shape {tuple(x.shape)} ({reason}); --debug shows where."
            ) from error
        alone = target[:1] if hasattr(target, "shape") and target.ndim else target
        for column in columns:
            try:
                attempt([column], x[:1], alone)
            except NotApplicableError as error:
                column.refused = str(error)
        if all(c.refused is None for c in columns):
            attempt(columns, x, target)  # the error is about something else
        return None

    # -------------------------------------------------------------------------------------------------- results

    def _entry(self, file: Path, predicted: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """What the summary says of an image, before its maps."""
        stem = re.sub(r"[^\w.+-]+", "_", file.stem) or "image"
        self.names[stem] += 1
        count = self.names[stem]
        return {
            "file": str(file),
            "name": stem if count == 1 else f"{stem}-{count}",
            "predicted": predicted,
            "maps": [],
        }

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
        """Write the pictures and maps of one class of an image, and keep its row for the panel."""
        from xattn.cli.loading import picture_file
        from xattn.storage import save_explanation
        from xattn.viz import render

        view = view_of(image, self.columns[0].network, self.fit)
        for column, found in zip(self.columns, slot, strict=True):
            if found is None or isinstance(found, str):
                continue
            index, label = int(found.target[i]), column.label
            name = f"{entry['name']}.{label}"
            if self.topk > 1 and column.method.class_specific:
                name += f".{index}-{slug(found.class_name(i))}" if found.spec and found.spec.classes else f".{index}"
            picture = self.out / f"{name}.png"
            with picture_file(picture) as temporary:
                render(found, i, image=view, size=_VIEW_PX, legend=True, **self.style).save(temporary)
            self.written.append(picture)
            maps = self.out / f"{name}.npz" if self.save_maps else None
            if maps is not None:
                save_explanation(one(found, i), maps)
                self.written.append(maps)
            entry["maps"].append(
                {
                    **facts_of(column, found, i),
                    "seconds": round(seconds[label] / count, 6),
                    "picture": str(picture),
                    "maps": None if maps is None else str(maps),
                }
            )
        entry["pass_seconds"] = {
            key.removeprefix("pass "): round(value / count, 6) for key, value in seconds.items() if key[:5] == "pass "
        }
        if len(self.columns) > 1 or self.topk > 1:
            whole = [_SAME if found is None else found for found in slot]
            self.page.append((whole, i, view))
            if len(self.page) == self.page_rows:
                self._flush()

    def _flush(self) -> None:
        """Write a page of the panel."""
        from xattn.cli.loading import picture_file
        from xattn.viz import field_size, keys_of, panel, row, title

        if not self.page:
            return
        # A method that no image of the whole run can show gets no column; it is listed with its reason.
        shown = [j for j, c in enumerate(self.columns) if c.refused is None]
        if shown:
            first, number = self.page[0], len(self.panels) + 1
            folded = len(self.page) == 1 and len(shown) > _FOLD
            columns = math.ceil(math.sqrt(1.6 * (len(shown) + 1))) if folded else len(shown) + 1
            count = -(-(len(shown) + 1) // columns) if folded else len(self.page)
            size = max(field_size(count, columns, (first[2].height, first[2].width)))
            rows = [
                row([f[j] for j in shown], i, image=v, size=size, **self._caption(f, i), **self.style)
                for f, i, v in self.page
            ]
            titles = ["Image", *(title(self.columns[j].method) for j in shown)]
            if folded:
                rows, titles = fold(rows[0], titles, columns), []
            keys = keys_of([f[j] for f, _, _ in self.page for j in shown], colormap=self.style["colormap"])
            path = self.out / ("panel.png" if self.page_total <= 1 else f"panel-{number:02d}.png")
            with picture_file(path) as temporary:
                panel(rows, titles, legend=keys).save(temporary)
            self.panels.append(path)
        self.page.clear()

    def _caption(self, found: Sequence[Explanation | str], i: int) -> dict[str, str]:
        """What stands below an image: the class explained, with the probability that the first network gives it."""
        from xattn.viz import percent

        for column, explanation in zip(self.columns, found, strict=True):
            if not isinstance(explanation, str):
                goal = described(explanation, i)
                several = len({id(c.network) for c in self.columns}) > 1
                who = f" ({column.network.name})" if several else ""
                return {"caption": goal["class"], "detail": f"{percent(goal['probability'])}{who}"}
        return {}

    def _tell(self, entry: dict[str, Any]) -> None:
        """One line for the image, one for each thing to know about its maps."""
        from xattn.viz import percent

        guesses = [f"{p['class']} {percent(p['probability'])} ({net})" for net, p in entry["predicted"].items()]
        if len({p["index"] for p in entry["predicted"].values()}) == 1:
            net, p = next(iter(entry["predicted"].items()))
            guesses = [f"{p['class']} {percent(p['probability'])} ({net})"]
        self.say(f"{entry['file']}: {', '.join(guesses)}")
        told = {(p["index"]) for p in entry["predicted"].values()}
        for item in entry["maps"]:
            goal = item["target"]
            if goal["index"] not in told:
                told.add(goal["index"])
                self.say(f"  explained as {goal['class']}, {percent(goal['probability'])}")
            if item["parts"]:
                levels = ", ".join(f"{p['rank']} {p['color']} {percent(p['share'])}" for p in item["parts"])
                self.say(f"  {item['method']}: parts by rank, with their share of the activation: {levels}")
            if item["status"] != "ok":
                self.say(f"  {item['method']}: {item['status']} map, not to be read as an explanation")

    def outputs(self) -> str:
        """What was written, in words."""
        few = [*self.panels, *self.written]
        if len(few) <= 4:
            return ", ".join(map(str, few))
        pictures = sum(p.suffix == ".png" for p in self.written)
        maps = len(self.written) - pictures
        more = f" and {maps} files of maps" if maps else ""
        return f"{pictures} pictures{more} to {self.out}/" + (f", all on {self._panel_names()}" if self.panels else "")

    def _panel_names(self) -> str:
        names = [str(p) for p in self.panels]
        return names[0] if len(names) == 1 else f"{names[0]} … {Path(names[-1]).name}"

    def summary(self) -> dict[str, Any]:
        """The machine-readable result."""
        return {
            "xattn": __version__,
            "images": self.entries,
            "failed": self.failed,
            "left_out": [{"method": c.method.name, "reason": c.refused} for c in self.columns if c.refused is not None],
            "panels": [str(p) for p in self.panels],
            "score": self.score,
            "status": self.status(),
        }

    def status(self) -> int:
        """The exit status."""
        from xattn.cli import EXIT_BAD_INPUT, EXIT_SOME_FAILED

        if not self.entries:
            return EXIT_BAD_INPUT
        return EXIT_SOME_FAILED if self.failed else 0


# ------------------------------------------------------------------------------------------------------------ helpers


def check_numbers(counts: Mapping[str, int | None], alpha: float | None) -> None:
    """Refuse counts below one, by the names of their options, and an opacity that is none."""
    for option, value in counts.items():
        if value is not None and value < 1:
            raise ParameterError(f"{option} must be at least 1 but is {value}.")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ParameterError(f"--alpha must lie between 0 and 1 but is {alpha}.")


def chosen_methods(texts: Sequence[str], parts: int | None) -> list[Explainer]:
    """Methods of the command line, each once; `--parts` goes to those that have parts and do not say how many."""
    from xattn.explainers import resolve

    found: list[Explainer] = []
    for method in resolve(list(texts)):
        if parts is not None and getattr(method, "parts", parts) is None:
            method = dataclasses.replace(method, parts=parts)  # type: ignore[type-var]
        if method not in found:
            found.append(method)
    return found


def fold(cells: Sequence[Cell], titles: Sequence[str], columns: int) -> list[list[Cell]]:
    """One long row of a panel as several rows, each picture with its title below it."""
    from PIL import Image as Pillow

    from xattn.viz import Cell
    from xattn.viz.text import PAPER

    titled = [
        cell if i == 0 else dataclasses.replace(cell, caption=name)
        for i, (cell, name) in enumerate(zip(cells, titles, strict=True))
    ]
    blank = Cell(Pillow.new("RGB", (8, 8), PAPER))
    titled += [blank] * (-len(titled) % columns)
    return [titled[i : i + columns] for i in range(0, len(titled), columns)]


def slug(text: str) -> str:
    """A text as a part of a file name.

    >>> slug("tabby, tabby cat")
    'tabby'
    """
    return re.sub(r"[^\w.+-]+", "-", text.split(",")[0]).strip("-") or "class"


def reason_of(column: Column) -> str:
    """Why a method is left out, without its own name in front."""
    return (column.refused or "").removeprefix(f"{column.method.name}: ")


def wanted_classes(trace: Trace, topk: int, more: Sequence[int] = ()) -> Tensor:
    """Classes (N, k) to explain: the target of the trace, `more`, then the most probable others up to `topk`."""
    import torch

    from xattn.score import probabilities

    chance = probabilities(trace.logits)
    named = torch.cat([trace.target[:, None], *(torch.full_like(trace.target, c)[:, None] for c in more)], dim=1)
    others = chance.scatter(1, named, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return torch.cat([named, others[:, : max(min(topk, chance.shape[1]) - named.shape[1], 0)]], dim=1)


def predictions(trace: Trace) -> list[dict[str, Any]]:
    """The predicted class of each image."""
    from xattn.score import probabilities

    chance = probabilities(trace.logits).double()
    index = chance.argmax(dim=1)
    top = chance.gather(1, index[:, None])[:, 0]
    return [
        {"index": k, "class": trace.spec.class_name(k), "probability": p}
        for k, p in zip(index.tolist(), top.tolist(), strict=True)
    ]


def described(explanation: Explanation, i: int) -> dict[str, Any]:
    """The class explained in image `i`."""
    chance = explanation.probability
    return {
        "index": int(explanation.target[i]),
        "class": explanation.class_name(i),
        "probability": None if chance is None else float(chance[i]),
    }


def facts_of(column: Column, found: Explanation, i: int) -> dict[str, Any]:
    """What a summary says of the map of image `i`."""
    return {
        "method": column.method.name,
        "parameters": dataclasses.asdict(column.method),  # type: ignore[call-overload]
        "model": column.network.name,
        "target": described(found, i),
        "status": found.status[i],
        "parts": part_levels(found, i),
    }


def part_levels(explanation: Explanation, i: int) -> list[dict[str, Any]]:
    """Rank, colour and share in the activation of each part that is drawn in rank colours."""
    from xattn.viz import shares

    if explanation.parts is None or not explanation.method.rank_colors:
        return []
    return [
        {"rank": rank + 1, "color": [*RANKS][rank % len(RANKS)], "share": level}
        for rank, level in enumerate(shares(explanation.parts[i]))
    ]


def one(explanation: Explanation, i: int) -> Explanation:
    """The explanation of image `i` alone."""

    def pick(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[i : i + 1]

    return dataclasses.replace(
        explanation,
        maps=explanation.maps[i : i + 1],
        target=explanation.target[i : i + 1],
        parts=pick(explanation.parts),
        status=(explanation.status[i],),
        probability=pick(explanation.probability),
        inputs=pick(explanation.inputs),
    )


def view_of(image: Image, network: Loaded, fit: str) -> Image:
    """What the model sees of an image, with more pixels: the maps fit it exactly."""
    from PIL import Image as Pillow

    from xattn.data.preprocessing import preprocess

    spec = network.spec
    scale = max(1.0, _VIEW_PX / max(spec.input_size))
    size = (round(spec.input_size[0] * scale), round(spec.input_size[1] * scale))
    shown = dataclasses.replace(spec, input_size=size, mean=None, std=None)
    pixels = preprocess(image, shown, fit=fit)  # type: ignore[arg-type]
    return Pillow.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())
