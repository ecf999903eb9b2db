"""What holds for every registered metric, whoever wrote it: a new entry of the registry is tested unasked."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from xattn.data.sample import Batch
from xattn.data.scene import Scene
from xattn.data.synthetic import Synthetic
from xattn.errors import DataError, XattnError
from xattn.explainer import Explainer
from xattn.explainers import resolve
from xattn.explaining import explain, explain_trace
from xattn.explanation import Explanation
from xattn.metric import HIGHER, LOWER, NEITHER, Direction, Metric
from xattn.metrics import metrics
from xattn.trace import Trace, record

NAMES = metrics.names()
FAMILIES = {"perturbation", "localization", "complexity", "robustness", "sanity", "ground_truth"}
SIZE = (20, 24)
FAST: Mapping[str, Mapping[str, Any]] = {  # fewer steps and samples, the same formula
    "deletion": {"steps": 12},
    "insertion": {"steps": 12},
    "curves": {"steps": 12},
    "irof": {"segments": 12},
    "road": {"steps": 3},
    "region_perturbation": {"side": 6},
    "faithfulness_correlation": {"samples": 30},
    "f_fidelity": {"samples": 6, "sizes": 2},
    "sensitivity_n": {"samples": 12},
    "infidelity": {"samples": 40},
    "max_sensitivity": {"samples": 2},
    "parameter_randomization": {"stages": 2},
}
# On the scenes: several superpixels in a shape, and a tolerance that fits images of 32 pixels.
ON_SCENES: Mapping[str, Mapping[str, Any]] = {"irof": {"segments": 120}, "pointing_game": {"tolerance_px": 1}}
METHODS = ("input-x-gradient", "gradcam")  # on pixels and on a grid of 5 by 6 cells


def quick(name: str, **parameters: Any) -> Metric:
    return metrics.create(name, **{**FAST.get(name, {}), **parameters})


def batch_of(x: Tensor, target: Tensor) -> Batch:
    """Masks, boxes and scenes that differ from image to image."""
    boxes = tuple(torch.tensor([[2.0 + i, 3.0, 11.0 + i, 14.0]]) for i in range(len(x)))
    plain = Batch(x=x, target=target, ids=tuple(map(str, range(len(x)))), boxes=boxes)
    scenes = tuple(rendered(image) for image in x)
    return dataclasses.replace(plain, masks=plain.object_masks(), scenes=scenes)


def rendered(image: Tensor) -> Scene[Tensor]:
    """An image with three parts and something beside them, each of which is grey where it is missing."""
    masks = {name: torch.zeros(image.shape[1:], dtype=torch.bool) for name in ("a", "b", "c", "beside")}
    for i, mask in enumerate(masks.values()):
        mask[2 + 5 * (i // 2) : 6 + 5 * (i // 2), 3 + 9 * (i % 2) : 10 + 9 * (i % 2)] = True
    several = [frozenset(s) for n in (1, 2, 3) for s in itertools.combinations("abc", n)]
    lacking = {}
    for gone in (*several, frozenset({"beside"})):
        lacking[gone] = image.clone()
        for name in gone:
            lacking[gone][:, masks[name]] = 0
    return Scene(("a", "b", "c"), masks, lacking, {0: frozenset({"a", "b"}), 1: frozenset({"c"}), 2: frozenset()})


def traced(model: nn.Module, x: Tensor, target: Tensor, methods: list[Explainer]) -> tuple[list[Explanation], Trace]:
    layers = [layer for method in methods for layer in method.layers(model.spec)]
    trace = record(model, x, target, spec=model.spec, layers=layers)
    return explain_trace(trace, methods), trace


def scene(n: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(1)
    model = tiny.TinyCNN(act=nn.ReLU()).eval()
    return model, tiny.images(n, *SIZE, seed=4), torch.arange(n) % tiny.CLASSES


def state(model: nn.Module) -> dict[str, Any]:
    """All that a metric must leave alone."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        hooks = [len(v) for k, v in vars(module).items() if k.endswith("_hooks") and v is not None]
        found[name] = (module.training, hooks, sorted(vars(module)))
    for name, tensor in model.state_dict(keep_vars=True).items():
        found[f"weights of {name}"] = (tensor.detach().clone(), tensor.requires_grad, tensor.grad)
    return found


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value[0], Tensor):
            torch.testing.assert_close(value[0], after[name][0], rtol=0, atol=0)
            assert value[1:] == after[name][1:], name
        else:
            assert value == after[name], name


