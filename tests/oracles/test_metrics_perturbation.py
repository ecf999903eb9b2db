"""Perturbation metrics against loops in float64 derived from the papers, then against other libraries."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from xattn.explainer import Explainer, Family
from xattn.explanation import Explanation
from xattn.functional.baselines import rise_kernel, separable_blur
from xattn.functional.imputation import linear_imputation
from xattn.functional.perturb import cell_of_pixel
from xattn.metrics import metrics
from xattn.metrics.regions import superpixels
from xattn.metrics.subsets import Infidelity, SensitivityN
from xattn.trace import Trace, record

Array = np.ndarray
SIZE = (16, 20)  # not square, so that swapped axes show
N = 2
SEEDS = (5, 6)
EXACT = {"rtol": 1e-9, "atol": 1e-11}


@dataclass(frozen=True)
class Given(Explainer):
    """Stands for any method."""

    name: ClassVar[str] = "given"
    family: ClassVar[Family] = Family.CONTROL

    def attribute(self, trace: Trace) -> Tensor:
        raise NotImplementedError


def given(maps: Tensor, trace: Trace) -> Explanation:
    return Explanation(maps=maps, target=trace.target, method=Given(), input_size=trace.input_size)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A tiny network whose probabilities are well inside (0, 1)."""
    torch.manual_seed(0)
    network = tiny.TinyCNN().double().eval()
    with torch.no_grad():
        network.fc.weight.mul_(4)
    return network


@pytest.fixture(scope="module")
def trace(model: nn.Module) -> Trace:
    return record(model, tiny.images(N, *SIZE, seed=3).double(), [1, 2], spec=model.spec, seeds=SEEDS)


def some_maps(h: int, w: int, seed: int = 0, levels: int | None = None) -> Tensor:
    """Random maps; with few levels there are ties."""
    maps = torch.rand(N, 1, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return maps if levels is None else (maps * levels).floor()


# --- the naive world: one image (C, H, W), lists and loops ---------------------------------------------------------


def probability(trace: Trace, image: Array, i: int) -> float:
    with torch.no_grad():
        logits = trace.model(torch.from_numpy(image)[None])[0].tolist()
    top = max(logits)
    powers = [math.exp(value - top) for value in logits]
    return powers[int(trace.target[i])] / sum(powers)


def upsampled(grid: Array, size: tuple[int, int], *, rounded: bool = True) -> Array:
    """Bilinear interpolation with half-pixel centres, cell by cell; for ranking it is rounded to float32."""
    (h, w), (height, width) = grid.shape, size
    if (h, w) == size:
        return grid
    out = np.zeros(size)
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * h / height - 0.5, 0.0), h - 1.0)
            u = min(max((x + 0.5) * w / width - 0.5, 0.0), w - 1.0)
            a, b = int(v), int(u)
            c, d = min(a + 1, h - 1), min(b + 1, w - 1)
            t, s = v - a, u - b
            out[y, x] = (1 - t) * ((1 - s) * grid[a, b] + s * grid[a, d]) + t * ((1 - s) * grid[c, b] + s * grid[c, d])
    return out.astype(np.float32).astype(np.float64) if rounded else out


def order_of(values: Array, trace: Trace, i: int) -> list[int]:
    """Cells from most to least important; equal ones as the image's own random order has them."""
    cells = values.size
    place = {
        cell: k for k, cell in enumerate(torch.randperm(cells, generator=trace.generator(i, f"ties/{cells}")).tolist())
    }
    return sorted(range(cells), key=lambda cell: (-values.flat[cell], place[cell]))


def even_counts(cells: int, steps: int) -> list[int]:
    steps = min(steps, cells)
    return [math.floor(k * cells / steps + 0.5) for k in range(steps + 1)]


def pixels_of(cells: set[int], grid: tuple[int, int], size: tuple[int, int]) -> Array:
    """Which pixels have their centre in one of the cells."""
    mask = np.zeros(size, bool)
    for y in range(size[0]):
        for x in range(size[1]):
            cell = int((y + 0.5) / size[0] * grid[0]) * grid[1] + int((x + 0.5) / size[1] * grid[1])
            mask[y, x] = cell in cells
    return mask


def auc(values: list[float], x: list[float] | None = None) -> float:
    at = [k / (len(values) - 1) for k in range(len(values))] if x is None else x
    return sum((at[k + 1] - at[k]) * (values[k] + values[k + 1]) / 2 for k in range(len(values) - 1))


def correlation(a: list[float], b: list[float]) -> float:
    return float(np.corrcoef(np.array(a), np.array(b))[0, 1])


