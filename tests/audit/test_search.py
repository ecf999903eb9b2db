"""From a box in one image to the images that have the same: every number is that of plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.audit.synthetic import CELL, CELLS, CORNER, Pictures, build, cells_of, logit, pictures
from xattn.audit import AuditSettings, Search, audit, search
from xattn.audit.settings import Replacement
from xattn.errors import DataError, ParameterError, ShapeError

MARK = (CORNER[1] * CELL, CORNER[0] * CELL, CELL, CELL)
SETTINGS = AuditSettings(score="logit", parts=3, area=0.2)


def predicted(images: Pictures) -> list[int]:
    return [int(np.argmax([logit(cells_of(p), c) for c in (0, 1)])) for p in images.pixels]


@pytest.fixture(scope="module")
def asked() -> Pictures:
    """Another image with the mark, which is not among those that are searched."""
    return pictures(1, share=1.0, seed=9)


@pytest.fixture(scope="module")
def found(planted: Pictures, asked: Pictures) -> Search:
    return search(build(), planted, asked.pixels[0], MARK, settings=SETTINGS)


def test_images_with_the_mark_are_found_and_no_others(found: Search, planted: Pictures) -> None:
    classes = predicted(planted)
    assert {m.index for m in found.members} == {i for i in np.flatnonzero(planted.marked) if classes[i] == 0}
    assert found.group.images == classes.count(0)
    assert all(m.cells[CORNER] for m in found.members)
    assert found.effect.moves
    assert "is shown to go with it" in found.sentences[1]


def test_the_score_without_it_is_that_of_loops(found: Search, planted: Pictures, asked: Pictures) -> None:
    classes, members = predicted(planted), {m.index for m in found.members}
    others = [i for i, c in enumerate(classes) if c == 0 and i not in members]
    assert len(others) <= 64
    mean = np.mean([cells_of(planted.pixels[i]) for i in others], axis=0)
    own = cells_of(asked.pixels[0])
    without = own.copy()
    without[CORNER] = mean[CORNER]
    assert found.cells.tolist() == [[(i, j) == CORNER for j in range(CELLS)] for i in range(CELLS)]
    assert found.fall == pytest.approx(logit(own, 0) - logit(without, 0), rel=1e-5)
    # red speaks with 60, green with 8
    spoken = own @ np.array([60.0, 8.0, 0.0])
    assert found.share == pytest.approx(spoken[CORNER] / spoken.sum(), rel=1e-5)
    falls = []
    for m in found.members:
        cells = cells_of(planted.pixels[m.index])
        gone = cells.copy()
        gone[m.cells] = mean[m.cells]
        falls.append(logit(cells, 0) - logit(gone, 0))
    assert len(falls) <= SETTINGS.per_group
    assert found.effect.n == len(falls)
    assert found.effect.fall == pytest.approx(np.mean(falls), rel=1e-5)


@pytest.mark.parametrize("stand_in", ["mean", "blur"])
def test_the_image_itself_is_asked_as_the_others_are(planted: Pictures, stand_in: Replacement) -> None:
    """The one image that is searched is the one that was asked: both falls are of the same replacement."""
    index = int(np.flatnonzero(planted.marked)[0])
    bare = np.flatnonzero(~planted.marked)[:30].tolist()
    some = [index, *bare]
    one = Pictures(planted.pixels[some], planted.given[some], planted.marked[some])
    settings = AuditSettings(score="logit", parts=3, area=0.07, replace=stand_in)  # one cell, as in the box
    result = search(build(), one, planted.pixels[index], MARK, settings=settings)
    assert [m.index for m in result.members] == [0]
    assert result.members[0].cells.tolist() == result.cells.tolist()
    assert result.effect.fall == pytest.approx(result.fall, rel=1e-5)


def test_evidence_of_several_sources_is_shared_with_the_audit(planted: Pictures, tmp_path: Path) -> None:
    sources = ["old" if i < 100 else "new" for i in range(len(planted))]
    audit(build(), planted, settings=SETTINGS, folder=tmp_path, sources=sources)
    before = sorted(tmp_path.iterdir())
    picture = planted.pixels[planted.marked][0]
    result = search(build(), planted, picture, MARK, settings=SETTINGS, folder=tmp_path, sources=sources)
    assert sorted(tmp_path.iterdir()) == before
    assert {m.source for m in result.members} == {"old", "new"}


def test_images_that_cannot_be_read_are_named(asked: Pictures) -> None:
    some = pictures(20, share=0.5, broken=(3,))
    result = search(build(), some, asked.pixels[0], MARK, settings=SETTINGS)
    assert result.unreadable == {"image 3": "image 3 is damaged."}
    assert result.to_json()["unreadable"] == result.unreadable


def test_the_most_similar_come_first(found: Search) -> None:
    assert found.members[0].similarity == pytest.approx(1, abs=2e-3)  # red alone; kept in half precision
    assert [m.similarity for m in found.members] == sorted((m.similarity for m in found.members), reverse=True)


def test_an_image_that_has_nothing_of_the_kind(planted: Pictures, asked: Pictures) -> None:
    none = Pictures(planted.pixels[~planted.marked], planted.given[~planted.marked], planted.marked[~planted.marked])
    alone = search(build(), none, asked.pixels[0], MARK, settings=SETTINGS)
    assert not alone.members
    assert alone.sentences[1].startswith("None of the ")
    assert alone.effect.n == 0
    few = np.flatnonzero(planted.marked)[:2].tolist() + np.flatnonzero(~planted.marked).tolist()
    some = Pictures(planted.pixels[few], planted.given[few], planted.marked[few])
    assert "too few to test" in search(build(), some, asked.pixels[0], MARK, settings=SETTINGS).sentences[1]


def test_what_cannot_be_looked_for_is_refused(planted: Pictures, asked: Pictures, tmp_path: Path) -> None:
    picture = asked.pixels[0]
    with pytest.raises(ParameterError, match="covers all that the model sees"):
        search(build(), planted, picture, (0, 0, 32, 32), settings=SETTINGS)
    with pytest.raises(ParameterError, match="smaller than a pixel"):
        search(build(), planted, picture, (8.6, 8.6, 0.3, 0.3), settings=SETTINGS)
    with pytest.raises(ShapeError, match="2 sources do not fit 200 images"):
        search(build(), planted, picture, MARK, settings=SETTINGS, sources=["a", "b"])
    for box in ((-1, 0, 8, 8), (30, 0, 8, 8), (0, 0, 0, 8)):
        with pytest.raises(ParameterError, match="is not in the image of 32x32 pixels; expected x,y,width,height"):
            search(build(), planted, picture, box, settings=SETTINGS)
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = picture
    with pytest.raises(ParameterError, match="the box lies outside of what the model sees"):
        search(build(), planted, wide, (0, 0, 8, 8), settings=SETTINGS)
    blue = picture.copy()
    blue[:8, :8] = (0, 0, 255)
    with pytest.raises(DataError, match="nothing in the box speaks for green thing"):
        search(build(), planted, blue, (0, 0, 8, 8), settings=SETTINGS)
