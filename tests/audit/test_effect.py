"""Passes with something replaced, against plain loops; tones; the test."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.audit.synthetic import CELLS, Pictures, build, cells_of, logit, pictures
from xattn.audit import AuditSettings, Group, Member
from xattn.audit.effect import Measured, Probe, effect_of, one_sided
from xattn.audit.replace import replaced, tone_of, toned, turned


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
    probe = Probe(model, images, model.spec, AuditSettings(batch_size=2))
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
        without = np.where(m.cells[:, :, None], mean, own)
        changed = (logit(without, 0) > logit(without, 1)) != (logit(own, 0) > logit(own, 1))
        assert measured.flips[k] == float(changed)


def test_a_tone_is_moved_and_given_back(images: Pictures) -> None:
    model = build()
    members = [member(i, np.ones((4, 4), bool)) for i in (0, 2, 4)]
    probe = Probe(model, images, model.spec, AuditSettings())
    others, foreign = pixels(images, [10, 12, 14]), pixels(images, [1, 3, 5])
    x, _ = probe.images(members)
    made = probe.variants(group("tone", members), members, x, others, foreign)
    goal = tone_of(others).mean(0)
    there = tone_of(x) > 0  # what has no contrast gets none
    assert torch.allclose(tone_of(made["in place"])[there], goal.expand(3, -1)[there], atol=1e-4)
    away = (goal - tone_of(x)).norm(dim=1)
    for name in ("elsewhere 0", "elsewhere 1"):
        moved = tone_of(made[name]) - tone_of(x)
        assert torch.allclose(moved.norm(dim=1), away, atol=0.05)
    assert set(made) >= {"carried", "carried elsewhere"}


@given(st.integers(0, 1000))
def test_tones_are_means_and_deviations_and_turns_are_right_angles(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 3, 8, 8, generator=generator) + 0.1
    shift = 0.05 * torch.rand(3, 6, generator=generator)
    for image, tone in zip(x.numpy().astype(np.float64), tone_of(x).numpy(), strict=True):
        assert np.allclose(tone, [*image.mean((1, 2)), *image.std((1, 2))], atol=1e-5)
    assert torch.allclose(tone_of(toned(x, shift)), tone_of(x) + shift, atol=1e-4)
    across = turned(shift, [torch.Generator().manual_seed(k) for k in range(3)])
    assert torch.allclose((across * shift).sum(1), torch.zeros(3), atol=1e-6)
    assert torch.allclose(across.norm(dim=1), shift.norm(dim=1), atol=1e-6)


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


def test_nothing_measured_is_no_effect() -> None:
    empty = np.zeros(0)
    effect = effect_of(Measured(empty, empty, empty, empty, empty, empty, empty, empty))
    assert effect.n == 0
    assert not effect.moves
    assert np.isnan(effect.difference)
