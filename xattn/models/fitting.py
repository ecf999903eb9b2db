"""The classifier of a converted network fitted to what the network itself says of images, without labels, at once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xattn.errors import DataError, ParameterError
from xattn.models.heads import Classifier
from xattn.models.shared_heads import SharedCellHead, SharedHead
from xattn.outputs import take
from xattn.running import evaluating
from xattn.spec import ModelSpec

RIDGES = (0.01, 0.1, 1.0, 10.0)
"""How hard a classifier may be held to the trained one, in shares of the mean squared length of what it reads."""

_FOLDS = 5
_BETTER = 0.95  # share of the divergence that a fit may leave
_ROUNDING = 1e-6  # a divergence below this is none


@dataclass(frozen=True)
class Fit:
    """What came of fitting a classifier.

    Args:
        images: number of images.
        ridge: how hard it is held; None: it was left as it was, since no fit brought it nearer on images held out.
        before: divergence from the network on the images without the fit, their mean.
        after: that on images held out with it; NaN where the ridge was given and nothing was held out.
    """

    images: int
    ridge: float | None
    before: float
    after: float


@torch.no_grad()
def fit(
    model: nn.Module,
    made: Classifier,
    batches: Iterable[Tensor],
    *,
    spec: ModelSpec,
    ridge: float | None = None,
) -> Fit:
    """Fit the classifier of a converted network to the logits of the network itself, in place.

    Ridge regression (Hoerl and Kennard 1970, doi:10.1080/00401706.1970.10488634) of what is missing: with v what the
    classifier reads of an image, D is least in sum |z(x) - z'(x) - D v|^2 + ridge * mean |v|^2 * |D|^2, for the logits
    z of the network and z' of the converted one, and is added to the weights. One pass over the images, no labels and
    no gradient; the layers before the classifier stay as they are.

    Args:
        model: the network.
        made: what `convert` made of it, with any resolution.
        batches: images (N, C, H, W) in the normalized space of the model.
        spec: facts about the model; `output` is read.
        ridge: larger stays nearer to the trained classifier. None takes what comes nearest to the network on images
            held out, by cross-validation, and leaves the classifier as it is where none comes nearer by a twentieth.

    Raises:
        ParameterError: if `ridge` is not positive.
        DataError: if there is no image, or a single one and no `ridge`.
    """
    if ridge is not None and not ridge > 0:
        raise ParameterError(f"fit: ridge must be positive but is {ridge}.")
    head = made.head
    if not isinstance(head, (SharedHead, SharedCellHead)):
        raise ParameterError(f"fit: the head is {type(head).__name__}; it is for what convert made.")
    read: list[Tensor] = []
    old: list[Tensor] = []
    new: list[Tensor] = []
    with evaluating(model), evaluating(made):
        for x in batches:
            features = made.backbone(x)
            read.append(head.embed(features).float())
            old.append(take(model(x), spec.output or None).float())
            new.append(head(features).float())
    if not read:
        raise DataError("fit: there is no image to fit on.")
    vectors, wanted, given = torch.cat(read), torch.cat(old), torch.cat(new)
    before, after = float(divergence(wanted, given).mean()), math.nan
    if ridge is None:
        ridge, after = best_ridge(vectors, wanted, given)
    if ridge is not None:
        head.correct(correction(vectors, wanted - given, ridge))
    return Fit(len(vectors), ridge, before, after)


def divergence(wanted: Tensor, given: Tensor) -> Tensor:
    """Kullback-Leibler divergence (N,) of the probabilities of some logits (N, K) from those of others.

    Of a single logit, which has no probabilities, the squared difference.
    """
    if wanted.shape[1] == 1:
        return (wanted - given).square().flatten()
    return (wanted.softmax(1) * (wanted.log_softmax(1) - given.log_softmax(1))).sum(1)


def best_ridge(read: Tensor, wanted: Tensor, given: Tensor) -> tuple[float | None, float]:
    """The ridge by which logits come nearest to others on images held out, five times a fifth of them.

    Args:
        read: what the classifier reads (N, C).
        wanted: logits of the network (N, K).
        given: logits of the converted one (N, K).

    Returns:
        One of `RIDGES`, or None where they are nearest without a fit; and the divergence with it.

    Raises:
        DataError: if there are fewer than two images.
    """
    if len(read) < 2:
        raise DataError(
            "fit: one image is too few to hold some out; pass more of them, or set the ridge (ridge=1, --ridge 1)."
        )
    fold = torch.arange(len(read), device=read.device) % min(_FOLDS, len(read))
    found: dict[float | None, float] = {None: float(divergence(wanted, given).mean())}
    for ridge in RIDGES:
        held: list[Tensor] = []
        for k in range(int(fold.max()) + 1):
            out = fold == k
            matrix = correction(read[~out], (wanted - given)[~out], ridge)
            held.append(divergence(wanted[out], given[out] + read[out] @ matrix.T))
        found[ridge] = float(torch.cat(held).mean())
    best = min(found, key=lambda ridge: found[ridge])
    if found[best] > _BETTER * found[None] or found[None] < _ROUNDING:
        best = None
    return best, found[best]


def correction(read: Tensor, missing: Tensor, ridge: float) -> Tensor:
    """The matrix D (K, C) for which D v comes nearest to what is missing.

    Args:
        read: vectors v (N, C).
        missing: (N, K).
        ridge: penalty on |D|^2, in units of the mean of |v|^2.

    >>> import torch
    >>> v = torch.eye(2)
    >>> correction(v, 3 * v, ridge=0.5)
    tensor([[2., 0.],
            [0., 2.]])
    """
    v, m = read.double(), missing.double()
    penalty = ridge * v.square().sum(1).mean()
    if len(v) < v.shape[1]:  # the same matrix, by the smaller system
        gram = v @ v.T
        gram.diagonal().add_(penalty)
        solved = torch.linalg.solve(gram, m).T @ v
    else:
        gram = v.T @ v
        gram.diagonal().add_(penalty)
        solved = torch.linalg.solve(gram, v.T @ m).T
    return solved.to(read.dtype)
