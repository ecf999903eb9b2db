"""Few-shot classification: episodes of a few classes with a few images each, and classifiers made of those images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from xattn.errors import DataError, ShapeError

Comparison = Literal["cosine", "euclidean", "learned"]

_AT_ONCE = 250  # episodes
_STEPS, _RATE = 100, 0.01  # of a last layer that learns in an episode


def draw_episodes(labels: Tensor, way: int, images: int, episodes: int, generator: torch.Generator) -> Tensor:
    """Random episodes: `way` classes without repetition, and of each `images` of its images without repetition.

    Args:
        labels: class of each image (n,).
        way: classes N of an episode.
        images: of each class: K to learn from and those to ask about.
        episodes: number E of episodes.
        generator: of the choice; the same labels and generator give the same episodes.

    Returns:
        Places of the images, int64 (E, way, images).

    Raises:
        DataError: if there are fewer than `way` classes with so many images.

    >>> draw_episodes(torch.tensor([0, 0, 1, 1, 2]), 2, 2, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([3, 2, 2])
    """
    classes, counts = labels.unique(return_counts=True)
    enough = counts >= images
    if int(enough.sum()) < way:
        raise DataError(
            f"few-shot: episodes of {way} classes with {images} images each cannot be drawn: {int(enough.sum())} of "
            f"{len(classes)} classes have so many, the smallest has {int(counts.min()) if len(counts) else 0}; lower "
            "way, shot or queries, or take a part with more images."
        )
    order = labels.argsort(stable=True).cpu()
    starts = (counts.cumsum(0) - counts)[enough].cpu()
    counts = counts[enough].cpu()
    room = int(counts.max())
    drawn = []
    for start in range(0, episodes, _AT_ONCE):
        number = min(_AT_ONCE, episodes - start)
        chosen = torch.rand(number, len(counts), generator=generator).argsort(1)[:, :way]
        lots = torch.rand(number, way, room, generator=generator)
        lots = lots.masked_fill(torch.arange(room) >= counts[chosen][..., None], torch.inf)
        drawn.append(order[starts[chosen][..., None] + lots.argsort(2)[..., :images]])
    return torch.cat(drawn)


def episode_scores(support: Tensor, query: Tensor, comparison: Comparison = "euclidean") -> Tensor:
    """Class scores of queries from the mean features of a few images of each class.

    `"euclidean"` is minus the squared distance to the mean of the support (prototypical networks, Snell et al. 2017,
    arXiv:1703.05175, eqs. 1-2). `"cosine"` is the cosine with the mean of the normalized support: a cosine classifier
    whose weights are the averages of Gidaris and Komodakis 2018, arXiv:1804.09458, eq. 5. `"learned"` is
    `learned_scores`.

    Args:
        support: features (E, N, K, D) of E episodes.
        query: features (E, M, D).
        comparison: which of the two.

    Returns:
        Scores (E, M, N).

    >>> support = torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]])
    >>> episode_scores(support, torch.tensor([[[0.0, 2.0]]]))
    tensor([[[-1., -5.]]])
    """
    if support.ndim != 4 or query.ndim != 3 or (support.shape[0], support.shape[3]) != (query.shape[0], query.shape[2]):
        raise ShapeError(
            f"few-shot: expected features (E, N, K, D) and (E, M, D) but got {tuple(support.shape)} and "
            f"{tuple(query.shape)}."
        )
    if comparison == "learned":
        return learned_scores(support, query)
    if comparison == "cosine":
        means = F.normalize(F.normalize(support, dim=3).mean(2), dim=2)
        return F.normalize(query, dim=2) @ means.transpose(1, 2)
    means = support.mean(2)
    square = (query**2).sum(2)[..., None] + (means**2).sum(2)[:, None]
    return 2 * query @ means.transpose(1, 2) - square


def learned_scores(support: Tensor, query: Tensor, steps: int = _STEPS, rate: float = _RATE) -> Tensor:
    """Class scores of queries by a linear layer that learns from a few images of each class (MTL, arXiv:1812.02391).

    The layer begins at zero and takes steps of gradient descent on the mean cross-entropy of the support: the base
    learner of meta-transfer learning (Sun et al. 2019), which begins from learned weights there. The gradient flows
    through all steps to the features.

    Args:
        support: features (E, N, K, D) of E episodes.
        query: features (E, M, D).
        steps: of gradient descent.
        rate: of a step.

    Returns:
        Scores (E, M, N).

    >>> support = torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]])
    >>> learned_scores(support, torch.tensor([[[0.0, 2.0]]]), steps=1, rate=1.0)
    tensor([[[ 0.5000, -0.5000]]])
    """
    episodes, way, shot = support.shape[:3]
    shown = support.flatten(1, 2)
    answer = torch.eye(way, dtype=support.dtype, device=support.device).repeat_interleave(shot, 0)
    weight = support.new_zeros(episodes, way, support.shape[3])
    bias = support.new_zeros(episodes, 1, way)
    for _ in range(steps):
        error = ((shown @ weight.transpose(1, 2) + bias).softmax(2) - answer) / (way * shot)
        weight = weight - rate * error.transpose(1, 2) @ shown
        bias = bias - rate * error.sum(1, keepdim=True)
    return query @ weight.transpose(1, 2) + bias


def episode_accuracy(features: Tensor, episodes: Tensor, shot: int, comparison: Comparison = "euclidean") -> Tensor:
    """Accuracy of each episode, in float64 (E,).

    Args:
        features: of all images (n, D).
        episodes: places (E, N, K + Q) of `draw_episodes`; the first K of each class are learned from.
        shot: K.
        comparison: as in `episode_scores`.
    """
    way, images = episodes.shape[1:]
    answer = torch.arange(way, device=features.device).repeat_interleave(images - shot)
    right = []
    for some in episodes.to(features.device).split(_AT_ONCE):
        chosen = features[some]
        scores = episode_scores(chosen[:, :, :shot], chosen[:, :, shot:].flatten(1, 2), comparison)
        right.append((scores.argmax(2) == answer).double().mean(1))
    return torch.cat(right)


def half_interval(values: Tensor) -> float:
    """Half the width of the 95 % interval of the mean of independent values (E,): 1.96 s / sqrt(E); NaN for one."""
    return float(1.96 * values.double().std() / len(values) ** 0.5) if len(values) > 1 else float("nan")
