"""Class activation maps without gradients: channels weighted by what the score does with them, or without them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from xattn.explainer import Family, LayerExplainer
from xattn.explainers import explainers
from xattn.explainers.intervention import refuse_views, scores_without
from xattn.explainers.passes import Chunk, Halving, score_again
from xattn.functional.cam import weighted_channels
from xattn.functional.perturb import packed_scores
from xattn.functional.resize import resize
from xattn.score import apply_score
from xattn.trace import Trace


@explainers.register("scorecam", "score-cam")
@dataclass(frozen=True)
class ScoreCAM(LayerExplainer):
    """Score-CAM: channels weighted by the score of the image seen through them (Wang et al. 2020, arXiv:1910.01279).

    The mask of a channel is its activation, upsampled bilinearly to the image and then scaled to [0, 1] (eqs. 7, 8). It
    multiplies the normalized image, so that what it hides turns to the mean colour of the training images, which is
    the baseline of the paper. A channel that is constant has no mask and is left out.

    Args:
        weights: `"softmax"` over the channels of the scores (algorithm 1), in which the baseline's score cancels, or
            `"increase"`, the score less that of the baseline (eq. 10). The released code weights by the probability,
            which is neither; `"increase"` with the score `prob` comes closest.
        chunk: images a batch; no part of the result.
    """

    family: ClassVar[Family] = Family.CAM
    passes: ClassVar[str] = "1 forward per channel"
    paper: ClassVar[str] = "Wang et al. 2020, arXiv:1910.01279, alg. 1"
    weights: Literal["softmax", "increase"] = "softmax"
    chunk: Chunk = field(default=64, kw_only=True, repr=False, compare=False)

    def attribute(self, trace: Trace) -> Tensor:
        (layer,) = self.layers(trace.spec)
        features = trace.activation(layer)
        scores = self.masked_scores(trace, features)
        varies = features.amax((2, 3)) > features.amin((2, 3))
        if self.weights == "increase":
            weights = (scores - trace.score(torch.zeros_like(trace.x), trace.target)[:, None]).masked_fill(~varies, 0)
        else:
            # A softmax over no channel at all is not defined; there is nothing to weight then either.
            weights = scores.masked_fill(~varies, -torch.inf).softmax(1).masked_fill(~varies.any(1, keepdim=True), 0)
        return weighted_cam(features, weights)

    def masked_scores(self, trace: Trace, features: Tensor) -> Tensor:
        """Scores (N, C) of the images seen through each channel."""
        x = trace.x
        n, channels = features.shape[:2]
        maps = features.flatten(0, 1)[:, None].to(x.dtype)

        def build(index: Tensor, kept: Tensor, own: Tensor, out: Tensor) -> Tensor:
            masks = resize(maps.index_select(0, index), trace.input_size, "bilinear")
            low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
            masks = (masks - low) / (high - low).masked_fill(high == low, 1)
            return torch.mul(kept, masks, out=out)

        owner = torch.arange(n).repeat_interleave(channels)
        scores = packed_scores(score_again(trace), x, build, owner, self.chunk)
        return scores.unflatten(0, (n, channels))


@explainers.register("ablationcam", "ablation-cam")
@dataclass(frozen=True)
class AblationCAM(LayerExplainer):
    """Ablation-CAM: channels by the score lost without them (Desai, Ramaswamy 2020, 10.1109/WACV45572.2020.9093360).

    A channel is taken out by setting it to zero, class token and other prefix tokens included; what follows the layer
    then runs again. Where the network is linear in the mean of the features, the weights are those of Grad-CAM times
    the channel's sum.

    Args:
        relative: True divides the fall y - y_k by the score y, as printed. Where y is positive that scales the map, and
            where it is negative it turns the sign, so that the map shows what speaks against the class; by default
            nothing is divided.
        chunk: images a batch, or as many changed features as take the same memory; no part of the result.
    """

    family: ClassVar[Family] = Family.CAM
    passes: ClassVar[str] = "1 forward from the layer on per channel"
    relative: bool = False
    chunk: Chunk = field(default=64, kw_only=True, repr=False, compare=False)

    def attribute(self, trace: Trace) -> Tensor:
        refuse_views(trace, self.name)
        (layer,) = self.layers(trace.spec)
        features = trace.activation(layer)
        chunk = max(1, self.chunk * trace.x[0].numel() // features[0].numel())
        channels = torch.arange(features.shape[1], device=features.device)
        without = []
        for i in range(len(features)):
            scores = Halving(lambda some, i=i: scores_without(trace, layer, i, some))
            without.append(torch.cat([scores(some) for some in channels.split(chunk)]))
        score = apply_score(trace.score_fn, trace.logits, trace.target)[:, None]
        weights = score - torch.stack(without)
        return weighted_cam(features, weights / score if self.relative else weights)


def weighted_cam(features: Tensor, weights: Tensor) -> Tensor:
    """ReLU of the sum of channels (N, C, h, w), each times its weight (N, C)."""
    with torch.autocast(features.device.type, enabled=False):
        return weighted_channels(features, weights.to(features.dtype)).relu()
