"""Which part a point lies in, and how stable that is, against loops in float64 and scikit-learn."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from xattn.errors import ShapeError
from xattn.functional.points import part_counts, part_entropy, part_information, parts_at


def naive_part(maps: torch.Tensor, x: float, y: float) -> int:
    """Look the point up in each map, brightest cell of the map = 1, and keep the brightest."""
    best, found = 0.0, -1
    if not (0 <= x < 1 and 0 <= y < 1):  # also for NaN
        return found
    for p, rows in enumerate(maps.double().tolist()):
        peak = max(max(row) for row in rows)
        value = rows[math.floor(y * len(rows))][math.floor(x * len(rows[0]))]
        if peak > 0 and value / peak > best:
            best, found = value / peak, p
    return found


def naive_entropy(counter: Counter[int]) -> float:
    total = sum(counter.values())
    return -sum(n / total * math.log(n / total) for n in counter.values() if n)


def test_a_point_lies_in_the_strongest_part() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(6, 4, 5, 3, generator=generator, dtype=torch.float64)
    maps = torch.where(maps < 0.4, 0, maps) * torch.tensor([0.01, 1.0, 30.0, 1.0])[None, :, None, None]
    maps[0, 2] = 0  # a part without any weight
    maps[1] = 0  # an image without any
    points = torch.rand(6, 7, 2, generator=generator, dtype=torch.float64) * 1.2 - 0.1
    points[2, 3] = torch.nan
    points[3, 0] = torch.tensor([0.0, 1.0])  # the lower edge belongs to no cell
    found = parts_at(maps, points)
    expected = [[naive_part(maps[n], *points[n, k].tolist()) for k in range(7)] for n in range(6)]
    assert found.tolist() == expected
    assert found[1].tolist() == [-1] * 7
    assert found[2, 3] == found[3, 0] == -1
    assert len(found.unique()) == 5
    assert torch.equal(parts_at(maps[:, :1].expand(-1, 2, -1, -1), points), parts_at(maps[:, :1], points))  # ties


def test_counts_entropy_and_information_are_those_of_the_loops() -> None:
    from sklearn.metrics import normalized_mutual_info_score

    generator = torch.Generator().manual_seed(1)
    assigned = torch.randint(-1, 3, (40, 5), generator=generator)
    assigned[:, 0] = 2
    assigned[:30, 1] = 0
    counts = part_counts(assigned, 3)
    seen = [(k, int(p)) for row in assigned for k, p in enumerate(row) if p >= 0]
    assert counts.tolist() == [[seen.count((k, p)) for p in range(3)] for k in range(5)]
    for k in range(5):
        mine = naive_entropy(Counter(p for point, p in seen if point == k)) / math.log(3)
        assert float(part_entropy(counts)[k]) == pytest.approx(mine)
    h_point, h_part = (naive_entropy(Counter(s[i] for s in seen)) for i in (0, 1))
    shared = h_point + h_part - naive_entropy(Counter(seen))  # type: ignore[arg-type]
    assert float(part_information(counts)) == pytest.approx(2 * shared / (h_point + h_part))
    witness = normalized_mutual_info_score(*zip(*seen, strict=True))
    assert float(part_information(counts)) == pytest.approx(witness)


def test_the_ends_of_the_scales() -> None:
    assert float(part_information(torch.eye(3) * 7)) == pytest.approx(1)
    assert float(part_information(torch.ones(4, 3))) == pytest.approx(0, abs=1e-12)
    assert part_entropy(torch.tensor([[4, 0, 0], [2, 2, 2], [0, 0, 0]])).tolist()[:2] == pytest.approx([0, 1])
    assert part_entropy(torch.tensor([[0, 0]])).isnan().all()
    assert part_information(torch.zeros(2, 2)).isnan()


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match=r"parts_at: expected maps \(N, P, h, w\) and points"):
        parts_at(torch.rand(2, 3, 4, 4), torch.rand(3, 5, 2))
    for formula in (part_entropy, part_information, lambda t: part_counts(t, 2)):
        with pytest.raises(ShapeError, match="expected"):
            formula(torch.zeros(3))
