"""The evidence of a known network, gathered, kept and resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.audit.synthetic import CLASSES, CORNER, WEIGHTS, Pictures, build, cells_of, logit, pictures
from xattn.audit import gather as gathering
from xattn.audit.evidence import BLOCK, Evidence, EvidenceStore
from xattn.audit.gather import gather, labels_for, outputs_of
from xattn.audit.settings import AuditSettings
from xattn.errors import DataError, ParameterError


@pytest.fixture(scope="module")
def images() -> Pictures:
    return pictures(20, broken=(5,))


def gathered(folder: Path, images: Pictures, **changes: object) -> tuple[EvidenceStore, Evidence]:
    settings = AuditSettings(score="logit", parts=3, **changes)  # type: ignore[arg-type]
    store = EvidenceStore(folder, "key")
    model = build()
    gather(model, images, model.spec, store, settings, labels=images.labels)
    return store, store.read([0, 1])


def test_evidence_is_what_plain_loops_find(images: Pictures, tmp_path: Path) -> None:
    store, evidence = gathered(tmp_path, images)
    assert len(evidence) == 39
    assert store.overview().failed == {"image 5": "image 5 is damaged."}
    assert list(evidence.index) == [i for i in range(40) if i != 5]
    for k in (0, 1, 6, 17):
        i = int(evidence.index[k])
        cells = cells_of(images.pixels[i])
        scores = [logit(cells, c) for c in (0, 1)]
        target = int(np.argmax(scores))
        assert evidence.image[k] == f"{i:03d}.png"
        assert evidence.target[k] == target
        assert evidence.label[k] == images.given[i]
        assert evidence.score[k] == pytest.approx(scores[target], rel=1e-5)
        assert evidence.probability[k] == pytest.approx(1 / (1 + np.exp(scores[1 - target] - scores[target])), rel=1e-4)
        level = np.array([[sum(w * c for w, c in zip(WEIGHTS[target], v, strict=True)) for v in row] for row in cells])
        assert np.allclose(evidence.whole[k], level / level.sum(), atol=1e-3)  # half precision
        assert np.allclose(evidence.shares[k].sum(), 1, atol=0.02)
        mask = images.masks[i]
        assert evidence.object[k] == pytest.approx(mask.mean())
        on = mask.reshape(4, 8, 4, 8).mean((1, 3))
        assert np.allclose(evidence.inside[k], (evidence.maps[k] * on).sum((1, 2)), atol=2e-3)
        x = images.pixels[i].astype(np.float64) / 255
        tone = [*x.mean((0, 1)), *x.std((0, 1)), *x.min((0, 1)), *x.max((0, 1))]
        assert np.allclose(evidence.tone[k], tone, atol=1e-6)
        assert np.allclose(evidence.small[k], x.transpose(2, 0, 1), atol=1e-3)  # 32 rows are not reduced
    rows = np.array([7, 2, 38])
    small = store.reduced(rows)
    place = {int(i): k for k, i in enumerate(evidence.index)}
    assert (small == evidence.small[[place[i] for i in rows.tolist()]]).all()


def test_a_mark_is_a_part_of_its_own(images: Pictures, tmp_path: Path) -> None:
    _, evidence = gathered(tmp_path, images)
    for k, i in enumerate(evidence.index):
        if images.marked[i]:
            red = evidence.vectors[k][:, 0]
            part = int(red.argmax())
            assert red[part] > 0.99
            assert evidence.maps[k, part][CORNER] > 0.99


def test_batches_and_resumption_change_nothing(
    images: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "BLOCK", 16)
    _, whole = gathered(tmp_path / "a", images)
    store, _ = gathered(tmp_path / "b", images, batch_size=3)
    gone = sorted(store.folder.glob("*.parquet"))[1]
    times = {p.name: p.stat().st_mtime_ns for p in store.folder.iterdir() if p != gone}
    gone.unlink()
    again, evidence = gathered(tmp_path / "b", images, batch_size=5)
    assert {n: t for n, t in times.items() if (store.folder / n).stat().st_mtime_ns == t} == times
    assert again.done == {0, 1, 2}
    for name in ("index", "target", "label"):
        assert (getattr(whole, name) == getattr(evidence, name)).all()
    for name in ("score", "shares", "vectors", "maps", "whole", "tone"):
        assert np.allclose(getattr(whole, name), getattr(evidence, name), atol=1e-3)
    assert EvidenceStore(tmp_path / "b", "another key").done == set()
    assert BLOCK == 256


def test_damage_is_told(images: Pictures, tmp_path: Path) -> None:
    store, _ = gathered(tmp_path, images)
    (path,) = store.folder.glob("*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"no whole part of an audit .*remove it and run again"):
        store.read([0])


def test_labels_are_found_by_name_or_number() -> None:
    spec, images = build().spec, pictures(3)
    assert labels_for(images, spec, 2) == (pytest.approx(images.given), "by number: both have the same classes")
    turned = replace(spec, classes=(*CLASSES[::-1], "third"))
    labels, how = labels_for(images, turned, 3)
    assert (list(labels), how) == ([1, 0] * 3, "by name")
    other = replace(spec, classes=("x", "y"))
    assert labels_for(images, other, 2)[1] == "by number: both have as many classes"
    labels, how = labels_for(images, replace(spec, classes=("x", "y", "z")), 3)
    assert set(labels) == {-1}
    assert how.startswith("not known")


def test_outputs_are_those_of_the_first_image_that_can_be_read() -> None:
    model = build()
    assert outputs_of(model, pictures(2, broken=(0,)), model.spec) == 2
    with pytest.raises(DataError, match="none of the images"):
        outputs_of(model, pictures(1, broken=(0, 1)), model.spec)


def test_settings_are_checked() -> None:
    with pytest.raises(ParameterError, match="AuditSettings: area"):
        AuditSettings(score="logit", area=0)
    with pytest.raises(ParameterError, match="AuditSettings: replace"):
        AuditSettings(score="logit", replace="noise")  # type: ignore[arg-type]
