"""The contract of a task: how batches are sampled, the loss, and the evaluation."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from xattn.errors import DataError, ParameterError, XattnWarning

if TYPE_CHECKING:
    from collections.abc import Callable

    from xattn.models.heads import Classifier
    from xattn.training.data import Source


@dataclass(frozen=True)
class Row:
    """One line of what was measured.

    Args:
        name: of the measure.
        value: as text.
        note: what it is.
    """

    name: str
    value: str
    note: str = ""


class Task(ABC):
    """What a network is trained for. Subclasses are frozen dataclasses; their fields are the parameters of the task.

    Attributes:
        name: in recipes and on the command line; registering sets it.
        measure: of those that `judge` gives, the one that chooses the best epoch: the higher, the better.
        compares: the network is judged by the features of images whose classes it was not trained on, instead of by
            its classes; whole classes are held out then.
        neck: the head gets batch norm between its pooled features and the classifier.
    """

    name: ClassVar[str]
    measure: ClassVar[str] = "accuracy"
    compares: ClassVar[bool] = True
    neck: ClassVar[bool] = False

    def hold_out(self, labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
        """Divide the training images, here by class: those of some classes are held out to choose the best epoch.

        Args:
            labels: class of each image (n,).
            share: of the classes, at least `least_held` of them.
            seed: of the choice.

        Returns:
            Indices of the images to train with and of those held out, both in order.

        Raises:
            DataError: if there are too few classes.
        """
        classes = labels.unique(sorted=True)
        count = max(self.least_held, round(share * len(classes)))
        if len(classes) - count < 2:
            raise DataError(
                f"{self.name}: of {len(classes)} classes {count} are held out to choose the best epoch, which leaves "
                f"{max(0, len(classes) - count)} to train on, and two are needed; name a part for it "
                "(data.validation), or take data with more classes."
            )
        chosen = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))[:count]
        held = torch.isin(labels, classes[chosen])
        return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()

    @property
    def distils(self) -> bool:
        """Whether it learns classes, which a teacher can teach."""
        return True

    @property
    def scales(self) -> bool:
        """Whether the weights and the statistics stay, and scales and shifts of the weights alone are learned."""
        return False

    @property
    def least_held(self) -> int:
        """Classes that an evaluation needs at least."""
        return 2

    def check(self, labels: Tensor, held: Tensor, groups: Tensor | None, batch: int, world: int) -> None:  # noqa: B027
        """Refuse data that the task cannot work with, before training starts.

        Args:
            labels: class of each training image (n,), from 0 on.
            held: class of each held-out image (m,).
            groups: of the held-out images (m,), where they are known.
            batch: images in a batch of a process.
            world: number of processes.

        Raises:
            DataError: for images that do not suit.
            ParameterError: for a batch that does not.
        """

    @abstractmethod
    def order(self, labels: Tensor, batch: int, steps: int, generator: torch.Generator) -> Tensor | None:
        """Places (steps * batch,) of the training images (n,) of an epoch; None is each image once, at random."""

    def loss(self, classes: Tensor, embedding: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, here that of the classes alone.

        Args:
            classes: cross-entropy with label smoothing, or the loss of distillation, a scalar.
            embedding: pooled features (N, D), before the neck.
            target: classes (N,).
        """
        return classes

    def judge(self, features: Tensor, labels: Tensor, groups: Tensor | None) -> dict[str, float]:
        """Measures of held-out images by their features, where the task `compares`.

        Args:
            features: (m, D), as they are compared.
            labels: classes (m,), none of those trained on.
            groups: camera or day (m,), where they are known.
        """
        raise NotImplementedError

    @abstractmethod
    def evaluate(
        self, model: Classifier, open_part: Callable[[str | None], Source], split: str | None, **options: Any
    ) -> tuple[dict[str, Any], list[Row]]:
        """Judge a trained network on a test part.

        Args:
            model: backbone and head.
            open_part: gives the images of a part by its name.
            split: the part; None is the one that the task is tested on.
            options: batch size, device, rank heads.

        Returns:
            Plain values for JSON, and the same for people.
        """


def groups_of_classes(labels: Tensor, batch: int, each: int, steps: int, generator: torch.Generator) -> Tensor:
    """Batches of P classes with K images each, as losses that compare images need them (PK sampling).

    The classes of a batch are different and come about equally often: in a random order, of which what does not fill a
    batch is left out; so do the images of a class. A class with fewer than K images gives some of them twice.

    Args:
        labels: class of each image (n,).
        batch: P * K.
        each: K.
        steps: batches.
        generator: of the order.

    Returns:
        Places, int64 (steps * batch,), the images of a class side by side.
    """
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    members = [m for m in order.split(counts.tolist()) if len(m)]
    number = batch // each
    left: list[list[int]] = [[] for _ in members]
    queue: list[int] = []
    chosen: list[int] = []
    for _ in range(steps):
        if len(queue) < number:
            queue = torch.randperm(len(members), generator=generator).tolist()
        now, queue = queue[:number], queue[number:]
        for c in now:
            while len(left[c]) < each:
                left[c] += members[c][torch.randperm(len(members[c]), generator=generator)].tolist()
            chosen += left[c][:each]
            left[c] = left[c][each:]
    return torch.tensor(chosen)


def check_groups(task: str, labels: Tensor, batch: int, world: int, each: int, key: str) -> None:
    """Whether batches of P classes with K images can be made.

    Raises:
        ParameterError: if not.
    """
    classes = len(labels.unique())
    if batch % each or batch // each < 2:
        raise ParameterError(
            f"{task}: a batch of {batch} images cannot be divided in two classes or more of {each} images each; make "
            f"run.batch_size a multiple of {each}, or change {key}."
        )
    if batch * world // each > classes:
        raise ParameterError(
            f"{task}: a batch of {batch * world} images needs {batch * world // each} classes of {each} images but "
            f"there are {classes} classes to train on; lower run.batch_size to {classes // world * each} at most, or "
            f"raise {key}."
        )
    small = int((labels.unique(return_counts=True)[1] < each).sum())
    if small:
        warnings.warn(
            f"{task}: {small} of {classes} classes to train on have fewer than {each} images, some of which come twice "
            "in a batch.",
            XattnWarning,
            stacklevel=2,
        )
