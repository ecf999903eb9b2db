"""`xattn select`: which method for a model, within minutes, on images of one's own."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli import console, options

if TYPE_CHECKING:
    from xattn.benchmark.selection import Selection

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn select efficientnet_lite0 --data photos/",
        "xattn select mypackage.nets:build --weights mine.pt --mean 0.5 --std 0.5 --data photos/ --minutes 5",
        "xattn select tiny-vit --data tiny-imagenet:data/tiny-imagenet --images 0 --json > result.json",
        "xattn select resnet50 --weights DEFAULT --data photos/ -m gradcam -m lrp -m rise:samples=500",
        "Files in the folder of --out: winners.png, select.json, and benchmark.toml, the configuration of the full "
        "benchmark.",
        "Images come in random order. A method stops when another, or a control that knows nothing of the network, is "
        "shown to be better; a method that is as good as a cheaper one stops, too. The chance that anything said is "
        "wrong is 5 % at most, however early it stops.",
        "Exit status: 0 answered or not decided yet, 2 bad input, 130 interrupted.",
    )
)


def select(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model by name, PACKAGE.MODULE:FACTORY, or a weights file.")
    ],
    data: options.Data = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME[:PARAMETER=VALUE,…]",
            show_default="a dozen usual ones",
            help="A method to compare; several times for several. Controls run beside them.",
        ),
    ] = None,
    images: Annotated[int, typer.Option(metavar="N", help="Images to draw at most; 0 for all there are.")] = 200,
    minutes: Annotated[float, typer.Option(metavar="M", help="Answer within so many minutes; 0 for no limit.")] = 9,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Part of the data set.", show_default="the test part, else all there is"),
    ] = None,
    weights: options.Weights = None,
    head: options.Head = None,
    resolution: options.Finer = None,
    mean: options.Mean = None,
    std: options.Std = None,
    classes: options.Classes = None,
    size: options.Size = None,
    score: options.Score = "logit",
    fast: Annotated[
        bool, typer.Option("--fast", help="Score with a cheaper copy of the model: folded batch norms, bfloat16.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the order of the images.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for picture and files.")] = Path(
        "xattn-select"
    ),
    device: options.Device = "auto",
    batch_size: options.BatchSize = 8,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Find the method to use for a model: compare a dozen on a folder of images, and stop as soon as it is decided."""
    begun = time.monotonic()  # what is imported and loaded below is part of the time
    from xattn.benchmark.limit import Limit
    from xattn.benchmark.select import select as find
    from xattn.cli.loading import advise, load
    from xattn.device import find_device
    from xattn.errors import ParameterError

    if data is None:
        raise ParameterError("select: pass the folder of your images with --data.")
    options.check_numbers({"--batch-size": batch_size})
    if images < 0 or seed < 0 or not 0 <= minutes < float("inf"):
        raise ParameterError("select: --images, --seed and --minutes must be at least 0.")
    options.check_folder(out)
    given = options.given(mean, std, classes, size)
    network = load(
        model, weights=weights, head=head, resolution=resolution, device=find_device(device, "--device"), given=given
    )
    advise(network)
    entry = {"name": model, "weights": weights, "head": head, "resolution": resolution}
    with _progress(shown=not quiet) as progress:
        result = find(
            network.model, data, method, spec=network.spec, images=images, seed=seed, split=split, score=score,
            fast=fast, minutes=Limit(minutes or None, begun=begun), batch=batch_size, progress=progress,
            entry={key: value for key, value in entry.items() if value is not None},
        )  # fmt: skip
    files = _write(result, out)
    if as_json:
        console.show_json({**result.to_dict(), "files": [str(path) for path in files]})
        return
    _show(result)
    console.say(f"wrote {', '.join(str(path) for path in files)}")
    console.say("The full benchmark, with every image and more questions:")
    console.say(f"  {_benchmark(result, model, out)}", limit=4000)
    if given:
        console.say(
            "It takes the model by its name: what the options say of its images and classes is not in the file."
        )


def _benchmark(result: Selection, model: str, out: Path) -> str:
    """The command of the full benchmark; a file does not name code of one's own, so that the command does."""
    from xattn.models.named import is_factory

    words = ["xattn", "benchmark", str(out / "benchmark.toml"), "--out", "runs/full"]
    own = ["--set", f"models.0.name={model}"] if is_factory(model) else []
    return shlex.join([*words, *own])


@contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[int, int, int], None] | None]:
    if not shown or not console.is_watched():
        yield None
        return
    with console.progress(count=True, speed_s=600) as bar:
        bar.update(what="select")

        def show(done: int, most: int, left: int) -> None:
            bar.update(done=done, total=most, what=f"images, at most; {left} methods left")

        yield show


def _write(result: Selection, out: Path) -> list[Path]:
    """The files, each whole or not at all."""
    from xattn.cli.loading import picture_file
    from xattn.schema import finite
    from xattn.viz import gallery

    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "select.json": json.dumps(finite(result.to_dict()), indent=2, allow_nan=False) + "\n",
        "benchmark.toml": result.config.to_toml(),
    }
    files = []
    if result.explanations:
        files.append(out / "winners.png")
        with picture_file(files[-1]) as temporary:
            gallery(result.explanations).save(temporary)
    for name, text in texts.items():
        files.append(out / name)
        with picture_file(files[-1]) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if not result.explanations:
        (out / "winners.png").unlink(missing_ok=True)  # one of another time would stand beside another answer
    return files


def _show(result: Selection) -> None:
    """The sentence, the table and the notes."""
    race = result.race
    console.say(result.sentence(), limit=2000)
    console.say("")
    right = {"justify": "right", "no_wrap": True}
    means, counts = race.means(), race.counts()
    columns: list[dict[str, Any]] = [
        {"header": "method", "no_wrap": True, "style": "cyan", "max_width": 21},
        *({"header": question.head, "min_width": 6, **right} for question in result.questions),
        {"header": "", "no_wrap": True, "max_width": 20},
        {"header": "images", "min_width": 6, **right},
        {"header": "ms", "min_width": 4, **right},
    ]
    rows = []
    for j in result.order():
        cost = result.costs.get(race.names[j])
        rows.append(
            (
                race.names[j],
                *(_number(question.sign * means[q, j]) for q, question in enumerate(result.questions)),
                result.standing(j),
                str(int(counts[:, j].max())),
                "" if cost is None else f"{1000 * cost.seconds:.0f}",
            )
        )
    console.table(rows, *columns)
    console.say("")
    lines = [
        "High is good. blur, mean: how much more the probability falls when what the map",
        "marks is blurred, or becomes the mean colour, than when the rest is; 0 is chance.",
        "ms: what a map takes.",
    ]
    if len(result.questions) > 2:
        lines[-1] += " object: share of the map on the object, which decides nothing."
    late = [q.head for i, q in enumerate(result.questions) if q.deciding and race.images and not counts[i].any()]
    if late:
        lines.append(f"{late[0]}: not asked of the first {race.rules.first} images.")
    for line in lines:
        console.say(line)
    for line in result.notes():
        console.say(line, limit=2000)
    if not result.explanations and result.over is not None:
        console.say("No picture: there was no time left for one.")


def _number(value: float) -> str:
    return "" if value != value else f"{value:.3f}"
