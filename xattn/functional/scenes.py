"""Formulas over the parts of an image: how much of a map falls on each, and which of them that makes important."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations

import torch
from torch import Tensor


def part_sums(maps: Tensor, masks: Tensor, margin_px: int = 0) -> Tensor:
    """Sum of a map over each part (Hesse et al. 2023, FunnyBirds, arXiv:2308.06248, sec. 4).

    Args:
        maps: (H, W).
        masks: bool (R, H, W), where each part is.
        margin_px: pixels around a part that belong to it too.

    Returns:
        float64 (R,).

    >>> part_sums(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[[True, False, False]]]), 1).tolist()
    [3.0]
    """
    inside = masks.to(maps.device, torch.float32)[:, None]
    wide = torch.nn.functional.max_pool2d(inside, 2 * margin_px + 1, stride=1, padding=margin_px)[:, 0]
    return torch.einsum("hw,rhw->r", maps.double(), wide.double())


def important_parts(sums: Tensor, total: Tensor, thresholds: Tensor) -> Tensor:
    """Which parts a map calls important at each threshold: those with more than that share of the whole map.

    Args:
        sums: (R,), of the map over each part.
        total: sum of the map, a scalar.
        thresholds: (T,).

    Returns:
        bool (T, R).
    """
    return sums[None] > total * thresholds.to(sums)[:, None]


def sufficient_sets(parts: Iterable[str], shared: Mapping[int, frozenset[str]]) -> Iterator[frozenset[str]]:
    """The smallest sets of parts that no other class has, which tell the class alone.

    >>> sorted(map(sorted, sufficient_sets("abc", {1: frozenset("ab"), 2: frozenset("c")})))
    [['a', 'c'], ['b', 'c']]
    """
    names = sorted(parts)
    found: list[frozenset[str]] = []
    for size in range(1, len(names) + 1):
        for some in map(frozenset, combinations(names, size)):
            if not any(some <= other for other in shared.values()) and not any(smaller <= some for smaller in found):
                found.append(some)
                yield some


def opposed_classes(shared: Mapping[int, frozenset[str]], size: int = 2) -> tuple[int, int] | None:
    """The first two classes that share `size` parts each with that of an image, and not the same ones; None without.

    >>> opposed_classes({3: frozenset("ab"), 4: frozenset("bc"), 5: frozenset("cd")})
    (3, 5)
    """
    near = [c for c, parts in sorted(shared.items()) if len(parts) == size]
    return next(((a, b) for a, b in combinations(near, 2) if not shared[a] & shared[b]), None)
