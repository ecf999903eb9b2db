"""The scalar that is explained: a function of the class scores (N, K) and the target (N,) that gives (N,).

A model with one output (K = 1) is a binary classifier: class 1 has the logit z, class 0 has -z. What a model gives as
probabilities or as their logarithms is used as it is: no softmax is put on top of one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xattn.errors import NotApplicableError, ShapeError, unknown

ScoreFn = Callable[[Tensor, Tensor], Tensor]


def _of_target(logits: Tensor, target: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return torch.where(target == 1, logits[:, 0], -logits[:, 0])
    return logits.gather(1, target[:, None])[:, 0]


def probabilities(logits: Tensor, values: str = "logits") -> Tensor:
    """Probabilities (N, K) of the classes: softmax, or those of both classes (N, 2) of a binary model.

    Args:
        logits: what the model gives (N, K).
        values: what these are, as `ModelSpec.values`.
    """
    if values != "logits":
        given = logits.exp() if values == "log-probabilities" else logits
        return given if given.shape[1] > 1 else torch.cat([1 - given, given], dim=1)
    return logits.softmax(dim=1) if logits.shape[1] > 1 else torch.cat([-logits, logits], dim=1).sigmoid()


def logit(logits: Tensor, target: Tensor) -> Tensor:
    """The logit of the target class: what the papers of the CAM family explain."""
    return _of_target(logits, target)


def prob(logits: Tensor, target: Tensor) -> Tensor:
    """The softmax probability of the target class; also rises when the other classes fall."""
    return probabilities(logits).gather(1, target[:, None])[:, 0]


def sigmoid(logits: Tensor, target: Tensor) -> Tensor:
    """The sigmoid of the target's logit: the probability in multi-label and binary models."""
    return _of_target(logits, target).sigmoid()


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """The target's logit less the largest logit of the other classes: why this class rather than the next."""
    if logits.shape[1] == 1:
        return _of_target(logits, target)
    others = logits.masked_fill(torch.nn.functional.one_hot(target, logits.shape[1]).bool(), -torch.inf)
    return _of_target(logits, target) - others.amax(dim=1)


SCORES: dict[str, ScoreFn] = {"logit": logit, "prob": prob, "sigmoid": sigmoid, "margin": margin}


def _given(values: Tensor, target: Tensor) -> Tensor:
    """The value of the target as the model gives it, where that is a probability or its logarithm."""
    if values.shape[1] > 1:
        return _of_target(values, target)
    return torch.where(target == 1, values[:, 0], 1 - values[:, 0])


def _given_margin(values: Tensor, target: Tensor) -> Tensor:
    return _given(values, target) - _given(values, 1 - target) if values.shape[1] == 1 else margin(values, target)


# What the names mean for a model that gives probabilities, or their logarithms.
_OF_PROBABILITIES: dict[str, ScoreFn] = {"logit": _given, "prob": _given, "sigmoid": _given, "margin": _given_margin}


def _of_logarithms(score: ScoreFn) -> ScoreFn:
    return lambda values, target: score(values.exp(), target)


def find_score(score: str | ScoreFn, values: str = "logits") -> ScoreFn:
    """The score called `score` of a model that gives `values`, or the callable itself.

    Of probabilities every name but `margin` is the probability of the target itself; of their logarithms `logit` is
    the logarithm.

    Raises:
        UnknownNameError: with the nearest name.
        NotApplicableError: for a score that has no meaning for these values.
    """
    if callable(score):
        return score
    name = score.lower()
    if name not in SCORES:
        raise unknown("score", score, SCORES)
    if values == "logits" or (values == "log-probabilities" and name in ("logit", "margin")):
        return SCORES[name]
    if name not in _OF_PROBABILITIES:
        raise NotApplicableError(
            f"score '{name}' is not defined for a model that gives {values}; choose {', '.join(_OF_PROBABILITIES)}."
        )
    return _OF_PROBABILITIES[name] if values == "probabilities" else _of_logarithms(_OF_PROBABILITIES[name])


def apply_score(score: ScoreFn, logits: Tensor, target: Tensor) -> Tensor:
    """Score (N,) of the logits (N, K); a callable that gives another shape is refused.

    Raises:
        ShapeError: if the score is not one value per image, which would couple the images of a batch.
    """
    value = score(logits, target)
    if value.shape != (len(logits),):
        raise ShapeError(
            f"score: expected one value per image, shape ({len(logits)},), but the callable gave {tuple(value.shape)}; "
            "do not reduce over the batch."
        )
    return value