def box_blurred(image: Array, side: int) -> Array:
    """Mean over a square window; zeros beyond the border."""
    channels, height, width = image.shape
    out, reach = np.zeros_like(image), side // 2
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                total = 0.0
                for v in range(max(0, y - reach), min(height, y + reach + 1)):
                    for u in range(max(0, x - reach), min(width, x + reach + 1)):
                        total += image[c, v, u]
                out[c, y, x] = total / side**2
    return out


def gaussian_blurred(image: Array, sigma: float) -> Array:
    """A Gaussian cut at three deviations; the border is repeated."""
    reach = math.ceil(3 * sigma)
    weight = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1)]
    weight = [value / sum(weight) for value in weight]
    for axis in (1, 2):
        out, last = np.zeros_like(image), image.shape[axis] - 1
        for place in range(last + 1):
            for k, value in zip(range(-reach, reach + 1), weight, strict=True):
                source = np.take(image, min(max(place + k, 0), last), axis=axis)
                if axis == 1:
                    out[:, place] += value * source
                else:
                    out[:, :, place] += value * source
        image = out
    return image


def black(trace: Trace, image: Array) -> Array:
    mean, std = np.array(trace.spec.mean), np.array(trace.spec.std)
    return np.broadcast_to((-mean / std)[:, None, None], image.shape)


@dataclass
class NaiveCurve:
    scores: list[float]
    saliency: list[float]
    share: list[float]


def naive_curve(
    trace: Trace, i: int, values: Array, start: Array, end: Array, steps: int, *, last_first: bool = False
) -> NaiveCurve:
    """Replace cells of `start` by those of `end`, most important first."""
    order = order_of(values, trace, i)
    order = order[::-1] if last_first else order
    counts = even_counts(values.size, steps)
    scores, saliency = [], []
    for k, count in enumerate(counts):
        mask = pixels_of(set(order[:count]), values.shape, SIZE)
        scores.append(probability(trace, np.where(mask, end, start), i))
        if k:
            saliency.append(float(np.mean([values.flat[c] for c in order[counts[k - 1] : count]])))
    return NaiveCurve(scores, saliency, [count / values.size for count in counts])


def check(trace: Trace, metric: str, maps: Tensor, oracle: Callable[[int, Array, Array], dict[str, float]]) -> None:
    """Every column that the oracle gives, for every image; `oracle(i, map, image)`."""
    found = metrics.parse(metric).measure(given(maps, trace), trace, None)
    for i in range(N):
        expected = oracle(i, maps[i, 0].numpy(), trace.x[i].numpy())
        for column, value in expected.items():
            assert found[column].dtype == torch.float64
            assert found[column][i].item() == pytest.approx(value, rel=1e-9, abs=1e-10), column


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

    check(trace, "deletion:steps=9", some_maps(*grid, levels=levels), oracle)


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

    check(trace, "insertion:steps=7,baseline=blur:sigma=0.1", some_maps(4, 5, levels=5), oracle)


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

    check(trace, "abpc", some_maps(4, 5), oracle)


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
    found = metrics.create("average_drop", baseline="mean").measure(given(maps, unlikely), unlikely, None)
    for i in range(N):
        values, image = maps[i, 0].numpy(), trace.x[i].numpy()
        mask = upsampled((values - values.min()) / (values.max() - values.min()), SIZE, rounded=False)
        y, o = probability(unlikely, image, i), probability(unlikely, image * mask, i)
        assert o > y
        assert found["increase_in_confidence"][i] == 1
        assert found["average_drop"][i] == 0
        assert found["average_gain"][i].item() == pytest.approx((o - y) / (1 - y), rel=1e-9)


def imputed(image: Array, removed: Array) -> Array:
    """The equations of ROAD, solved as a dense system."""
    channels, height, width = image.shape
    unknown = [tuple(place) for place in np.argwhere(removed)]
    number = {place: k for k, place in enumerate(unknown)}
    left, right = np.zeros((len(unknown), len(unknown))), np.zeros((len(unknown), channels))
    for (y, x), k in number.items():
        for v in (-1, 0, 1):
            for u in (-1, 0, 1):
                if (v, u) == (0, 0) or not (0 <= y + v < height and 0 <= x + u < width):
                    continue
                weight = 1 / 6 if 0 in (v, u) else 1 / 12
                left[k, k] += weight
                if (y + v, x + u) in number:
                    left[k, number[y + v, x + u]] -= weight
                else:
                    right[k] += weight * image[:, y + v, x + u]
    out = image.copy()
    out[:, removed] = np.linalg.solve(left, right).T
    return out


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
    found = metrics.create("road", baseline="linear:noise=0").measure(given(maps, trace), trace, None)
    for i in range(N):
        for column, value in oracle(i, maps[i, 0].numpy(), trace.x[i].numpy()).items():
            assert found[column][i].item() == pytest.approx(value, abs=1e-3), (
                column
            )  # the solver stops at 1e-4 of the range