@pytest.mark.parametrize("name", NAMES)
class TestEveryMetric:
    def test_says_what_it_is(self, name: str) -> None:
        metric = metrics.create(name)
        assert dataclasses.is_dataclass(metric)
        assert metric.__dataclass_params__.frozen
        assert metric.name == name
        assert metric.family in FAMILIES
        assert metric.columns
        assert all(isinstance(direction, Direction) for direction in metric.columns.values())
        assert metric.needs <= {"masks", "boxes", "mosaic", "scenes"}
        assert type(metric).__doc__
        assert metric.paper or set(metric.columns.values()) == {NEITHER}
        assert metric == copy.deepcopy(metric)
        assert repr(metric).startswith(type(metric).__name__ + "(")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_gives_float64_per_image_and_all_columns(self, name: str, dtype: torch.dtype) -> None:
        model, x, target = scene()
        model, x, metric = model.to(dtype), x.to(dtype), quick(name)
        found, trace = traced(model, x, target, resolve(METHODS))
        for explanation in found:
            values = metric.measure(explanation, trace, batch_of(x, target))
            assert values.keys() == metric.columns.keys()
            for column, value in values.items():
                assert value.dtype == torch.float64, column
                assert value.shape == (3,), column
                assert not value.requires_grad, column
                assert value.device == x.device, column

    def test_batch_equals_one_by_one(self, name: str) -> None:
        model, x, target = scene()
        metric, batch = quick(name), batch_of(*scene()[1:])
        methods = resolve(METHODS)
        found, trace = traced(model, x, target, methods)
        together = metric.measure_many(found, trace, batch)
        for i in range(3):
            alone, one = traced(model, x[i : i + 1], target[i : i + 1], methods)
            for explanation, expected in zip(alone, together, strict=True):
                for column, value in metric.measure(explanation, one, batch[i : i + 1]).items():
                    ours, theirs = value[0].item(), expected[column][i].item()
                    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5, nan_ok=True), column

    def test_several_methods_equal_one_by_one(self, name: str) -> None:
        model, x, target = scene()
        metric, batch = quick(name), batch_of(x, target)
        found, trace = traced(model, x, target, resolve(METHODS))
        together = metric.measure_many(found, trace, batch)
        assert len(together) == 2
        again, fresh = traced(model, x, target, resolve(METHODS))
        for explanation, expected in zip(again, together, strict=True):
            values = metric.measure(explanation, fresh, batch)
            for column in expected:
                torch.testing.assert_close(values[column], expected[column], rtol=1e-4, atol=1e-6, equal_nan=True)

    def test_changes_neither_model_nor_maps(self, name: str) -> None:
        model, x, target = scene()
        model.bn2.train()  # a module may have a mode of its own
        model.conv1.weight.requires_grad_(False)
        found, trace = traced(model, x, target, resolve(METHODS))
        maps, images, before = [e.maps.clone() for e in found], x.clone(), state(model)
        quick(name).measure_many(found, trace, batch_of(x, target))
        assert_same_state(before, state(model))
        assert torch.equal(x, images)
        for explanation, expected in zip(found, maps, strict=True):
            assert torch.equal(explanation.maps, expected)

    def test_model_is_untouched_after_an_exception(self, name: str) -> None:
        model, x, target = scene()
        found, trace = traced(model, x, target, resolve(METHODS))
        before = state(model)
        forward = type(model).forward

        def broken(self: nn.Module, images: Tensor) -> Tensor:
            raise FloatingPointError("the model fails")

        type(model).forward = broken
        try:
            quick(name).measure_many(found, trace, batch_of(x, target))  # a metric of the map alone does not notice
        except FloatingPointError:
            pass
        finally:
            type(model).forward = forward
        assert_same_state(before, state(model))

    def test_works_under_inference_mode(self, name: str) -> None:
        model, x, target = scene(2)
        found, trace = traced(model, x, target, resolve(["input-x-gradient"]))
        expected = quick(name).measure(found[0], trace, batch_of(x, target))
        fresh, again = traced(model, x, target, resolve(["input-x-gradient"]))
        with torch.inference_mode():
            values = quick(name).measure(fresh[0], again, batch_of(x, target))
        for column in expected:
            torch.testing.assert_close(values[column], expected[column], rtol=1e-4, atol=1e-6, equal_nan=True)

    def test_a_nan_map_is_nan_and_leaves_its_neighbours_alone(self, name: str) -> None:
        model, x, target = scene()
        metric = quick(name)
        if metric.family in ("robustness", "sanity"):
            pytest.skip("it makes the maps anew")
        (one,), trace = traced(model, x, target, resolve(["input-x-gradient"]))
        expected = metric.measure(one, trace, batch_of(x, target))
        maps = one.maps.clone()
        maps[0, 0, 4, 4] = torch.nan
        spoiled = dataclasses.replace(one, maps=maps, status=())
        for column, value in metric.measure(spoiled, trace, batch_of(x, target)).items():
            if metric.columns[column] is not NEITHER:
                assert value[0].isnan(), column
            torch.testing.assert_close(value[1:], expected[column][1:], rtol=1e-3, atol=1e-5, equal_nan=True)

    def test_asks_for_the_labels_that_it_needs(self, name: str) -> None:
        metric = quick(name)
        model, x, target = scene(1)
        found, trace = traced(model, x, target, resolve(["input-x-gradient"]))
        bare = Batch(x=x, target=target, ids=("a",))
        if metric.needs:
            with pytest.raises(DataError, match=name):
                metric.measure(found[0], trace, bare)
        else:
            metric.measure(found[0], trace, bare)


