"""The same evidence in front of another network."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.audit import synthetic
from tests.audit.synthetic import Pictures, cells_of, logit
from xattn.audit import Audit, AuditSettings, Member, audit
from xattn.audit.against import Shared, ask_other, asked, only_other, seen_by

SETTINGS = AuditSettings(score="logit", parts=3, area=0.2)


def build() -> Any:
    return synthetic.build()


def test_a_network_that_does_not_see_red_does_not_rely_on_it(found: Audit, planted: Pictures) -> None:
    same, blind = build(), build()
    with torch.no_grad():
        blind.fc.weight[0, 0] = 0.0
    first = found.findings[:1]
    (before,) = ask_other(first, same, planted, spec=same.spec, settings=SETTINGS)
    (after,) = ask_other(first, blind, planted, spec=blind.spec, settings=SETTINGS)
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
    (shared,) = ask_other(found.findings[:1], model, planted, spec=model.spec, settings=SETTINGS)
    others = found.findings[0].others  # the images that stood in for it in the audit
    assert 0 < len(others) <= 64
    assert not {m.index for m in group.members} & {*others}
    means = [cells_of(planted.pixels[i]) for i in others]
    falls = []
    for m in group.of_half("test"):
        own = cells_of(planted.pixels[m.index])
        without = own.copy()
        without[m.cells] = sum(means)[m.cells] / len(means)
        falls.append(logit(own, 0) - logit(without, 0))
    assert shared.effect.fall == pytest.approx(sum(falls) / len(falls), rel=1e-5)


def test_a_network_that_is_asked_about_itself_answers_as_in_the_audit(planted: Pictures) -> None:
    model, settings = build(), replace(SETTINGS, per_group=16)
    result = audit(model, planted, settings=settings)
    wanted = asked(result)
    assert len(wanted[0].tested) == 16 < len(wanted[0].group.of_half("test"))
    for finding, shared in zip(
        wanted, ask_other(wanted, model, planted, spec=model.spec, settings=settings), strict=True
    ):
        theirs, ours = shared.effect, finding.effect
        np.testing.assert_equal(
            {**asdict(theirs), "adjusted": 0, "moves": 0}, {**asdict(ours), "adjusted": 0, "moves": 0}
        )


def test_what_only_the_other_network_relies_on_is_found(planted: Pictures) -> None:
    same, blind = build(), build()
    with torch.no_grad():
        blind.fc.weight[0, 0] = 0.0
    more: dict[str, Any] = {"spec": same.spec, "own": same.spec, "settings": SETTINGS}
    there = only_other(same, blind, planted, classes=["green thing", "a class of no network"], **more)
    marked = set(np.flatnonzero(planted.marked).tolist())
    assert any({m.index for m in finding.group.members} <= marked for finding, _ in there)
    assert all(finding.effect.moves and not shared.effect.moves for finding, shared in there)
    assert {finding.group.class_name for finding, _ in there} == {"green thing"}
    assert not [f for f, _ in only_other(blind, same, planted, **more) if f.group.members[0].index in marked]
    assert only_other(same, blind, planted, classes=["a class of no network"], **more) == ()


def test_classes_are_found_by_their_names_and_others_are_not_asked(found: Audit, planted: Pictures) -> None:
    def ask(classes: tuple[str, ...], name: str = "green thing") -> tuple[Shared, ...]:
        model = build()
        finding = replace(found.findings[0], group=replace(found.findings[0].group, class_name=name))
        spec = replace(model.spec, classes=classes)
        return ask_other([finding], model, planted, spec=spec, settings=SETTINGS)

    (first,) = ask(("green thing", "blue thing"))
    (last,) = ask(("blue thing", "green thing"))
    assert first.effect.fall > 1 > last.effect.fall  # there the score is that of the other output
    assert not ask(("red thing", "blue thing"))
    # names that look like numbers are names
    (second,) = ask(("1", "0"), "1")
    assert second.effect.fall == first.effect.fall
    assert not ask(("3", "2"), "1")
    assert len(ask(())) == 1
    far = replace(found.findings[0], group=replace(found.findings[0].group, class_index=2))
    assert not ask_other([far], build(), planted, spec=replace(build().spec, classes=()), settings=SETTINGS)


def test_cells_lie_on_the_same_pixels_of_the_photograph(planted: Pictures) -> None:
    """A network that sees the middle half of an image: by loops over its pixels, from their centres to cells."""
    whole = build().spec
    middle = replace(whole, crop=0.5)
    cells = np.zeros((4, 4), np.bool_)
    cells[0, 3] = cells[1, 2] = cells[2, 0] = True
    member = Member("a", 0, "test", 1.0, 1.0, None, cells, (32, 32))
    assert seen_by(member, planted, whole, whole) is member
    assert seen_by(member, planted, whole, replace(whole, input_size=(64, 64))) is member
    seen = seen_by(member, planted, whole, middle)
    assert seen is not None
    assert seen.cells.shape == (32, 32)
    for y in range(32):
        for x in range(32):
            row, column = 8 + (y + 0.5) / 2, 8 + (x + 0.5) / 2  # in pixels of the photograph
            assert seen.cells[y, x] == cells[int(row / 8), int(column / 8)]
    cells[:] = False
    cells[0, 3] = True
    assert seen_by(member, planted, whole, middle) is None
    back = seen_by(replace(member, cells=np.ones((4, 4), np.bool_)), planted, middle, whole)
    assert back is not None
    assert np.argwhere(back.cells).tolist() == [[y, x] for y in range(8, 24) for x in range(8, 24)]


def test_what_does_not_move_the_score_is_not_asked(found: Audit) -> None:
    assert {f.id for f in asked(found)} == {f.id for f in found if f.effect.moves}
