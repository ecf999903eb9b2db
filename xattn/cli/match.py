"""`xattn match`: which images of a gallery are most like a photograph, and what in both speaks for it."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli import EXIT_SOME_FAILED, console, options

if TYPE_CHECKING:
    from PIL import Image

    from xattn.data.dataset import Dataset
    from xattn.explanation import Explanation
    from xattn.models.embedder import Embedder
    from xattn.viz.matches import Match

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn match cow.jpg herd/ --model runs/cows/best.safetensors",
        "xattn match 17 holstein-reid:data/holstein-reid --model runs/cows/best.safetensors   "
        "[dim]# image 17 of the query part in the gallery part[/dim]",
        "xattn match cow.jpg herd/ --model resnet50 --weights DEFAULT --head linear -m gradcam -m layercam",
        "xattn match bird.jpg birds/ --model runs/few/best.safetensors --shot 1   "
        "[dim]# which of five classes, by one image of each[/dim]",
        "A match is right if it shows the same individual. It is known by the name of the file, as in "
        "0002_c1s1_000451_03.jpg, or by the folder where each individual has one. Images of the individual from the "
        "same camera or day as the query are left out where a data set knows it.",
        "With --shot a few images of a few classes are drawn from a folder of class folders, or from the test part of "
        "a data set, in which the query may be a number. The class of the query is among them if it is known.",
        "Exit status: 0 answered, 2 bad input, 3 some images of the gallery cannot be read and are left out.",
    )
)

_PERSON = re.compile(r"(-?\d+)_c\d+")
_AT_ONCE = 64


def match(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="An image, or its number in the query part of a data set.")
    ],
    gallery: Annotated[
        str, typer.Argument(metavar="GALLERY", help="A folder of images, or a data set with a gallery part.")
    ],
    model: options.Model = None,
    weights: options.Weights = None,
    head: options.Head = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME[:PARAMETER=VALUE,…]",
            show_default="gradcam, and the maps of the head",
            help="A method whose maps explain the likeness, two rows each. See: xattn list methods",
        ),
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", help="Matches that are shown.")] = 5,
    shot: Annotated[
        int | None, typer.Option(metavar="K", help="Ask for the class instead, shown K images of each of a few.")
    ] = None,
    way: Annotated[int, typer.Option(metavar="N", help="Classes to choose from, with --shot.")] = 5,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the classes and images that --shot draws.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The picture.")] = Path("match.png"),
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Search a gallery for the images most like a photograph, and show what in both speaks for the likeness.

    The likeness is the cosine of the features behind the head. With a B-CNN or BR-NPA head it is the sum of the shares
    of its parts: part 1 of the query meets part 1 of the match, and so on. With --shot the likeness is that to the
    mean of the images of a class.
    """
    from xattn.cli.loading import advise, load, picture_file
    from xattn.data.preprocessing import view_of
    from xattn.device import find_device
    from xattn.errors import ParameterError
    from xattn.models.embedder import Embedder
    from xattn.viz.matches import match_panel, told

    if not 1 <= top <= 20:
        raise ParameterError(f"--top must be from 1 to 20 but is {top}.")
    options.check_file(out, (".png", ".jpg", ".jpeg", ".webp"), "a picture, such as match.png")
    if model is None:
        raise ParameterError("match: name the network with --model, such as best.safetensors of a training run.")
    network = load(model, weights=weights, head=head, device=find_device(device))
    embedder = Embedder.of(network.model).eval()
    # Of a head without attention the features that are compared are what comes before it.
    advise(replace(network, random="") if network.random == "head" and head == "linear" else network)
    if shot is not None:
        from xattn.cli.shots import draw_episode, show

        episode = draw_episode(query, gallery, shot, way, seed)
        show(embedder, episode, method or _methods(embedder), out, as_json=as_json)
        return
    one, others = _read(query, gallery)
    if not others:
        raise ParameterError(f"match: no image of '{gallery}' is left to compare with.")
    matches, photographs, damaged = _search(embedder, one, others, top)
    compared = len(others) - damaged
    maps = _explained(embedder, photographs, method or _methods(embedder))
    out.parent.mkdir(parents=True, exist_ok=True)
    with picture_file(out) as temporary:
        match_panel(view_of(photographs[0], embedder.spec), one.name, matches, maps).save(temporary)
    if as_json:
        found = [
            {"name": m.name, "similarity": m.similarity, "right": m.right, "shares": list(m.shares), "met": list(m.met)}
            for m in matches
        ]
        console.show_json({"query": one.name, "gallery": compared, "matches": found, "picture": str(out)})
    else:
        for place, found_match in enumerate(matches, 1):
            console.say(f"{place}. {told(found_match)}")
        console.say(f"wrote {out}: the best {len(matches)} of {compared:,} images")
    if damaged:
        raise typer.Exit(EXIT_SOME_FAILED)


class _Image:
    """One image, read when it is needed, with what is known of it."""

    def __init__(self, name: str, read: Any, identity: str | None) -> None:
        self.name = name
        self.read = read
        self.identity = identity


