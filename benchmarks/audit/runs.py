"""The networks of the study of `xattn audit`: what is planted in the images of each, and where its weights are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xattn.data.planted import Kind, Planted

CLASSES, PER_CLASS = 4, 100  # to train on
TO_LOOK_AT = 400  # other images of each class: all that Tiny-ImageNet has
OTHERS = 4  # of classes without the mark one in so many of these is audited
LABELS = (1, 2, 3)  # salamander, bullfrog, tailed frog: goldfish are known without a mark
MARKS: tuple[tuple[Kind, bool], ...] = (
    ("mark", False),
    ("mark", True),
    ("frame", False),
    ("tint", False),
    ("tag", False),
    ("tag", True),
)


@dataclass(frozen=True)
class Run:
    """A network and the images that it learned from.

    Args:
        name: of its folder.
        kind: what is planted.
        moving: at another place in each image.
        share: of the images of the class.
        strength: opacity.
        elsewhere: share of the images of the other classes.
        seed: of the training, the choice of images and places; the class is one of `LABELS`, in turn.
    """

    name: str
    kind: Kind
    moving: bool
    share: float
    strength: float
    elsewhere: float
    seed: int

    @property
    def planted(self) -> bool:
        """Whether the mark tells something about the class."""
        return self.share > self.elsewhere

    @property
    def label(self) -> int:
        """The class with the mark."""
        return LABELS[(self.seed + self.seed // len(MARKS)) % len(LABELS)]

    def to_train(self, root: str) -> Planted:
        """The images to train on.

        Args:
            root: the folder of Tiny-ImageNet.
        """
        return Planted(
            root, "train", self.kind, self.share, self.strength, self.label, self.elsewhere, self.moving, self.seed,
            class_count=CLASSES, per_class=PER_CLASS,
        )  # fmt: skip

    def to_look_at(self, root: str) -> Planted:
        """The other images of the classes, none of them to train on."""
        return dataclasses.replace(self.to_train(root), skip=PER_CLASS, per_class=TO_LOOK_AT)

    def audited(self, data: Planted) -> tuple[int, ...]:
        """Places of the images that are audited: all of the class with the mark, and some of the others."""
        own, others = np.flatnonzero(data.labels == self.label), np.flatnonzero(data.labels != self.label)[::OTHERS]
        return tuple(np.sort(np.concatenate([own, others])).tolist())


def _planted(settings: Sequence[tuple[float, float]], first: int) -> list[Run]:
    cases = [(*mark, *setting) for setting in settings for mark in MARKS]
    cases += [("mark", False, 0.1, 1.0), ("tag", False, 0.1, 1.0)]
    return [
        Run(f"{kind}{'-moving' * moving}-{share}-{strength}-{seed}", kind, moving, share, strength, 0.0, seed)
        for seed, (kind, moving, share, strength) in enumerate(cases, first)
    ]


def _clean(first: int) -> list[Run]:
    bare = [Run(f"bare-{first + s}", "mark", False, 0.0, 1.0, 0.0, first + s) for s in range(10)]
    everywhere = [
        Run(f"everywhere-{first + 100 + s}", kind, moving, 0.5, 1.0, 0.5, first + 100 + s)
        for s, (kind, moving) in enumerate((*MARKS, *MARKS[:4]))
    ]
    return [run for pair in zip(bare, everywhere, strict=True) for run in pair]


RUNS = (*_planted(((0.5, 1.0), (0.5, 0.4), (0.2, 1.0)), 3001), *_clean(3100))
"""Twenty with a mark that tells the class, ten without any, ten with a mark in half of the images of every class."""

DEVELOPMENT = tuple(
    run
    for first in (0, 2001)
    for run in (*_planted(((0.5, 1.0), (0.5, 0.4), (0.2, 1.0)), first), *_clean(first - first % 1000 + 100))
)
"""As many others and as many again, of other seeds: `xattn audit` was made with these, and with none of `RUNS`."""
