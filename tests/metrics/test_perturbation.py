"""Properties of the perturbation metrics: ranks, curves, baselines, packing, and maps that mean nothing."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests import tiny_models as tiny
from tests.given import explained, random_maps, traced
from xattn.errors import ParameterError, ShapeError, UnknownNameError
from xattn.functional.baselines import Blur
from xattn.functional.curves import trapezoid_auc
from xattn.metrics import metrics
from xattn.metrics import perturbation as shared
from xattn.metrics.perturbation import PerturbationMetric, draw_curves
from xattn.trace import record

NAMES = [n for n in metrics.names() if isinstance(metrics.create(n), PerturbationMetric)]
FAST = {  # few steps and samples; what is tested does not depend on them
    "deletion": {"steps": 8},
    "insertion": {"steps": 8},
    "curves": {"steps": 8},
    "irof": {"segments": 9},
    "road": {"steps": 4},
    "region_perturbation": {"side": 6},
    "faithfulness_correlation": {"samples": 12, "grid": 6},
    "f_fidelity": {"samples": 3, "sizes": 2, "grid": 5},
    "sensitivity_n": {"samples": 6, "grid": 6, "sizes": 3},
    "infidelity": {"samples": 12},
}


def quick(name: str, **parameters: object) -> PerturbationMetric:
    return metrics.create(name, **(FAST.get(name, {}) | parameters))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", [(1, 1), (5, 3), (21, 21), (33, 33)])
def test_grids_of_any_size(name: str, grid: tuple[int, int]) -> None:
    """Grids that no step count divides, and finer than the image; one cell orders nothing but on its own grid."""
    trace = traced(tiny.images(2, 20, 24))
    found = quick(name).measure(explained(random_maps(2, *grid), trace), trace, None)
    one = grid == (1, 1)
    for column, value in found.items():
        own_grid = column.startswith(("dauc_brnpa", "iauc_brnpa", "dauc_gomez", "iauc_gomez"))
        known = not one or own_grid or column == "tie_share"
        assert value.isfinite().all() == known, column
        assert value.isnan().all() != known, column


def test_one_cell_on_its_own_grid_is_the_mean_of_the_ends() -> None:
    trace = traced(tiny.images(2))
    found = quick("deletion", grid="map", baseline="mean").measure(explained(random_maps(2, 1, 1), trace), trace, None)
    chance = trace.logits.softmax(1).gather(1, trace.target[:, None])[:, 0]
    with torch.no_grad():
        grey = trace.model(torch.zeros_like(trace.x)).softmax(1).gather(1, trace.target[:, None])[:, 0]
    torch.testing.assert_close(found["deletion"], ((chance + grey) / 2).double(), rtol=1e-5, atol=1e-6)
    assert found["dc"].isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_maps_that_order_nothing_are_nan_and_leave_the_others_alone(name: str) -> None:
    trace = traced(tiny.images(5, 20, 24))
    maps = random_maps(5, 5, 6)
    expected = quick(name).measure(explained(maps, trace), trace, None)
    spoiled = maps.clone()
    spoiled[0] = 0.1
    spoiled[1, 0, 2, 3] = torch.nan
    spoiled[2, 0, 0, 0] = torch.inf
    spoiled[3] = 0
    for column, value in quick(name).measure(explained(spoiled, trace), trace, None).items():
        if column == "tie_share":
            assert value[0] == value[3] == 1
        else:
            assert value[:4].isnan().all(), column
        torch.testing.assert_close(value[4], expected[column][4], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("average_drop",)])
def test_increasing_affine_rescaling_changes_nothing(name: str) -> None:
    trace = traced(tiny.images(2, 20, 24))
    maps = random_maps(2, 20, 24).double() - 0.5
    plain = quick(name).measure(explained(maps, trace), trace, None)
    # powers of two are exact; a shift is not meant for contributions, whose zero has a meaning
    shift = 0.0 if name == "infidelity" else 0.25
    scaled = quick(name).measure(explained(maps * 4 + shift, trace), trace, None)
    for column in plain:
        torch.testing.assert_close(scaled[column], plain[column], rtol=1e-6, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(power=st.sampled_from([3, 5, 7]), seed=st.integers(0, 99))
def test_rank_metrics_ignore_any_increasing_rescaling_on_the_ranked_grid(power: int, seed: int) -> None:
    trace = traced(tiny.images(1, 16, 16))
    maps = ((random_maps(1, 4, 4, seed) * 10).floor() - 5).double()
    for name, column in (("deletion", "deletion"), ("insertion", "insertion"), ("abpc", "abpc")):
        metric = metrics.create(name, grid="map", steps=5, baseline="mean")
        plain, bent = (metric.measure(explained(m, trace), trace, None)[column] for m in (maps, maps.pow(power)))
        torch.testing.assert_close(plain, bent)


@pytest.mark.parametrize("name", NAMES)
def test_methods_share_batches_and_agree_with_one_at_a_time(name: str) -> None:
    x = tiny.images(2, 20, 24)
    found = [explained(random_maps(2, *grid, seed=s), traced(x)) for s, grid in enumerate([(4, 5), (20, 24), (3, 3)])]
    together = quick(name).measure_many(found, traced(x), None)
    for one, expected in zip(found, together, strict=True):
        alone = quick(name, chunk=7).measure(one, traced(x), None)
        for column, value in expected.items():
            torch.testing.assert_close(alone[column], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_no_methods_give_no_rows(name: str) -> None:
    trace = traced(tiny.images(1, 16, 16))
    assert quick(name).measure_many([], trace, None) == []


def test_one_curve_serves_every_metric_that_reads_it() -> None:
    """Deletion, and LeRF as insertion read backwards, with one pass for the replaced images in all."""
    trace = traced(tiny.images(2))
    one = explained(random_maps(2, 4, 4), trace)
    before = trace.forwards
    options = {"steps": 9, "baseline": "mean", "chunk": 1000}
    metrics.create("deletion", **options).measure(one, trace, None)
    assert trace.forwards - before == 2  # the replaced images, then all steps of both images
    metrics.create("abpc", **options).measure(one, trace, None)
    assert trace.forwards - before == 3  # only the curve with the least important first is new
    metrics.create("deletion", **options).measure(one, trace, None)
    assert trace.forwards - before == 3
    metrics.create("insertion", **options).measure(one, trace, None)
    assert trace.forwards - before == 4


def test_curves_are_those_of_deletion_and_insertion() -> None:
    trace = traced(tiny.images(2))
    one = explained(random_maps(2, 4, 4), trace)
    (deletion,) = metrics.create("deletion", steps=196).measure_many([one], trace, None)
    insertion = metrics.create("insertion", steps=196).measure(one, trace, None)
    before = trace.forwards
    found = metrics.create("curves", steps=196).measure(one, trace, None)
    assert trace.forwards == before  # nothing is scored again
    for kind, area in (("deletion", deletion["deletion"]), ("insertion", insertion["insertion"])):
        points = torch.stack([found[f"{kind}_at_{tenth:03d}"] for tenth in range(0, 101, 10)], dim=1)
        torch.testing.assert_close(trapezoid_auc(points), area, rtol=0.05, atol=0.01)
    clean = trace.logits.softmax(1).gather(1, trace.target[:, None])[:, 0].double()
    torch.testing.assert_close(found["deletion_at_000"], clean)
    torch.testing.assert_close(found["insertion_at_100"], clean)
    torch.testing.assert_close(found["insertion_at_000"], found["deletion_at_100"])


def test_one_curve_serves_every_score() -> None:
    x = tiny.images(2)
    trace = traced(x)
    maps = random_maps(2, 4, 4)
    values = {}
    for name in ("prob", "logit", "sigmoid", "margin"):
        before = trace.forwards
        values[name] = metrics.create("deletion", steps=8, score=name).measure(explained(maps, trace), trace, None)[
            "deletion"
        ]
        assert trace.forwards - before == (2 if name == "prob" else 0)
        other = traced(x)
        alone = metrics.create("deletion", steps=8, score=name).measure(explained(maps, other), other, None)
        assert torch.equal(values[name], alone["deletion"])
    assert len({tuple(v.tolist()) for v in values.values()}) == 4


def test_points_between_steps_lie_on_straight_lines() -> None:
    curve = shared.Curve(
        scores=torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64),
        share=torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64),
        saliency=torch.zeros(1, 2),
        ties=torch.zeros(1),
        undefined=torch.zeros(1, dtype=torch.bool),
    )
    for share, value in ((0.0, 1.0), (0.1, 0.8), (0.25, 0.5), (0.55, 0.3), (1.0, 0.0)):
        assert curve.at(share).item() == pytest.approx(value)


def test_subset_scores_serve_all_methods() -> None:
    trace = traced(tiny.images(2))
    several = [explained(random_maps(2, 4, 4, s), trace) for s in range(5)]
    for name in ("infidelity", "faithfulness_correlation", "sensitivity_n"):
        before = trace.forwards
        quick(name, chunk=1000).measure_many(several, trace, None)
        assert trace.forwards - before == 1


def test_what_is_shared_dies_with_the_trace() -> None:
    trace = traced(tiny.images(1))
    quick("deletion").measure(explained(random_maps(1, 4, 4), trace), trace, None)
    quick("road").measure(explained(random_maps(1, 4, 4), trace), trace, None)
    quick("infidelity").measure(explained(random_maps(1, 4, 4), trace), trace, None)
    assert trace.once("curves", dict)
    gone = weakref.ref(trace)
    del trace
    gc.collect()
    assert gone() is None


def test_scores_are_probabilities_unless_said() -> None:
    trace = traced(tiny.images(2), score="logit")
    one = explained(random_maps(2, 4, 4), trace)
    prob = quick("deletion").measure(one, trace, None)["deletion"]
    logit = quick("deletion", score="logit").measure(one, trace, None)["deletion"]
    assert ((prob > 0) & (prob < 1)).all()
    assert (prob - logit).abs().min() > 1e-3
    (curve,) = draw_curves([one], trace, baseline=Blur(), steps=8, grid="pixels", order="morf", score="logit", chunk=64)
    torch.testing.assert_close(curve.scores[:, 0], trace.logits.gather(1, trace.target[:, None])[:, 0].double())


def test_binary_models_are_scored_for_the_class_that_is_explained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = tiny.images(2, 16, 16)
    both = [record(model, x, target, spec=tiny.TinyCNN().spec, grad=False) for target in (0, 1)]
    values = [quick("deletion").measure(explained(random_maps(2, 4, 4), t), t, None)["deletion"] for t in both]
    torch.testing.assert_close(values[0] + values[1], torch.ones(2, dtype=torch.float64))


def test_columns_of_protocols_never_share_a_name() -> None:
    seen: dict[str, str] = {}
    for name in NAMES:
        for column in metrics.create(name).columns:
            assert column not in seen, f"{name} and {seen[column]}"
            seen[column] = name


def test_presets_are_frozen() -> None:
    for name in ("brnpa2021", "gomez2023", "rise2018"):
        with pytest.raises(ParameterError, match="a preset cannot be changed"):
            metrics.create(name, score="logit")
        with pytest.raises(UnknownNameError):
            metrics.create(name, steps=10)


def test_chunk_is_no_part_of_the_provenance() -> None:
    assert metrics.create("deletion", chunk=3) == metrics.create("deletion")
    assert "chunk" not in repr(metrics.create("deletion", chunk=3))
    assert metrics.parse("deletion:chunk=3").chunk == 3
    assert metrics.create("deletion", chunk=3).images_per_batch(traced(tiny.images(1))) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deletion:steps=0", "steps must be at least 1"),
        ("deletion:grid=cells", "grid must be one of common, map, pixels or int"),
        ("deletion:grid=0", "grid must be one of common, map, pixels or a whole number at least 1"),
        ("sensitivity_n:grid=map", "grid must be one of common or int"),
        ("deletion:score=loss", "unknown score"),
        ("deletion:chunk=0", "chunk must be none or at least 1"),
        ("average_drop:score=logit", "share"),
        ("irof:segments=1", "segments must be at least 2"),
        ("region_perturbation:side=0", "side must be at least 1"),
        ("faithfulness_correlation:share=1", "more than 0 and less than 1"),
        ("faithfulness_correlation:samples=1", "samples must be at least 2"),
        ("sensitivity_n:smallest=0.9", "smallest must not be more than largest"),
        ("infidelity:largest=2", "largest must be more than 0 and at most 1"),
    ],
)
def test_parameters_are_checked(text: str, message: str) -> None:
    with pytest.raises((ParameterError, UnknownNameError), match=message):
        metrics.parse(text)


def test_maps_of_another_batch_are_refused() -> None:
    trace = traced(tiny.images(2))
    with pytest.raises(ShapeError, match="pass the explanation of the same batch"):
        quick("deletion").measure(explained(random_maps(2, 4, 4), traced(tiny.images(2, 16, 16))), trace, None)


def test_grid_must_be_known() -> None:
    with pytest.raises(ParameterError, match="grid must be one of common, map, pixels or a whole number"):
        metrics.create("deletion", grid="cells")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_gpu_agrees_with_cpu(name: str) -> None:
    x, maps = tiny.images(2, 20, 24).double(), random_maps(2, 5, 6).double()
    here = traced(x, seeds=[1, 2])
    expected = quick(name).measure(explained(maps, here), here, None)
    model = here.model.to("cuda")
    there = record(model, x.cuda(), here.target.cuda(), spec=model.spec, grad=False, seeds=[1, 2])
    found = quick(name).measure(explained(maps.cuda(), there), there, None)
    for column, value in expected.items():
        assert found[column].is_cuda
        torch.testing.assert_close(found[column].cpu(), value, rtol=1e-5, atol=1e-6, equal_nan=True)