def _read(query: str, gallery: str) -> tuple[_Image, list[_Image]]:
    """The query and the images that it is compared with."""
    from xattn.data import datasets
    from xattn.data.opening import open_dataset
    from xattn.errors import ParameterError

    if query.isdecimal() and not Path(query).exists():
        one, others = open_dataset(gallery, "query"), open_dataset(gallery, "gallery")
        number = int(query)
        if number >= len(one):
            raise ParameterError(f"match: the query part of '{gallery}' has images 0 to {len(one) - 1}, not {query}.")
        asked = one[number]
        left = list(range(len(others)))
        if one.groups is not None and others.groups is not None:
            same = (others.labels == asked.label) & (others.groups == one.groups[number])
            left = [i for i in left if not same[i]]
        names = [others.classes[label] for label in others.labels]
        return (
            _Image(f"{one.classes[asked.label]} (query {number})", lambda: asked.image, one.classes[asked.label]),
            [_Image(f"{names[i]} ({i})", partial(_pixels, others, i), names[i]) for i in left],
        )
    name, colon, _ = gallery.partition(":")
    if colon and name in datasets:
        found = open_dataset(gallery, "gallery")
        labels = [found.classes[label] for label in found.labels]
        return _file(Path(query), set()), [
            _Image(f"{label} ({i})", partial(_pixels, found, i), None) for i, label in enumerate(labels)
        ]
    return _files(query, gallery)


def _pixels(dataset: Dataset, index: int) -> Any:
    return dataset[index].image


def _files(query: str, gallery: str) -> tuple[_Image, list[_Image]]:
    from xattn.data.finding import find_images
    from xattn.errors import DataError

    found, problems = find_images(gallery)
    asked, trouble = find_images(query)
    for problem in (*trouble, *problems):
        if not problem.note:
            raise DataError(f"match: {problem.path}: {problem.reason}")
    if len(asked) != 1:
        raise DataError(f"match: '{query}' is {len(asked)} images; pass one query.")
    (one,) = asked
    folders = {path.parent.resolve().name for path in found}
    others = [path for path in found if not path.samefile(one)]
    return _file(one, folders), [_file(path, folders) for path in others]


def _file(path: Path, folders: set[str]) -> _Image:
    """An image file; the individual is in its name, or is its folder where the gallery has several, this among them."""
    from xattn.data.reading import read_image

    person, folder = _PERSON.match(path.name), path.parent.resolve().name
    by_folder = folder if len(folders) > 1 and folder in folders else None
    return _Image(path.name, lambda: read_image(path), person[1] if person else by_folder)


def _search(
    embedder: Embedder, one: _Image, others: list[_Image], top: int
) -> tuple[list[Match], list[Image.Image], int]:
    """The best matches, the photographs of the query and of these, and how many images could not be read."""
    import torch
    from PIL import Image

    from xattn.data.preprocessing import to_batch, view_of
    from xattn.errors import DataError
    from xattn.functional.retrieval import pair_distances, part_cosines, part_shares
    from xattn.trace import place_of
    from xattn.viz.matches import Match

    device, dtype = place_of(embedder)

    def embed(pixels: list[Any]) -> torch.Tensor:
        with torch.no_grad():
            return embedder(to_batch(pixels, embedder.spec).to(device, dtype))

    def photograph(image: _Image) -> Image.Image:
        pixels = image.read()
        return pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)

    asked = embed([one.read()])
    readable: list[_Image] = []
    features = []
    for i in range(0, len(others), _AT_ONCE):
        pixels = []
        for image in others[i : i + _AT_ONCE]:
            try:
                pixels.append(image.read())
            except DataError as error:
                console.warn(f"left out: {error}")
                continue
            readable.append(image)
        if pixels:
            features.append(embed(pixels))
    damaged, others = len(others) - len(readable), readable
    if not others:
        raise DataError("match: no image of the gallery can be read.")
    found = torch.cat(features)
    away = pair_distances(asked.double(), found.double())[0]
    photographs, matches = [photograph(one)], []
    for i in away.argsort(stable=True)[:top].tolist():
        mine, theirs = (t.unflatten(1, (embedder.parts, -1)) for t in (asked, found[i : i + 1]))
        photographs.append(photograph(others[i]))
        known = one.identity is not None and others[i].identity is not None
        matches.append(
            Match(
                name=others[i].name,
                picture=view_of(photographs[-1], embedder.spec),
                similarity=float(1 - away[i]),
                right=one.identity == others[i].identity if known else None,
                shares=tuple(part_shares(mine, theirs)[0].tolist()) if embedder.parts > 1 else (),
                met=tuple(part_cosines(mine, theirs)[0].argmax(0).tolist()) if embedder.parts > 1 else (),
            )
        )
    return matches, photographs, damaged


def _methods(embedder: Embedder) -> list[str]:
    kind = embedder.spec.attention
    return [*([kind] if kind in ("bcnn", "brnpa") else []), "gradcam"]


def _explained(
    embedder: Embedder, photographs: list[Image.Image], methods: list[str]
) -> list[tuple[Explanation, Explanation]]:
    """Two explanations a method: of the matches by their likeness to the query, and the other way round."""
    import torch

    from xattn.data.preprocessing import to_batch
    from xattn.explaining import explain
    from xattn.targets import Similarity
    from xattn.trace import place_of

    device, dtype = place_of(embedder)
    x = to_batch(photographs, embedder.spec).to(device, dtype)
    with torch.no_grad():
        found = embedder(x)
    count = len(photographs) - 1
    spec = embedder.spec
    theirs = explain(embedder, x[1:], methods, Similarity(found[:1].expand(count, -1)), spec=spec)
    own = explain(embedder, x[:1].expand(count, -1, -1, -1).contiguous(), methods, Similarity(found[1:]), spec=spec)
    return list(zip(theirs, own, strict=True))