def test_irof(trace: Trace) -> None:
    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        values = upsampled(values, SIZE)
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
        values = upsampled(values, SIZE)
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


# --- subsets ----------------------------------------------------------------------------------------------------------


def naive_agreement(
    trace: Trace, i: int, values: Array, image: Array, sizes: list[int], samples: int, key: str
) -> list[float]:
    """For each size the correlation of the map's sum over random blocks with the fall of the score."""
    values = upsampled(values, SIZE)
    grid = (4, 4)
    cell = cell_of_pixel(grid, SIZE).view(SIZE).numpy()
    worth = [values[cell == k].mean() for k in range(16)]
    noise = torch.rand(len(sizes) * samples, 16, generator=trace.generator(i, key)).tolist()
    clean, found = probability(trace, image, i), []
    for s, size in enumerate(sizes):
        sums, falls = [], []
        for row in noise[s * samples : (s + 1) * samples]:
            chosen = sorted(range(16), key=lambda k: row[k])[:size]
            sums.append(sum(worth[k] for k in chosen))
            falls.append(clean - probability(trace, np.where(np.isin(cell, chosen), 0.0, image), i))
        found.append(correlation(sums, falls))
    return found


def test_faithfulness_correlation(trace: Trace) -> None:
    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        key = repr(("subsets", 4, (4,), 12))
        return {"faithfulness_correlation": naive_agreement(trace, i, values, image, [4], 12, key)[0]}

    check(trace, "faithfulness_correlation:cells=4,samples=12,share=0.25", some_maps(3, 5), oracle)


def test_sensitivity_n(trace: Trace) -> None:
    sizes = [1, 3, 8]  # equal factors from 0.05 to 0.5 of 16

    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        key = repr(("subsets", 4, tuple(sizes), 8))
        return {"sensitivity_n": sum(naive_agreement(trace, i, values, image, sizes, 8, key)) / 3}

    assert SensitivityN(sizes=3, smallest=0.05, largest=0.5).numbers(16) == sizes
    check(trace, "sensitivity_n:cells=4,samples=8,sizes=3,smallest=0.05,largest=0.5", some_maps(3, 5), oracle)


def test_additive_models_have_perfect_agreement() -> None:
    """The logit of a linear model is additive over blocks: its own contributions correlate perfectly with it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 20, 3)).double()
    trace = record(model, tiny.images(N, *SIZE).double(), [0, 2], spec=tiny.TinyCNN().spec, seeds=SEEDS, grad=False)
    weight = model[1].weight.detach().view(3, 3, *SIZE)[trace.target]
    exact = given((trace.x * weight).sum(1, keepdim=True), trace)
    for name in ("faithfulness_correlation", "sensitivity_n"):
        value = metrics.create(name, score="logit", cells=4, samples=10).measure(exact, trace, None)[name]
        torch.testing.assert_close(value, torch.ones(N, dtype=torch.float64), **EXACT)
    off = metrics.create("infidelity", score="logit", baseline="mean").measure(exact, trace, None)["infidelity"]
    assert off.max() < 1e-20


def test_infidelity(trace: Trace) -> None:
    metric = Infidelity(samples=15)

    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        values, other = upsampled(values, SIZE), black(trace, image)
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


# --- other libraries --------------------------------------------------------------------------------------------------


OLD_NUMPY = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")


class FakeExtractor:
    """What torch-cam's metrics ask of an extractor: the model and a map."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    @contextmanager
    def _hooks_off(self) -> Iterator[None]:
        yield


def test_torchcam_deletion_and_insertion(trace: Trace) -> None:
    """torch-cam takes ceil(cells / steps) cells a step: 320 pixels in 20 steps divide evenly."""
    torchcam = pytest.importorskip("torchcam.metrics")
    maps = some_maps(16, 20)  # full size: interpolation of few cells ties border pixels, which it orders as they come
    witness = torchcam.DeletionInsertionMetric(
        FakeExtractor(trace.model, maps[:, 0]), lambda logits: logits.softmax(-1), steps=20
    )
    witness.update(trace.x, trace.target.tolist())
    options = {"baseline": "mean", "steps": 20}
    mine = {
        name: metrics.create(name, **options).measure(given(maps, trace), trace, None)[name]
        for name in ("deletion", "insertion")
    }
    summary = witness.summary()
    for name in mine:
        assert mine[name].mean().item() == pytest.approx(summary[f"{name}_auc"], rel=1e-6)


