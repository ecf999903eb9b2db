"""A planted shortcut is the first finding, and each number that is told of it is what plain loops give."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.audit.synthetic import CELLS, CORNER, Pictures, build, cells_of, logit, pictures
from xattn.audit import Audit, AuditSettings, Finding, audit
from xattn.audit.finding import place_in_words
from xattn.audit.sign import APART, CARRIES, NEEDED, OFF, PLACE
from xattn.errors import DataError, ShapeError, SpecError
from xattn.schema import finite


def classes_of(images: Pictures) -> list[int]:
    return [int(np.argmax([logit(cells_of(p), c) for c in (0, 1)])) for p in images.pixels]


def test_the_mark_comes_first_and_its_images_are_the_marked_ones(found: Audit, planted: Pictures) -> None:
    first = found.findings[0]
    assert first.candidate
    assert first.group.class_name == "green thing"
    assert first.group.kind == "parts"
    predicted = classes_of(planted)
    marked = {i for i in np.flatnonzero(planted.marked) if predicted[i] == 0}
    members = {m.index for m in first.group.members}
    assert members <= marked
    assert len(members) >= 0.85 * len(marked)  # one in ten that found the group is not recognized in it
    assert all(m.cells[CORNER] for m in first.group.members)
    assert first.group.place[CORNER] > 0.99
    assert first.where == "top right"
    assert {s.name for s in first.signs if s.speaks} >= {APART, PLACE, OFF}


def naive(first: Finding, planted: Pictures, found: Audit) -> dict[str, float]:
    """Every number of a finding that loops can give, from pixels, labels and the members alone."""
    predicted = classes_of(planted)
    members = {m.index: m for m in first.group.members}
    of_class = [i for i, c in enumerate(predicted) if c == 0]
    tested = [m for m in first.group.members if m.half == "test"]
    # what stands in: the mean of images of the class that are no members; all of them, since there are fewer than 64
    others = [i for i in of_class if i not in members]
    assert len(others) <= 64
    mean = np.mean([cells_of(planted.pixels[i]) for i in others], axis=0)
    falls, flips, scores, gains = [], [], [], []
    half = len(first.others) // 2
    for k, m in enumerate(tested):
        cells = cells_of(planted.pixels[m.index])
        without = cells.copy()
        for i in range(CELLS):
            for j in range(CELLS):
                if m.cells[i, j]:
                    without[i, j] = mean[i, j]
        falls.append(logit(cells, 0) - logit(without, 0))
        flips.append(float(logit(without, 1) > logit(without, 0)))
        scores.append(logit(cells, 0))
        host, donor = (cells_of(planted.pixels[first.others[j % len(first.others)]]) for j in (k, k + 1 + half))
        here = m.cells[:, :, None]
        gains.append(logit(np.where(here, cells, host), 0) - logit(np.where(here, donor, host), 0))
    off = []
    for m in members.values():  # the whole of a part with a mark is in the corner, where no object is
        on = planted.masks[m.index].reshape(CELLS, 8, CELLS, 8).mean((1, 3))  # type: ignore[union-attr]
        off.append(1 - on[CORNER])
    return {
        "n": len(tested), "gain": float(np.mean(gains)), "fall": float(np.mean(falls)), "flips": float(np.mean(flips)),
        "share_of_images": len(members) / len(of_class), "images": len(of_class),
        "share_of_score": float(np.mean(falls)) / float(np.mean(scores) - logit(mean, 0)), "off": float(np.mean(off)),
    }  # fmt: skip


def test_numbers_of_a_finding_are_those_of_plain_loops(found: Audit, planted: Pictures) -> None:
    first = found.findings[0]
    group, effect = first.group, first.effect
    assert all(m.cells.sum() == 1 for m in group.members)
    want = naive(first, planted, found)
    assert effect.n == want["n"]
    assert effect.fall == pytest.approx(want["fall"], rel=1e-4)
    assert effect.gain == pytest.approx(want["gain"], rel=1e-4)
    assert effect.flips == pytest.approx(want["flips"])
    assert group.images == want["images"]
    assert group.share_of_images == pytest.approx(want["share_of_images"])
    assert group.share_of_score == pytest.approx(want["share_of_score"], rel=1e-4)
    assert first.sign(OFF).value == pytest.approx(want["off"], abs=2e-3)  # type: ignore[union-attr]
    assert effect.difference == pytest.approx(effect.fall - effect.elsewhere)
    assert effect.low <= effect.difference <= effect.high
    assert effect.adjusted >= effect.p
    needed = first.sign(NEEDED)
    assert needed is not None
    assert needed.value == pytest.approx(effect.flips - effect.flips_elsewhere)
    carried = first.sign(CARRIES)
    assert carried is not None
    assert first.harm == pytest.approx(group.share_of_images * max(needed.value, carried.value, 0))


def test_p_values_are_corrected_over_all_groups(found: Audit) -> None:
    raw = sorted((f.effect.p, f.effect.adjusted) for f in found)
    tests = len(raw)
    assert {f.tests for f in found} == {tests} == {found.provenance["groups"]}
    largest = 0.0
    for k, (p, adjusted) in enumerate(raw):
        largest = max(largest, min(1.0, (tests - k) * p))
        assert adjusted == pytest.approx(largest)
    for f in found:
        e = f.effect
        assert e.moves == (e.adjusted < 0.05 and max(e.low, e.gain_low, e.draw_low) > 0)


def test_right_and_wrong_predictions_are_compared_by_fishers_test(found: Audit, planted: Pictures) -> None:
    predicted = classes_of(planted)
    first = found.findings[0]
    members = {m.index for m in first.group.members}
    of_class = [i for i, c in enumerate(predicted) if c == 0]
    table = [[0, 0], [0, 0]]
    for i in of_class:
        table[int(planted.given[i] != 0)][int(i not in members)] += 1
    sign = first.sign("wrong")
    assert sign is not None
    if sum(table[1]):
        assert sign.p >= stats.fisher_exact(table)[1] - 1e-12
        assert sign.value == pytest.approx(abs(table[0][0] / sum(table[0]) - table[1][0] / sum(table[1])), rel=1e-9)
    else:
        assert math.isnan(sign.p)


def test_without_a_mark_there_is_no_candidate() -> None:
    clean = audit(build(), pictures(120, share=0.0, seed=1), settings=AuditSettings(score="logit", parts=3, area=0.2))
    assert [f.sentence for f in clean.candidates] == []
    assert any(f.effect.moves for f in clean)


def test_a_mark_that_moves_is_found_without_a_place() -> None:
    images = pictures(120, share=0.4, corner=False)
    result = audit(build(), images, settings=AuditSettings(score="logit", parts=3, area=0.2))
    first = result.findings[0]
    assert first.candidate
    assert {m.index for m in first.group.members} <= set(np.flatnonzero(images.marked))
    assert first.where == ""


def test_a_source_that_alone_has_the_mark_is_told(planted: Pictures) -> None:
    sources = ["a" if m or i % 3 == 0 else "b" for i, m in enumerate(planted.marked)]
    result = audit(build(), planted, settings=AuditSettings(score="logit", parts=3, area=0.2), sources=sources)
    sign = result.findings[0].sign("sources")
    assert sign is not None
    assert sign.speaks
    predicted = classes_of(planted)
    members = {m.index for m in result.findings[0].group.members}
    shares = {}
    for source in "ab":
        mine = [i for i, c in enumerate(predicted) if c == 0 and sources[i] == source]
        shares[source] = sum(i in members for i in mine) / len(mine)
    assert sign.value == pytest.approx(shares["a"] - shares["b"])
    assert f"{100 * shares['a']:.0f} % of a have it" in sign.text


def test_the_same_audit_twice_is_the_same_and_resumes(planted: Pictures, found: Audit, tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    settings = AuditSettings(score="logit", parts=3, area=0.2)
    audit(build(), planted, settings=settings, folder=tmp_path)
    times = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = audit(
        build(),
        planted,
        settings=settings,
        folder=tmp_path,
        progress=lambda *a: calls.append(a),
        classes=["green thing"],
    )
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == times
    assert calls[-1] == (1, 1, "testing groups")
    assert {f.group.class_name for f in again} == {"green thing"}
    mine = {f.id: f.effect.p for f in found}
    assert all(f.effect.p == mine[f.id] for f in again)


def test_findings_are_plain_values_and_a_table(found: Audit) -> None:
    text = json.dumps(finite(found.to_json()), allow_nan=False)
    plain = json.loads(text)
    assert [f["id"] for f in plain["findings"]] == [f.id for f in found]
    first = plain["findings"][0]
    assert first["level"] == "shortcut candidate"
    assert first["member_images"][0]["box"] == [24.0, 0.0, 32.0, 8.0]
    table = found.frame()
    assert list(table["rank"]) == list(range(1, len(found) + 1))
    assert table["difference"][0] == found.findings[0].effect.difference


def test_each_finding_says_what_how_sure_and_what_next(found: Audit) -> None:
    for f in found:
        assert f.sentence.endswith(".")
        assert f.sentence.count(". ") == 0
        assert f"{len(found)} groups" in f.sure
        assert f.sure.startswith(f"{'Significant' if f.effect.moves else 'Not significant'} with {f.effect.n} images")
        assert f.next
    assert "(top right)" in found.findings[0].sentence
    assert f"{100 * found.findings[0].effect.flips:.0f} % of the predictions change" in found.findings[0].sentence


def test_places_have_words() -> None:
    for row, column, words in ((0, 0, "top left"), (1, 1, "centre"), (2, 1, "bottom"), (1, 2, "right")):
        place = np.zeros((3, 3))
        place[row, column] = 1
        assert place_in_words(place) == words


def test_what_cannot_be_audited_is_refused(planted: Pictures) -> None:
    with pytest.raises(SpecError, match=r"pass spec=xattn\.infer_spec"):
        audit(build().fc, planted)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="3 sources do not fit 200 images"):
        audit(build(), planted, sources=["a", "b", "c"])
    with pytest.raises(DataError, match="no class is predicted in 20 images"):
        audit(build(), pictures(5))
