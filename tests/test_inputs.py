"""Models of several inputs: one is explained as if the others were part of the model, image by image."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests.inspection.networks import grad_cam, made, trunk
from xattn.errors import NotApplicableError, ParameterError, ShapeError, UnknownNameError, XattnError
from xattn.explainers import explainers
from xattn.metrics import metrics


class Scans(nn.Module):
    """Two images of different sizes and channels, and a number for each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = trunk(), trunk(channels=1)
        self.out = nn.Linear(25, 4)

    def forward(self, photo: Tensor, scan: Tensor, age: Tensor, scale: float = 1.0) -> Tensor:
        photo, scan = (f(x).mean((2, 3)) for f, x in ((self.a, photo), (self.b, scan)))
        return scale * self.out(torch.cat([photo * (1 + scan), scan, age[:, None]], 1)).tanh()


class Batch(nn.Module):
    """The same by one dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Scans()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.inner(batch["photo"], batch["scan"], batch["age"])


class One(nn.Module):
    """A model of the photographs alone, for each image with its own scan: what is to be explained, written out."""

    def __init__(self, model: nn.Module, scan: Tensor, age: Tensor) -> None:
        super().__init__()
        self.model, self.scan, self.age = model, nn.Parameter(scan), nn.Parameter(age)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(len(x)) % len(self.scan)
        return self.model(x, self.scan[rows].to(x), self.age[rows].to(x))


@pytest.fixture
def parts() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    return {
        "photo": torch.randn(3, 3, 32, 24, generator=g),
        "scan": torch.randn(3, 1, 16, 16, generator=g),
        "age": torch.randn(3, generator=g),
    }


FORMS = ["tuple", "keywords", "one dictionary"]


def given(parts: dict[str, Tensor], form: str) -> tuple[nn.Module, Any, Any]:
    model = made(Batch if form == "one dictionary" else Scans)
    return model, tuple(parts.values()) if form == "tuple" else parts, 0 if form == "tuple" else "photo"


@pytest.mark.parametrize("form", FORMS)
def test_grad_cam_and_saliency_are_those_of_the_model_with_the_rest_held_fixed(
    parts: dict[str, Tensor], form: str
) -> None:
    model, x, name = given(parts, form)
    inner = "inner.a" if form == "one dictionary" else "a"
    cam, gradient = xattn.explain(model, x, [f"gradcam:layer={inner}", "saliency"], 2, inputs=name)
    scans = model.inner if form == "one dictionary" else model
    oracle = One(scans, parts["scan"], parts["age"])
    wanted = grad_cam(oracle, parts["photo"], "model.a", 2)
    torch.testing.assert_close(cam.maps.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.max()))
    twin, photo = copy.deepcopy(oracle).double(), parts["photo"].double().requires_grad_()
    (slope,) = torch.autograd.grad(twin(photo)[:, 2].sum(), photo)
    torch.testing.assert_close(gradient.maps.double(), slope.abs().amax(1, keepdim=True), rtol=1e-4, atol=1e-8)
    assert cam.images.shape == (3, 32, 24, 3)


@pytest.mark.filterwarnings("ignore::xattn.errors.XattnWarning")
def test_the_facts_are_those_of_the_branch_that_is_explained(parts: dict[str, Tensor]) -> None:
    model = made(Scans)
    x = tuple(parts.values())
    assert xattn.infer_spec(model, x, inputs=0).feature_layer == "a"
    spec = xattn.infer_spec(model, x, inputs=1)
    assert (spec.feature_layer, spec.channels, spec.input_size) == ("b", 1, (16, 16))


@pytest.mark.filterwarnings("ignore::xattn.errors.XattnWarning")
@pytest.mark.parametrize("name", explainers.names())
def test_every_method_keeps_to_each_image_its_own_other_inputs(parts: dict[str, Tensor], name: str) -> None:
    """The images of a batch are explained as alone, beside their own scans: rows are never mixed up."""
    model = made(Scans)
    fields = {"samples": 6, "steps": 6, "count": 9, "chunk": 5, "segments": "grid"}
    own = {k: v for k, v in fields.items() if k in explainers.create(name).__dataclass_fields__}
    method = explainers.create(name, **own)
    spec = xattn.infer_spec(model, tuple(parts.values()), inputs=0)
    try:
        whole = xattn.explain(model, parts, method, 1, spec=spec, inputs="photo", seeds=[1, 2, 3])
    except NotApplicableError:
        with pytest.raises(NotApplicableError):
            xattn.explain(One(model, parts["scan"], parts["age"]).eval(), parts["photo"], method, 1)
        return
    for i in range(3):
        alone = {key: value[i : i + 1] for key, value in parts.items()}
        one = xattn.explain(model, alone, method, 1, spec=spec, inputs="photo", seeds=[i + 1])
        scale = float(one.maps.abs().max())
        torch.testing.assert_close(whole.maps[i : i + 1], one.maps, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ["deletion", "insertion", "parameter_randomization", "random_logit"])
def test_metrics_keep_them_too(parts: dict[str, Tensor], name: str) -> None:
    model = made(Scans)
    metric = metrics.create(name)

    def measured(x: dict[str, Tensor], seeds: list[int]) -> dict[str, Tensor]:
        spec = xattn.infer_spec(model, parts, inputs="photo", feature_layer="a")
        trace = xattn.record(model, x, 1, spec=spec, layers=["a"], inputs="photo", seeds=seeds)
        return metric.measure(explainers.create("gradcam", relu=False).explanation(trace), trace, None)

    whole = measured(parts, [1, 2, 3])
    for i in range(3):
        alone = measured({key: value[i : i + 1] for key, value in parts.items()}, [i + 1])
        for column, values in whole.items():
            torch.testing.assert_close(values[i : i + 1], alone[column], rtol=1e-3, atol=1e-4, equal_nan=True)


def test_one_other_input_for_all_images_and_constants(parts: dict[str, Tensor]) -> None:
    model = made(Scans)
    shared = {**parts, "scan": parts["scan"][:1], "scale": 3.0}
    full = {**parts, "scan": parts["scan"][:1].expand(3, -1, -1, -1), "scale": 3.0}
    a, b = (xattn.explain(model, x, "occlusion:window=0.5", 0, inputs="photo", spec=SPEC) for x in (shared, full))
    torch.testing.assert_close(a.maps, b.maps)


SPEC = xattn.ModelSpec(feature_layer="a", input_size=(32, 24))


# -------------------------------------------------------------------------------- messages, followed literally


def test_one_input_for_a_model_of_several_is_told_how_to_pass_all(parts: dict[str, Tensor]) -> None:
    model = made(Scans)
    photo, scan, age = parts.values()
    for spec in (None, SPEC):
        with pytest.raises(NotApplicableError, match=r"pass all of them as x, \(photo, scan, age\), and inputs=0"):
            xattn.explain(model, photo, "gradcam", spec=spec)
    assert xattn.explain(model, (photo, scan, age), "gradcam:layer=a", inputs=0).status == ("ok",) * 3


def test_which_one_is_asked_for_where_several_are_images(parts: dict[str, Tensor]) -> None:
    model = made(Scans)
    with pytest.raises(ParameterError, match="inputs='photo'"):
        xattn.explain(model, parts, "saliency")
    assert xattn.explain(model, parts, "saliency", inputs="photo", spec=SPEC).status == ("ok",) * 3
    one = made(Scans)
    one.forward = lambda photo, age: Scans.forward(one, photo, torch.ones(len(photo), 1, 8, 8).to(photo), age)  # type: ignore[method-assign,assignment]
    found = xattn.explain(one, {"photo": parts["photo"], "age": parts["age"]}, "saliency", spec=SPEC)
    assert found.maps.shape == (3, 1, 32, 24)


@pytest.mark.parametrize(
    ("change", "inputs", "error", "said"),
    [
        ({}, "foto", UnknownNameError, "Did you mean 'photo'"),
        ({"scan": torch.zeros(2, 1, 16, 16)}, "photo", ShapeError, "one for all or one for each"),
        ({"photo": torch.full((3, 3, 32, 24), torch.nan)}, "photo", XattnError, "NaN"),
    ],
)
def test_inputs_that_do_not_fit(
    parts: dict[str, Tensor], change: dict[str, Tensor], inputs: str, error: type[XattnError], said: str
) -> None:
    with pytest.raises(error, match=said):
        xattn.explain(made(Scans), {**parts, **change}, "saliency", inputs=inputs, spec=SPEC)


def test_inputs_without_several_is_refused(parts: dict[str, Tensor]) -> None:
    with pytest.raises(ParameterError, match="pass x as a tuple or dictionary"):
        xattn.explain(made(Scans), parts["photo"], "saliency", inputs=0, spec=SPEC)


def test_other_images_say_which_they_are_made_of(parts: dict[str, Tensor]) -> None:
    trace = xattn.record(made(Scans), parts, 0, spec=SPEC, inputs="photo")
    images = parts["photo"][[1, 1]]
    with pytest.raises(ShapeError, match="rows="):
        trace.predict(images)
    rows = torch.tensor([1, 1])
    torch.testing.assert_close(trace.predict(images, rows), trace.logits[[1, 1]])


# ------------------------------------------------------------------------------------------------------ views


class Around(nn.Module):
    """Views of an object (N, V, C, H, W), weighed by where they are taken from."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.out = trunk(), nn.Linear(12, 4)
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        each = self.net(x.flatten(0, 1)).mean((2, 3)).unflatten(0, x.shape[:2])
        return self.out((each * self.weight[:, None]).sum(1)).tanh()


