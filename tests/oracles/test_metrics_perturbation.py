"""Perturbation metrics against loops in float64 derived from the papers, then against other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests import tiny_models as tiny
from tests.given import explained
from tests.oracles.naive_grid import on_grid
from tests.oracles.naive_perturbation import (
    EXACT,
    SEEDS,
    SIZE,
    Array,
    N,
    auc,
    black,
    box_blurred,
    check,
    correlation,
    gaussian_blurred,
    imputed,
    naive_agreement,
    naive_curve,
    naive_pixels,
    order_of,
    probability,
    some_maps,
    upsampled,
)
from xattn.functional.baselines import rise_kernel, separable_blur
from xattn.functional.imputation import linear_imputation
from xattn.metrics import metrics
from xattn.metrics.regions import superpixels
from xattn.metrics.subsets import Infidelity, SensitivityN
from xattn.trace import Trace, record

# --- curves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("grid", [(4, 5), (7, 3)])
def test_deletion_with_blur_on_pixels(trace: Trace, grid: tuple[int, int], levels: int | None) -> None:
    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        values = upsampled(values, SIZE)
        curve = naive_curve(trace, i, values, image, gaussian_blurred(image, 0.08 * 16), 9)
        drops = [a - b for a, b in zip(curve.scores[:-1], curve.scores[1:], strict=True)]
        flat = values.flatten().tolist()
        return {
            "deletion": auc(curve.scores, curve.share),
            "dc": correlation(curve.saliency, drops),
            "pixel_flipping": sum(curve.scores[0] - y for y in curve.scores) / len(curve.scores),
            "tie_share": sum(flat.count(value) > 1 for value in flat) / len(flat),
        }

    check(trace, "deletion:steps=9,grid=pixels", some_maps(*grid, levels=levels), oracle)


@pytest.mark.parametrize("own", [(4, 5), (16, 20), (8, 10), (3, 20)])
@pytest.mark.parametrize(("grid", "cells"), [("common", (8, 10)), ("4", (4, 5)), ("5", (5, 6))])
def test_curves_on_a_grid_that_all_methods_share(
    trace: Trace, own: tuple[int, int], grid: str, cells: tuple[int, int]
) -> None:
    """Finer maps, coarser ones and both at once: eight cells on the shorter side of 16 by 20 pixels."""

    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        values = on_grid(values, cells)
        curve = naive_curve(trace, i, values, image, np.zeros_like(image), 9)
        return {
            "deletion": auc(curve.scores, curve.share),
            "pixel_flipping": sum(curve.scores[0] - y for y in curve.scores) / len(curve.scores),
        }

    check(trace, f"deletion:steps=9,baseline=mean,grid={grid}", some_maps(*own) - 0.5, oracle)


def test_deletion_on_the_maps_own_grid_with_a_baseline(trace: Trace) -> None:
    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        curve = naive_curve(trace, i, values, image, black(trace, image), 196)
        return {"deletion": auc(curve.scores, curve.share)}

    check(trace, "deletion:grid=map,baseline=black", some_maps(4, 5), oracle)


def test_insertion(trace: Trace) -> None:
    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        curve = naive_curve(trace, i, upsampled(values, SIZE), gaussian_blurred(image, 0.1 * 16), image, 7)
        rises = [b - a for a, b in zip(curve.scores[:-1], curve.scores[1:], strict=True)]
        return {"insertion": auc(curve.scores, curve.share), "ic": correlation(curve.saliency, rises)}

    check(trace, "insertion:steps=7,grid=pixels,baseline=blur:sigma=0.1", some_maps(4, 5, levels=5), oracle)


def test_brnpa2021(trace: Trace) -> None:
    """The start is left out, the rest stretched to [0, 1]; 121/448 of 16 pixels, made odd, is 5 (4.32)."""

    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        deleted = naive_curve(trace, i, values, image, np.zeros_like(image), 196).scores[1:]
        inserted = naive_curve(trace, i, values, box_blurred(image, 5), image, 196).scores[1:]
        return {"dauc_brnpa2021": auc(deleted), "iauc_brnpa2021": auc(inserted)}

    check(trace, "brnpa2021", some_maps(4, 5), oracle)


def test_gomez2023(trace: Trace) -> None:
    """The box has max(16 // 5, 9) = 9 pixels."""

    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        deleted = naive_curve(trace, i, values, image, np.zeros_like(image), 196)
        inserted = naive_curve(trace, i, values, box_blurred(image, 9), image, 196)
        falls = [a - b for a, b in zip(deleted.scores[:-1], deleted.scores[1:], strict=True)]
        rises = [b - a for a, b in zip(inserted.scores[:-1], inserted.scores[1:], strict=True)]
        mask = (values - values.min()) / (values.max() - values.min())
        big = torch.nn.functional.interpolate(
            torch.from_numpy(mask)[None, None], SIZE, mode="bicubic", align_corners=False
        )[0, 0].numpy()
        y, o, d = (probability(trace, image * m, i) for m in (1.0, big, 1 - big))
        return {
            "dauc_gomez2023": auc(deleted.scores),
            "dc_gomez2023": correlation(deleted.saliency, falls),
            "iauc_gomez2023": auc(inserted.scores),
            "ic_gomez2023": correlation(inserted.saliency, rises),
            "iic_gomez2023": float(o > y),
            "ad_gomez2023": max(y - o, 0.0) / y,
            "add_gomez2023": (y - d) / y,
        }

    check(trace, "gomez2023", some_maps(4, 5), oracle)


def test_rise2018(trace: Trace) -> None:
    kernel = rise_kernel()

    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        values = upsampled(values, SIZE)
        blurred = separable_blur(torch.from_numpy(image)[None], kernel, "zeros")[0].numpy()
        deleted = naive_curve(trace, i, values, image, black(trace, image), 224)
        inserted = naive_curve(trace, i, values, blurred, image, 224)
        return {"dauc_rise2018": auc(deleted.scores), "iauc_rise2018": auc(inserted.scores)}

    check(trace, "rise2018", some_maps(4, 5), oracle)


def test_rise_kernel_is_a_filtered_pixel() -> None:
    from scipy.ndimage import gaussian_filter

    pixel = np.zeros((11, 11))
    pixel[5, 5] = 1
    kernel = rise_kernel().numpy()
    np.testing.assert_allclose(np.outer(kernel, kernel), gaussian_filter(pixel, 5), rtol=1e-12)


def test_box_of_the_presets_at_their_own_sizes(trace: Trace) -> None:
    from xattn.functional.baselines import BoxBlur

    gomez = BoxBlur(share=1 / 5, smallest=9, floor=True)
    assert BoxBlur().side(448) == 121
    for height in range(8, 600):
        expected = max(height // 5, 9)
        assert gomez.side(height) == expected + 1 - expected % 2


def test_abpc(trace: Trace) -> None:
    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        values, zeros = upsampled(values, SIZE), np.zeros_like(image)
        morf = naive_curve(trace, i, values, image, zeros, 10).scores
        lerf = naive_curve(trace, i, values, image, zeros, 10, last_first=True).scores
        return {"abpc": sum(lerf) / 11 - sum(morf) / 11, "morf": sum(morf) / 11, "lerf": sum(lerf) / 11}

    check(trace, "abpc:grid=pixels", some_maps(4, 5), oracle)


# --- masks, imputation, regions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["black", "mean"])
def test_average_drop(trace: Trace, baseline: str) -> None:
    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        mask = upsampled((values - values.min()) / (values.max() - values.min()), SIZE, rounded=False)
        other = black(trace, image) if baseline == "black" else np.zeros_like(image)
        y = probability(trace, image, i)
        o = probability(trace, mask * image + (1 - mask) * other, i)
        d = probability(trace, (1 - mask) * image + mask * other, i)
        return {
            "average_drop": max(0.0, y - o) / y,
            "increase_in_confidence": 1.0 if o > y else 0.0,
            "average_gain": max(0.0, o - y) / (1 - y),
            "average_drop_in_deletion": (y - d) / y,
        }

    check(trace, f"average_drop:baseline={baseline}", some_maps(4, 5), oracle)


def test_average_gain(trace: Trace) -> None:
    """Hiding a part makes an unlikely class more likely: the other side of the maximum."""
    unlikely = record(trace.model, trace.x, trace.logits.argmin(dim=1), spec=trace.spec, seeds=SEEDS)
    maps = some_maps(4, 5)
    found = metrics.create("average_drop", baseline="mean").measure(explained(maps, unlikely), unlikely, None)
    for i in range(N):
        values, image = maps[i, 0].numpy(), trace.x[i].numpy()
        mask = upsampled((values - values.min()) / (values.max() - values.min()), SIZE, rounded=False)
        y, o = probability(unlikely, image, i), probability(unlikely, image * mask, i)
        assert o > y
        assert found["increase_in_confidence"][i] == 1
        assert found["average_drop"][i] == 0
        assert found["average_gain"][i].item() == pytest.approx((o - y) / (1 - y), rel=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.997])
def test_linear_imputation_is_the_dense_solution(share: float) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, 16, 20, dtype=torch.float64, generator=generator)
    removed = torch.rand(3, 1, 16, 20, generator=generator) < share
    removed[:, :, 8, 10] = False
    found = linear_imputation(x, removed, tolerance=1e-12)
    for i in range(3):
        np.testing.assert_allclose(found[i].numpy(), imputed(x[i].numpy(), removed[i, 0].numpy()), rtol=0, atol=1e-8)
    rough = linear_imputation(x, removed)
    assert (rough - found).abs().max() < 0.02 * (
        x.max() - x.min()
    )  # the default tolerance, far below the noise's effect


