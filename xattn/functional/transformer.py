"""Explanations of vision transformers from the scores, probabilities and gradients of their attention.

Each layer gives a tensor (N, heads, T, T), row i telling from which tokens j token i takes. The results are matrices
(N, T, T) of the whole network, of which `TokenGrid.read` takes the rows that the classifier reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps

import torch
from torch import Tensor

from xattn.errors import ShapeError
from xattn.functional.attention import without_autocast

Layers = Sequence[Tensor]


def full_precision(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Check the shapes of all layers and compute in at least float32, out of any autocast."""

    @wraps(formula)
    def checked(*arguments: Layers) -> Tensor:
        tensors = [layer for layers in arguments for layer in layers]
        shapes = {tuple(layer.shape) for layer in tensors}
        # The number of heads may change from layer to layer.
        alike = {(shape[0], *shape[2:]) for shape in shapes if len(shape) == 4 and shape[2] == shape[3]}
        if len(alike) != 1 or any(len(shape) != 4 or shape[2] != shape[3] for shape in shapes):
            raise ShapeError(
                f"{formula.__name__}: expected a tensor (N, heads, T, T) for each layer, of the same images and "
                f"tokens, but got {', '.join(map(str, sorted(shapes))) or 'none'}."
            )
        with without_autocast(tensors[0]):
            return formula(*([_promote(layer) for layer in layers] for layers in arguments))

    return checked


def _promote(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@full_precision
def raw_attention(probabilities: Layers) -> Tensor:
    """Mean of the probabilities over heads and layers (Caron et al. 2021, arXiv:2104.14294, fig. 1).

    Args:
        probabilities: per layer (N, heads, T, T).

    Returns:
        (N, T, T); rows sum to one.
    """
    return torch.stack([layer.mean(dim=1) for layer in probabilities]).mean(dim=0)


@full_precision
def attention_rollout(probabilities: Layers) -> Tensor:
    """Attention multiplied through the layers, the residual sums counted half (Abnar, Zuidema 2020, arXiv:2005.00928).

    Mean over the heads, (A + I) / 2 with rows that sum to one, the product A_L ... A_1.

    Args:
        probabilities: per layer (N, heads, T, T), the first layer first.

    Returns:
        (N, T, T); rows sum to one.
    """
    joint = _identity(probabilities[0])
    for layer in probabilities:
        mixed = layer.mean(dim=1) + _identity(layer)
        joint = (mixed / mixed.sum(dim=-1, keepdim=True)) @ joint
    return joint


@full_precision
def gradient_rollout(values: Layers, gradients: Layers) -> Tensor:
    """Product over the layers of I + mean over heads of (gradient x value)+ (Chefer 2021, arXiv:2012.09838, sec. 3.3).

    With relevance for the values it is transformer attribution, with probabilities the rule for self-attention of
    arXiv:2103.15679: R <- R + A R. Rows are not normalized, as in the released code of both.

    Args:
        values: per layer (N, heads, T, T), the first layer first.
        gradients: of the score by the probabilities, likewise.

    Returns:
        (N, T, T).
    """
    joint = _identity(values[0])
    for value, gradient in zip(values, gradients, strict=True):
        joint = joint + (value * gradient).relu().mean(dim=1) @ joint
    return joint


@full_precision
def agcam(scores: Layers, gradients: Layers) -> Tensor:
    """Sum over layers and heads of sigmoid(S) ReLU(alpha) (Leem, Seo 2024, AGCAM, arXiv:2402.04563).

    Args:
        scores: S = q k^T / sqrt(d) before the softmax, per layer (N, heads, T, T).
        gradients: alpha, of the score by the probabilities after the softmax, likewise.

    Returns:
        (N, T, T), not negative.
    """
    layers = [(s.sigmoid() * alpha.relu()).sum(dim=1) for s, alpha in zip(scores, gradients, strict=True)]
    return torch.stack(layers).sum(dim=0)


@full_precision
def legrad(gradients: Layers) -> Tensor:
    """Mean of the positive gradients over layers and heads (Bousselham et al. 2024, LeGrad, arXiv:2404.03214).

    Args:
        gradients: of each layer's own score by its probabilities, per layer (N, heads, T, T).

    Returns:
        (N, T, T), not negative; the paper takes the mean of all rows.
    """
    return torch.stack([layer.relu().mean(dim=1) for layer in gradients]).mean(dim=0)


def quotient(relevance: Tensor, total: Tensor) -> Tensor:
    """Relevance per unit, 0 where the total is 0: such an output hands nothing on."""
    return torch.where(total == 0, 0, relevance / torch.where(total == 0, 1, total))


def linear_relevance(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Relevance of the input of a linear layer by its positive products (Chefer 2021, arXiv:2012.09838, sec. 3.1).

    R_j = sum_i (x_j w_ij)+ / sum_k (x_k w_ik)+ R_i; biases take no part.

    Args:
        x: input (..., C).
        weight: (D, C).
        relevance: of the output (..., D).

    Returns:
        (..., C), with the same sum.
    """
    above, below = x.clamp(min=0), x.clamp(max=0)
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    share = quotient(relevance, above @ up.T + below @ down.T)
    return above * (share @ up) + below * (share @ down)


def product_relevance(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of both operands of a matrix product, half of it for each (Chefer 2021, arXiv:2012.09838, sec. 3.2).

    The halves are those of the released code; the paper scales both operands as `sum_relevance` does.

    Args:
        a: (..., I, K).
        b: (..., K, J), with the same leading dimensions.
        relevance: of a @ b, (..., I, J).
    """
    share = quotient(relevance, a @ b) / 2
    return a * (share @ b.transpose(-2, -1)), b * (a.transpose(-2, -1) @ share)


def sum_relevance(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of both operands of a sum, normalized image by image (Chefer 2021, arXiv:2012.09838, sec. 3.2).

    In proportion to the two values, then scaled so that each operand gets its share |sum R_a| / (|sum R_a| + |sum R_b|)
    of the whole: signed values of opposite sign would blow both up.

    Args:
        a: (N, ...).
        b: likewise.
        relevance: of a + b.
    """
    share = quotient(relevance, a + b)
    parts = [a * share, b * share]
    dims = tuple(range(1, a.ndim))
    sums = [part.sum(dim=dims, keepdim=True) for part in parts]
    whole = relevance.sum(dim=dims, keepdim=True)
    size = sums[0].abs() + sums[1].abs()
    first, second = (
        part * quotient(quotient(total.abs(), size) * whole, total) for part, total in zip(parts, sums, strict=True)
    )
    return first, second


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
