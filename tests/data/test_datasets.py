"""Every data set is read from a small copy that is true to its format; what is missing or damaged is told."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data import copies
from xattn.data import datasets
from xattn.data.file_dataset import FileDataset
from xattn.errors import DataError, MissingExtraError, UnknownNameError

BUILDERS: dict[str, Callable[[Path], dict[str, dict[str, copies.Truth]]]] = {
    "tiny-imagenet": lambda root: copies.tiny_imagenet(root / "tiny-imagenet-200"),
    "cub": copies.cub,
    "aircraft": copies.aircraft,
    "cars": copies.cars,
    "caltech101": copies.caltech101,
    "pets": copies.pets,
    "cifar10": copies.cifar10,
    "cifar100": copies.cifar100,
}
CLASSES = {
    "tiny-imagenet": ("goldfish, Carassius auratus", "Egyptian cat", "n04067472"),
    "cub": ("Black footed Albatross", "Laysan Albatross"),
    "aircraft": ("707-320", "A340 series 300"),
    "cars": ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi S4 Sedan 2007"),
    "caltech101": ("Faces", "accordion", "ant"),
    "pets": ("Abyssinian", "American Bulldog", "Bengal"),
    "cifar10": ("airplane", "automobile", "bird"),
    "cifar100": ("apple", "aquarium_fish"),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, dict[str, copies.Truth]]]]:
    made = {}
    for name, build in BUILDERS.items():
        root = tmp_path_factory.mktemp(name)
        made[name] = (root, build(root))
    return made


def make(name: str, root: Path, split: str) -> Any:
    return datasets.create(name, root=root, split=split)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_sample_is_as_it_was_written(built: dict[str, Any], name: str) -> None:
    root, parts = built[name]
    for split, truth in parts.items():
        dataset = make(name, root, split)
        assert len(dataset) == len(truth)
        assert dataset.classes == CLASSES[name]
        assert {s.id for s in dataset} == set(truth)
        for i, sample in enumerate(dataset):
            known = truth[sample.id]
            assert sample.label == known.label == dataset.labels[i]
            assert sample.image.dtype == np.uint8
            assert (sample.image.shape[1], sample.image.shape[0]) == known.size
            if known.box is None:
                assert sample.boxes is None
            else:
                np.testing.assert_allclose(sample.boxes, [known.box])
            if known.mask is None:
                assert sample.mask is None
            else:
                assert sample.mask.shape == sample.image.shape[:2]
                # the outline of a polygon may fall on either side
                assert (sample.mask != known.mask).mean() <= (0.04 if name == "caltech101" else 0)
            assert (None if sample.parts is None else dict(sample.parts)) == known.parts


@pytest.mark.parametrize("name", BUILDERS)
def test_the_unpacked_folder_itself_is_a_root_too(built: dict[str, Any], name: str) -> None:
    root, parts = built[name]
    split = next(iter(parts))
    whole = make(name, root, split)
    assert len(make(name, whole.home, split)) == len(whole)


@pytest.mark.parametrize("name", BUILDERS)
def test_samples_survive_pickling_of_the_data_set(built: dict[str, Any], name: str) -> None:
    root, parts = built[name]
    dataset = make(name, root, next(iter(parts)))
    again = pickle.loads(pickle.dumps(dataset))
    assert again == dataset
    np.testing.assert_array_equal(again[0].image, dataset[0].image)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_missing_folder_says_where_to_get_it(tmp_path: Path, name: str) -> None:
    kind: Any = datasets.get(name)
    with pytest.raises(DataError, match=r"there is no folder '.*nowhere'.* Get it from http") as caught:
        kind(tmp_path / "nowhere", kind.training)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BUILDERS)
def test_an_empty_folder_says_what_was_expected_and_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "README").write_text("")
    kind: Any = datasets.get(name)
    with pytest.raises(DataError, match=r"expected '.*' .*but found README\. Get it from http"):
        kind(tmp_path, kind.training)


@pytest.mark.parametrize("name", BUILDERS)
def test_an_unknown_split_names_the_known_ones(built: dict[str, Any], name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown split of .* 'tset'.*Known: "):
        make(name, built[name][0], "tset")


@pytest.mark.parametrize("name", ["tiny-imagenet", "cub", "aircraft", "cars", "pets"])
def test_half_of_the_images(tmp_path: Path, name: str) -> None:
    BUILDERS[name](tmp_path)
    images = sorted(p for p in tmp_path.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    for path in images:
        path.unlink()
    kind: Any = datasets.get(name)
    with pytest.raises(
        DataError, match=r"(\d+) of \1 images of the .* part are missing, the first is '.*'.*Get it from"
    ):
        kind(tmp_path, kind.training)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_required_file_is_asked_for(tmp_path: Path, name: str) -> None:
    kind: Any = datasets.get(name)
    for i, required in enumerate(kind.required):
        root = tmp_path / str(i)
        root.mkdir()
        BUILDERS[name](root)
        (path,) = root.rglob(required.split("/")[-1]) if "/" not in required else root.glob(f"*/{required}")
        path.rename(path.with_name("gone"))
        with pytest.raises(DataError, match=rf"expected '.*{required}'"):
            kind(root, kind.training)


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("cub", "CUB_200_2011/bounding_boxes.txt", "1 2.0 3.0\n", "line 1 of .* has 3 fields, expected 5"),
        (
            "cub",
            "CUB_200_2011/image_class_labels.txt",
            "1 one\n",
            "line 1 of .* other fields than the whole numbers",
        ),
        ("cub", "CUB_200_2011/image_class_labels.txt", "1 1\n", "damaged or do not fit together"),
        ("cub", "CUB_200_2011/classes.txt", "1 001.Only\n", "labels go from 0 to 1 but there are 1 classes"),
        ("cub", "CUB_200_2011/train_test_split.txt", "1 0\n", "the train part in '.*' lists no image"),
        ("tiny-imagenet", "tiny-imagenet-200/wnids.txt", "n01443537\nn00000000\n", "cannot be read"),
        ("aircraft", "fgvc-aircraft-2013b/data/images_variant_trainval.txt", "1 A380\n", "do not fit together"),
        ("pets", "oxford-iiit-pet/annotations/trainval.txt", "Abyssinian_1 1\n", "has 2 fields, expected 4"),
        ("cars", "stanford_cars/devkit/cars_meta.mat", "cut", "damaged or no MATLAB 5 file"),
        ("cifar10", "cifar-10-batches-py/data_batch_3", "cut", "damaged or not what the authors published"),
    ],
)
def test_damaged_lists(tmp_path: Path, name: str, file: str, text: str, message: str) -> None:
    BUILDERS[name](tmp_path)
    (tmp_path / file).write_text(text)
    kind: Any = datasets.get(name)
    with pytest.raises(DataError, match=message):
        list(kind(tmp_path, kind.training))  # boxes are read with the first sample


def test_a_broken_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    copies.cub(tmp_path)
    dataset = make("cub", tmp_path, "train")
    path = tmp_path / "CUB_200_2011" / dataset[1].id
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"_797|_798|_799.*is empty"):
        _ = dataset[1]


def test_exif_does_not_move_annotated_images(tmp_path: Path) -> None:
    copies.cub(tmp_path)
    dataset = make("cub", tmp_path, "train")
    before = dataset[0].image.shape
    path = tmp_path / "CUB_200_2011" / dataset[0].id
    with Image.open(path) as image:
        tags = Image.Exif()
        tags[0x0112] = 6
        image.save(path, exif=tags)
    assert dataset[0].image.shape == before


# --------------------------------------------------------------------------------------------------------- one by one


def test_cub_without_segmentations_or_parts(tmp_path: Path) -> None:
    copies.cub(tmp_path, segmentations=False)
    assert make("cub", tmp_path, "test")[0].mask is None
    (tmp_path / "CUB_200_2011" / "parts" / "part_locs.txt").unlink()
    assert make("cub", tmp_path, "test")[0].parts is None


def test_aircraft_levels_and_banner(built: dict[str, Any]) -> None:
    root, _ = built["aircraft"]
    makers = datasets.create("aircraft", root=root, split="test", level="manufacturer")
    assert makers.classes == ("Airbus", "Boeing")
    assert [s.label for s in makers] == [1, 0]
    whole = datasets.create("aircraft", root=root, split="train", banner=True)[0]
    assert whole.image.shape[0] == 60
    assert whole.boxes[0, 3] == 60  # reaches into the banner, which is kept here
    assert make("aircraft", root, "train")[0].boxes[0, 3] == 40


def test_pets_borders_and_heads(built: dict[str, Any]) -> None:
    root, _ = built["pets"]
    plain = make("pets", root, "trainval")
    wide = datasets.create("pets", root=root, split="trainval", border=True)
    assert wide[0].mask.sum() == 16 * 16
    assert plain[0].mask.sum() == 12 * 12
    heads = datasets.create("pets", root=root, split="trainval", box="head")
    assert heads[0].boxes.shape == (0, 4)
    np.testing.assert_array_equal(heads[1].boxes, [[8, 6, 15, 12]])


def test_a_missing_trimap_is_named(tmp_path: Path) -> None:
    copies.pets(tmp_path)
    next((tmp_path / "oxford-iiit-pet" / "annotations" / "trimaps").glob("Bengal*")).unlink()
    with pytest.raises(DataError, match=r"the trimap '.*Bengal_102\.png' cannot be read"):
        list(make("pets", tmp_path, "trainval"))


def test_cars_in_a_nested_folder(tmp_path: Path) -> None:
    copies.cars(tmp_path)
    folder = tmp_path / "stanford_cars" / "cars_train"
    folder.rename(tmp_path / "cars_train")
    folder.mkdir()
    (tmp_path / "cars_train").rename(folder / "cars_train")
    assert make("cars", tmp_path, "train")[0].id == "cars_train/cars_train/00001.jpg"


def test_caltech_without_annotations_has_no_masks(tmp_path: Path) -> None:
    copies.caltech101(tmp_path)
    (tmp_path / "caltech101" / "Annotations").rename(tmp_path / "elsewhere")
    sample = make("caltech101", tmp_path, "all")[0]
    assert sample.mask is None
    assert sample.boxes is None


def test_matlab_files_without_scipy(built: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match=r"Stanford Cars .* needs scipy; pip install 'xattn\[data\]'"):
        make("cars", built["cars"][0], "train")


class Payload:
    """Its pickle writes a file when it is read by the wrong reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_cifar_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    copies.cifar10(tmp_path)
    trap = tmp_path / "trap"
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(pickle.dumps({"data": Payload(trap), "labels": []}, protocol=2))
    with pytest.raises(
        DataError, match=r"data_batch_2' is damaged .* holds pathlib\.Path.*|.*neither a list nor an array"
    ):
        make("cifar10", tmp_path, "train")
    assert not trap.exists()