def test_road(trace: Trace) -> None:
    """Without noise, so that the dense solution is the answer; the noise has its own test."""

    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        values = upsampled(values, SIZE)
        order = order_of(values, trace, i)
        means = []
        for cells in (order, order[::-1]):
            scores = []
            for tenth in range(1, 10):
                removed = np.zeros(SIZE, bool)
                removed.flat[cells[: round(tenth * 32)]] = True
                scores.append(probability(trace, imputed(image, removed), i))
            means.append(sum(scores) / 9)
        return {"road": means[1] - means[0], "road_morf": means[0], "road_lerf": means[1]}

    maps = some_maps(4, 5)
    metric = metrics.create("road", baseline="linear:noise=0", grid="pixels")
    found = metric.measure(explained(maps, trace), trace, None)
    for i in range(N):
        for column, value in oracle(i, maps[i, 0].numpy(), trace.x[i].numpy()).items():
            assert found[column][i].item() == pytest.approx(value, abs=1e-3), (
                column
            )  # the solver stops at 1e-4 of the range


def test_irof(trace: Trace) -> None:
    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        values = naive_pixels(values, (8, 10))
        label = superpixels(trace, 12)[i].view(SIZE).numpy()
        number, most = label.max() + 1, int(superpixels(trace, 12).max()) + 1
        means = [values[label == k].mean() for k in range(number)]
        place = torch.randperm(most, generator=trace.generator(i, f"ties/{most}")).tolist()
        order = sorted(range(number), key=lambda k: (-means[k], place.index(k)))
        scores = []
        for count in range(number + 1):
            gone = np.isin(label, order[:count])
            scores.append(probability(trace, np.where(gone, 0.0, image), i))
        return {"irof": 1 - auc([y / scores[0] for y in scores])}

    check(trace, "irof:segments=12", some_maps(4, 5), oracle)


