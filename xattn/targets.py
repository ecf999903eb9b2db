"""What is explained: a class, a number, a difference, a likeness, a region, a box, or any function of the outputs.

A `Target` reads what a model returns and makes one number of it for each image. A pass holds what was read, (N, D), and
an int64 tensor (N,) beside it: the class, or the number of the image for a target that has data of its own for each.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError, ParameterError, ShapeError, UnknownNameError
from xattn.outputs import Which, choose, rows, spelled, take
from xattn.score import ScoreFn, find_score, logit, probabilities
from xattn.spec import ModelSpec


def logits_of(output: Any, model: nn.Module, images: int, which: Which = None) -> Tensor:
    """The class scores, or other numbers (N, K), in what a model returned.

    Args:
        output: what it returned.
        model: for messages.
        images: number of images N.
        which: the key, index, path or function that leads to them; none finds them.

    Raises:
        NotApplicableError: if there is no tensor with one row per image.
    """
    named = callable(which) or which not in (None, ())
    try:
        chosen = take(output, which) if named else output
        if isinstance(chosen, Tensor) and chosen.ndim == 2:
            return chosen
        values = rows(take(chosen, None), images) if named else choose(output, images).values
    except NotApplicableError as reason:
        raise NotApplicableError(f"{type(model).__name__}: {reason}") from None
    if values is None:
        name = spelled(which) if isinstance(which, tuple) else "output" if callable(which) else spelled((which,))  # type: ignore[arg-type]
        maps = " Of maps (N, K, H, W) explain a region: target=xattn.Region(mask, class)." if chosen.ndim == 4 else ""
        raise NotApplicableError(
            f"{type(model).__name__}: {name} has no row of class scores for each of {images} images; "
            f"correct output= or ModelSpec.output.{maps}"
        )
    return values


class Target(ABC):
    """What is explained: one number for each image, made of what a model returns.

    Attributes:
        by_class: the index of an image is a column of what is read, and the score is made of that column.
        has_classes: what is read are class scores, so that there are a predicted class, other classes, probabilities.
    """

    by_class: ClassVar[bool] = False
    has_classes: ClassVar[bool] = False

    def which(self, model: nn.Module, output: Which) -> Which:
        """The output by which facts about a model are found; None finds it."""
        return output

    def read(self, output: Any, model: nn.Module, images: int, which: Which) -> Tensor:
        """What the score is made of, one row (N, D) for each image.

        Raises:
            NotApplicableError: if a model does not return what the target needs.
        """
        return logits_of(output, model, images, which)

    def prepare(self, run: Callable[[Tensor], Tensor]) -> Target:
        """The target before the first pass; `run` gives what the model makes of other images."""
        return self

    def bind(self, output: Any, values: Tensor, spec: ModelSpec, which: Which) -> tuple[Target, Tensor]:
        """The target with what it needs for these images, and its index (N,).

        Args:
            output: what the model returned.
            values: what was read of it (N, D).
            spec: facts about the model.
            which: the output that is explained, if it was named.
        """
        return self, torch.arange(len(values), device=values.device)

    @abstractmethod
    def score(self, values: Tensor, index: Tensor) -> Tensor:
        """The number (M,) that is explained, of what was read (M, D) and the index (M,)."""

    def scorer(self, score: str | ScoreFn, values: str) -> ScoreFn:
        """The score called `score` of this target; where it is no class all names mean the number itself."""
        if callable(score):
            return score
        find_score(score, values)
        return self.score

    def probability(self, values: Tensor, index: Tensor, kind: str) -> Tensor | None:
        """What the model gives the target (N,); None where there is no such thing."""
        return None

    @abstractmethod
    def text(self, i: int, spec: ModelSpec) -> str:
        """What is explained in image `i`, in words."""


def name_of(name: Any, spec: ModelSpec) -> str:
    """A class in words."""
    return name if isinstance(name, str) else spec.class_name(int(name))


def indices_of(target: Any, spec: ModelSpec, count: int, classes: int, like: Tensor) -> Tensor:
    """Classes as int64 (N,): indices or names, one for all or one for each image; one-hot rows too.

    Raises:
        ShapeError: if there are fewer or more than images.
        ParameterError: if one is no class of the model.
    """
    if isinstance(target, str):
        target = spec.class_index(target)
    elif isinstance(target, (list, tuple)) and any(isinstance(t, (str, np.str_)) for t in target):
        target = [spec.class_index(str(t)) if isinstance(t, (str, np.str_)) else t for t in target]
    elif isinstance(target, np.ndarray) and target.dtype.kind in "US":
        target = [spec.class_index(str(t)) for t in target.ravel()]
    if isinstance(target, int) and not 0 <= target < classes:  # it may be too large for a tensor
        raise ParameterError(f"target: class {target} does not exist; the model has classes 0 to {classes - 1}.")
    try:
        chosen = torch.as_tensor(target, device=like.device)
    except (TypeError, ValueError, RuntimeError):
        raise ParameterError(
            f"target: expected indices or names of classes but got {type(target).__name__}; pass one for all images, "
            "one for each, or an xattn target such as xattn.Scalar()."
        ) from None
    if chosen.ndim == 2 and chosen.shape[1] == classes and len(chosen) in (1, count):
        if not bool((((chosen == 0) | (chosen == 1)).all(1) & ((chosen == 1).sum(1) == 1)).all()):
            raise ParameterError(
                f"target: rows of {classes} values must be one-hot, a one among zeros; pass one index for each image."
            )
        chosen = (chosen == 1).int().argmax(dim=1)
        chosen = chosen.expand(count) if len(chosen) == 1 else chosen
    if chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool:
        raise ParameterError(
            f"target: expected class indices (integers) but got {chosen.dtype} of shape {tuple(chosen.shape)}; "
            "pass indices, or one-hot rows with a column for each class."
        )
    if chosen.ndim == 0:
        chosen = chosen.expand(count)
    if chosen.shape != (count,):
        raise ShapeError(
            f"target: {tuple(chosen.shape)} does not fit {count} images; pass one class for all or one for each."
        )
    if bool(((chosen < 0) | (chosen >= classes)).any()):
        wrong = chosen[(chosen < 0) | (chosen >= classes)][0].item()
        raise ParameterError(f"target: class {wrong} does not exist; the model has classes 0 to {classes - 1}.")
    return chosen.long()


@dataclass(frozen=True, eq=False)
class Class(Target):
    """A class of a classifier; a model with one output has the classes 0 and 1.

    Args:
        classes: index or name, one for all images or one for each, one-hot rows; None is the predicted class.
    """

    by_class: ClassVar[bool] = True
    has_classes: ClassVar[bool] = True
    classes: Any = None

    def bind(self, output: Any, values: Tensor, spec: ModelSpec, which: Which) -> tuple[Target, Tensor]:
        n, k = values.shape
        if self.classes is None:
            return self, (values if k > 1 else probabilities(values, spec.values)).argmax(dim=1)
        return self, indices_of(self.classes, spec, n, max(k, 2), values)

    def score(self, values: Tensor, index: Tensor) -> Tensor:
        return logit(values, index)

    def scorer(self, score: str | ScoreFn, values: str) -> ScoreFn:
        return find_score(score, values)

    def probability(self, values: Tensor, index: Tensor, kind: str) -> Tensor | None:
        return probabilities(values, kind).gather(1, index[:, None])[:, 0]

    def text(self, i: int, spec: ModelSpec) -> str:
        return "the predicted class" if self.classes is None else f"class {self.classes}"


@dataclass(frozen=True, eq=False)
class MultiLabel(Class):
    """A label of a model that gives each label a probability of its own: the sigmoid of its logit.

    Args:
        classes: index or name, one for all images or one for each, one-hot rows.
    """

    def scorer(self, score: str | ScoreFn, values: str) -> ScoreFn:
        return find_score(score if callable(score) else "sigmoid", values)

    def probability(self, values: Tensor, index: Tensor, kind: str) -> Tensor | None:
        return find_score("sigmoid", kind)(values, index)


@dataclass(frozen=True, eq=False)
class Scalar(Target):
    """A number that a regression network gives: the value itself, in one direction for all images.

    Args:
        index: which of several numbers.
    """

    by_class: ClassVar[bool] = True
    index: int = 0

    def bind(self, output: Any, values: Tensor, spec: ModelSpec, which: Which) -> tuple[Target, Tensor]:
        n, k = values.shape
        if type(self.index) is not int or not 0 <= self.index < k:
            raise ParameterError(
                f"target: the model gives {k} number{'s' * (k > 1)}; Scalar(index={self.index!r}) must be one of "
                f"0 to {k - 1}."
            )
        # The one number of a model stands where class 1 of a binary one does.
        return self, torch.full((n,), self.index if k > 1 else 1, device=values.device)

    def score(self, values: Tensor, index: Tensor) -> Tensor:
        return logit(values, index)

    def text(self, i: int, spec: ModelSpec) -> str:
        return spec.classes[self.index] if self.index < len(spec.classes) else f"value {self.index}"


@dataclass(frozen=True, eq=False)
class Difference(Target):
    """What speaks for one class rather than another: the difference of their scores.

    Args:
        a: the class, index or name, one for all images or one for each.
        b: the class that it is compared with.
    """

    has_classes: ClassVar[bool] = True
    a: Any
    b: Any

    def bind(self, output: Any, values: Tensor, spec: ModelSpec, which: Which) -> tuple[Target, Tensor]:
        n, k = values.shape
        a, b = (indices_of(c, spec, n, max(k, 2), values) for c in (self.a, self.b))
        if bool((a == b).any()):
            raise ParameterError("target: the two classes of a Difference are the same, so it is zero; choose two.")
        return replace(self, a=a, b=b), torch.arange(n, device=values.device)

    def score(self, values: Tensor, index: Tensor) -> Tensor:
        return self.scorer("logit", "logits")(values, index)

    def scorer(self, score: str | ScoreFn, values: str) -> ScoreFn:
        if callable(score):
            return score
        of, a, b = find_score(score, values), self.a, self.b
        return lambda z, index: of(z, a.to(z.device)[index]) - of(z, b.to(z.device)[index])

    def text(self, i: int, spec: ModelSpec) -> str:
        return " - ".join(name_of(c[i] if isinstance(c, Tensor) else c, spec) for c in (self.a, self.b))


@dataclass(frozen=True, eq=False)
class Similarity(Target):
    """How alike the embedding of an image is to another one: their cosine.

    For networks without a classifier: metric learning, Siamese networks, CLIP by the embedding of a text.

    Args:
        to: an embedding (D,), one for each image (N, D), or a normalized image (C, H, W) or (1 or N, C, H, W), which
            the model itself embeds, once. `explain` also takes what it takes as an image: a path, a photograph.
    """

    to: Any

    def prepare(self, run: Callable[[Tensor], Tensor]) -> Target:
        to = torch.as_tensor(self.to).detach()
        if not to.is_floating_point() or to.ndim not in (1, 2, 3, 4):
            raise ShapeError(
                "target: Similarity expects an embedding (D,) or (N, D), or normalized images (N, C, H, W), but got "
                f"{to.dtype} of shape {tuple(to.shape)}."
            )
        return replace(self, to=run(to[None] if to.ndim == 3 else to) if to.ndim > 2 else to.reshape(-1, to.shape[-1]))

    def bind(self, output: Any, values: Tensor, spec: ModelSpec, which: Which) -> tuple[Target, Tensor]:
        n, d = values.shape
        if self.to.shape[1] != d or len(self.to) not in (1, n):
            raise ShapeError(
                f"target: an embedding of shape {tuple(self.to.shape)} does not fit {n} images that the model embeds "
                f"as ({n}, {d}); pass one for all or one for each."
            )
        if not bool(self.to.norm(dim=1).gt(0).all()):
            raise ParameterError("target: an embedding of zeros has no direction to be similar to.")
        return replace(self, to=self.to.to(values.device).expand(n, d)), torch.arange(n, device=values.device)

    def score(self, values: Tensor, index: Tensor) -> Tensor:
        return torch.cosine_similarity(values, self.to.to(values)[index], dim=1)

    def text(self, i: int, spec: ModelSpec) -> str:
        return "similarity"


@dataclass(frozen=True, eq=False)
class Function(Target):
    """Any function of all that a model returns.

    Args:
        function: from the raw outputs to one number for each image (N,).
        name: in words.
    """

    function: Callable[[Any], Tensor]
    name: str = ""

    def which(self, model: nn.Module, output: Which) -> Which:
        return lambda out: self._values(out)

    def _values(self, output: Any) -> Tensor:
        value: Any = self.function(output)
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim != 1:
            kind = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ShapeError(
                f"target: {self.text(0)} must give one number for each image, a float tensor (N,), but gave {kind}; do "
                "not reduce over the batch."
            )
        return value[:, None]

    def read(self, output: Any, model: nn.Module, images: int, which: Which) -> Tensor:
        values = self._values(output)
        if len(values) != images:
            raise ShapeError(
                f"target: {self.text(0)} gave {len(values)} numbers for {images} images; do not reduce over the batch."
            )
        return values

    def score(self, values: Tensor, index: Tensor) -> Tensor:
        return values[:, 0]

    def text(self, i: int, spec: ModelSpec | None = None) -> str:
        name = self.name or getattr(self.function, "__name__", type(self.function).__name__)
        return "a function" if name == "<lambda>" else name


def parse_target(text: str, spec: ModelSpec) -> Target:
    """A target as one writes it: a class, `scalar`, `scalar:1`, or two classes as `a - b`.

    Raises:
        UnknownNameError: for a class that does not exist, with the nearest name.
    """
    try:
        return Class(spec.class_index(text))
    except UnknownNameError as reason:
        if (scalar := _scalar(text)) is not None:
            return scalar
        a, dash, b = text.partition(" - ")
        if not dash:
            raise reason from None
    return Difference(spec.class_index(a), spec.class_index(b))


def _scalar(text: str) -> Scalar | None:
    match = re.fullmatch(r"scalar(?::(\d{1,6}))?", text.strip().lower())
    return None if match is None else Scalar(int(match[1] or 0))


def as_target(target: Any, spec: ModelSpec | None = None) -> Target:
    """A target object of what a person passes: one of these objects, a text, a function, or classes."""
    if isinstance(target, Target):
        return target
    if isinstance(target, str):
        return parse_target(target, spec) if spec is not None else _scalar(target) or Class(target)
    if callable(target) and not isinstance(target, (Tensor, np.ndarray)):
        return Function(target)
    return Class(target)
