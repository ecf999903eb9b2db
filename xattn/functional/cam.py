"""Class activation maps: formulas over the features of a layer and the gradient of a score by them.

All take features (N, C, h, w), and where they need it the gradient of the same shape, and give raw maps
(N, 1, h, w): not resized, not normalized. Half precision is computed in float32, also inside autocast; float64
stays. An undefined ratio is masked where it arises, and NaN in the features stays NaN in the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, Literal, ParamSpec, get_args

import torch
from torch import Tensor

from xattn.errors import ParameterError, ShapeError

Reduction = Literal["norm", "squared_norm", "mean"]
P = ParamSpec("P")


def full_precision(formula: Callable[Concatenate[Tensor, P], Tensor]) -> Callable[Concatenate[Tensor, P], Tensor]:
    """Check the shape of the features and compute in at least float32, out of any autocast."""

    @wraps(formula)
    def checked(features: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        if features.ndim != 4:
            raise ShapeError(f"{formula.__name__}: expected features (N, C, h, w) but got {tuple(features.shape)}.")
        with torch.autocast(features.device.type, enabled=False):
            return formula(_promote(features), *args, **kwargs)

    return checked


def _promote(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _gradient(name: str, features: Tensor, gradient: Tensor) -> Tensor:
    if gradient.shape != features.shape:
        raise ShapeError(
            f"{name}: features and gradient must have one shape but have {tuple(features.shape)} and "
            f"{tuple(gradient.shape)}; take both from the same layer."
        )
    return _promote(gradient)


def weighted_channels(features: Tensor, weights: Tensor) -> Tensor:
    """Sum over the channels (N, 1, h, w), each times its weight (N, C), without a (N, C, h, w) temporary.

    Args:
        features: (N, C, h, w), at least float32.
        weights: (N, C), of the same dtype.
    """
    return torch.bmm(weights[:, None], features.flatten(2)).unflatten(2, features.shape[2:])


@full_precision
def activation_map(features: Tensor, reduce: str = "norm") -> Tensor:
    """How active each cell is, whatever the class: ||f_i|| over the channels (BR-NPA, arXiv:2106.02566, sec. 3).

    Args:
        features: (N, C, h, w).
        reduce: `"norm"`, `"squared_norm"` (as printed in the paper) or `"mean"` over the channels.

    Returns:
        (N, 1, h, w).

    Raises:
        ParameterError: for another reduction.

    >>> activation_map(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)).item()
    5.0
    """
    if reduce == "norm":
        return torch.linalg.vector_norm(features, dim=1, keepdim=True)
    if reduce == "squared_norm":
        return features.square().sum(1, keepdim=True)
    if reduce == "mean":
        return features.mean(1, keepdim=True)
    raise ParameterError(f"activation_map: reduce must be one of {', '.join(get_args(Reduction))} but is '{reduce}'.")


@full_precision
def cam(features: Tensor, weight: Tensor) -> Tensor:
    """CAM: channels weighted as the classifier does, sum_k w_k^c f_k (Zhou et al. 2016, arXiv:1512.04150, eq. 2).

    Signed, and without the bias: the mean over the cells plus the bias is the logit.

    Args:
        features: what is averaged before the classifier (N, C, h, w).
        weight: classifier row of each image's target (N, C).

    Returns:
        (N, 1, h, w).
    """
    if weight.shape != features.shape[:2]:
        raise ShapeError(
            f"cam: expected weights {tuple(features.shape[:2])}, one classifier row per image, but got "
            f"{tuple(weight.shape)}."
        )
    return weighted_channels(features, weight.to(features.dtype))


@full_precision
def grad_cam(features: Tensor, gradient: Tensor, relu: bool = True) -> Tensor:
    """Grad-CAM: channels by their mean gradient, then ReLU (Selvaraju et al. 2017, arXiv:1610.02391, eqs. 1-2).

    Args:
        features: (N, C, h, w).
        gradient: of the score by the features.
        relu: False keeps the evidence against the class.

    Returns:
        (N, 1, h, w).
    """
    weights = _gradient("grad_cam", features, gradient).mean((2, 3))
    return _rectified(weighted_channels(features, weights), relu)


@full_precision
def grad_cam_plus_plus(features: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM++ with the weights of eq. 19 (Chattopadhyay et al. 2018, arXiv:1710.11063).

    alpha_ij = g_ij^2 / (2 g_ij^2 + (sum_ab A_ab) g_ij^3), w_k = sum_ij alpha_ij ReLU(g_ij), map = ReLU(sum_k w_k A_k).

    The paper scores exp(logit). Its derivatives are exp(logit) times the powers of the gradient g of the logit where
    the network is piecewise linear; the factor cancels in alpha and scales each image's map as a whole, so that g is
    the gradient of the logit here and that factor is left out. alpha is computed as 1 / (2 + (sum A) g), the same
    number without the underflow of g^2; where it is undefined (g = 0, or a denominator of zero) the cell adds
    nothing. There is no epsilon: gradients are often smaller than the usual 1e-6.

    Args:
        features: (N, C, h, w).
        gradient: of the score by the features.

    Returns:
        (N, 1, h, w), not negative.
    """
    g = _gradient("grad_cam_plus_plus", features, gradient)
    denominator = 2 + features.sum((2, 3), keepdim=True) * g
    undefined = denominator == 0
    alpha = 1 / denominator.masked_fill(undefined, torch.inf)
    return weighted_channels(features, (alpha * g.relu()).sum((2, 3))).relu()