def test_cifar_pixels_are_in_order(built: dict[str, Any]) -> None:
    sample = make("cifar10", built["cifar10"][0], "train")[3]
    np.testing.assert_array_equal(sample.image, np.asarray(copies.picture(32, 32, 3)))


# ----------------------------------------------------------------------------------------------- torchvision as witness


@pytest.mark.parametrize(
    ("name", "kind", "split", "options"),
    [
        ("aircraft", "FGVCAircraft", "trainval", {"split": "trainval"}),
        ("aircraft", "FGVCAircraft", "test", {"split": "test"}),
        ("cars", "StanfordCars", "train", {"split": "train"}),
        ("caltech101", "Caltech101", "all", {}),
        ("pets", "OxfordIIITPet", "test", {"split": "test", "target_types": ["category", "segmentation"]}),
    ],
)
def test_torchvision_reads_the_same(
    built: dict[str, Any], name: str, kind: str, split: str, options: dict[str, Any]
) -> None:
    import torchvision

    root, _ = built[name]
    expected = getattr(torchvision.datasets, kind)(root, download=False, **options)
    dataset = datasets.create(name, root=root, split=split, **({"banner": True} if name == "aircraft" else {}))
    assert len(dataset) == len(expected)
    for sample, (image, target) in zip(dataset, expected, strict=True):
        label = target[0] if isinstance(target, tuple) else target
        np.testing.assert_array_equal(sample.image, np.asarray(image.convert("RGB")))
        assert sample.label == label
        if name == "pets":
            np.testing.assert_array_equal(sample.mask, np.asarray(target[1]) == 1)
    if name in ("aircraft", "cars"):
        assert list(dataset.classes) == expected.classes


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_torchvision_reads_the_same_pickles(
    built: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # the copies have checksums of their own
    root, _ = built[name]
    for split in ("train", "test"):
        expected = getattr(cifar, kind)(root, train=split == "train")
        dataset = make(name, root, split)
        assert list(dataset.classes) == expected.classes
        assert dataset.labels.tolist() == expected.targets
        np.testing.assert_array_equal(np.stack([s.image for s in dataset]), expected.data)


@pytest.mark.parametrize("name", datasets.names())
def test_every_data_set_is_documented(name: str) -> None:
    kind: Any = datasets.get(name)
    assert kind.__doc__
    assert "\n\n" in kind.__doc__ or kind.__doc__.endswith(".")
    if isinstance(kind, type) and issubclass(kind, FileDataset) and kind.splits != FileDataset.splits:
        assert kind.training in kind.splits or kind.training == "all"
