"""`xattn explain`: from photographs to pictures of what a classifier looks at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli import EXIT_INTERRUPTED, console, options
from xattn.cli.index import write_index
from xattn.cli.names import FolderNames, folder_name
from xattn.cli.work import Work, facts_of
from xattn.labels import counted, file_stems, first_name, slug
from xattn.looks import COLORMAP

if TYPE_CHECKING:
    from xattn.cli.panel_pages import PanelPages
    from xattn.explanation import Explanation
    from xattn.file_loop import Explained

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn explain cat.jpg",
        "xattn explain photos/ 'more/*.png' -m gradcam -m brnpa:parts=4 --out out/",
        "xattn explain cat.jpg -m all --model resnet50 --weights DEFAULT --target tabby --topk 3",
        "xattn explain cat.jpg -m gradcam:layer=layer3 --model mypackage.nets:build --weights mine.safetensors",
        "xattn explain cat.jpg -m brnpa@x4 -m gradcam -m gradcam@x2    (finer maps, by dilation, of a single method)",
        "xattn explain cat.jpg --model efficientnet_lite0 --model tiny-brnpa",
        "xattn explain photos/ --model runs/birds/best.safetensors --save-maps --json > summary.json",
        "Files: one picture an image and method, STEM.METHOD.png; several methods or classes also give panel.png.",
        "A folder with a folder per class keeps its tree: panels by class with right and wrong, and index.csv.",
        "Exit status: 0 fine, 2 nothing could be explained, 3 some of the images could not, 130 interrupted.",
    )
)


def explain(
    paths: options.Paths,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME[:PARAMETER=VALUE,…][@x2|@x4|@x8]",
            show_default="the attention of a B-CNN or BR-NPA, else gradcam",
            help="A method; give it several times for several, 'all' for all that fit. See: xattn list methods",
        ),
    ] = None,
    model: options.Models = None,
    weights: options.ManyWeights = None,
    head: options.Head = None,
    resolution: options.Finer = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for pictures and maps.")] = Path(
        "xattn-out"
    ),
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="INDEX|NAME",
            show_default="the predicted class",
            help="The class to explain; 'scalar' is the number of a regression network, 'a - b' a difference.",
        ),
    ] = None,
    topk: options.TopK = 1,
    parts: options.Parts = None,
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
    save_maps: Annotated[bool, typer.Option("--save-maps", help="Also write the raw maps, as .npz.")] = False,
    as_json: options.AsJson = False,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = 8,
) -> None:
    """Show where a classifier looks: explain images with one or more methods and write pictures."""
    from xattn.cli.choosing import asks_for_all, choose_columns

    options.check_numbers({"--topk": topk, "--batch-size": batch_size, "--parts": parts}, alpha)
    settings = options.settings(
        targets=() if target is None else (target,), topk=topk, fit=fit, score=score, precision=precision,
        window=options.window_of(window), transform=(prepare := options.transform_of(transform, fit, window, size)),
        batch_size=batch_size, tolerant=asks_for_all(method), device=device, colormap=colormap,
    )  # fmt: skip
    work = Work(settings, err=as_json)
    pictures = None
    if files := work.find(paths):
        work.columns = choose_columns(
            method, parts=parts, models=model or (), weights=weights or (), head=head, resolution=resolution,
            device=device, given=options.given(mean, std, classes, size), transform=prepare,
        )  # fmt: skip
        pictures = Pictures(
            work,
            out,
            save_maps,
            {"colormap": colormap, "alpha": alpha},
            [Path(path).expanduser().is_dir() for path in paths],
        )
        work.tell_labels()
        try:
            for result, entry in work.results(files):
                pictures.add(result, entry)
            pictures.finish()
        except KeyboardInterrupt:
            done = "nothing was written"
            if pictures.written:
                pictures.write_index()
                done = f"wrote {pictures.outputs()}"
            console.fail(f"stopped after {len(work.entries)} of {len(files)} images; {done}.")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        panels = [] if pictures is None else [str(path) for path in pictures.panels]
        index = None if pictures is None or pictures.index is None else str(pictures.index)
        console.show_json({**work.summary(), "panels": panels, "index": index})
    raise typer.Exit(work.status())


class Pictures:
    """Pictures, maps and panels of a run, in the folders that the images lie in below the one that was given.

    Args:
        work: the run.
        out: folder of the files.
        save_maps: also write the raw maps.
        style: options of `xattn.viz.render`.
        folders: whether each of the paths that were given is a folder.

    Raises:
        ParameterError: if there is a file where the folder should be, or it cannot be made.
    """

    def __init__(self, work: Work, out: Path, save_maps: bool, style: dict[str, Any], folders: list[bool]) -> None:
        options.check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        self.work, self.out, self.save_maps, self.style = work, out, save_maps, style
        self.written: list[Path] = []
        self.index = out / "index.csv" if any(folders) else None
        several = len({column.network for column in work.columns}) > 1
        self._stems = [
            f"{stem}.{slug(column.network.name)}" if several else stem
            for stem, column in zip(file_stems([c.method for c in work.columns]), work.columns, strict=True)
        ]
        self._images, self._files = FolderNames(), FolderNames()
        self._explained: set[str] = set()
        self._pages: dict[Path, PanelPages] = {}
        self._counts = Counter(map(folder_name, work.places.values()))

    @property
    def panels(self) -> list[Path]:
        """The pages of all folders."""
        return [path for pages in self._pages.values() for path in pages.paths]

    def add(self, result: Explained, entry: dict[str, Any]) -> None:
        """Write the pictures and maps of an image, and say what is to be known of it."""
        folder = folder_name(self.work.places.get(result.file, Path()))
        entry["name"] = self._images.new(folder, result.file.stem, limit=120)
        for line in result.lines:
            for j, explanation in enumerate(line):
                if not isinstance(explanation, str):
                    facts = self._write(entry["name"], j, explanation, result)
                    entry["maps"].append({**facts, "seconds": round(result.seconds[j], 6)})
            if len(self.work.columns) > 1 or self.work.settings.topk > 1 or folder.parts:
                self._page(folder).add(line, result.views, entry.get("label", ""), entry["predicted"])
        entry["pass_seconds"] = {name: round(value, 6) for name, value in result.pass_seconds.items()}
        self._tell(entry)

    def _page(self, folder: Path) -> PanelPages:
        """The pages of a folder; those of the others are finished."""
        from xattn.cli.panel_pages import PanelPages

        for other, pages in self._pages.items():
            if other != folder:
                pages.flush()
        if folder not in self._pages:
            total = self._counts[folder] * self.work.settings.topk
            self._pages[folder] = PanelPages(self.out / folder, self.work.columns, self.style, total)
        return self._pages[folder]

    def _write(self, name: str, j: int, explanation: Explanation, result: Explained) -> dict[str, Any]:
        """Write the picture and the maps of one class by one method; what the summary says of them."""
        from xattn.cli.loading import picture_file
        from xattn.data.preprocessing import VIEW_PX
        from xattn.storage import save_explanation
        from xattn.viz import render

        column = self.work.columns[j]
        stem = f"{name}.{self._stems[j]}"
        if self.work.settings.topk > 1 and column.method.class_specific:
            index, named = int(explanation.target[0]), column.network.spec.classes or explanation.described
            stem += f".{index}" * (index >= 0) + f"-{slug(first_name(explanation.class_name()))}" * bool(named)
        stem = self._files.new(Path(name).parent, Path(stem).name)
        picture, maps = self.out / f"{stem}.png", self.out / f"{stem}.npz" if self.save_maps else None
        picture.parent.mkdir(parents=True, exist_ok=True)
        with picture_file(picture) as temporary:
            render(explanation, image=result.views[column.network.name], size=VIEW_PX, legend=True, **self.style).save(
                temporary
            )
        self.written.append(picture)
        if maps is not None:
            save_explanation(explanation, maps)
            self.written.append(maps)
        return {**facts_of(column, explanation), "picture": str(picture), "maps": None if maps is None else str(maps)}

    def finish(self) -> None:
        """Write the last panel and say what there is."""
        for pages in self._pages.values():
            pages.flush()
        self.write_index()
        self.work.tell_left_out()
        for text in (*self.work.agreements(), *self.work.tallies()):
            self.work.say(text)
        if self.written or self.panels:
            self.work.say(f"wrote {self.outputs()}")

    def write_index(self) -> None:
        """Write the table of what came of each image of a folder."""
        if self.index is not None:
            write_index(self.index, self.work.entries, self.work.failed)

    def _tell(self, entry: dict[str, Any]) -> None:
        """One line for the image, one for each thing to know about its maps."""
        from xattn.viz import percent

        def guess(name: str, row: dict[str, Any]) -> str:
            what = row["class"] if row["index"] is None else first_name(row["class"])
            return " ".join(filter(None, (what, "" if (p := row["probability"]) is None else percent(p), f"({name})")))

        say, predicted = self.work.say, entry["predicted"]
        classes = {p["class"] for p in predicted.values()}
        # A copy with finer maps explains what its network names, as the picture says: it speaks only if it differs.
        own = {name: row for name, row in predicted.items() if not row.get("original")}
        told = {row["class"] for row in own.values()}
        own |= {name: row for name, row in predicted.items() if row["class"] not in told}
        judged = [row["right"] for row in predicted.values() if row.get("right") is not None]
        verdict = "" if not judged else ", right" if all(judged) else f", labelled {entry['label']}"
        say(f"{entry['file']}: {', '.join(guess(name, row) for name, row in own.items())}{verdict}")
        for item in entry["maps"]:
            goal = item["target"]
            if goal["class_specific"] and goal["class"] not in classes:
                classes.add(goal["class"])
                share, what = goal["probability"], goal["class"]
                if any(what in column.network.spec.classes for column in self.work.columns):
                    what = first_name(what)
                say(f"  explained: {what}" if share is None else f"  explained as {what}, {percent(share)}")
            if item["parts"]:
                levels = ", ".join(f"{p['rank']} {p['color']} {percent(p['share'])}" for p in item["parts"])
                say(f"  {item['method']}: parts by rank, with their share of the activation: {levels}")
            if item["status"] != "ok":
                # what a word means is said once; numbers are those of the map
                text = item["status"] if item["told"] in self._explained else item["told"]
                self._explained.add(item["told"])
                say(f"  {item['method']}: not to be read as an explanation, {text}")

    def outputs(self) -> str:
        """What was written, in words."""
        panels = self.panels
        table = [] if self.index is None else [self.index]
        if len(panels) + len(self.written) + len(table) <= 4:
            return ", ".join(map(str, [*panels, *self.written, *table]))
        pictures = sum(path.suffix == ".png" for path in self.written)
        more = f" and {len(self.written) - pictures} files of maps" if len(self.written) > pictures else ""
        if any(page.parent != self.out for page in panels):
            where = f", all on panels in {counted(len(self._pages), 'folder')}"
        else:
            names = [str(panels[0]), panels[-1].name][: len(panels)] if panels else []
            where = f", all on {' … '.join(names)}" if names else ""
        return f"{pictures} pictures{more} to {self.out}/{where}" + (f", and {table[0]}" if table else "")
