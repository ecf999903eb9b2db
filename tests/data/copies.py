"""Small copies of public data sets, true to their formats: some images each, with the values that tests expect.

Every builder writes into a folder and returns what a reader must find: file name -> `Truth`.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass
class Truth:
    """What is known of one image; the box in outer edges."""

    label: int
    size: tuple[int, int]
    box: list[float] | None = None
    mask: NDArray[np.bool_] | None = None
    parts: dict[str, tuple[float, float]] | None = None


def picture(width: int, height: int, seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(path: Path, width: int, height: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(width, height, seed).save(path)


def image_folder(root: Path, *, parts: tuple[str, ...] = (), classes: tuple[str, ...] = ("bird", "cat")) -> None:
    """Class folders, three images a class, in as many parts."""
    seed = 0
    for part in parts or (".",):
        for name in classes:
            for i in (1, 2, 10):
                save(root / part / name / f"{i}.png", 12 + i, 10, seed)
                seed += 1


def encoded(width: int, height: int, seed: int) -> bytes:
    stream = BytesIO()
    picture(width, height, seed).save(stream, "PNG")
    return stream.getvalue()


def parquet(
    path: Path, rows: int, *, first: int = 0, group: int = 4, struct: bool = True, boxes: bool = True, **columns: Any
) -> None:
    """One parquet file; row i is picture(9 + i % 3, 8, i) of label i % 3, its box ends with pixel (4 + i % 3, 6)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = range(first, first + rows)
    data = [encoded(9 + i % 3, 8, i) for i in numbers]
    image = (
        pa.array([{"bytes": d, "path": f"img_{i}.png"} for i, d in zip(numbers, data, strict=True)])
        if struct
        else pa.array(data, pa.binary())
    )
    table = {"image": image, "label": pa.array([i % 3 for i in numbers], pa.int16())}
    if boxes:
        table["box"] = pa.array([[1, 2, 4 + i % 3, 6] for i in numbers], pa.list_(pa.int16(), 4))
    table.update(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=group)


def tiny_imagenet(root: Path) -> dict[str, dict[str, Truth]]:
    """The folders of the archive: three classes, two training images and one validation image each."""
    wnids = ["n02124075", "n01443537", "n04067472"]  # not sorted in the archive either
    order = sorted(wnids)
    root.mkdir(parents=True)
    (root / "wnids.txt").write_text("".join(f"{w}\n" for w in wnids))
    words = {"n01443537": "goldfish, Carassius auratus", "n02124075": "Egyptian cat", "n99999999": "something else"}
    (root / "words.txt").write_text("".join(f"{w}\t{n}\n" for w, n in words.items()))
    train: dict[str, Truth] = {}
    val: dict[str, Truth] = {}
    annotations = []
    for k, wnid in enumerate(wnids):
        rows = []
        for i in range(2):
            name = f"{wnid}_{i}.JPEG"
            save(root / "train" / wnid / "images" / name, 64, 64, 10 * k + i)
            box = [k, i, 40 + k, 63]
            rows.append("\t".join(map(str, [name, *box])))
            train[name] = Truth(order.index(wnid), (64, 64), [k, i, 41 + k, 64])
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("\n".join(rows) + "\n")
        name = f"val_{k}.JPEG"
        save(root / "val" / "images" / name, 64, 64, 100 + k)
        annotations.append("\t".join(map(str, [name, wnid, 5, 6, 7 + k, 8])))
        val[name] = Truth(order.index(wnid), (64, 64), [5, 6, 8 + k, 9])
    (root / "val" / "val_annotations.txt").write_text("\n".join(annotations) + "\n")
    return {"train": train, "val": val}


