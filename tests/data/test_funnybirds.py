"""FunnyBirds: a small copy of its files, and the data themselves where they are."""

from __future__ import annotations

import json
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.data_root import need_data
from xattn.data import datasets
from xattn.data.opening import open_dataset
from xattn.data.sample import collate
from xattn.errors import DataError
from xattn.spec import ModelSpec

PARTS = ("beak", "foot")
PLACES = {"beak": (1, 1), "foot": (8, 8), "object 3": (1, 10)}
CLASSES = [{"beak": 0, "foot": 1}, {"beak": 0, "foot": 2}]


def picture(gone: tuple[str, ...] = ()) -> NDArray[np.uint8]:
    image = np.full((16, 16, 3), 60, np.uint8)
    for name, (row, column) in PLACES.items():
        if name not in gone:
            image[row : row + 3, column : column + 3] = 200
    return image


def encoded(image: NDArray[np.uint8]) -> dict[str, Any]:
    stream = BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": ""}


def write(root: Path) -> None:
    """Two birds to train on and two to test on, of two classes; the second lacks the images without both parts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    part_map = np.zeros((16, 16), np.uint8)
    part_map[5:8, 5:8] = 1
    for name, value in (("beak", 2), ("foot", 3), ("object 3", 7)):
        row, column = PLACES[name]
        part_map[row : row + 3, column : column + 3] = value
    test = [{"image": encoded(picture()), "part_map": encoded(part_map), "label": k, "index": 0} for k in (0, 1)]
    rows = []
    for k in (0, 1):
        for gone in (("beak",), ("foot",), *([PARTS] if k == 0 else [])):
            keep = [part for part in PARTS if part not in gone]
            rows.append({"image": encoded(picture(gone)), "kind": "keep", "keep": keep, "removed": -1, "label": k})
        rows.append({"image": encoded(picture(("object 3",))), "kind": "bg", "keep": [], "removed": 3, "label": k})
        rows.append({"image": encoded(picture(("object 3",))), "kind": "nobg", "keep": [], "removed": -1, "label": k})
    tables = {
        "train": [{"image": encoded(picture(("foot",) if k else ())), "label": k} for k in (0, 1)],
        "test": test,
        "interventions": [{**row, "index": 0} for row in rows],
    }
    for name, content in tables.items():
        pq.write_table(pa.Table.from_pylist(content), root / f"{name}.parquet")
    values = {"background": 0, "body": 1, "beak": 2, "foot": 3, "object": 7}
    facts = {"parts": list(PARTS), "map_values": values, "classes": CLASSES}
    (root / "classes.json").write_text(json.dumps(facts))


def test_a_test_image_comes_with_its_scene(tmp_path: Path) -> None:
    write(tmp_path)
    birds = open_dataset(tmp_path, "test")
    assert type(birds).__name__ == "FunnyBirds"
    assert len(birds) == 2
    first, second = birds
    scene = first.scene
    assert scene is not None
    assert scene.parts == PARTS
    assert scene.beside == ("object 3",)
    assert {*scene.lacking} == {frozenset({"beak"}), frozenset({"foot"}), frozenset(PARTS), frozenset({"object 3"})}
    for name, (row, column) in PLACES.items():
        expected = np.zeros((16, 16), bool)
        expected[row : row + 3, column : column + 3] = True
        np.testing.assert_array_equal(scene.masks[name], expected)
        np.testing.assert_array_equal(scene.lacking[frozenset({name})], picture((name,)))
    assert scene.shared == {1: frozenset({"beak"})}
    assert second.scene is not None
    assert frozenset(PARTS) not in second.scene.lacking
    assert first.mask is not None
    assert (int(first.mask.sum()), first.id) == (27, "0/0")
    assert birds == pickle.loads(pickle.dumps(birds))


def test_images_to_train_on_have_none(tmp_path: Path) -> None:
    write(tmp_path)
    assert all(sample.scene is None for sample in open_dataset(f"funnybirds:{tmp_path}", "train"))


def test_scenes_go_through_the_preprocessing_of_the_image(tmp_path: Path) -> None:
    write(tmp_path)
    birds = open_dataset(tmp_path, "test")
    spec = ModelSpec(feature_layer="f", input_size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, crop=1.0)
    batch = collate([birds[0], birds[1]], spec)
    assert batch.scenes is not None
    scene = batch.scenes[0]
    assert scene.masks["beak"].shape == (8, 8)
    assert scene.lacking[frozenset({"beak"})].shape == (3, 8, 8)
    changed = (scene.lacking[frozenset({"beak"})] - batch.x[0]).abs().amax(0) > 0.05
    assert changed[scene.masks["beak"]].all()
    assert not changed[4:].any()
    assert len(batch[:1].scenes or ()) == 1
    train = open_dataset(tmp_path, "train")
    assert collate([birds[0], train[0]], spec).scenes is None


@pytest.mark.parametrize(("text", "fault"), [("[]", "classes.json"), ('{"map_values": 3}', "map_values")])
def test_damaged_facts_are_told(tmp_path: Path, text: str, fault: str) -> None:
    write(tmp_path)
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=fault):
        _ = datasets.create("funnybirds", root=tmp_path, split="test")[0]


def test_the_data_here_are_read() -> None:
    birds = open_dataset(need_data("funnybirds-mini"), "test")
    assert len(birds) == 160
    counts = [len(s.scene.lacking) - len(s.scene.beside) for s in (birds[0], birds[7]) if s.scene is not None]
    assert counts == [31, 5]
