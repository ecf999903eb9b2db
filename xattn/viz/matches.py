"""The pictures of a search, of an image or of a class: what was found, right or wrong, and what spoke for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from xattn.explanation import Explanation
from xattn.looks import RANKS
from xattn.viz.colors import rank_color
from xattn.viz.overlay import to_rgb
from xattn.viz.panel import Cell, Swatch, field_size, panel
from xattn.viz.render import render, title

# Right, wrong, not known: colours that the colour-blind can tell apart (Okabe and Ito); words stand beside them.
FRAMES = {True: (0, 158, 115), False: (213, 94, 0), None: (150, 152, 158)}
WORDS = {True: "right", False: "wrong", None: ""}


@dataclass(frozen=True)
class Match:
    """One image that a query was compared with.

    Args:
        name: of the image.
        picture: what the model sees of it.
        similarity: cosine of the two.
        right: whether it shows the same individual; None if that is not known.
        shares: of each part in the similarity; empty without parts.
        met: for each part of the match, counted from 0, the part of the query that is most like it.
    """

    name: str
    picture: Image.Image
    similarity: float
    right: bool | None = None
    shares: tuple[float, ...] = ()
    met: tuple[int, ...] = ()


def match_panel(
    query: Image.Image, name: str, matches: Sequence[Match], explanations: Sequence[tuple[Explanation, Explanation]]
) -> Image.Image:
    """A query and its matches, side by side, and below them the maps of each method.

    A method that explains the likeness gets two rows; one whose maps are the same whatever is explained, such as those
    of the parts, gets one with the query in front.

    Args:
        query: what the model sees of it.
        name: of the query.
        matches: the best first.
        explanations: for each method what of the matches speaks for their likeness to the query (image i is that of
            match i), and what of the query speaks for its likeness to each match.
    """
    deep = 1 + sum(2 if theirs.method.class_specific else 1 for theirs, _ in explanations)
    shape = field_size(deep, 1 + len(matches), (query.height, query.width))
    framed = [_framed(match.picture, FRAMES[match.right], shape) for match in matches]
    rows = [
        [
            Cell(_framed(query, (40, 42, 48), shape), name, "the query"),
            *(
                Cell(
                    picture,
                    match.name,
                    " ".join((f"{match.similarity:.3f}", WORDS[match.right])).strip(),
                    key=_key(match),
                )
                for match, picture in zip(matches, framed, strict=True)
            ),
        ]
    ]
    for theirs, own in explanations:
        method = title(theirs.method)
        there = [Cell(render(theirs, i, image=match.picture, size=shape)) for i, match in enumerate(matches)]
        here = [Cell(render(own, i, image=query, size=shape)) for i in range(len(matches))]
        if theirs.method.class_specific:
            rows.append([Cell(note=f"{method}: what of each match is like the query"), *there])
            rows.append([Cell(note=f"{method}: what of the query is like each match"), *here])
        else:  # the same whatever it is compared with
            rows.append([dataclasses.replace(here[0], caption=method), *there])
    return panel(rows)


def shots_panel(
    query: Image.Image,
    name: str,
    classes: Sequence[Match],
    views: Sequence[Sequence[Image.Image]],
    explanations: Sequence[tuple[Explanation, Explanation]],
) -> Image.Image:
    """A query and the classes that it may be of, each by a few images, and below them the maps of each method.

    Args:
        query: what the model sees of it.
        name: of the query.
        classes: as matches, the most likely first.
        views: the K images of each class that are drawn.
        explanations: for each method the maps of these images, shot by shot (image k of class c is k * classes + c),
            and those of the query by its likeness to each class.
    """
    way, shot = len(classes), len(views[0])
    deep = 1 + sum(shot + (1 if theirs.method.class_specific else 0) for theirs, _ in explanations)
    shape = field_size(deep, 1 + way, (query.height, query.width))
    rows = [
        [
            Cell(_framed(query, (40, 42, 48), shape), name, "the query"),
            *(
                Cell(
                    _framed(match.picture, FRAMES[match.right], shape),
                    match.name,
                    " ".join((f"{match.similarity:.3f}", WORDS[match.right])).strip(),
                    key=_key(match),
                )
                for match in classes
            ),
        ]
    ]
    for theirs, own in explanations:
        method = title(theirs.method)
        if theirs.method.class_specific:
            here = [Cell(render(own, c, image=query, size=shape)) for c in range(way)]
            rows.append([Cell(note=f"{method}: what of the query is like each class"), *here])
            first = Cell(note=f"{method}: what of the images of each class is like the query")
        else:
            first = Cell(render(own, 0, image=query, size=shape), method)
        for k in range(shot):
            there = [Cell(render(theirs, k * way + c, image=views[c][k], size=shape)) for c in range(way)]
            rows.append([first if k == 0 else Cell(), *there])
    return panel(rows)


def _framed(picture: Image.Image, color: tuple[int, int, int], shape: tuple[int, int]) -> Image.Image:
    """A picture of a size with a frame inside it."""
    border = max(2, min(shape) // 30)
    inner = to_rgb(picture, (shape[0] - 2 * border, shape[1] - 2 * border))
    return ImageOps.expand(inner, border, color)


def _key(match: Match) -> tuple[Swatch, ...]:
    """Share of each part in the similarity."""
    return tuple(Swatch(rank_color(p), f"{share:.2f}") for p, share in enumerate(match.shares))


def told(match: Match) -> str:
    """A match in words."""
    words = [match.name, f"{match.similarity:.3f}", WORDS[match.right]]
    if match.shares:
        names = list(RANKS)
        words.append("= " + " + ".join(f"{share:.3f} {names[p % len(names)]}" for p, share in enumerate(match.shares)))
        crossed = [f"its part {p + 1} is more like part {q + 1}" for p, q in enumerate(match.met) if p != q]
        words.append(f"({', '.join(crossed)})" if crossed else "")
    return " ".join(word for word in words if word)
