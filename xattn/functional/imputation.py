"""Filling holes with what surrounds them: one sparse system for each image of a batch, solved on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

_DAMPING = 0.8  # of the Jacobi smoother
_OVERCORRECTION = 1.8  # piecewise constant aggregates are too stiff by about this factor (Braess 1995)
_SMALLEST = 4  # sides at which coarsening ends
_COARSE_SWEEPS = 8


def neighbor_sum(x: Tensor) -> Tensor:
    """Weighted sum of the eight neighbours: 1/6 for direct, 1/12 for diagonal ones; beyond the border there is nothing.

    Args:
        x: (B, C, H, W).

    Returns:
        The shape of `x`.
    """
    # (1, 2, 1) by (1, 2, 1) over 12 has these weights around a centre of 4/12, so rows and columns take turns.
    tall = pad(x, (0, 0, 1, 1))
    tall = tall[:, :, :-2] + tall[:, :, 2:] + 2 * x
    wide = pad(tall, (1, 1))
    return (wide[..., :-2] + wide[..., 2:] + 2 * tall - 4 * x) / 12


@dataclass(frozen=True, eq=False)
class _Level:
    """A symmetric operator on a grid: a diagonal and the couplings to the right, below, and the two diagonals below.

    All are (B, 1, H, W); cells that are no unknowns have zeros everywhere, and a zero in `inverse`.
    """

    diagonal: Tensor
    right: Tensor
    below: Tensor
    below_right: Tensor
    below_left: Tensor
    inverse: Tensor

    def apply(self, v: Tensor) -> Tensor:
        """The operator times v (B, C, H, W)."""
        out = self.diagonal * v
        out[..., :-1] -= self.right[..., :-1] * v[..., 1:]
        out[..., 1:] -= self.right[..., :-1] * v[..., :-1]
        out[..., :-1, :] -= self.below[..., :-1, :] * v[..., 1:, :]
        out[..., 1:, :] -= self.below[..., :-1, :] * v[..., :-1, :]
        out[..., :-1, :-1] -= self.below_right[..., :-1, :-1] * v[..., 1:, 1:]
        out[..., 1:, 1:] -= self.below_right[..., :-1, :-1] * v[..., :-1, :-1]
        out[..., :-1, 1:] -= self.below_left[..., :-1, 1:] * v[..., 1:, :-1]
        out[..., 1:, :-1] -= self.below_left[..., :-1, 1:] * v[..., :-1, 1:]
        return out


def _level(diagonal: Tensor, right: Tensor, below: Tensor, below_right: Tensor, below_left: Tensor) -> _Level:
    # Rounding may leave a cell of the diagonal that should be zero a little beside it.
    alive = diagonal > 1e-6
    inverse = torch.where(alive, 1 / torch.where(alive, diagonal, 1.0), 0.0)
    return _Level(torch.where(alive, diagonal, 0.0), right, below, below_right, below_left, inverse)


def _finest(lost: Tensor) -> _Level:
    """The equations of the lost pixels (B, 1, H, W): the weights of all neighbours less the lost ones among them."""
    diagonal = lost * neighbor_sum(torch.ones_like(lost[:1]))

    def coupled(down: int, across: int, weight: float) -> Tensor:
        left, right = max(0, -across), max(0, across)
        h, w = lost.shape[-2:]
        product = torch.zeros_like(lost)
        here, there = lost[..., : h - down, left : w - right], lost[..., down:, right : w - left]
        product[..., : h - down, left : w - right] = weight * here * there
        return product

    return _level(diagonal, coupled(0, 1, 1 / 6), coupled(1, 0, 1 / 6), coupled(1, 1, 1 / 12), coupled(1, -1, 1 / 12))


def _corners(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four cells of each block of two by two: upper left, upper right, lower left, lower right."""
    x = pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
    return x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]


def _coarser(fine: _Level) -> _Level:
    """The operator on blocks of two by two cells that move together (Galerkin with piecewise constants)."""
    d, r, b, br, bl = (_corners(t) for t in (fine.diagonal, fine.right, fine.below, fine.below_right, fine.below_left))
    inside = r[0] + r[2] + b[0] + b[1] + br[0] + bl[1]
    next_left = pad(bl[0], (0, 1))[..., 1:]  # from the block to the right, down to the left
    return _level(
        sum(d[1:], d[0]) - 2 * inside,
        r[1] + r[3] + br[1] + next_left,
        b[2] + b[3] + br[2] + bl[3],
        br[3],
        bl[2],
    )