def cub(root: Path, *, segmentations: bool = True) -> dict[str, dict[str, Truth]]:
    """CUB_200_2011 with two classes of three images."""
    home = root / "CUB_200_2011"
    classes = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    images, labels, parts_of, boxes, locations = [], [], [], [], []
    truth: dict[str, dict[str, Truth]] = {"train": {}, "test": {}}
    number = 0
    for label, name in enumerate(classes):
        for i in range(3):
            number += 1
            file = f"{name}/{name[4:]}_{i:04d}_{796 + number}.jpg"
            width, height = 30 + number, 24
            save(home / "images" / file, width, height, number)
            images.append(f"{number} {file}")
            labels.append(f"{number} {label + 1}")
            parts_of.append(f"{number} {int(i > 0)}")
            boxes.append(f"{number} {number}.0 2.0 10.0 {12.5 + number}")
            locations += [f"{number} 1 {number + 0.5} 7.0 1", f"{number} 2 0.0 0.0 0", f"{number} 3 12.0 9.5 1"]
            mask = None
            if segmentations:
                values = np.zeros((height, width), np.uint8)
                values[2:9, number : number + 4] = 204  # four of five annotators
                values[9:11, number : number + 4] = 51  # one of five
                path = root / "segmentations" / Path(file).with_suffix(".png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)
                mask = values > 128
            truth["train" if i > 0 else "test"][f"images/{file}"] = Truth(
                label,
                (width, height),
                [number, 2, number + 10, 14.5 + number],
                mask,
                {"back": (number + 0.5, 7.0), "left wing": (12.0, 9.5)},
            )
    lists = {
        "images.txt": images,
        "image_class_labels.txt": labels,
        "train_test_split.txt": parts_of,
        "bounding_boxes.txt": boxes,
        "classes.txt": [f"{i + 1} {c}" for i, c in enumerate(classes)],
        "parts/part_locs.txt": locations,
        "parts/parts.txt": ["1 back", "2 beak", "3 left wing"],
    }
    for name, rows in lists.items():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text("\n".join(rows) + "\n")
    return truth


def aircraft(root: Path) -> dict[str, dict[str, Truth]]:
    """fgvc-aircraft-2013b with two variants; every image ends in a banner of 20 rows."""
    data = root / "fgvc-aircraft-2013b" / "data"
    variants = ["707-320", "A340 series 300"]
    truth: dict[str, dict[str, Truth]] = {s: {} for s in ("train", "val", "trainval", "test")}
    lists: dict[str, list[str]] = {s: [] for s in truth}
    makers: dict[str, list[str]] = {s: [] for s in truth}
    boxes = []
    for number in range(6):
        image = f"{1025794 + number:07d}"
        label = number % 2
        width, height = 50 + number, 60
        save(data / "images" / f"{image}.jpg", width, height, number)
        boxes.append(f"{image} {3 + number} 5 {30 + number} {39 if number else 60}")
        known = Truth(label, (width, height - 20), [2 + number, 4, 30 + number, 39 if number else 40])
        for part in {0: ("train", "trainval"), 1: ("val", "trainval"), 2: ("test",)}[number // 2]:
            lists[part].append(f"{image} {variants[label]}")
            makers[part].append(f"{image} {['Boeing', 'Airbus'][label]}")
            truth[part][image] = known
    for part in truth:
        (data / f"images_variant_{part}.txt").write_text("\n".join(lists[part]) + "\n")
        (data / f"images_manufacturer_{part}.txt").write_text("\n".join(makers[part]) + "\n")
    (data / "variants.txt").write_text("\n".join(variants) + "\n")
    (data / "manufacturers.txt").write_text("Airbus\nBoeing\n")
    (data / "images_box.txt").write_text("\n".join(boxes) + "\n")
    return truth


def cars(root: Path) -> dict[str, dict[str, Truth]]:
    """stanford_cars with three models; the test part has a single image."""
    from scipy.io import savemat

    home = root / "stanford_cars"
    (home / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi S4 Sedan 2007"], dtype=object)
    savemat(home / "devkit" / "cars_meta.mat", {"class_names": names})
    truth: dict[str, dict[str, Truth]] = {"train": {}, "test": {}}
    for part, count in (("train", 4), ("test", 1)):
        fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
        rows = np.zeros((1, count), dtype=[(f, object) for f in fields])
        for i in range(count):
            name = f"{i + 1:05d}.jpg"
            save(home / f"cars_{part}" / name, 40 + i, 30, i)
            rows[0, i] = (np.uint8(3 + i), np.uint8(4), np.uint8(20 + i), np.uint8(30), np.uint8(i % 3 + 1), name)
            truth[part][f"cars_{part}/{name}"] = Truth(i % 3, (40 + i, 30), [2 + i, 3, 20 + i, 30])
        place = "devkit/cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat"
        savemat(home / place, {"annotations": rows})
    return truth


def caltech101(root: Path) -> dict[str, dict[str, Truth]]:
    """caltech101 with three classes, one of which keeps its annotations under another name, and the background."""
    from scipy.io import savemat

    home = root / "caltech101"
    truth: dict[str, Truth] = {}
    seed = 0
    for label, (name, folder) in enumerate([("Faces", "Faces_2"), ("accordion", "accordion"), ("ant", "ant")]):
        for i in (1, 2):
            seed += 1
            file = f"101_ObjectCategories/{name}/image_{i:04d}.jpg"
            width, height = 40 + seed, 36
            save(home / file, width, height, seed)
            xmin, ymin, xmax, ymax = 5 + seed, 4, 25 + seed, 20  # counted from 1, the last pixel inside
            outline = np.array([[1, 19, 19, 1], [1, 1, 15, 15]], np.float64)  # relative to the box
            path = home / "Annotations" / folder / f"annotation_{i:04d}.mat"
            path.parent.mkdir(parents=True, exist_ok=True)
            savemat(path, {"box_coord": np.array([[ymin, ymax, xmin, xmax]]), "obj_contour": outline})
            mask = np.zeros((height, width), np.bool_)
            mask[4 : 4 + 15, xmin : xmin + 19] = True
            truth[file] = Truth(label, (width, height), [xmin - 1, ymin - 1, xmax, ymax], mask)
    save(home / "101_ObjectCategories" / "BACKGROUND_Google" / "image_0001.jpg", 30, 30, 99)
    return {"all": truth}


def pets(root: Path) -> dict[str, dict[str, Truth]]:
    """oxford-iiit-pet with three breeds; one image has no box of the head."""
    home = root / "oxford-iiit-pet"
    (home / "annotations" / "trimaps").mkdir(parents=True)
    (home / "annotations" / "xmls").mkdir()
    truth: dict[str, dict[str, Truth]] = {"trainval": {}, "test": {}}
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for number, breed in enumerate(["Abyssinian", "american_bulldog", "Bengal", "Abyssinian", "american_bulldog"]):
        label = ["Abyssinian", "american_bulldog", "Bengal"].index(breed)
        name = f"{breed}_{100 + number}"
        width, height = 32 + number, 28
        save(home / "images" / f"{name}.jpg", width, height, number)
        trimap = np.full((height, width), 2, np.uint8)
        trimap[4:20, 6:22] = 3
        trimap[6:18, 8 : 20 - number] = 1
        Image.fromarray(trimap).save(home / "annotations" / "trimaps" / f"{name}.png")
        if number:
            box = "".join(
                f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), (9, 7, 15, 12), strict=True)
            )
            xml = f"<annotation><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
            (home / "annotations" / "xmls" / f"{name}.xml").write_text(xml)
        part = "trainval" if number < 3 else "test"
        lists[part].append(f"{name} {label + 1} 1 1")
        truth[part][name] = Truth(label, (width, height), [8, 6, 20 - number, 18], trimap == 1)
    for part, rows in lists.items():
        (home / "annotations" / f"{part}.txt").write_text("\n".join(rows) + "\n")
    return truth


def cifar10(root: Path) -> dict[str, dict[str, Truth]]:
    """cifar-10-batches-py with two images in each batch, pickled as Python 2 did."""
    home = root / "cifar-10-batches-py"
    home.mkdir(parents=True)
    truth: dict[str, dict[str, Truth]] = {"train": {}, "test": {}}
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for k, name in enumerate(names):
        labels = [k % 3, (k + 1) % 3]
        data = np.stack([np.asarray(picture(32, 32, 2 * k + i)).transpose(2, 0, 1).ravel() for i in range(2)])
        (home / name).write_bytes(pickle.dumps({"data": data, "labels": labels, "batch_label": name}, protocol=2))
        part = "test" if name == "test_batch" else "train"
        for label in labels:
            truth[part][f"{part}-{len(truth[part]):05d}"] = Truth(label, (32, 32))
    (home / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile", "bird"]}, protocol=2))
    return truth


def cifar100(root: Path) -> dict[str, dict[str, Truth]]:
    """cifar-100-python with three images in each part."""
    home = root / "cifar-100-python"
    home.mkdir(parents=True)
    truth: dict[str, dict[str, Truth]] = {"train": {}, "test": {}}
    for k, part in enumerate(truth):
        data = np.stack([np.asarray(picture(32, 32, 10 * k + i)).transpose(2, 0, 1).ravel() for i in range(3)])
        content = {"data": data, "fine_labels": [0, 1, 1], "coarse_labels": [4, 4, 4]}
        (home / part).write_bytes(pickle.dumps(content, protocol=2))
        truth[part] = {f"{part}-{i:05d}": Truth(label, (32, 32)) for i, label in enumerate([0, 1, 1])}
    names = {"fine_label_names": ["apple", "aquarium_fish"], "coarse_label_names": ["fruit", "fish"]}
    (home / "meta").write_bytes(pickle.dumps(names, protocol=2))
    return truth
