"""The same evidence in front of another network."""

from __future__ import annotations

import pytest
import torch

from tests.audit.synthetic import Pictures, build, cells_of, logit
from xattn.audit import Audit, AuditSettings
from xattn.audit.against import ask_other, asked

SETTINGS = AuditSettings(parts=3, area=0.2)


def test_a_network_that_does_not_see_red_does_not_rely_on_it(found: Audit, planted: Pictures) -> None:
    same, blind = build(), build()
    with torch.no_grad():
        blind.fc.weight[0, 0] = 0.0  # type: ignore[union-attr, operator, index]
    first = found.findings[:1]
    (before,) = ask_other(first, same, planted, spec=same.spec, settings=SETTINGS)  # type: ignore[arg-type]
    (after,) = ask_other(first, blind, planted, spec=blind.spec, settings=SETTINGS)  # type: ignore[arg-type]
    assert before.effect.moves
    assert "relies on it too" in before.text
    assert not after.effect.moves
    assert "is not shown to rely on it" in after.text
    assert before.effect.n == len(first[0].group.of_half("test"))
    # the whole difference between the two is what red adds in the cells of the mark
    red = 60 / 16
    assert before.effect.fall - after.effect.fall == pytest.approx(red, abs=0.2)


def test_the_score_that_falls_is_that_of_loops(found: Audit, planted: Pictures) -> None:
    model = build()
    group = found.findings[0].group
    (shared,) = ask_other(found.findings[:1], model, planted, spec=model.spec, settings=SETTINGS)  # type: ignore[arg-type]
    inside = {m.index for m in group.members}
    means = [cells_of(planted.pixels[i]) for i in range(len(planted)) if i not in inside]
    falls = []
    for m in group.of_half("test"):
        own = cells_of(planted.pixels[m.index])
        without = own.copy()
        without[m.cells] = sum(means)[m.cells] / len(means)
        falls.append(logit(own, 0) - logit(without, 0))
    assert shared.effect.fall == pytest.approx(sum(falls) / len(falls), rel=0.02)  # of 64 images, not of all


def test_what_does_not_move_the_score_is_not_asked(found: Audit) -> None:
    assert {f.id for f in asked(found)} == {f.id for f in found if f.effect.moves}
