"""The rules of LRP: how the outputs of a linear call hand their relevance to its inputs.

Relevance goes in proportion to products x_j w_jk. The rules differ in which products count, in groups, and in what the
relevance R_k of an output is divided by: R_j = sum over groups g of sum_k q_jk R_k c_gk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from xattn.calls import Kind

STABILIZER = 1e-6
Group = list[tuple[Tensor, Tensor | None]]
"""Inputs and weights whose products count alike; no weight where the call has none."""


@dataclass(frozen=True)
class Rule:
    """Which products count, and by how much.

    Args:
        groups: the groups of products, of the input and the weight.
        shares: of the sum of each group at the outputs and the bias: by what the relevance of an output is multiplied
            for each group, and which part of it is kept (by the bias, by a stabilizer that is meant to).
    """

    groups: Callable[[Tensor, Any], Sequence[Group]]
    shares: Callable[..., tuple[Sequence[Tensor], Tensor | float]]


class Layer:
    """A linear call of a forward pass: a convolution, a pool, a sum of two maps.

    Args:
        kind: of the call, by which its rule is chosen.
        run: the call as a function of the input and of the weight, without the bias.
        images: number of images in the batch.
        shape: of the input.
        weight: of the call, batch norm folded in; None where it has none.
        bias: likewise, in a shape that can be added to the output.

    Attributes:
        rule: by which relevance passes.
        unfolded: the call that this one stands for, without the batch norm.
        contrast: relevance by the opposite weights is taken off (contrastive excitation backpropagation).
        opposite: the images (N,) for which the weights and the bias have the other sign.
        absorbed: relevance of each image (N,) that biases and the epsilon of the epsilon rule keep, by the formula of
            the rule.
        below: sum of the absolute relevance of its inputs, of each image (N,).
    """

    def __init__(
        self,
        kind: Kind,
        run: Callable[..., Any],
        images: int,
        shape: torch.Size,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        self.kind, self.run, self.images, self.shape = kind, run, images, shape
        self.weight = None if weight is None else weight.detach()
        self.bias = None if bias is None else bias.detach()
        self.rule = NORM
        self.unfolded: Layer | None = None
        self.contrast = False
        self.opposite: Tensor | None = None
        self.absorbed: Tensor | None = None
        self.below: Tensor | None = None

    def relevance(self, x: Tensor, above: Tensor) -> tuple[Tensor]:
        """Relevance of the input from that of the output, by the rule."""
        below, absorbed = self._pass(x, above, self.weight, self.bias)
        if self.contrast or self.opposite is not None:
            negated = [None if values is None else -values for values in (self.weight, self.bias)]
            other, other_absorbed = self._pass(x, above, *negated)
            if self.opposite is not None:
                rows = self.opposite.repeat_interleave(len(x) // self.images).view(-1, *[1] * (x.ndim - 1))
                below, other = torch.where(rows, other, below), torch.where(rows, below, other)
                absorbed, other_absorbed = (
                    torch.where(self.opposite, other_absorbed, absorbed),
                    torch.where(self.opposite, absorbed, other_absorbed),
                )
            if self.contrast:
                below, absorbed = below - other, absorbed - other_absorbed
        self.absorbed, self.below = absorbed, self._per_image(below.abs())
        return (below,)

    def _pass(self, x: Tensor, above: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        groups = self.rule.groups(x, weight)
        with torch.enable_grad():
            inputs = [[part.detach().requires_grad_() for part, _ in group] for group in groups]
            outputs = [
                [self.run(part, changed) for part, (_, changed) in zip(parts, group, strict=True)]
                for parts, group in zip(inputs, groups, strict=True)
            ]
        totals = [sum(part.detach() for part in parts) for parts in outputs]
        shares, kept = self.rule.shares(*totals, above.new_zeros(()) if bias is None else bias)
        handed = [above * share for share, parts in zip(shares, outputs, strict=True) for _ in parts]
        leaves = [part for parts in inputs for part in parts]
        gradients = torch.autograd.grad([part for parts in outputs for part in parts], leaves, handed)
        below = cast(Tensor, sum(part.detach() * gradient for part, gradient in zip(leaves, gradients, strict=True)))
        absorbed = self._per_image(above * kept) if isinstance(kept, Tensor) else above.new_zeros(self.images).double()
        return below, absorbed

    def _per_image(self, values: Tensor) -> Tensor:
        return values.detach().reshape(self.images, -1).double().sum(1)


def _over(total: Tensor, epsilon: float = STABILIZER) -> Tensor:
    """1 / (z + epsilon sign z), with 1 for the sign of 0; 0 where that is infinite: such an output hands nothing on."""
    steady = torch.where(total < 0, total - epsilon, total + epsilon)
    return 1 / (steady if epsilon else steady.masked_fill(steady == 0, torch.inf))


def _signed(x: Tensor, above: Tensor | None, below: Tensor | None) -> Group:
    """Products of one sign: of inputs above zero with one weight, and of inputs below zero, if any, with the other."""
    group = [(x.clamp(min=0), above)]
    return [*group, (x.clamp(max=0), below)] if bool(x.min() < 0) else group


def _positive(x: Tensor, weight: Tensor) -> Group:
    return _signed(x, weight.clamp(min=0), weight.clamp(max=0))


def _negative(x: Tensor, weight: Tensor) -> Group:
    return _signed(x, weight.clamp(max=0), weight.clamp(min=0))


def epsilon(epsilon: float) -> Rule:
    """R_j = sum_k x_j w_jk / (z_k + epsilon sign z_k) R_k (Bach et al. 2015, doi:10.1371/journal.pone.0130140)."""

    def shares(z: Tensor, bias: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        share = _over(z + bias, epsilon)
        return [share], 1 - share * z

    return Rule(lambda x, w: [[(x, w)]], shares)


def _norm(z: Tensor, bias: Tensor) -> tuple[Sequence[Tensor], Tensor]:
    share = _over(z + bias)
    return [share], share * bias


def plus(biased: bool = True) -> Rule:
    """z+: the positive products alone, as in alpha-1-beta-0 (Montavon et al. 2017, arXiv:1512.02479, eq. 13)."""

    def shares(up: Tensor, bias: Tensor) -> tuple[Sequence[Tensor], Tensor | float]:
        offset = bias.clamp(min=0) if biased else torch.zeros_like(bias)
        share = _over(up + offset)
        return [share], share * offset

    return Rule(lambda x, w: [_positive(x, w)], shares)


def alpha_beta(alpha: float, beta: float) -> Rule:
    """Alpha times the shares of the positive products less beta times those of the negative (Bach et al. 2015)."""

    def shares(up: Tensor, down: Tensor, bias: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        more, less = bias.clamp(min=0), bias.clamp(max=0)
        a, b = alpha * _over(up + more), -beta * _over(down + less)
        return [a, b], a * more + b * less

    return Rule(lambda x, w: [_positive(x, w), _negative(x, w)], shares)


def gamma(gamma: float) -> Rule:
    """Products with the sign of the output count 1 + gamma times (Montavon et al. 2019, doi:10.1007/978-3-030-28954-6).

    The paper has inputs above zero; those below, and outputs below zero, are treated alike with the signs exchanged.
    """

    def shares(up: Tensor, down: Tensor, bias: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        more, less = bias.clamp(min=0), bias.clamp(max=0)
        z = up + down + bias
        a = (z > 0) * _over(z + gamma * (up + more))
        b = (z < 0) * _over(z + gamma * (down + less))
        return [a + b + gamma * a, a + b + gamma * b], (a + b) * bias + gamma * (a * more + b * less)

    return Rule(lambda x, w: [_positive(x, w), _negative(x, w)], shares)


def box(low: Tensor, high: Tensor) -> Rule:
    """z-box: x_j w_jk less the least that it can be, for pixels in a range (Montavon et al. 2017, eq. 18).

    Args:
        low: least values (M, C, 1, 1).
        high: largest values.
    """
    return Rule(lambda x, w: [[(x - low, w.clamp(min=0)), (x - high, w.clamp(max=0))]], _unbiased)


def _unbiased(z: Tensor, bias: Tensor) -> tuple[Sequence[Tensor], float]:
    return [_over(z)], 0.0


def _same_sign(up: Tensor, down: Tensor, bias: Tensor) -> tuple[Sequence[Tensor], float]:
    z = up + down
    return [(z > 0) * _over(up), (z < 0) * _over(down)], 0.0


NORM = Rule(lambda x, w: [[(x, w)]], _norm)
"""Of a sum or a mean each part gets what it adds: the epsilon rule, with an epsilon that only stabilizes."""
FLAT = Rule(lambda x, w: [[(torch.ones_like(x), torch.ones_like(w))]], _unbiased)
"""To all inputs alike (Lapuschkin et al. 2019, doi:10.1038/s41467-019-08987-4)."""
SQUARE = Rule(lambda x, w: [[(torch.ones_like(x), w.square())]], _unbiased)
"""w-square: by the squares of the weights, for inputs without a range (Montavon et al. 2017, eq. 12)."""
SAME_SIGN = Rule(lambda x, w: [[(x.clamp(min=0), w)], [(x.clamp(max=0), w)]], _same_sign)
"""Of a sum or a mean, the parts with the sign of the whole share in proportion: with the others in, shares would be
negative and could be of any size."""

Composite = Mapping[Kind, Rule]
"""Rules by the kind of call."""


def composite(conv: Rule, linear: Rule, sums: Rule = NORM) -> Composite:
    """A rule for convolutions, one for linear layers, and one for sums and means."""
    return {Kind.CONV: conv, Kind.LINEAR: linear, Kind.POOL: sums, Kind.SUM: sums}


def assign(layers: Sequence[Layer], rules: Composite, first: Composite | None = None) -> None:
    """Give each layer its rule; the first layer of a kind that `first` has gets the rule there."""
    for layer in layers:
        layer.rule = rules[layer.kind]
    if start := next((layer for layer in layers if layer.kind in (first or {})), None):
        start.rule = (first or {})[start.kind]
