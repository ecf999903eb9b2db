"""The scalar that is explained: a function of the logits (N, K) and the target (N,) that gives (N,).

A model with one output (K = 1) is a binary classifier: class 1 has the logit z, class 0 has -z.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xattn.errors import ShapeError, unknown

ScoreFn = Callable[[Tensor, Tensor], Tensor]


def _of_target(logits: Tensor, target: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return torch.where(target == 1, logits[:, 0], -logits[:, 0])
    return logits.gather(1, target[:, None])[:, 0]


def probabilities(logits: Tensor) -> Tensor:
    """Probabilities (N, K) of the classes: softmax, or those of both classes (N, 2) of a binary model."""
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


def find_score(score: str | ScoreFn) -> ScoreFn:
    """The score called `score`, or the callable itself.

    Raises:
        UnknownNameError: with the nearest name.
    """
    if callable(score):
        return score
    try:
        return SCORES[score.lower()]
    except KeyError:
        raise unknown("score", score, SCORES) from None


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