# --- a map that is right beats maps that know nothing -----------------------------------------------------------------


class Scenes:
    """Coloured shapes whose colour is the class, each with a smaller shape of another colour that speaks against it."""

    def __init__(self, n: int = 6, size: int = 32) -> None:
        data = Synthetic(length=n, size=size, decides="colour", seed=3)
        self.model = data.model()
        samples = [data.sample(i) for i in range(n)]
        pixels = torch.stack([torch.from_numpy(s.image.copy()) for s in samples]).permute(0, 3, 1, 2).float() / 255
        self.masks = torch.stack([torch.from_numpy(s.mask)[None] for s in samples])
        self.target = torch.tensor([s.label for s in samples])
        against = torch.zeros_like(self.masks)
        for i, (mask, label) in enumerate(zip(self.masks[:, 0], self.target.tolist(), strict=True)):
            corner = next(
                (y, x) for y in (2, size - 6) for x in (2, size - 6) if not mask[y - 2 : y + 6, x - 2 : x + 6].any()
            )
            against[i, 0, corner[0] : corner[0] + 4, corner[1] : corner[1] + 4] = True
            pixels[i][:, against[i, 0]] = torch.eye(3)[(label + 1) % 3][:, None] * 0.75 + 0.15
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.model.spec.mean, self.model.spec.std))
        self.x = (pixels - mean) / std
        boxes = tuple(torch.from_numpy(s.boxes) for s in samples)
        self.batch = Batch(
            x=self.x, target=self.target, ids=tuple(s.id for s in samples), masks=self.masks, boxes=boxes
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            controls = [f"random:grid={size}", "center", "edges"]
            methods = resolve(controls)
            self.trace = record(self.model, self.x, self.target, spec=self.model.spec)
            found = explain_trace(self.trace, methods)
        self.controls = dict(zip(("random", "center", "edges"), found, strict=True))
        self.perfect = dataclasses.replace(found[0], maps=self.masks.float() - against.float(), status=())


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes()


DIRECTED = [
    name
    for name in NAMES
    if metrics.create(name).family in ("perturbation", "localization")
    and {HIGHER, LOWER} & {*metrics.create(name).columns.values(), *metrics.create(name).pooled.values()}
]


def means(metric: Metric, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean of each column with a direction, and the values that are pooled over the images."""
    found = {c: values[c].nanmean().item() for c, d in metric.columns.items() if d is not NEITHER}
    pooled = metric.pool(values)
    return found | {c: pooled[c] for c, d in metric.pooled.items() if d is not NEITHER}


@pytest.mark.parametrize("name", DIRECTED)
def test_a_perfect_map_beats_every_control(scenes: Scenes, name: str) -> None:
    metric = quick(name, **ON_SCENES.get(name, {}))
    several = [scenes.perfect, *scenes.controls.values()]
    perfect, *controls = (means(metric, v) for v in metric.measure_many(several, scenes.trace, scenes.batch))
    directions = {**metric.columns, **metric.pooled}
    for control, values in zip(scenes.controls, controls, strict=True):
        for column, value in values.items():
            best = perfect[column]
            better = best > value if directions[column] is HIGHER else best < value
            assert better, f"{column}: perfect {best:.4f}, {control} {value:.4f}"


def test_random_maps_score_what_theory_says() -> None:
    """The logit of a linear model: a random order takes away the same at every step, and agrees with nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 18 * 18, 2)).eval()
    x = tiny.images(1, 18, 18)
    trace = record(model, x, 1, spec=tiny.TinyCNN().spec, grad=False)
    clean, grey = trace.logits[0, 1].item(), model[1].bias[1].item()
    maps = torch.rand(24, 1, 1, 18, 18, generator=torch.Generator().manual_seed(5))
    method = resolve("random")[0]
    several = [Explanation(maps=m, target=trace.target, method=method, input_size=(18, 18)) for m in maps]
    half, drop = (clean + grey) / 2, clean - grey
    theory = {
        "deletion": {"deletion": half, "pixel_flipping": drop / 2, "dc": 0.0, "tie_share": 0.0},
        "insertion": {"insertion": half, "ic": 0.0},
        "abpc": {"abpc": 0.0, "morf": half, "lerf": half},
        "road": {"road": 0.0},
        "region_perturbation": {"region_perturbation": drop / 2},  # the whole image in nine blocks
        "sensitivity_n": {"sensitivity_n": 0.0},
        "faithfulness_correlation": {"faithfulness_correlation": 0.0},
    }
    for name, expected in theory.items():
        baseline = {} if name == "road" else {"baseline": "mean"}
        metric = quick(name, score="logit", **baseline)
        rows = metric.measure_many(several, trace, None)
        for column, value in expected.items():
            values = torch.cat([row[column] for row in rows])
            error = values.std() / len(values) ** 0.5
            assert abs(values.mean() - value) <= 4 * error + 1e-5, column


@pytest.mark.parametrize("name", [n for n in NAMES if metrics.create(n).family == "sanity"])
def test_a_map_that_ignores_the_model_fails_every_sanity_check(name: str) -> None:
    model, x, target = scene()
    blind, sighted = resolve(["center", "input-x-gradient"])
    found, trace = traced(model, x, target, [blind, sighted])
    metric = quick(name)
    ignorant, aware = metric.measure_many(found, trace, batch_of(x, target))
    for column, direction in metric.columns.items():
        if direction is LOWER:
            assert ignorant[column].nanmean() > aware[column].nanmean(), column


def test_every_error_is_one_of_ours() -> None:
    model, x, target = scene(2)
    one = explain(model, x, "input-x-gradient", target, spec=model.spec)
    other = record(model, tiny.images(3, *SIZE), spec=model.spec, grad=False)
    for name in NAMES:
        metric = quick(name)
        if metric.family == "perturbation":
            with pytest.raises(XattnError, match=metric.name):
                metric.measure(one, other, batch_of(x, target))
