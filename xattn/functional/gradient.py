"""What a gradient by the input becomes: one value per pixel, or the guided gradient of a ReLU."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from xattn.errors import ParameterError, ShapeError

ChannelReduction = Literal["max", "sum", "mean_abs", "norm"]


def reduce_channels(gradient: Tensor, reduce: str = "max") -> Tensor:
    """One value per pixel of an attribution with channels.

    Args:
        gradient: (N, C, H, W), signed.
        reduce: `"max"`: max_c |g_c| (Simonyan et al. 2013, arXiv:1312.6034, sec. 3.1). `"sum"`: signed sum.
            `"mean_abs"`: mean of |g_c|. `"norm"`: Euclidean length over the channels.

    Returns:
        (N, 1, H, W), float32 (float64 is kept).

    Raises:
        ShapeError: if `gradient` does not have four dimensions.
        ParameterError: for another reduction.

    >>> reduce_channels(torch.tensor([3.0, -4.0]).reshape(1, 2, 1, 1), "max").item()
    4.0
    """
    if gradient.ndim != 4:
        raise ShapeError(f"reduce_channels: expected (N, C, H, W) but got {tuple(gradient.shape)}.")
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    if reduce == "max":
        return gradient.abs().amax(1, keepdim=True)
    if reduce == "sum":
        return gradient.sum(1, keepdim=True)
    if reduce == "mean_abs":
        return gradient.abs().mean(1, keepdim=True)
    if reduce == "norm":
        return torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    known = ", ".join(get_args(ChannelReduction))
    raise ParameterError(f"reduce_channels: reduce must be one of {known} but is '{reduce}'.")


def guided_relu(x: Tensor, upper: float | None = None) -> Tensor:
    """ReLU whose gradient is R_in = R_out [R_out > 0] [x > 0] (Springenberg et al. 2014, arXiv:1412.6806, sec. 3.4).

    Args:
        x: any shape.
        upper: value at which the activation saturates, as in ReLU6; no gradient passes from there on.

    Returns:
        The shape of `x`.

    >>> x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    >>> torch.autograd.grad(guided_relu(x), x, torch.tensor([1.0, 1.0, -1.0]))[0].tolist()
    [0.0, 1.0, 0.0]
    """
    guided: Tensor = _GuidedReLU.apply(x, upper)
    return guided


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, upper: float | None) -> Tensor:
        # A mask and not x itself is saved, so that a layer that changes x in place afterwards does no harm.
        ctx.save_for_backward(x > 0 if upper is None else (x > 0) & (x < upper))
        return x.clamp(min=0, max=upper)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (linear,) = ctx.saved_tensors
        return gradients[0].clamp(min=0) * linear, None
