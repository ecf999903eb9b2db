"""Episodes and the classifiers made of a few images, against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch

from xattn.errors import DataError, ShapeError
from xattn.functional.episodes import draw_episodes, episode_accuracy, episode_scores, half_interval

LABELS = torch.tensor([3, 0, 0, 1, 3, 1, 0, 3, 1, 2, 3, 0])  # 2 has one image


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_episodes_have_different_classes_and_images() -> None:
    episodes = draw_episodes(LABELS, 3, 3, 600, seeded(0))
    assert episodes.shape == (600, 3, 3)
    labels = LABELS[episodes]
    assert bool((labels == labels[..., :1]).all())
    for episode in episodes.tolist():
        assert len({int(LABELS[row[0]]) for row in episode}) == 3
        assert all(len(set(row)) == 3 for row in episode)
    assert torch.equal(episodes, draw_episodes(LABELS, 3, 3, 600, seeded(0)))
    assert not torch.equal(episodes, draw_episodes(LABELS, 3, 3, 600, seeded(1)))


def test_every_image_and_every_order_of_classes_is_equally_likely() -> None:
    episodes = draw_episodes(LABELS, 2, 1, 6000, seeded(2))
    counts = torch.bincount(episodes.flatten(), minlength=len(LABELS)).double()
    expected = torch.tensor([6000 * 2 / 4 / int((c == LABELS).sum()) for c in LABELS], dtype=torch.float64)
    assert bool(((counts - expected).abs() < 5 * expected.sqrt()).all())
    first = torch.bincount(LABELS[episodes[:, 0, 0]], minlength=4)
    assert bool(((first - 1500).abs() < 5 * 1500**0.5).all())


def test_too_few_images_are_told() -> None:
    with pytest.raises(DataError, match=r"4 classes with 2 images each .*: 3 of 4 classes have so many, the smallest"):
        draw_episodes(LABELS, 4, 2, 1, seeded(0))


@pytest.mark.parametrize("comparison", ["euclidean", "cosine"])
def test_scores_equal_loops(comparison) -> None:
    generator = seeded(3)
    support = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    query = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    found = episode_scores(support, query, comparison)
    for e in range(2):
        for m in range(6):
            for n in range(3):
                mean = [0.0] * 5
                for k in range(4):
                    row = support[e, n, k].tolist()
                    size = math.sqrt(sum(v * v for v in row)) if comparison == "cosine" else 1.0
                    mean = [a + v / size / 4 for a, v in zip(mean, row, strict=True)]
                q = query[e, m].tolist()
                if comparison == "euclidean":
                    expected = -sum((a - b) ** 2 for a, b in zip(q, mean, strict=True))
                else:
                    dot = sum(a * b for a, b in zip(q, mean, strict=True))
                    expected = dot / math.sqrt(sum(a * a for a in q) * sum(b * b for b in mean))
                assert float(found[e, m, n]) == pytest.approx(expected, abs=1e-12)


def test_accuracy_is_the_share_of_queries_nearest_to_their_class() -> None:
    features = torch.randn(len(LABELS), 5, generator=seeded(4), dtype=torch.float64)
    episodes = draw_episodes(LABELS, 3, 3, 40, seeded(5))
    found = episode_accuracy(features, episodes, 1)
    for e, episode in enumerate(episodes.tolist()):
        right = 0
        for n, row in enumerate(episode):
            for image in row[1:]:
                away = [float((features[image] - features[other[0]]).norm()) for other in episode]
                right += away.index(min(away)) == n
        assert float(found[e]) == pytest.approx(right / 6)


def test_the_interval_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = torch.rand(50, generator=seeded(6), dtype=torch.float64)
    low, high = stats.norm.interval(0.95, values.mean().item(), stats.sem(values.numpy()))
    assert half_interval(values) == pytest.approx((high - low) / 2, rel=1e-4)  # 1.96 is 1.95996
    assert math.isnan(half_interval(values[:1]))


def test_shapes_that_do_not_fit_are_told() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3, 4, 5\) and \(2, 6, 4\)"):
        episode_scores(torch.zeros(2, 3, 4, 5), torch.zeros(2, 6, 4))
