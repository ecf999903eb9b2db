"""Races: who stops and why, the evidence against naive loops, and how often anything that is said is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xattn.benchmark.betting import STAKES, wealth
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
    assert done.beaten[:, 1:3].any(0).all()
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
    assert done.beaten[1, 0]
    assert done.stopped[0] < 0


def test_a_control_that_is_better_puts_a_method_out() -> None:
    done = replay(race(), scores([0.1, 0.1, 0.1, 0.6]))
    assert not done.winners()
    assert done.decided


def test_twins_are_found_after_few_images() -> None:
    x = scores([0.5, 0.5, 0.1, 0.0], images=32)
    x[:, :, 1] = x[:, :, 0]
    done = replay(race(rules=Rules(first=0)), x)
    assert done.joined(0) == [1]
    assert done.end(1) == 0
    assert done.stopped[1] == 16
    cheaper = replay(race(rules=Rules(first=0), cost=[5.0, 1.0, 1.0, 0.0]), x)
    assert cheaper.joined(1) == [0]


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
    np.testing.assert_array_equal(alone.above[:, 0], dense.above[:, 0])


def naive(scores: np.ndarray, controls: list[bool], clip: float) -> tuple[list[list[float]], list[list[float]]]:
    """Wealth against each method being the best, and for it being above all controls, in plain loops over images."""
    n, questions, k = scores.shape
    beaten = [[[1.0] * len(STAKES) for _ in range(k)] for _ in range(questions)]
    above = [[[[1.0] * len(STAKES) for _ in range(k)] for _ in range(k)] for _ in range(questions)]
    lead = np.zeros((questions, k, k))
    for i in range(n):
        for q in range(questions):
            ahead = np.clip(scores[i, q][:, None] - scores[i, q][None, :], -clip, clip) / clip
            for j in range(k):
                rival = int(np.argmax(lead[q, :, j]))
                for s, stake in enumerate(STAKES):
                    beaten[q][j][s] *= 1 + stake * ahead[rival, j]
                    for c in range(k):
                        above[q][j][c][s] *= 1 + stake * ahead[j, c]
            lead[q] += ahead
    least = [
        [min(float(np.mean(above[q][j][c])) for c in range(k) if controls[c]) for j in range(k)]
        for q in range(questions)
    ]
    return [[float(np.mean(w)) for w in row] for row in beaten], least


def test_the_evidence_is_that_of_a_naive_loop() -> None:
    x = scores([0.3, 0.28, 0.2, 0.1], images=12)
    done = race(rules=Rules(first=0))
    for start in range(0, 12, 4):  # before anything is shown, so that nothing stops
        done.add(x[start : start + 4])
    assert (done.stopped < 0).all()
    beaten, least = naive(x, CONTROLS, done.rules.clip)
    np.testing.assert_allclose(wealth(done._beaten), beaten, rtol=1e-9)
    np.testing.assert_allclose(wealth(done._above)[:, :, done.controls].min(-1), least, rtol=1e-9)


@pytest.mark.parametrize("kind", ["equal", "skewed"])
def test_what_is_said_is_rarely_wrong_at_any_time(kind: str) -> None:
    """Of races among equals, looked at after every fourth image, at most 5 % say that one is beaten or above."""
    races, wrong, alpha = 300, 0, 0.05
    for seed in range(races):
        rng = np.random.default_rng(seed)
        x = rng.uniform(-0.1, 0.1, (120, 1, 4))
        if kind == "skewed":  # rare large losses
            x += np.where(rng.uniform(size=x.shape) < 0.9, 0.05, -0.45)
        done = replay(Race(NAMES, CONTROLS, ["blur"], rules=Rules(alpha=alpha, clip=0.5)), x, batch=4)
        wrong += bool(done.beaten.any() or done.above.any())
    assert wrong / races <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / races)


def test_intervals_of_differences_hold_the_mean() -> None:
    done = replay(race(rules=Rules(clip=0.5)), scores([0.5, 0.4, 0.1, 0.0], spread=0.05))
    mean, low, high = done.behind(0, 1, 0)
    assert low < 0.1 < high
    assert low < mean < high
    assert high - low < 2 * done.rules.clip


def test_bad_scores_and_rules_are_told() -> None:
    with pytest.raises(ShapeError, match=r"race: expected scores \(n, 2, 4\) but got \(3, 4\)"):
        race().add(np.zeros((3, 4)))
    with pytest.raises(ParameterError, match="rules: alpha"):
        Rules(alpha=0.0)


def test_what_a_method_that_is_taken_out_had_shown_is_taken_back() -> None:
    """A is ahead of B, which beats the control; then A's maps are found not to be fine."""
    rng = np.random.default_rng(0)
    means = np.array([0.6, 0.4, 0.2])
    x = means + rng.normal(0, 0.01, (48, 1, 3))
    race = Race(["a", "b", "control"], [False, False, True], ["blur"], rules=Rules(first=0))
    replay(race, x[:32], batch=4)
    assert race.stopped[1] >= 0
    assert race.winners() == [0]
    race.drop(0)
    assert race.winners() == [1]
    alone = Race(["b", "control"], [False, True], ["blur"], rules=Rules(first=0))
    stopped = race.images
    alone.add(x[: int((~np.isnan(race.scores[:, 0, 1])).sum()), :, 1:])
    assert race.beats_controls(0, 1) == alone.beats_controls(0, 0)
    race.add(x[32:])
    assert race.images > stopped or race.decided
    assert np.isnan(race.scores[:, 0, 0]).all()
    assert race.beats_controls(0, 1)
