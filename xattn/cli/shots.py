"""`xattn match --shot`: a few images of each of a few classes; which class a photograph is, and what speaks for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xattn.cli import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image
    from torch import Tensor

    from xattn.data.dataset import Dataset
    from xattn.explanation import Explanation
    from xattn.models.embedder import Embedder
    from xattn.viz.matches import Match

MOST_SHOTS, MOST_WAYS, SHOWN = 100, 20, 5


@dataclass(frozen=True)
class Episode:
    """A question: whose class, among these.

    Args:
        name: of the query.
        query: its photograph.
        label: its class; None if that is not known.
        classes: names.
        shown: photographs of each class.
    """

    name: str
    query: Image.Image
    label: str | None
    classes: tuple[str, ...]
    shown: tuple[tuple[Image.Image, ...], ...]


def draw_episode(query: str, gallery: str, shot: int, way: int, seed: int) -> Episode:
    """The query, and images of its class and of others drawn at random.

    Raises:
        ParameterError: for numbers that are none of a part, of a class or of an episode.
        DataError: if there are too few classes with so many images, or the query cannot be read.
    """
    from xattn.errors import ParameterError

    for option, value, most in (("--shot", shot, MOST_SHOTS), ("--way", way, MOST_WAYS)):
        least = 1 if option == "--shot" else 2
        if not least <= value <= most:
            raise ParameterError(f"{option} must be from {least} to {most} but is {value}.")
    if not 0 <= seed < 2**63:
        raise ParameterError(f"--seed must be from 0 to 2**63 - 1 but is {seed}.")
    data = _open(gallery)
    left_out, label, photograph = _query(query, gallery, data)
    chosen = _draw(data, shot, way, seed, left_out, label)
    return Episode(
        name=query if left_out is None else f"image {query}",
        query=photograph,
        label=None if label is None else data.classes[label],
        classes=tuple(data.classes[c] for c in chosen),
        shown=tuple(tuple(_photograph(data, i) for i in places) for places in chosen.values()),
    )


def _open(gallery: str) -> Dataset:
    """The part to test on, or all there is."""
    from xattn.data.opening import NoPartError, open_dataset

    try:
        return open_dataset(gallery, "test")
    except NoPartError:
        return open_dataset(gallery)


def _query(query: str, gallery: str, data: Dataset) -> tuple[int | None, int | None, Image.Image]:
    """Place of the query in the data, its class where that is known, and its photograph."""
    from xattn.data.finding import find_images
    from xattn.data.reading import read_image
    from xattn.errors import DataError, ParameterError

    if query.isdecimal() and not Path(query).exists():
        number = int(query)
        if number >= len(data):
            raise ParameterError(f"match: '{gallery}' has images 0 to {len(data) - 1}, not {query}.")
        return number, int(data.labels[number]), _photograph(data, number)
    found, problems = find_images(query)
    for problem in problems:
        if not problem.note:
            raise DataError(f"match: {problem.path}: {problem.reason}")
    if len(found) != 1:
        raise DataError(f"match: '{query}' is {len(found)} images; pass one query.")
    (file,) = found
    home = getattr(data, "home", None)
    folder = file.resolve().parent.name
    inside = isinstance(home, Path) and home.resolve() in file.resolve().parents and folder in data.classes
    label = data.classes.index(folder) if inside else None
    photograph = read_image(file)
    for place in (data.labels == label).nonzero()[0].tolist() if inside else ():
        if data[place].id.endswith(file.name) and _photograph(data, place).tobytes() == photograph.tobytes():
            return place, label, photograph
    return None, label, photograph


def _photograph(data: Dataset, index: int) -> Image.Image:
    from PIL import Image

    return Image.fromarray(data[index].image)


def _draw(
    data: Dataset, shot: int, way: int, seed: int, left_out: int | None, label: int | None
) -> dict[int, list[int]]:
    """Places of `shot` images of each of `way` classes, that of the query among them where it is known."""
    import numpy as np
    import torch

    from xattn.errors import DataError

    places = np.arange(len(data)) != (-1 if left_out is None else left_out)
    counts = np.bincount(data.labels[places], minlength=len(data.classes))
    enough = [c for c in np.flatnonzero(counts >= shot).tolist() if c != label]
    if label is not None and counts[label] < shot:
        raise DataError(
            f"match: class '{data.classes[label]}' has {counts[label]} images besides the query; lower --shot."
        )
    others = way - (label is not None)
    if len(enough) < others:
        raise DataError(
            f"match: {len(enough) + (label is not None)} of {len(data.classes)} classes have {shot} images; lower "
            "--way or --shot."
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = [enough[i] for i in torch.randperm(len(enough), generator=generator)[:others].tolist()]
    found = {}
    for c in [label, *drawn] if label is not None else drawn:
        mine = np.flatnonzero((data.labels == c) & places)
        found[c] = mine[torch.randperm(len(mine), generator=generator)[:shot].numpy()].tolist()
    return found


def answer(
    embedder: Embedder, episode: Episode, methods: Sequence[str]
) -> tuple[list[Match], list[list[Image.Image]], list[tuple[Explanation, Explanation]]]:
    """The classes, the most likely first, the images of each that are drawn, and maps.

    The images of a class come in the order of their likeness to the query, `SHOWN` of them at most.

    Returns:
        One match for each class; what the model sees of its images; and for each method the maps of these images, shot
        by shot, by their likeness to the query, and those of the query by its likeness to each class.
    """
    import torch
    from torch.nn import functional as F

    from xattn.data.preprocessing import to_batch, view_of
    from xattn.explaining import explain
    from xattn.functional.episodes import episode_scores
    from xattn.functional.retrieval import part_cosines, part_shares
    from xattn.targets import Similarity
    from xattn.trace import place_of
    from xattn.viz.matches import Match

    device, dtype = place_of(embedder)
    spec = embedder.spec
    way, shot = len(episode.classes), len(episode.shown[0])
    with torch.no_grad():
        x = to_batch([episode.query, *(p for row in episode.shown for p in row)], spec).to(device, dtype)
        found = torch.cat([embedder(part) for part in x.split(64)])
    asked, support = found[:1], found[1:].view(way, shot, -1)
    scores = episode_scores(support[None], asked[None], "cosine")[0, 0]
    means = F.normalize(support, dim=2).mean(1)
    best = scores.argsort(descending=True, stable=True).tolist()
    like = torch.cosine_similarity(support, asked[None], dim=2)
    kept = [[c * shot + k for k in like[c].argsort(descending=True, stable=True)[:SHOWN].tolist()] for c in best]
    matches, views = [], []
    for place, c in enumerate(best):
        views.append([view_of(episode.shown[c][k % shot], spec) for k in kept[place]])
        mine, theirs = (t.unflatten(1, (embedder.parts, -1)) for t in (asked, means[c : c + 1]))
        matches.append(
            Match(
                name=episode.classes[c],
                picture=views[-1][0],
                similarity=float(scores[c]),
                right=None if episode.label is None else episode.classes[c] == episode.label,
                shares=tuple(part_shares(mine, theirs)[0].tolist()) if embedder.parts > 1 else (),
                met=tuple(part_cosines(mine, theirs)[0].argmax(0).tolist()) if embedder.parts > 1 else (),
            )
        )
    places = [1 + row[k] for k in range(len(kept[0])) for row in kept]
    theirs_maps = explain(embedder, x[places], list(methods), Similarity(asked.expand(len(places), -1)), spec=spec)
    query: Tensor = x[:1].expand(way, -1, -1, -1).contiguous()
    own_maps = explain(embedder, query, list(methods), Similarity(means[best]), spec=spec)
    return matches, views, list(zip(theirs_maps, own_maps, strict=True))


def show(embedder: Embedder, episode: Episode, methods: Sequence[str], out: Path, *, as_json: bool) -> None:
    """Answer, draw and tell."""
    from xattn.cli.loading import picture_file
    from xattn.data.preprocessing import view_of
    from xattn.viz.matches import shots_panel, told

    matches, views, maps = answer(embedder, episode, methods)
    out.parent.mkdir(parents=True, exist_ok=True)
    with picture_file(out) as temporary:
        shots_panel(view_of(episode.query, embedder.spec), episode.name, matches, views, maps).save(temporary)
    if as_json:
        found = [
            {"name": m.name, "similarity": m.similarity, "right": m.right, "shares": list(m.shares), "met": list(m.met)}
            for m in matches
        ]
        facts = {"query": episode.name, "shot": len(episode.shown[0]), "classes": found, "picture": str(out)}
        console.show_json(facts)
        return
    for place, match in enumerate(matches, 1):
        console.say(f"{place}. {told(match)}")
    console.say(f"wrote {out}: {len(matches)} classes by {len(episode.shown[0])} images of each")