def _levels(lost: Tensor) -> list[_Level]:
    levels = [_finest(lost)]
    while max(levels[-1].diagonal.shape[-2:]) > _SMALLEST:
        levels.append(_coarser(levels[-1]))
    return levels


def _cycle(levels: list[_Level], residual: Tensor, depth: int = 0) -> Tensor:
    """One symmetric V-cycle from zero: an approximate solution for a residual (B, C, H, W)."""
    level = levels[depth]
    step = _DAMPING * level.inverse
    v = step * residual
    if depth + 1 == len(levels):
        for _ in range(_COARSE_SWEEPS):
            v = v + step * (residual - level.apply(v))
        return v
    h, w = residual.shape[-2:]
    rest = residual - level.apply(v)
    coarse = _cycle(levels, sum(_corners(rest)[1:], _corners(rest)[0]), depth + 1)
    fine = coarse.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., :h, :w]
    v = v + _OVERCORRECTION * (level.inverse > 0) * fine
    return v + step * (residual - level.apply(v))


def _guess(x: Tensor, known: Tensor) -> Tensor:
    """A first guess of unknown pixels: means of ever larger blocks of known ones, interpolated back."""
    h, w = x.shape[-2:]
    if max(h, w) == 1:
        return x * known
    mass, color = (sum(_corners(t)[1:], _corners(t)[0]) for t in (known, x * known))
    below = _guess(color / torch.where(mass > 0, mass, 1.0), (mass > 0).to(x))
    up = torch.nn.functional.interpolate(below, scale_factor=2.0, mode="bilinear", align_corners=False)[..., :h, :w]
    return torch.where(known > 0, x, up)


def _sum(x: Tensor) -> Tensor:
    return x.sum((2, 3), keepdim=True)


def linear_imputation(x: Tensor, removed: Tensor, *, tolerance: float = 1e-3, iterations: int = 200) -> Tensor:
    """Each removed pixel as the weighted mean of its eight neighbours (ROAD; Rong et al. 2022, arXiv:2202.00449).

    Direct neighbours weigh 1/6, diagonal ones 1/12; at the border the weights that are left are scaled up, as in the
    released code. The equations of all removed pixels are solved together, for the whole batch, by conjugate gradients
    with a multigrid cycle; a channel stops by itself, so that its pixels do not depend on the batch.

    Args:
        x: (B, C, H, W).
        removed: bool (B, 1, H, W). Where all pixels are removed nothing is known: the image becomes zeros.
        tolerance: a channel is done when a cycle would move none of its pixels by more than this share of the range of
            its known pixels.
        iterations: bound on the number of cycles.

    Returns:
        (B, C, H, W), float32 (float64 is kept); known pixels are untouched.
    """
    x = x if x.dtype == torch.float64 else x.float()
    with torch.no_grad():
        lost = removed.to(x)
        known = 1 - lost
        some = known.amax((2, 3), keepdim=True)
        low = torch.where(removed, torch.inf, x).amin((2, 3), keepdim=True)
        high = torch.where(removed, -torch.inf, x).amax((2, 3), keepdim=True)
        limit = torch.where(some > 0, tolerance * (high - low), torch.inf)
        levels = _levels(lost * some)
        finest = levels[0]
        degree = neighbor_sum(torch.ones_like(lost[:1]))

        def apply(v: Tensor) -> Tensor:
            return lost * (degree * v - neighbor_sum(v))

        v = lost * _guess(x * known, known) * some
        r = (lost * neighbor_sum(x * known) - apply(v)) * (finest.inverse > 0)
        z = _cycle(levels, r)
        p, rz = z, _sum(r * z)
        for _ in range(iterations):
            going = (z.abs().amax((2, 3), keepdim=True) > limit) & (rz > 0)
            if not bool(going.any()):
                break
            q = apply(p)
            curvature = _sum(p * q)
            alpha = torch.where(going, rz / torch.where(curvature > 0, curvature, 1.0), 0.0)
            v = v + alpha * p
            r = r - alpha * q
            z = _cycle(levels, r)
            after = _sum(r * z)
            p = torch.where(going, z + after / torch.where(rz > 0, rz, 1.0) * p, p)
            rz = torch.where(going, after, rz)
        return torch.where(removed, v, x)
