"""Heads that share a classifier that was trained for the mean: by parts, by learned attention, or by the mean."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from xattn.functional.attention import attention_pool
from xattn.functional.br_npa import coverage_maps
from xattn.models.header import Weighting
from xattn.models.heads import BCNNAttention, BRNPAAttention, Head
from xattn.models.split import Split

_WIDEST = 128  # channels inside the attention block of a B-CNN


class CoverageAttention(BRNPAAttention):
    """Part maps of BR-NPA that share every cell out among the parts: a part weighs what it covers."""

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, P, h, w) of features (N, C, h, w); their mean over the parts is 1 / (h w)."""
        return coverage_maps(super().forward(features))


def _attention(parts: int, weighting: Weighting) -> BRNPAAttention:
    return BRNPAAttention(parts) if weighting == "equal" else CoverageAttention(parts)


class SharedHead(Head):
    """BR-NPA with a classifier that was trained for the mean: every part goes through it, and the logits are averaged.

    The matrix stands once for each part, W / P, so that further training may tell the parts apart.

    Args:
        parts: number P of the attention maps.
        classifier: the linear layer, or the 1x1 convolution behind the pooling, from C' values to K.
        neck: what lies between pooling and classifier, run for each part.
        flat: the neck reads (N, C) and not (N, C, 1, 1).
        weighting: of the parts.
    """

    name = "brnpa"

    def __init__(
        self,
        parts: int,
        classifier: nn.Linear | nn.Conv2d,
        neck: nn.Module | None = None,
        *,
        flat: bool = True,
        weighting: Weighting = "equal",
    ) -> None:
        matrix, bias = classifier.weight.detach().flatten(1), classifier.bias
        super().__init__(matrix.shape[1], len(matrix), parts, 0.0, bias=bias is not None)
        self.classifier = self.classifier.to(matrix.device, matrix.dtype)
        self.classifier.weight.data = matrix.repeat(1, parts) / parts
        if bias is not None:
            self.classifier.bias.data = bias.detach().clone()
        self.attention: nn.Module = _attention(parts, weighting)
        self.neck = neck
        self.flat = flat

    def maps(self, features: Tensor) -> Tensor:
        """Maps (N, P, h, w) to pool by."""
        maps: Tensor = self.attention(features)
        return maps

    def embed(self, features: Tensor) -> Tensor:
        """Weighted mean of the features for each part, through the neck (N, P * C')."""
        maps = self.maps(features)
        vectors = attention_pool(features, maps)
        if self.neck is None:
            return vectors.flatten(1)
        # A neck need not be linear: it reads the mean of a part, and its weight comes after it.
        weight = maps.sum((2, 3)).to(vectors.dtype)[:, :, None]
        flat = (vectors / weight.clamp(min=1e-12)).flatten(0, 1).contiguous()  # a neck may view it
        made: Tensor = self.neck(flat if self.flat else flat[:, :, None, None])
        return (made.flatten(1).unflatten(0, vectors.shape[:2]) * weight).flatten(1)

    @torch.no_grad()
    def correct(self, matrix: Tensor) -> None:
        """Add a matrix (K, P * C') to the classifier."""
        self.classifier.weight += matrix


class SharedBCNNHead(SharedHead):
    """B-CNN (Hu et al. 2019, WS-DAN, arXiv:1901.09891) with a classifier that was trained for the mean.

    The attention is random, about one at every place, and has to be trained; the same for every conversion, so that a
    run of training can be repeated. Unlike the published one its block is narrow where the features have many channels.

    Args:
        parts: number P of the attention maps.
        classifier: as for `SharedHead`, as are the others.
        neck: what lies between pooling and classifier, run for each part.
        channels: channels C of the feature map.
        flat: the neck reads (N, C) and not (N, C, 1, 1).
    """

    name = "bcnn"

    def __init__(
        self,
        parts: int,
        classifier: nn.Linear | nn.Conv2d,
        neck: nn.Module | None = None,
        *,
        channels: int,
        flat: bool = True,
    ) -> None:
        super().__init__(parts, classifier, neck, flat=flat)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            attention = BCNNAttention(channels, parts, min(channels, _WIDEST))
        nn.init.ones_(attention.conv.bias)  # type: ignore[arg-type]
        self.attention = attention.to(self.classifier.weight.device, self.classifier.weight.dtype)

    def maps(self, features: Tensor) -> Tensor:
        """Maps (N, P, h, w) to pool by: the mean over the cells of what they weigh."""
        return super().maps(features) / features[0, 0].numel()


