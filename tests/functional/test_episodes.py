"""Episodes and the classifiers made of a few images, against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch

from xattn.errors import DataError, ShapeError
from xattn.functional.episodes import draw_episodes, episode_accuracy, episode_scores, half_interval, learned_scores

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


def naive_layer(shown: list[list[float]], answers: list[int], way: int, steps: int, rate: float):
    """Softmax regression from zero, one weight after the other."""
    weight, bias = [[0.0] * len(shown[0]) for _ in range(way)], [0.0] * way
    for _ in range(steps):
        errors = []
        for x, answer in zip(shown, answers, strict=True):
            logits = [b + sum(w * v for w, v in zip(row, x, strict=True)) for row, b in zip(weight, bias, strict=True)]
            total = sum(math.exp(z) for z in logits)
            errors.append([math.exp(z) / total - (n == answer) for n, z in enumerate(logits)])
        for n in range(way):
            for d in range(len(shown[0])):
                weight[n][d] -= rate * sum(e[n] * x[d] for e, x in zip(errors, shown, strict=True)) / len(shown)
            bias[n] -= rate * sum(e[n] for e in errors) / len(shown)
    return weight, bias


def test_a_learned_layer_is_that_of_the_loop() -> None:
    generator = seeded(6)
    support = torch.randn(2, 3, 2, 4, generator=generator, dtype=torch.float64)
    query = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    found = learned_scores(support, query, steps=7, rate=0.8)
    for e in range(2):
        weight, bias = naive_layer(support[e].flatten(0, 1).tolist(), [0, 0, 1, 1, 2, 2], 3, 7, 0.8)
        for m in range(5):
            for n in range(3):
                expected = bias[n] + sum(w * v for w, v in zip(weight[n], query[e, m].tolist(), strict=True))
                assert float(found[e, m, n]) == pytest.approx(expected, abs=1e-12)
    assert torch.equal(episode_scores(support, query, "learned"), learned_scores(support, query))
    shown = support.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: learned_scores(s, query, 3, 0.5), shown)


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
