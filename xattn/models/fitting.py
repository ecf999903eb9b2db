"""The classifier of a converted network fitted to what the network itself says of images, without labels, at once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from xattn.errors import DataError, ParameterError
from xattn.models.converting import SharedCellHead, SharedHead
from xattn.models.heads import Classifier
from xattn.outputs import take
from xattn.running import evaluating
from xattn.spec import ModelSpec

RIDGE = 0.1
"""How hard the fitted classifier is held to the trained one, as a share of the mean squared length of what it reads."""


@torch.no_grad()
def fit(model: nn.Module, made: Classifier, batches: Iterable[Tensor], *, spec: ModelSpec, ridge: float = RIDGE) -> int:
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
        ridge: larger stays nearer to the trained classifier.

    Returns:
        The number of images.

    Raises:
        ParameterError: if `ridge` is not positive.
        DataError: if there is no image.
    """
    if not ridge > 0:
        raise ParameterError(f"fit: ridge must be positive but is {ridge}.")
    head = made.head
    if not isinstance(head, (SharedHead, SharedCellHead)):
        raise ParameterError(f"fit: the head is {type(head).__name__}; it is for what convert made.")
    read: list[Tensor] = []
    missing: list[Tensor] = []
    with evaluating(model), evaluating(made):
        for x in batches:
            features = made.backbone(x)
            read.append(head.embed(features).float())
            missing.append((take(model(x), spec.output or None) - head(features)).float())
    if not read:
        raise DataError("fit: there is no image to fit on.")
    head.correct(correction(torch.cat(read), torch.cat(missing), ridge))
    return sum(map(len, read))


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