def test_superpixels_are_those_of_the_picture(trace: Trace) -> None:
    from skimage.segmentation import slic

    mean, std = (np.array(v)[:, None, None] for v in (trace.spec.mean, trace.spec.std))
    for i in range(N):
        picture = np.clip(trace.x[i].numpy() * std + mean, 0, 1).transpose(1, 2, 0)
        expected = slic(picture.astype(np.float32).astype(np.float64), n_segments=12, start_label=0)
        np.testing.assert_array_equal(superpixels(trace, 12)[i].view(SIZE).numpy(), expected)


def test_region_perturbation(trace: Trace) -> None:
    """Blocks of 6: three rows (the last of 4 pixels) and four columns (the last of 2)."""

    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        values = naive_pixels(values, (8, 10))
        noise = torch.rand(3, *SIZE, generator=trace.generator(i, "Noise()")).double().numpy()
        mean, std = (np.array(v)[:, None, None] for v in (trace.spec.mean, trace.spec.std))
        other = (noise - mean) / std
        corners = [(y, x) for y in range(0, 16, 6) for x in range(0, 20, 6)]
        worth = [values[y : y + 6, x : x + 6].mean() for y, x in corners]
        image, scores = image.copy(), [probability(trace, image, i)]
        for k in sorted(range(len(corners)), key=lambda k: -worth[k])[:5]:
            y, x = corners[k]
            image[:, y : y + 6, x : x + 6] = other[:, y : y + 6, x : x + 6]
            scores.append(probability(trace, image, i))
        return {"region_perturbation": sum(scores[0] - y for y in scores) / 6}

    check(trace, "region_perturbation:side=6,steps=5", some_maps(4, 5), oracle)