@full_precision
def smooth_grad_cam_plus_plus(features: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Smooth Grad-CAM++: Grad-CAM++ with derivatives averaged over noisy images (Omeiza et al. 2019, arXiv:1908.01224).

    alpha_ij = mean g_ij^2 / (2 mean g_ij^2 + (sum_ab A_ab) mean g_ij^3), w_k = sum_ij alpha_ij ReLU(mean g_ij) and
    map = ReLU(sum_k w_k A_k), with means over the noisy images and A of the untouched one. The paper prints mean g in
    the numerator of alpha; it is mean g^2 here, with which one image without noise gives Grad-CAM++ (eq. 19 there).
    Where alpha is undefined the cell adds nothing; there is no epsilon.

    Args:
        features: of the untouched images (N, C, h, w).
        gradients: of the score by the features, one (N, C, h, w) for each noisy copy of the images.

    Returns:
        (N, 1, h, w), not negative.
    """
    g = torch.stack([_gradient("smooth_grad_cam_plus_plus", features, one) for one in gradients])
    scale = g.abs().amax((0, 2, 3, 4)).nan_to_num()[:, None, None, None]  # of each image: squares do not underflow
    unit = g / scale.masked_fill(scale == 0, 1)
    square = unit.square().mean(0)
    denominator = 2 * square + features.sum((2, 3), keepdim=True) * scale * unit.pow(3).mean(0)
    undefined = denominator == 0
    alpha = square / denominator.masked_fill(undefined, torch.inf)
    return weighted_channels(features, (alpha * g.mean(0).relu()).sum((2, 3))).relu()


@full_precision
def hires_cam(features: Tensor, gradient: Tensor, relu: bool = False) -> Tensor:
    """HiResCAM: features times gradient cell by cell, summed over channels (Draelos, Carin 2020, arXiv:2011.08891).

    Args:
        features: (N, C, h, w).
        gradient: of the score by the features.
        relu: drop the evidence against the class, as pytorch-grad-cam does; the formula has none.

    Returns:
        (N, 1, h, w), signed.
    """
    return _rectified((features * _gradient("hires_cam", features, gradient)).sum(1, keepdim=True), relu)


@full_precision
def xgrad_cam(features: Tensor, gradient: Tensor, relu: bool = True) -> Tensor:
    """XGrad-CAM: gradients averaged with the activations as weights (Fu et al. 2020, arXiv:2008.02312).

    alpha_k = sum_ij (A_k,ij / sum_ab A_k,ab) g_k,ij. A channel that sums to zero has no such mean and is left out.

    Args:
        features: (N, C, h, w).
        gradient: of the score by the features.
        relu: False keeps the evidence against the class.

    Returns:
        (N, 1, h, w).
    """
    gradient = _gradient("xgrad_cam", features, gradient)
    total = features.sum((2, 3))
    weights = (features * gradient).sum((2, 3)) / total.masked_fill(total == 0, torch.inf)
    return _rectified(weighted_channels(features, weights), relu)


@full_precision
def grad_cam_elementwise(features: Tensor, gradient: Tensor) -> Tensor:
    """Sum over the channels of ReLU(g_k,ij A_k,ij), as pytorch-grad-cam computes it (Pillai, Pirsiavash 2021).

    Where no feature is negative, as behind a ReLU, this is LayerCAM.

    Args:
        features: (N, C, h, w).
        gradient: of the score by the features.

    Returns:
        (N, 1, h, w), not negative.
    """
    return (_gradient("grad_cam_elementwise", features, gradient) * features).relu().sum(1, keepdim=True)


@full_precision
def layer_cam(features: Tensor, gradient: Tensor) -> Tensor:
    """LayerCAM: ReLU(sum_k ReLU(g_k,ij) A_k,ij), a weight for each cell (Jiang et al. 2021, 10.1109/TIP.2021.3089943).

    Args:
        features: (N, C, h, w).
        gradient: of the score by the features.

    Returns:
        (N, 1, h, w), not negative.
    """
    return (_gradient("layer_cam", features, gradient).relu() * features).sum(1, keepdim=True).relu()


@full_precision
def eigen_cam(features: Tensor, center: bool = False) -> Tensor:
    """Eigen-CAM: features projected on their first right singular vector (Muhammad, Yeasin 2020, arXiv:2008.00299).

    The cells of an image are the rows of a matrix O (h w, C) with O = U S V^T; the map is O v_1 = s_1 u_1, whatever
    the class. A singular vector has no sign: the one is taken for which the map has a non-negative inner product with
    the norm of the cells, so that active cells are high. It is computed from the smaller Gram matrix.

    Args:
        features: (N, C, h, w).
        center: subtract the mean over the cells first, which makes v_1 the first principal component;
            pytorch-grad-cam does, the paper does not.

    Returns:
        (N, 1, h, w); an image whose features are not finite gets NaN.
    """
    rows = features.flatten(2).transpose(1, 2)
    finite = rows.isfinite().flatten(1).all(1)
    rows = rows.where(finite[:, None, None], rows.new_zeros(()))  # the solver would refuse the whole batch
    scale = rows.abs().amax((1, 2))
    rows = rows / scale.masked_fill(scale == 0, 1)[:, None, None]  # squares stay within float32
    norm = torch.linalg.vector_norm(rows, dim=2)
    if center:
        rows = rows - rows.mean(1, keepdim=True)
    if rows.shape[1] <= rows.shape[2]:
        values, vectors = torch.linalg.eigh(rows @ rows.transpose(1, 2))
        maps = vectors[..., -1] * values[..., -1:].clamp(min=0).sqrt()
    else:
        vectors = torch.linalg.eigh(rows.transpose(1, 2) @ rows)[1]
        maps = (rows @ vectors[..., -1:])[..., 0]
    sign = torch.where((maps * norm).sum(1) < 0, -scale, scale).masked_fill(~finite, torch.nan)
    return (maps * sign[:, None]).unflatten(1, features.shape[2:])[:, None]


def _rectified(maps: Tensor, relu: bool) -> Tensor:
    return maps.relu() if relu else maps
