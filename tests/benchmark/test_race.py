"""Races: who stops and why, and how often anything that is said is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xattn.benchmark.race import Race, Rules, replay
from xattn.errors import ParameterError, ShapeError

NAMES = ["a", "b", "c", "random"]
CONTROLS = [False, False, False, True]


def scores(means: list[float], images: int = 200, questions: int = 2, spread: float = 0.1, seed: int = 0) -> np.ndarray:
    """Scores (N, Q, K) around means, with what is common to an image."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 0.2, (images, 1, 1))
    return np.array(means) + common + rng.normal(0, spread, (images, questions, len(means)))


def race(**options: object) -> Race:
    return Race(NAMES, CONTROLS, ["blur", "mean"], **options)  # type: ignore[arg-type]


def test_the_best_wins_and_the_others_stop_early() -> None:
    done = replay(race(), scores([0.5, 0.2, 0.1, 0.0]))
    assert done.decided
    assert [done.names[j] for j in done.winners()] == ["a"]
    assert done.images < 100
    assert all(0 < done.stopped[j] <= done.images for j in (1, 2, 3))
    assert done.beats_controls(0, 0)
    assert done.beats_controls(1, 0)


def test_a_stopped_method_has_no_more_scores() -> None:
    done = replay(race(), scores([0.5, 0.45, 0.1, 0.0], spread=0.05))
    counts = done.counts()
    assert counts[0, 2] == done.stopped[2] < done.images
    assert np.isnan(done.scores[done.stopped[2] :, :, 2]).all()


def test_the_second_question_starts_late_and_so_do_methods_that_cost_much() -> None:
    r = race(late=[False, False, True, False], rules=Rules(first=8))
    assert r.asked.tolist() == [True, False]
    assert r.racing.tolist() == [True, True, False, True]
    r.add(scores([0.3, 0.3, 0.3, 0.3], images=8))
    assert np.isnan(r.scores[:, 1]).all()
    assert np.isnan(r.scores[:, :, 2]).all()
    assert r.asked.all()
    assert r.racing.all()


def test_a_question_that_does_not_decide_puts_nobody_out() -> None:
    x = scores([0.3, 0.3, 0.3, 0.3], spread=0.01, images=60)
    x[:, 1, 0] -= 0.5
    done = replay(Race(NAMES, CONTROLS, ["blur", "object"], deciding=[True, False]), x)
    assert done.better[1, 1, 0]
    assert done.stopped[0] < 0


def test_a_control_that_is_better_puts_a_method_out() -> None:
    done = replay(race(), scores([0.1, 0.1, 0.1, 0.6]))
    assert not done.winners()
    assert done.decided


def test_methods_that_differ_by_less_than_the_margin_become_one_the_cheaper() -> None:
    x = scores([0.5, 0.5, 0.1, 0.0], spread=0.02, images=400)
    done = replay(race(cost=[5.0, 1.0, 1.0, 0.0]), x)
    assert done.decided
    assert [done.names[j] for j in done.winners()] == ["b"]
    assert done.joined(1) == [0]
    assert done.end(0) == 1
    assert done.beats_controls(0, 0)  # as the one that goes on in its place


def test_twins_are_found_after_few_images() -> None:
    x = scores([0.5, 0.5, 0.1, 0.0], images=32)
    x[:, :, 1] = x[:, :, 0]
    done = replay(race(rules=Rules(first=0)), x)
    assert done.joined(0) == [1]
    assert done.stopped[1] == 16


def test_nothing_is_decided_among_equals() -> None:
    done = replay(race(), scores([0.5, 0.5, 0.5, 0.0], images=48))
    assert not done.decided
    assert len(done.winners()) == 3


def test_missing_scores_are_no_bets() -> None:
    x = scores([0.5, 0.2, 0.1, 0.0], images=40)
    x[::2, :, 0] = np.nan
    alone = race(rules=Rules(first=0))
    alone.add(x)
    dense = race(rules=Rules(first=0))
    dense.add(x[1::2])
    np.testing.assert_array_equal(alone.better[:, 0], dense.better[:, 0])


def test_what_is_said_is_rarely_wrong_at_any_time() -> None:
    """Of races among equals, looked at after every fourth of 120 images, at most 5 % say that one is better."""
    races, wrong, alpha = 300, 0, 0.05
    for seed in range(races):
        rng = np.random.default_rng(seed)
        x = np.where(rng.uniform(size=(120, 1, 4)) < 0.8, 0.5, 0.0) + rng.uniform(-0.1, 0.1, (120, 1, 4))
        done = replay(Race(NAMES, CONTROLS, ["blur"], rules=Rules(alpha=alpha, margin=1e-6, clip=0.5)), x, batch=4)
        wrong += bool(done.better.any())
    assert wrong / races <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / races)


def test_intervals_of_differences_hold_the_mean() -> None:
    done = replay(race(), scores([0.5, 0.4, 0.1, 0.0], spread=0.05))
    mean, low, high = done.behind(0, 1, 0)
    assert low < 0.1 < high
    assert low < mean < high
    assert low > 0


def test_bad_scores_and_rules_are_told() -> None:
    with pytest.raises(ShapeError, match=r"race: expected scores \(n, 2, 4\) but got \(3, 4\)"):
        race().add(np.zeros((3, 4)))
    with pytest.raises(ParameterError, match="rules: alpha"):
        Rules(alpha=0.0)
