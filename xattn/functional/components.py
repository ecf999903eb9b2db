"""What the cells of a feature map have in common: principal components, strong responses, non-negative factors.

All take features (N, C, h, w) and work on each image alone. Half precision is computed in float32, float64 stays, and
an image whose features are not finite gets NaN.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from xattn.errors import ParameterError, ShapeError
from xattn.functional.cam import eigen_cam, full_precision

Kernel = Literal["sigmoid", "rbf"]


@full_precision
def eigen_grad_cam(features: Tensor, gradient: Tensor, center: bool = False) -> Tensor:
    """Eigen-CAM of features times gradient, as in pytorch-grad-cam (after Muhammad, Yeasin 2020, arXiv:2008.00299).

    A singular vector has no sign: the one is taken for which the map has a non-negative inner product with the
    evidence sum_k g_k,ij A_k,ij (HiResCAM), so that what speaks for the class is high.

    Args:
        features: (N, C, h, w).
        gradient: of the score by the features.
        center: subtract the mean of the products over the cells first, as pytorch-grad-cam does.

    Returns:
        (N, 1, h, w), signed.
    """
    if gradient.shape != features.shape:
        raise ShapeError(
            f"eigen_grad_cam: features and gradient must have one shape but have {tuple(features.shape)} and "
            f"{tuple(gradient.shape)}; take both from the same layer."
        )
    product = features * gradient.to(features.dtype)
    return _towards(eigen_cam(product, center), product.sum(1, keepdim=True))


@full_precision
def kernel_cam(features: Tensor, kernel: str = "sigmoid", gamma: float | None = None) -> Tensor:
    """KPCA-CAM: cells on their first principal component in a kernel's space (Karmani et al. 2024, arXiv:2410.00267).

    The mean over the cells is subtracted, K_ij = k(f_i, f_j) is centred in its own space, and the map is
    sqrt(lambda_1) v_1 of its largest eigenvalue. Active cells are made high: the sign is the one for which the map has
    a non-negative inner product with the norm of the cells. It costs memory of cells^2 and time of cells^3.

    Args:
        features: (N, C, h, w).
        kernel: `"sigmoid"`: tanh(gamma f_i . f_j + 1); `"rbf"`: exp(-gamma ||f_i - f_j||^2).
        gamma: None is 1 / C.

    Returns:
        (N, 1, h, w), signed.

    Raises:
        ParameterError: for another kernel.
    """
    if kernel not in get_args(Kernel):
        raise ParameterError(f"kernel_cam: kernel must be one of {', '.join(get_args(Kernel))} but is '{kernel}'.")
    rows = features.flatten(2).transpose(1, 2)
    finite = rows.isfinite().flatten(1).all(1)
    rows = rows.where(finite[:, None, None], rows.new_zeros(()))  # the solver would refuse the whole batch
    norm = torch.linalg.vector_norm(rows, dim=2)
    rows = rows - rows.mean(1, keepdim=True)
    gamma = 1 / rows.shape[2] if gamma is None else gamma
    gram = rows @ rows.transpose(1, 2)
    if kernel == "sigmoid":
        similarity = torch.tanh(gamma * gram + 1)
    else:
        square = gram.diagonal(dim1=1, dim2=2)
        distance = (square[:, :, None] + square[:, None, :] - 2 * gram).clamp(min=0)
        similarity = torch.exp(-gamma * distance)
    mean = similarity.mean(1, keepdim=True)
    centred = similarity - mean - mean.transpose(1, 2) + mean.mean(2, keepdim=True)
    values, vectors = torch.linalg.eigh(centred)
    maps = vectors[..., -1] * values[..., -1:].clamp(min=0).sqrt()
    maps = _towards(maps, norm).masked_fill(~finite[:, None], torch.nan)
    return maps.unflatten(1, features.shape[2:])[:, None]


@full_precision
def strong_cells(features: Tensor, k: float = 2.0) -> Tensor:
    """FEM: where channels respond k sigma above their mean (Fuad et al. 2020, 10.1109/IPTA50016.2020.9286629).

    sum_k mu_k [A_k,ij > mu_k + k sigma_k], with mean and standard deviation over the cells of the image. A channel that
    is constant has no strong cell and adds nothing.

    Args:
        features: (N, C, h, w).
        k: how many standard deviations above the mean a response is strong.

    Returns:
        (N, 1, h, w).

    >>> strong_cells(torch.tensor([[[[0.0, 0.0, 0.0, 8.0]]]]), k=1.0).tolist()
    [[[[0.0, 0.0, 0.0, 2.0]]]]
    """
    mean = features.mean((2, 3), keepdim=True)
    deviation = (features - mean).square().mean((2, 3), keepdim=True).sqrt()
    varies = features.amax((2, 3), keepdim=True) > features.amin((2, 3), keepdim=True)
    strong = (features - mean > k * deviation) & varies
    maps = (strong * mean).sum(1, keepdim=True)
    finite = features.isfinite().flatten(1).all(1)[:, None, None, None]
    return maps.masked_fill(~finite, torch.nan)


@full_precision
def factor_maps(features: Tensor, parts: int = 3, iterations: int = 30) -> Tensor:
    """Non-negative factors of the features (deep feature factorization; Collins et al. 2018, arXiv:1806.10206).

    The cells are the rows of X (h w, C), with negative values cut to zero. X ~ U V with U (h w, P) and V (P, C), both
    not negative, that minimize ||X - U V||. A map is a column of U times the length of its row of V: how much of the
    factor each cell has. The paper updates by multiplication from a random start, which on sparse features often
    ends in a worse minimum; here each column and row in turn takes its best value (Cichocki, Phan 2009, HALS), from the
    features of the cells that differ most (Araujo et al. 2001, successive projections), so that nothing is random.

    Args:
        features: (N, C, h, w).
        parts: number of factors P.
        iterations: updates of all columns and rows.

    Returns:
        (N, P, h, w), the factor of most total activity first.
    """
    rows = features.relu().flatten(2).transpose(1, 2)
    peak = rows.amax((1, 2))[:, None, None]
    x = rows / peak.masked_fill(peak == 0, 1)  # squares stay within float32
    v = _extreme_rows(x, parts)
    u = x.new_zeros(*x.shape[:2], parts)
    for _ in range(iterations):
        u = _best_columns(u, x @ v.mT, v @ v.mT)
        v = _best_columns(v.mT, x.mT @ u, u.mT @ u).mT
    maps = (u * torch.linalg.vector_norm(v, dim=2)[:, None] * peak).mT
    order = maps.sum(2).argsort(dim=1, descending=True, stable=True)
    return maps.gather(1, order[:, :, None].expand_as(maps)).unflatten(2, features.shape[2:])


def _extreme_rows(x: Tensor, count: int) -> Tensor:
    """Rows (N, count, C) of x (N, cells, C): the longest, then the longest of what is left beside those before it."""
    rest, images, chosen = x, torch.arange(len(x), device=x.device), []
    for _ in range(count):
        cell = torch.linalg.vector_norm(rest, dim=2).argmax(1)
        chosen.append(x[images, cell])
        length = torch.linalg.vector_norm(rest[images, cell], dim=1, keepdim=True)
        direction = rest[images, cell] / length.masked_fill(length == 0, 1)
        rest = rest - (rest @ direction[:, :, None]) * direction[:, None]
    return torch.stack(chosen, dim=1)


def _best_columns(u: Tensor, xv: Tensor, vv: Tensor) -> Tensor:
    """U (N, rows, P) after each column in turn took its best non-negative value, from X V^T and V V^T."""
    columns = list(u.unbind(2))
    for k in range(len(columns)):
        own = vv[:, k, k][:, None]
        slope = xv[:, :, k] - (torch.stack(columns, dim=2) @ vv[:, :, k : k + 1])[:, :, 0]
        columns[k] = (columns[k] + slope / own.masked_fill(own == 0, 1)).clamp(min=0)
    return torch.stack(columns, dim=2)


def _towards(maps: Tensor, evidence: Tensor) -> Tensor:
    """Maps (N, ...) with the sign that gives a non-negative inner product with the evidence of the same shape."""
    against = (maps * evidence).flatten(1).sum(1) < 0
    return torch.where(against.view(-1, *[1] * (maps.ndim - 1)), -maps, maps)
