"""Passes with something replaced, against plain loops; tones; the test."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.audit.synthetic import CELLS, Pictures, build, cells_of, logit, pictures
from xattn.audit import AuditSettings, Group, Member
from xattn.audit.effect import NOTHING, Measured, Probe, effect_of, moves, one_sided
from xattn.audit.replace import regraded, replaced, tone_of, turned


@pytest.fixture(scope="module")
def images() -> Pictures:
    return pictures(20)


def member(index: int, cells: np.ndarray) -> Member:
    return Member(f"{index:03d}.png", index, "test", 1.0, 1.0, True, cells, (32, 32))


def group(kind: str, members: list[Member]) -> Group:
    return Group("g", 0, "green thing", kind, tuple(members), np.full((4, 4), 1 / 16), 20)  # type: ignore[arg-type]


def pixels(images: Pictures, indices: list[int]) -> torch.Tensor:
    return torch.from_numpy(images.pixels[indices]).permute(0, 3, 1, 2).float() / 255


def test_scores_in_place_elsewhere_and_carried_are_those_of_loops(images: Pictures) -> None:
    rng = np.random.default_rng(0)
    members = [member(i, rng.random((4, 4)) < 0.2) for i in (0, 2, 4, 6, 8)]
    members = [m for m in members if m.cells.any()]
    model = build()
    probe = Probe(model, images, model.spec, AuditSettings(score="logit", batch_size=2))
    others, foreign = pixels(images, [10, 12, 14]), pixels(images, [1, 3, 5])
    measured = probe.measure(group("parts", members), members, others, foreign)
    mean = np.mean([cells_of(images.pixels[i]) for i in (10, 12, 14)], axis=0)
    for k, m in enumerate(members):
        own = cells_of(images.pixels[m.index])
        guest = cells_of(images.pixels[[1, 3, 5][k % 3]])
        # each place elsewhere is a move around the frame with the least overlap: the mean of two of these
        moves = []
        for dy, dx in product(range(CELLS), range(CELLS)):
            there = np.zeros((4, 4), bool)
            for i, j in zip(*np.nonzero(m.cells), strict=True):
                there[(i + dy) % CELLS, (j + dx) % CELLS] = True
            moves.append(there)
        least = min((t & m.cells).sum() for t in moves)
        allowed = [logit(np.where(t[:, :, None], mean, own), 0) for t in moves if (t & m.cells).sum() == least]
        assert measured.score[k] == pytest.approx(logit(own, 0), rel=1e-5)
        assert measured.in_place[k] == pytest.approx(logit(np.where(m.cells[:, :, None], mean, own), 0), rel=1e-4)
        assert measured.without[k] == pytest.approx(logit(mean, 0), rel=1e-4)
        pairs = [(a + b) / 2 for a in allowed for b in allowed]
        assert min(abs(measured.elsewhere[k] - p) for p in pairs) < 1e-4
        put = np.where(m.cells[:, :, None], own, guest)
        assert measured.carried[k] == float(logit(put, 0) > logit(put, 1))
        assert measured.drawn[k] == pytest.approx(logit(put, 0), rel=1e-4)
        away = [logit(np.where(t[:, :, None], own, guest), 0) for t in moves if (t & m.cells).sum() == least]
        assert min(abs(measured.drawn_elsewhere[k] - a) for a in away) < 1e-4
        # given to one of the three images without it, against the same cells of the next but one
        host, donor = (cells_of(images.pixels[(10, 12, 14)[j % 3]]) for j in (k, k + 2))
        assert measured.given[k] == pytest.approx(logit(np.where(m.cells[:, :, None], own, host), 0), rel=1e-4)
        assert measured.given_other[k] == pytest.approx(logit(np.where(m.cells[:, :, None], donor, host), 0), rel=1e-4)
        without = np.where(m.cells[:, :, None], mean, own)
        changed = (logit(without, 0) > logit(without, 1)) != (logit(own, 0) > logit(own, 1))
        assert measured.flips[k] == float(changed)


def test_a_tone_is_moved_and_given_back(images: Pictures) -> None:
    model = build()
    members = [member(i, np.ones((4, 4), bool)) for i in (0, 2, 4)]
    probe = Probe(model, images, model.spec, AuditSettings(score="logit"))
    others, foreign = pixels(images, [10, 12, 14]), pixels(images, [1, 3, 5])
    x, _ = probe.images(members)
    own = np.array([0.2, 0.3, 0.25, 0.1, 0.2, 0.15])
    made = probe.variants(replace(group("tone", members), tone=own), members, x, others, foreign)
    loops = [naive_tone(image) for image in others.numpy().astype(np.float64)]
    goal = np.mean(loops, axis=0)[:6]
    for k, image in enumerate(x.numpy().astype(np.float64)):
        for c in range(3):
            stretch = max(goal[3 + c], 0.02) / max(own[3 + c], 0.02)
            assert np.allclose(made["in place"][k, c], (image[c] - own[c]) * stretch + goal[c], atol=1e-4)
    for k, guest in enumerate(foreign.numpy().astype(np.float64)):
        for c in range(3):
            stretch = max(own[3 + c], 0.02) / max(goal[3 + c], 0.02)
            assert np.allclose(made["carried"][k, c], (guest[c] - goal[c]) * stretch + own[c], atol=1e-4)
    given = probe.given(replace(group("tone", members), tone=own), members, x, others, (others, others))
    for k, host in enumerate(others.numpy().astype(np.float64)):
        for c in range(3):
            stretch = max(own[3 + c], 0.02) / max(goal[3 + c], 0.02)
            assert np.allclose(given["given"][k, c], (host[c] - goal[c]) * stretch + own[c], atol=1e-4)
    assert torch.equal(given["given other"], others)
    assert set(made) == {"as it is", "in place", "elsewhere 0", "elsewhere 1", "carried", "carried elsewhere"}


def naive_tone(image: np.ndarray) -> list[float]:
    """Mean, deviation, lowest and highest value of the channels (C, H, W)."""
    flat = [sorted(channel.ravel().tolist()) for channel in image]
    means = [sum(v) / len(v) for v in flat]
    deviations = [(sum((a - m) ** 2 for a in v) / len(v)) ** 0.5 for v, m in zip(flat, means, strict=True)]
    return [*means, *deviations, *(v[0] for v in flat), *(v[-1] for v in flat)]


@given(st.integers(0, 1000))
def test_tones_are_those_of_loops_and_turns_are_right_angles(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 3, 8, 8, generator=generator) + 0.1
    before, after = (0.3 + 0.2 * torch.rand(6, generator=generator) for _ in range(2))
    for image, tone in zip(x.numpy().astype(np.float64), tone_of(x).numpy(), strict=True):
        assert np.allclose(tone, naive_tone(image), atol=1e-5)
    stretch = (after[3:] / before[3:])[None, :, None, None]
    assert torch.allclose(
        regraded(x, before, after), (x - before[:3, None, None]) * stretch + after[:3, None, None], atol=1e-5
    )
    shift = after - before
    across = turned(shift, [torch.Generator().manual_seed(k) for k in range(3)])
    assert torch.allclose(across @ shift, torch.zeros(3), atol=1e-6)
    assert torch.allclose(across.norm(dim=1), shift.norm().expand(3), atol=1e-6)


def test_a_pixel_is_replaced_where_its_cell_is() -> None:
    x, y = torch.zeros(1, 1, 4, 6), torch.ones(1, 1, 4, 6)
    cells = torch.tensor([[[True, False, False], [False, False, True]]])
    found = replaced(x, y, cells)[0, 0]
    for row, column in product(range(4), range(6)):
        assert bool(found[row, column]) == bool(cells[0, row // 2, column // 2])


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=8))
def test_the_p_value_counts_all_signs(values: list[int]) -> None:
    d = np.array(values, np.float64)
    if not d.any():
        assert one_sided(d) == 0.5
        return
    ranks = [sum(abs(b) < abs(a) for b in values) + (sum(abs(b) == abs(a) for b in values) + 1) / 2 for a in values]
    kept = [(r, v) for r, v in zip(ranks, values, strict=True) if v]
    up = sum(r for r, v in kept if v > 0)
    sums = [sum(r for (r, _), s in zip(kept, signs, strict=True) if s) for signs in product((0, 1), repeat=len(kept))]
    exact = np.mean([s >= up for s in sums])
    below = np.mean([s <= up for s in sums])
    expected = exact if exact <= below else 1 - below  # the two-sided p is twice the smaller tail
    assert one_sided(d) == pytest.approx(expected, abs=1e-9) or exact == below or max(exact, below) > 0.5 - 1e-9
    if exact < 0.5:
        assert one_sided(d) == pytest.approx(exact)


def test_the_effect_is_that_of_loops() -> None:
    rng = np.random.default_rng(3)
    values = [rng.normal(size=12) for _ in range(12)]
    measured = Measured(*values)
    effect = effect_of(measured)
    falls = [float(measured.score[i] - measured.in_place[i]) for i in range(12)]
    away = [float(measured.score[i] - measured.elsewhere[i]) for i in range(12)]
    gains = [float(measured.given[i] - measured.given_other[i]) for i in range(12)]
    assert effect.fall == pytest.approx(sum(falls) / 12)
    assert effect.difference == pytest.approx((sum(falls) - sum(away)) / 12)
    assert effect.gain == pytest.approx(sum(gains) / 12)
    draws = [float(measured.drawn[i] - measured.drawn_elsewhere[i]) for i in range(12)]
    assert effect.draw == pytest.approx(sum(draws) / 12)
    each = [one_sided(np.array(v)) for v in ([f - a for f, a in zip(falls, away, strict=True)], gains, draws)]
    assert effect.p == pytest.approx(min(1, 3 * min(each)))
    assert effect.gain_low < effect.gain < effect.gain_high
    assert effect.draw_low < effect.draw < effect.draw_high
    for low, gain_low, draw_low, want in ((-1, 0.1, -1, 1), (0.1, -1, -1, 1), (-1, -1, 0.1, 1), (-1, -1, -1, 0)):
        some = replace(effect, adjusted=0.04, low=low, gain_low=gain_low, draw_low=draw_low)
        assert moves(some, 0.05) == bool(want)
    assert not moves(replace(effect, adjusted=0.06, low=1.0), 0.05)
    assert not moves(NOTHING, 0.05)


def test_without_other_classes_two_directions_are_tested() -> None:
    rng = np.random.default_rng(4)
    measured = replace(Measured(*[rng.normal(size=12) for _ in range(12)]), drawn=np.full(12, np.nan))
    effect = effect_of(measured)
    both = [measured.elsewhere - measured.in_place, measured.given - measured.given_other]
    assert effect.p == pytest.approx(min(1, 2 * min(map(one_sided, both))))
    assert np.isnan([effect.draw, effect.draw_low, effect.draw_high]).all()
    assert moves(replace(effect, adjusted=0.04, low=0.1), 0.05)
    assert not moves(replace(effect, adjusted=0.04, low=-1.0, gain_low=-1.0), 0.05)


def test_nothing_measured_is_no_effect() -> None:
    empty = np.zeros(0)
    effect = effect_of(Measured(*[empty] * 12))
    assert effect.n == 0
    assert not effect.moves
    assert np.isnan(effect.difference)
