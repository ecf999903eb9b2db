"""Localisation against naive oracles in float64, and libraries as witnesses."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.oracles.naive_localization import (
    naive_ap,
    naive_auc,
    naive_energy,
    naive_iou,
    naive_mass,
    naive_overlap,
    naive_pointing,
    naive_regions,
    naive_top,
    scaled,
    spiral,
    zoo,
)
from xattn import functional as F
from xattn.functional import boxes as regions


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("ours", "oracle"),
    [
        (lambda m, k: F.pointing_hit(m, k, 0), lambda m, k: naive_pointing(m, k, 0)),
        (lambda m, k: F.pointing_hit(m, k, 3), lambda m, k: naive_pointing(m, k, 3)),
        (F.energy_pointing, naive_energy),
        (F.energy_share, naive_mass),
        (F.relevance_rank, lambda m, k: naive_top(m, k, int(k.sum()))),
        (lambda m, k: F.top_k_intersection(m, k, 11), lambda m, k: naive_top(m, k, 11)),
        (F.roc_auc, naive_auc),
        (F.average_precision, naive_ap),
        (F.mask_share, lambda m, k: float(k.double().mean())),
    ],
    ids=["pointing", "pointing-tolerance", "energy", "mass", "rank", "top-k", "auc", "ap", "share"],
)
def test_oracle(ours: Callable[..., Tensor], oracle: Callable[..., float], seed: int) -> None:
    maps, masks = zoo(seed)
    got = ours(masks) if ours is F.mask_share else ours(maps, masks)
    assert got.dtype == torch.float64
    expected = [oracle(m, k) for m, k in zip(maps, masks, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8])
def test_threshold_overlap_oracle(threshold: float) -> None:
    maps, masks = zoo(5, size=(9, 8))
    got = F.threshold_overlap(maps, masks, threshold)
    for i, (m, k) in enumerate(zip(maps, masks, strict=True)):
        for name, value in naive_overlap(m, k, threshold).items():
            assert float(got[name][i]) == pytest.approx(value, abs=1e-12), name


def test_regions_themselves() -> None:
    maps, masks = zoo(6)
    found = torch.from_numpy(np.stack([scaled(m) > 0.5 for m in maps]))[:, None]
    expected = F.overlap(found, masks)
    for name, value in F.threshold_overlap(maps, masks, 0.5, boxes=False).items():
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize("density", [0.0, 0.1, 0.3, 0.5, 0.7, 1.0])
def test_component_boxes_oracle(density: float) -> None:
    g = torch.Generator().manual_seed(3)
    masks = torch.rand(4, 1, 11, 13, generator=g) < density
    owner, boxes, sizes = F.component_boxes(masks)
    for i in range(4):
        mine = sorted((*b, s) for b, s in zip(boxes[owner == i].tolist(), sizes[owner == i].tolist(), strict=True))
        assert mine == naive_regions(masks[i, 0].numpy())


def test_component_boxes_of_spirals() -> None:
    masks = torch.from_numpy(np.stack([spiral(21), spiral(21).T, ~spiral(21)]))[:, None]
    owner, boxes, sizes = F.component_boxes(masks)
    for i in range(3):
        mine = sorted((*b, s) for b, s in zip(boxes[owner == i].tolist(), sizes[owner == i].tolist(), strict=True))
        assert mine == naive_regions(masks[i, 0].numpy())
    assert (owner == 0).sum() == 1


def test_components_beside_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    masks = torch.rand(3, 1, 40, 50, generator=torch.Generator().manual_seed(1)) < 0.4
    owner, boxes, _ = F.component_boxes(masks)
    for i in range(3):
        labels, _ = ndimage.label(masks[i, 0].numpy(), np.ones((3, 3)))
        theirs = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
        assert sorted(map(tuple, boxes[owner == i].tolist())) == sorted(theirs)


def test_rectangles_beside_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    maps = torch.nn.functional.interpolate(
        torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(2)), size=(40, 48), mode="bilinear"
    )
    binary = F.normalize(maps) > 0.5
    owner, boxes, _ = F.component_boxes(binary)
    ours = F.fill_rectangles(owner, boxes, 5, (40, 48))
    for i in range(5):
        contours, _ = cv2.findContours(
            binary[i, 0].numpy().astype(np.uint8) * 255, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        theirs = np.zeros((40, 48), bool)
        for contour in contours:
            x, y, w, h = cv2.boundingRect(contour)
            theirs[y : y + h, x : x + w] = True
        assert np.array_equal(ours[i, 0].numpy(), theirs)


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 20])
def test_dilate_beside_distances(radius: int) -> None:
    _, masks = zoo(9)
    got = F.dilate(masks, radius)
    y, x = torch.meshgrid(torch.arange(7), torch.arange(9), indexing="ij")
    for mask, wide in zip(masks[:, 0], got[:, 0], strict=True):
        points = mask.nonzero()
        distance = ((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2).amin(-1)
        assert torch.equal(wide, distance <= radius**2)


def test_pixel_ranking_beside_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    maps, masks = zoo(11, n=8, size=(20, 20))
    auc, precision = F.roc_auc(maps, masks), F.average_precision(maps, masks)
    for i in range(8):
        truth, scores = masks[i].flatten().numpy(), maps[i].flatten().numpy()
        assert float(auc[i]) == pytest.approx(sklearn.roc_auc_score(truth, scores), abs=1e-12)
        assert float(precision[i]) == pytest.approx(sklearn.average_precision_score(truth, scores), abs=1e-12)


def test_box_iou_curve_oracle() -> None:
    maps, _ = zoo(13)
    boxes = [torch.tensor([[1.0, 1.0, 5.0, 4.0]]), torch.tensor([[0.5, 0.0, 3.0, 7.0], [4.0, 2.0, 9.0, 6.5]])] * 3
    thresholds = [0.0, 0.3, 0.55, 0.9]
    for largest in (False, True):
        got = F.box_iou_curve(maps, boxes, thresholds, largest=largest)
        for i in range(6):
            for j, threshold in enumerate(thresholds):
                regions = naive_regions(scaled(maps[i]) > threshold)
                most = max(r[4] for r in regions)
                kept = [r[:4] for r in regions if not largest or r[4] == most]
                best = max(naive_iou(r, tuple(b)) for r in kept for b in boxes[i].tolist())
                assert float(got[i, j]) == pytest.approx(best, abs=1e-9)


def test_box_iou_curve_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, _ = zoo(14)
    boxes = [torch.tensor([[1.0, 1.0, 5.0, 4.0]])] * 6
    whole = F.box_iou_curve(maps, boxes, [0.1, 0.5])
    overlap = F.threshold_overlap(maps, maps > 0)
    monkeypatch.setattr(regions, "_CHUNK", 7 * 9 * 5)
    assert torch.equal(whole, F.box_iou_curve(maps, boxes, [0.1, 0.5]))
    assert torch.equal(overlap["iou"], F.threshold_overlap(maps, maps > 0)["iou"])


def test_max_box_accuracy_has_one_threshold_for_all() -> None:
    curves = torch.tensor([[0.9, 0.2, 0.4], [0.1, 0.8, 0.4], [0.2, 0.6, 0.4], [math.nan] * 3], dtype=torch.float64)
    got = F.max_box_accuracy(curves, (0.3, 0.5, 0.7))
    # At 0.3 the last threshold finds all; each image by itself would find all at 0.5 as well.
    assert (got["max_box_acc_30"], got["threshold_30"]) == (1.0, 2.0)
    assert (got["max_box_acc_50"], got["threshold_50"]) == (pytest.approx(2 / 3), 1.0)
    assert got["max_box_acc_70"] == pytest.approx(1 / 3)
    assert got["max_box_acc_v2"] == pytest.approx(2 / 3)
    assert got["images"] == 3
    held_out = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    assert F.max_box_accuracy(curves, (0.5,), chosen_on=held_out)["max_box_acc_50"] == pytest.approx(1 / 3)
    assert math.isnan(F.max_box_accuracy(curves[3:])["max_box_acc_v2"])


def test_pixel_counts_and_pxap_oracle() -> None:
    maps, masks = zoo(15)
    thresholds = [0.0, 0.25, 0.5, 0.75]
    true, false = F.pixel_counts(maps, masks, thresholds)
    area, recall = 0.0, 0.0
    flat = [
        (a, bool(b)) for m, k in zip(maps, masks, strict=True) for a, b in zip(scaled(m).flat, k.flatten(), strict=True)
    ]
    total = sum(b for _, b in flat)
    for threshold in reversed(thresholds):
        found = [b for a, b in flat if a >= threshold]
        area += (sum(found) / total - recall) * sum(found) / len(found)
        recall = sum(found) / total
    for i, (m, k) in enumerate(zip(maps, masks, strict=True)):
        for j, threshold in enumerate(thresholds):
            assert float(true[i, j]) == (torch.from_numpy(scaled(m) >= threshold) & k[0]).sum()
            assert float(false[i, j]) == (torch.from_numpy(scaled(m) >= threshold) & ~k[0]).sum()
    assert F.pixel_average_precision(true, false) == pytest.approx(area)


def test_pxap_of_fine_thresholds_is_average_precision() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    maps, masks = zoo(16, size=(12, 12))
    maps = (maps * 50).round()  # fewer levels than thresholds
    true, false = F.pixel_counts(maps, masks, [i / 4000 for i in range(4001)])
    scores = np.concatenate([scaled(m).ravel() for m in maps])
    expected = sklearn.average_precision_score(masks.flatten().numpy(), scores)
    # Both ends of a level are never in one bin here, but rounding may move one across the edge.
    assert F.pixel_average_precision(true, false) == pytest.approx(expected, abs=2e-3)