@pytest.fixture
def views() -> Tensor:
    return torch.randn(2, 3, 3, 32, 24, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("view", [0, 1, 2])
def test_a_view_is_explained_beside_the_others(views: Tensor, view: int) -> None:
    model = made(Around)
    cam, gradient = xattn.explain(model, views, ["gradcam:relu=false", "saliency"], 1, inputs=view)
    twin, x, kept = copy.deepcopy(model).double(), views.double().requires_grad_(), []
    handle = twin.net.register_forward_hook(lambda m, i, o: kept.append(o))
    score = twin(x)[:, 1].sum()
    features_gradient, slope = torch.autograd.grad(score, [kept[0], x])
    handle.remove()
    features = kept[-1].unflatten(0, (2, 3))[:, view]
    weights = features_gradient.unflatten(0, (2, 3))[:, view].mean((2, 3), keepdim=True)
    wanted = (features * weights).sum(1, keepdim=True).detach()
    torch.testing.assert_close(cam.maps.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    torch.testing.assert_close(gradient.maps.double(), slope[:, view].abs().amax(1, keepdim=True), rtol=1e-4, atol=1e-8)
    assert cam.images.shape == (2, 32, 24, 3)
    assert cam.spec is not None
    assert cam.spec.feature_layer == "net"


@pytest.mark.filterwarnings("ignore::xattn.errors.XattnWarning")
@pytest.mark.parametrize("name", explainers.names())
def test_every_method_explains_a_view_or_refuses_in_one_line(views: Tensor, name: str) -> None:
    model = made(Around)
    fields = {"samples": 6, "steps": 6, "count": 9, "chunk": 5, "segments": "grid"}
    own = {k: v for k, v in fields.items() if k in explainers.create(name).__dataclass_fields__}
    method = explainers.create(name, **own)
    spec = xattn.infer_spec(model, views, inputs=1)
    if name in ("ablationcam", "shapleycam", "fullgrad"):
        with pytest.raises(NotApplicableError, match="use gradcam"):
            xattn.explain(model, views, method, 1, spec=spec, inputs=1)
        return
    try:
        whole = xattn.explain(model, views, method, 1, spec=spec, inputs=1, seeds=[1, 2])
    except NotApplicableError:
        assert explainers.create(name).family.value in ("attention", "propagation") or name == "cam"
        return
    assert whole.maps.shape[:2] == (2, 1)
    for i in range(2):
        one = xattn.explain(model, views[i : i + 1], method, 1, spec=spec, inputs=1, seeds=[i + 1])
        scale = float(one.maps.abs().max())
        torch.testing.assert_close(whole.maps[i : i + 1], one.maps, rtol=1e-3, atol=1e-4 * scale)


def test_views_are_asked_for_by_number_and_the_answer_works(views: Tensor) -> None:
    model = made(Around)
    for inputs in (None, 3, -1, True, "left"):
        with pytest.raises(ParameterError, match="inputs=0 to 2"):
            xattn.explain(model, views, "saliency", inputs=inputs)
    assert xattn.explain(model, views, "saliency", inputs=2).status == ("ok", "ok")