def test_faithfulness_correlation(trace: Trace) -> None:
    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        key = repr(("subsets", (4, 5), (5,), 12))
        return {"faithfulness_correlation": naive_agreement(trace, i, values, image, [5], 12, key)[0]}

    check(trace, "faithfulness_correlation:grid=4,samples=12,share=0.25", some_maps(3, 5), oracle)


def test_sensitivity_n(trace: Trace) -> None:
    sizes = [1, 3, 10]  # equal factors from 0.05 to 0.5 of 20

    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        key = repr(("subsets", (4, 5), tuple(sizes), 8))
        return {"sensitivity_n": sum(naive_agreement(trace, i, values, image, sizes, 8, key)) / 3}

    assert SensitivityN(sizes=3, smallest=0.05, largest=0.5).numbers(20) == sizes
    check(trace, "sensitivity_n:grid=4,samples=8,sizes=3,smallest=0.05,largest=0.5", some_maps(3, 5), oracle)


def test_additive_models_have_perfect_agreement() -> None:
    """The logit of a linear model is additive over blocks: its own contributions correlate perfectly with it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 20, 3)).double()
    trace = record(model, tiny.images(N, *SIZE).double(), [0, 2], spec=tiny.TinyCNN().spec, seeds=SEEDS, grad=False)
    weight = model[1].weight.detach().view(3, 3, *SIZE)[trace.target]
    exact = explained((trace.x * weight).sum(1, keepdim=True), trace)
    for name in ("faithfulness_correlation", "sensitivity_n"):
        value = metrics.create(name, score="logit", grid=4, samples=10).measure(exact, trace, None)[name]
        torch.testing.assert_close(value, torch.ones(N, dtype=torch.float64), **EXACT)
    infidelity = metrics.create("infidelity", score="logit", baseline="mean", grid="pixels")
    assert infidelity.measure(exact, trace, None)["infidelity"].max() < 1e-20


def test_infidelity(trace: Trace) -> None:
    metric = Infidelity(samples=15)

    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        values, other = naive_pixels(values, (8, 10)), black(trace, image)
        clean, claims, falls = probability(trace, image, i), [], []
        for top, left, bottom, right in metric.squares(trace)[i].tolist():
            hole = image.copy()
            hole[:, top:bottom, left:right] = other[:, top:bottom, left:right]
            claims.append(values[top:bottom, left:right].sum())
            falls.append(clean - probability(trace, hole, i))
        scale = sum(a * b for a, b in zip(claims, falls, strict=True)) / sum(a * a for a in claims)
        return {"infidelity": sum((scale * a - b) ** 2 for a, b in zip(claims, falls, strict=True)) / 15}

    check(trace, "infidelity:samples=15", some_maps(4, 5), oracle)


def test_squares_stay_inside_and_reach_every_side(trace: Trace) -> None:
    squares = Infidelity(samples=400, smallest=0.25, largest=0.5).squares(trace)
    top, left, bottom, right = squares.unbind(2)
    assert (top.min(), left.min(), bottom.max(), right.max()) == (0, 0, 16, 20)
    assert ((bottom - top) == (right - left)).all()
    assert set((bottom - top).flatten().tolist()) == {4, 5, 6, 7, 8}