class SharedCellHead(nn.Module):
    """BR-NPA for a classifier that reads each cell before the mean is taken, as in SqueezeNet (arXiv:1602.07360).

    Class scores of the cells are averaged by the attention maps instead, and over the parts.

    Attributes:
        rest: a linear layer over the parts, whose output is added; None unless there is something to correct.

    Args:
        parts: number P of the attention maps.
        classifier: the 1x1 convolution.
        rectified: only positive scores of a cell count, as a ReLU behind the classifier has it.
        weighting: of the parts.
    """

    name = "brnpa"

    def __init__(self, parts: int, classifier: nn.Conv2d, *, rectified: bool, weighting: Weighting = "equal") -> None:
        super().__init__()
        self.parts = parts
        self.classifier = copy.deepcopy(classifier)
        self.attention = _attention(parts, weighting)
        self.rectified = rectified
        self.rest: nn.Linear | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, C, h, w)."""
        scores: Tensor = self.classifier(features)
        maps: Tensor = self.attention(features)
        scores = scores.relu() if self.rectified else scores
        logits = attention_pool(scores, maps.mean(1, keepdim=True)).flatten(1)
        return logits if self.rest is None else logits + self.rest(attention_pool(features, maps).flatten(1))

    def embed(self, features: Tensor) -> Tensor:
        """Weighted mean of the features for each part (N, P * C)."""
        return attention_pool(features, self.attention(features)).flatten(1)

    @torch.no_grad()
    def correct(self, matrix: Tensor) -> None:
        """Add what a matrix (K, P * C) makes of the parts to the logits."""
        if self.rest is None:
            self.add_rest()
        self.rest.weight += matrix  # type: ignore[union-attr]

    def add_rest(self) -> None:
        """Make room for a correction, which is zero at first."""
        like = self.classifier.weight
        self.rest = nn.Linear(self.parts * like.shape[1], len(like), bias=False, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.rest.weight)

    def extra_repr(self) -> str:
        """Options, for the printed model."""
        return f"parts={self.parts}, rectified={self.rectified}"


class MeanHead(nn.Module):
    """What a network taken apart has behind its features: the mean over the cells, its neck and its classifier.

    Args:
        taken: the parts.
    """

    def __init__(self, taken: Split) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.neck, self.classifier = taken.neck, taken.classifier
        self.flat, self.cells, self.rectified = taken.flat, taken.cells, taken.rectified

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, C, h, w)."""
        if self.cells:
            scores = self.classifier(features)
            return self.pool(scores.relu() if self.rectified else scores).flatten(1)
        mean: Tensor = self.pool(features)
        read = mean.flatten(1) if self.flat else mean
        read = read if self.neck is None else self.neck(read)
        made: Tensor = self.classifier(read.flatten(1) if isinstance(self.classifier, nn.Linear) else read)
        return made.flatten(1)


class Everywhere(nn.Module):
    """Attention maps that cover everything: pooling by them is the mean.

    Args:
        parts: number of maps.
        summed: pooling sums up what the maps weigh, so that each is one over the number of cells; else it is the mean.
    """

    def __init__(self, parts: int, *, summed: bool) -> None:
        super().__init__()
        self.parts = parts
        self.summed = summed

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, P, h, w) of features (N, C, h, w)."""
        n, _, h, w = features.shape
        return features.new_full((n, self.parts, h, w), 1 / (h * w) if self.summed else 1.0)
