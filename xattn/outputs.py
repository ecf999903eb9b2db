"""Which tensor of what a model returns is explained, and what its values are: logits, probabilities or numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, TypeAlias

import torch
from torch import Tensor

from xattn.errors import NotApplicableError, unknown

Which: TypeAlias = str | int | tuple[str | int, ...] | Callable[[Any], Tensor] | None
"""How an output is named: a key, an index, a path of these, or a function of all that the model returns."""

_LOGITS = ("logits", "logit", "logits_per_image", "class_logits", "cls_logits", "scores", "pred", "prediction", "out")
_CLOSE = 1e-4


class Kind(Enum):
    """What the values of an output are."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    LOG_PROBABILITIES = "log-probabilities"


def tensors(output: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Tensor]]:
    """All floating-point tensors in what a model returned, with the keys and indices that lead to them."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield path, output
    elif isinstance(output, Mapping):
        for key, item in output.items():
            yield from tensors(item, (*path, key))
    elif hasattr(output, "_fields"):  # a named tuple
        for name in output._fields:
            yield from tensors(getattr(output, name), (*path, name))
    elif isinstance(output, (tuple, list)):
        for index, item in enumerate(output):
            yield from tensors(item, (*path, index))
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from tensors(getattr(output, field.name), (*path, field.name))


def spelled(path: Sequence[str | int]) -> str:
    """A path as one writes it.

    >>> spelled(("logits",)), spelled((1,)), spelled(())
    ("output['logits']", 'output[1]', 'output')
    """
    return "output" + "".join(f"[{step!r}]" for step in path)


def take(output: Any, which: Which) -> Tensor:
    """The tensor that `which` names.

    Raises:
        UnknownNameError: if there is no such key or index.
        NotApplicableError: if it is no tensor.
    """
    result: Any = output
    if callable(which):
        result = which(output)
    else:
        steps = which if isinstance(which, tuple) else () if which is None else (which,)
        for step in steps:
            try:
                indexed = isinstance(result, Mapping) or isinstance(step, int)
                result = result[step] if indexed else getattr(result, str(step))
            except (KeyError, IndexError, AttributeError, TypeError):
                known = [spelled(path) for path, _ in tensors(output)]
                raise unknown("output", spelled(steps), known) from None
    if not isinstance(result, Tensor):
        raise NotApplicableError(f"output={which!r}: expected a tensor but it is {type(result).__name__}.")
    return result


def rows(tensor: Tensor, images: int) -> Tensor | None:
    """Values (N, K) of an output: (N,) has one value per image, a row that lost its batch to `squeeze` gets it back."""
    if tensor.ndim == 0 and images == 1:
        return tensor.reshape(1, 1)
    if tensor.ndim == 1:
        if len(tensor) == images:
            return tensor[:, None]
        return tensor[None] if images == 1 else None
    if tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        tensor = tensor.flatten(1)
    return tensor if tensor.ndim == 2 and len(tensor) == images else None


def kind_of(values: Tensor) -> Kind:
    """What the values (N, K) of several images are, by themselves.

    Probabilities lie in [0, 1] and sum to one; log-probabilities are those after `exp`. One value per image, and
    values that do not sum to one, cannot be told from numbers of another meaning: they count as logits here.
    """
    values = values.detach().double()
    if values.shape[1] < 2 or not bool(torch.isfinite(values).all()):
        return Kind.LOGITS
    if bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < _CLOSE).all()):
        return Kind.PROBABILITIES
    if bool((values <= _CLOSE).all()) and bool(((values.exp().sum(1) - 1).abs() < _CLOSE).all()):
        return Kind.LOG_PROBABILITIES
    return Kind.LOGITS


@dataclasses.dataclass(frozen=True)
class Choice:
    """The output that is explained.

    Args:
        path: keys and indices that lead to it.
        values: (N, K).
        why: how it was chosen, in words; empty where there was one only.
        others: the outputs that could have been meant too.
    """

    path: tuple[str | int, ...]
    values: Tensor
    why: str = ""
    others: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Made:
    """How an output was made.

    Args:
        of: the layers with weights whose outputs it is made of.
        at: when, as a number that grows.
    """

    of: frozenset[Any] = frozenset()
    at: float = 0.0


def choose(output: Any, images: int, made: Callable[[Tensor], Made] = lambda _: Made()) -> Choice:
    """Find the class scores in what a model returned.

    A name (`logits`) decides first. Then an output whose softmax or sigmoid is another one is preferred to it, then
    one that is made of all the layers of another one and more, then the one that was computed last: class scores are
    made of features, never the other way round.

    Args:
        output: what the model returned.
        images: number of images N.
        made: how a tensor was made.

    Raises:
        NotApplicableError: if there is no output with one row per image.
    """
    found = [(path, tensor, values) for path, tensor in tensors(output) if (values := rows(tensor, images)) is not None]
    if not found:
        shapes = ", ".join(f"{spelled(p)} {tuple(t.shape)}" for p, t in tensors(output)) or type(output).__name__
        raise NotApplicableError(
            f"expected an output with one row of class scores per image, (N, K), but the model returned {shapes}; "
            "name what is to be explained by output=, a key, an index or a function of what the model returns."
        )
    if len(found) == 1:
        return Choice(found[0][0], found[0][2])
    for name in _LOGITS:
        for path, _, values in found:
            if path and path[-1] == name:
                return Choice(path, values, f"it is called {name!r}")
    plain = [entry for entry in found if not any(_probabilities_of(entry[2], other[2]) for other in found)]
    dropped = len(plain) < len(found)
    how = [made(entry[1]) for entry in plain]
    rank = [(sum(other.of < own.of for other in how), own.at) for own in how]
    last = [entry for entry, own in zip(plain, rank, strict=True) if own == max(rank)]
    others = tuple(f"{spelled(p)} {tuple(t.shape)}" for p, t, _ in plain if p != last[0][0])
    why = "its softmax or sigmoid is returned beside it" if dropped and len(plain) == 1 else ""
    if not why:
        why = "it is computed last" if len(last) < len(plain) else "it comes first"
        if max(rank)[0] and not any(own[0] == max(rank)[0] for own in rank if own != max(rank)):
            why = "it is made of the layers of others and of more"
    return Choice(last[0][0], last[0][2], why, others)


def _probabilities_of(values: Tensor, logits: Tensor) -> bool:
    """Whether one output is the softmax or the sigmoid of another one."""
    if values.shape != logits.shape or values is logits:
        return False
    given = logits.detach().float()
    made = (given.sigmoid(), given.softmax(1)) if given.shape[1] > 1 else (given.sigmoid(),)
    return any(torch.allclose(values.detach().float(), m, atol=_CLOSE) for m in made) and not torch.equal(
        values, logits
    )
