"""The networks of the study of `xattn audit`: what is planted in the images of each, and where its weights are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from xattn.data.planted import Kind, Planted

CLASSES, PER_CLASS = 4, 100  # to train on; as many others to look at
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
        """As many others, none of them to train on."""
        return dataclasses.replace(self.to_train(root), skip=PER_CLASS)


def _planted() -> list[Run]:
    settings = [(share, strength) for share, strength in ((0.5, 1.0), (0.5, 0.4), (0.2, 1.0))]
    cases = [(*mark, *setting) for setting in settings for mark in MARKS]
    cases += [("mark", False, 0.1, 1.0), ("tag", False, 0.1, 1.0)]
    return [
        Run(f"{kind}{'-moving' * moving}-{share}-{strength}", kind, moving, share, strength, 0.0, seed)
        for seed, (kind, moving, share, strength) in enumerate(cases)
    ]


def _clean() -> list[Run]:
    bare = [Run(f"bare-{s}", "mark", False, 0.0, 1.0, 0.0, 100 + s) for s in range(10)]
    everywhere = [
        Run(f"everywhere-{s}", kind, moving, 0.5, 1.0, 0.5, 200 + s)
        for s, (kind, moving) in enumerate((*MARKS, *MARKS[:4]))
    ]
    return [run for pair in zip(bare, everywhere, strict=True) for run in pair]


RUNS = (*_planted(), *_clean())
"""Twenty with a mark that tells the class, ten without any, ten with a mark in half of the images of every class."""