def test_torchcam_average_drop(trace: Trace) -> None:
    """torch-cam multiplies the normalized image (baseline `mean`) and adds 1e-7 to the score that it divides by."""
    torchcam = pytest.importorskip("torchcam.metrics")
    from xattn.functional.resize import normalize

    maps = some_maps(4, 5)
    witness = torchcam.ClassificationMetric(
        FakeExtractor(trace.model, normalize(maps)[:, 0]), lambda logits: logits.softmax(-1)
    )
    witness.update(trace.x, trace.target.tolist())
    mine = metrics.create("average_drop", baseline="mean").measure(given(maps, trace), trace, None)
    assert mine["average_drop"].mean().item() == pytest.approx(witness.summary()["avg_drop"], rel=1e-5)
    assert mine["increase_in_confidence"].mean().item() == witness.summary()["conf_increase"]


def test_captum_infidelity(trace: Trace) -> None:
    """The same squares, with captum's optimal scaling; its attributions are per feature, here a third a channel."""
    captum = pytest.importorskip("captum.metrics")
    metric, maps = Infidelity(samples=20), some_maps(16, 20)
    squares = metric.squares(trace)
    other = torch.from_numpy(np.stack([black(trace, image.numpy()) for image in trace.x]))
    mine = metric.measure(given(maps, trace), trace, None)["infidelity"]
    for i in range(N):
        rows = iter(squares[i].tolist())

        def perturb(inputs: Tensor, rows: Iterator[list[int]] = rows, i: int = i) -> tuple[Tensor, Tensor]:
            gone = torch.zeros_like(inputs)
            for k in range(len(inputs)):
                top, left, bottom, right = next(rows)
                gone[k, :, top:bottom, left:right] = 1
            return gone, torch.where(gone > 0, other[i], inputs)

        value = captum.infidelity(
            lambda images: trace.model(images).softmax(1),
            perturb,
            trace.x[i : i + 1],
            maps[i : i + 1].expand(-1, 3, -1, -1) / 3,
            target=int(trace.target[i]),
            n_perturb_samples=20,
            normalize=True,
        )
        assert value.item() == pytest.approx(mine[i].item(), rel=1e-6)


@OLD_NUMPY
def test_grad_cam_imputation() -> None:
    """pytorch-grad-cam solves the same equations by a sparse factorization, one image at a time."""
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")
    x = torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    removed = torch.rand(2, 1, 16, 20, generator=torch.Generator().manual_seed(1)) < 0.7
    mine = linear_imputation(x, removed, tolerance=1e-6)
    for i in range(2):
        theirs = road.NoisyLinearImputer(noise=0.0)(x[i], (~removed[i, 0]).float())
        torch.testing.assert_close(mine[i], theirs, rtol=0, atol=1e-4)


@OLD_NUMPY
def test_grad_cam_road(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps what lies under a percentile, reports the change from the clean score, and halves the combined value.

    At percentile p it removes the top 100 - p %, so that its p = 75 is our first quarter. Its noise is switched off.
    """
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    x = trace.x.clone().requires_grad_()
    probabilities = trace.model(x).softmax(1).gather(1, trace.target[:, None])
    gradient = torch.autograd.grad(probabilities.sum(), x)[0]
    maps = (trace.x * gradient).sum(1, keepdim=True)  # a map that makes a difference
    chosen = [targets.ClassifierOutputSoftmaxTarget(int(t)) for t in trace.target]
    model = copy.deepcopy(trace.model).float()
    monkeypatch.setattr(road.NoisyLinearImputer.__init__, "__defaults__", (0.0, road.neighbors_weights))
    theirs = road.ROADCombined(percentiles=[25, 50, 75])(trace.x.float(), maps[:, 0].numpy(), chosen, model)
    mine = metrics.create("road", steps=4, baseline="linear:noise=0").measure(given(maps, trace), trace, None)["road"]
    np.testing.assert_allclose(mine.numpy() / 2, theirs, atol=2e-4)
    assert np.abs(theirs).min() > 2e-2


def test_grad_cam_drop_and_increase(trace: Trace) -> None:
    """It multiplies the normalized image with the map as it is, and does not divide the drop by the score."""
    module = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    from xattn.functional.resize import normalize

    maps = some_maps(16, 20)
    chosen = [targets.ClassifierOutputSoftmaxTarget(int(t)) for t in trace.target]
    scaled = normalize(maps)[:, 0].numpy()[:, None]
    drop = module.DropInConfidence()(trace.x, scaled, chosen, trace.model)
    increase = module.IncreaseInConfidence()(trace.x, scaled, chosen, trace.model)
    mine = metrics.create("average_drop", baseline="mean").measure(given(maps, trace), trace, None)
    clean = np.array([probability(trace, trace.x[i].numpy(), i) for i in range(N)])
    np.testing.assert_allclose(mine["average_drop"].numpy() * clean, drop, atol=1e-6)
    np.testing.assert_array_equal(mine["increase_in_confidence"].numpy(), increase)
