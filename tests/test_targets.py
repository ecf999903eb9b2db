"""Targets: what is explained is what was asked for, by plain autograd in float64, and refused in one line otherwise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xattn
from tests.inspection.networks import Ends, grad_cam, made, trunk
from xattn.errors import NotApplicableError, ParameterError, ShapeError, SpecError, UnknownNameError, XattnError
from xattn.explainer import Explainer, Family
from xattn.explainers import explainers
from xattn.targets import as_target

Scores = Callable[[Any], Tensor]


class Named(Ends):
    """A classifier with names."""

    classes = ("cat", "dog", "hare", "cat - dog")

    def __init__(self) -> None:
        super().__init__(4, lambda z: z)


class Pixels(nn.Module):
    """A segmentation network, in a dictionary beside an auxiliary head."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.features, self.head, self.aux = trunk(), nn.Conv2d(12, classes, 1), nn.Conv2d(12, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        f = self.features(x)
        return {"aux": self.aux(f), "out": nn.functional.interpolate(self.head(f).tanh(), x.shape[2:], mode="bilinear")}


class Anchors(nn.Module):
    """A detector (N, 4 + K, anchors): a box and scores of two classes for each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = trunk(), nn.Conv2d(12, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        f = self.features(x)
        y = self.head(f)
        h, w = y.shape[2:]
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        centre = 4 * torch.stack([columns, rows]).to(y) + 2 + y[:, :2]
        found = torch.cat([centre, 8 + y[:, 2:4].tanh(), y[:, 4:].sigmoid()], 1)
        return found.flatten(2), [y]


class Lists(Anchors):
    """The same as lists of dictionaries, as torchvision's detectors return them, of another length for each image."""

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:  # type: ignore[override]
        found, _ = super().forward(x)
        lists = []
        for i, image in enumerate(found):
            scores, labels = image[4:].max(0)
            keep = scores.argsort(descending=True)[: 40 - 3 * i]
            half = image[2:4] / 2
            boxes = torch.cat([image[:2] - half, image[:2] + half]).T
            lists.append({"boxes": boxes[keep], "labels": labels[keep], "scores": scores[keep]})
        return lists


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 32, 24, generator=torch.Generator().manual_seed(5))


def cam_of(model: nn.Module, x: Tensor, score: Scores, layer: str = "features.3") -> Tensor:
    """Grad-CAM without ReLU of any score of the outputs (N,), by `grad_cam`."""
    up = grad_cam(model, x, layer, 0, scores=lambda o: score(o)[:, None])
    return up - grad_cam(model, x, layer, 0, scores=lambda o: -score(o)[:, None])


def same(maps: Tensor, wanted: Tensor) -> None:
    assert float(wanted.abs().max()) > 0
    torch.testing.assert_close(maps.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


# ------------------------------------------------------------------------------------------------ classes


@pytest.mark.parametrize(
    "target",
    [
        [0, 2, 1], ("cat", "hare", "dog"), ["cat", 2, "1"], np.array([0, 2, 1]), np.array(["cat", "hare", "dog"]),
        torch.tensor([0, 2, 1], dtype=torch.int32), torch.eye(4)[[0, 2, 1]],
        np.eye(4, dtype=bool)[[0, 2, 1]], torch.eye(4, dtype=torch.long)[[0, 2, 1]], xattn.Class([0, 2, 1]),
    ],
)  # fmt: skip
def test_classes_in_all_the_forms_that_people_have_them(x: Tensor, target: Any) -> None:
    found = xattn.explain(made(Named), x, "gradcam", target)
    assert found.target.tolist() == [0, 2, 1]
    assert [found.class_name(i) for i in range(3)] == ["cat", "hare", "dog"]


@pytest.mark.parametrize(
    ("target", "error", "said"),
    [
        (["cat", "dgo", "dog"], UnknownNameError, "Did you mean 'dog'"),
        ([True, False, True], ParameterError, "torch.bool of shape \\(3,\\)"),
        (torch.ones(3, 4), ParameterError, "one-hot"),
        (0.5, ParameterError, "torch.float32"),
        (-1, ParameterError, "class -1 does not exist"),
        (10**30, ParameterError, "does not exist"),
        ([0, 1], ShapeError, "does not fit 3 images"),
        ({"a": 1}, ParameterError, "got dict"),
        ("cat - cat", ParameterError, "the same"),
        ("dog - cta", UnknownNameError, "Did you mean 'cat'"),
        ("scalar:9", ParameterError, "0 to 3"),
    ],
)
def test_what_is_no_target_is_refused_by_name(x: Tensor, target: Any, error: type[XattnError], said: str) -> None:
    with pytest.raises(error, match=said):
        xattn.explain(made(Named), x, "gradcam", target)


def test_a_class_that_is_called_like_a_difference_is_a_class(x: Tensor) -> None:
    assert xattn.explain(made(Named), x, "gradcam", "cat - dog").target.tolist() == [3, 3, 3]
    found = xattn.explain(made(Named), x, "gradcam", "dog - cat")
    assert found.target.tolist() == [-1] * 3
    assert found.class_name(2) == "dog - cat"


# ----------------------------------------------------------------------------------- other things than classes


CASES: dict[str, tuple[Callable[[], nn.Module], Any, Scores]] = {
    "scalar": (lambda: made(Ends, 1, lambda z: z), "scalar", lambda z: z[:, 0]),
    "scalar squeezed": (lambda: made(Ends, 1, lambda z: z.squeeze()), xattn.Scalar(), lambda z: z),
    "scalar of an angle within 0 and 1": (lambda: made(Ends, 1, torch.sigmoid), "scalar", lambda z: z[:, 0]),
    "second of two numbers": (lambda: made(Ends, 2, lambda z: z), xattn.Scalar(1), lambda z: z[:, 1]),
    "multi-label": (lambda: made(Ends, 5, lambda z: z), xattn.MultiLabel(3), lambda z: z[:, 3].sigmoid()),
    "difference": (lambda: made(Ends, 5, lambda z: z), xattn.Difference(4, 1), lambda z: z[:, 4] - z[:, 1]),
    "difference of a binary model": (lambda: made(Ends, 1, lambda z: z), "0 - 1", lambda z: -2 * z[:, 0]),
    "difference per image": (
        lambda: made(Named), xattn.Difference(["cat", "dog", "hare"], 3),
        lambda z: z[[0, 1, 2], [0, 1, 2]] - z[:, 3],
    ),
    "embedding": (
        lambda: made(Ends, 5, lambda z: z), xattn.Similarity(torch.arange(5.0)),
        lambda z: torch.cosine_similarity(z, torch.arange(5.0).to(z)[None]),
    ),
    "embedding per image": (
        lambda: made(Ends, 3, lambda z: {"loss": None, "embedded": z}), xattn.Similarity(torch.eye(3)),
        lambda o: (o["embedded"] / o["embedded"].norm(dim=1, keepdim=True)).diagonal(),
    ),
    "region": (
        lambda: made(Pixels), xattn.Region(torch.arange(32)[:, None].expand(32, 24) < 9, 2),
        lambda o: o["out"][:, 2, :9].mean((1, 2)),
    ),
    "region per image": (
        lambda: made(Pixels),
        xattn.Region(torch.stack([torch.arange(24).expand(32, 24) // 8 == i for i in range(3)]), 0),
        lambda o: torch.stack([o["out"][i, 0, :, 8 * i : 8 * i + 8].mean() for i in range(3)]),
    ),
    "region of the prediction": (
        lambda: made(Pixels), xattn.Region(None, 2),
        lambda o: torch.stack([z[2][z.argmax(0) == 2].mean() for z in o["out"]]),
    ),
    "box": (lambda: made(Anchors), xattn.Box([4, 6, 15, 20], 1), lambda o: _box_score(o[0], (4, 6, 15, 20), 1)),
    "function": (lambda: made(Pixels), lambda o: o["aux"][:, 0].amax((1, 2)), lambda o: o["aux"][:, 0].amax((1, 2))),
}  # fmt: skip


def _box_score(found: Tensor, box: Sequence[float], label: int) -> Tensor:
    """The definition, anchor by anchor."""
    rows = []
    for image in found:
        scores = []
        for anchor in image.T:
            left, top = anchor[0] - anchor[2] / 2, anchor[1] - anchor[3] / 2
            right, bottom = anchor[0] + anchor[2] / 2, anchor[1] + anchor[3] / 2
            wide = (torch.minimum(right, right.new_tensor(box[2])) - left.clamp(min=box[0])).clamp(min=0)
            high = (torch.minimum(bottom, right.new_tensor(box[3])) - top.clamp(min=box[1])).clamp(min=0)
            both = wide * high
            union = anchor[2] * anchor[3] + (box[2] - box[0]) * (box[3] - box[1]) - both
            scores.append(both / union * anchor[4 + label])
        rows.append(torch.stack(scores).max())
    return torch.stack(rows)


@pytest.mark.parametrize("case", CASES)
def test_grad_cam_of_every_target_is_that_of_autograd(x: Tensor, case: str) -> None:
    make, target, score = CASES[case]
    model = make()
    found = xattn.explain(model, x, "gradcam:layer=features.3,relu=false", target)
    same(found.maps, cam_of(model, x, score))
    assert found.status == ("ok",) * 3
    assert (found.probability is None) == (case != "multi-label")
    assert len({found.class_name(i) for i in range(3)}) == (3 if case == "difference per image" else 1)


@pytest.mark.parametrize("case", CASES)
def test_a_batch_is_explained_as_its_images_are_and_maps_of_many_passes_follow(x: Tensor, case: str) -> None:
    """Saliency, integrated gradients (complete) and occlusion: all see the same number for the same image."""
    make, target, score = CASES[case]
    model = make()
    methods = ["saliency", "integrated-gradients:steps=200,baseline=mean", "occlusion:window=0.5"]
    gradient, path, drops = xattn.explain(model, x, methods, target)
    twin, xx = copy.deepcopy(model).double(), x.double().requires_grad_()
    (wanted,) = torch.autograd.grad(score(twin(xx)).sum(), xx)
    same(gradient.maps, wanted.abs().amax(1, keepdim=True))
    trace = xattn.record(model, x, target, spec=xattn.infer_spec(model, x, target=target))
    torch.testing.assert_close(
        trace.score(x, trace.target).double(), score(twin(x.double())).detach(), rtol=1e-4, atol=1e-5
    )
    assert set(path.status) <= {"ok", "non-conserving"}
    assert torch.isfinite(drops.maps).all()


@pytest.mark.filterwarnings("ignore::xattn.errors.XattnWarning")
@pytest.mark.parametrize("case", ["scalar", "difference", "embedding", "region", "box", "function", "multi-label"])
def test_every_method_explains_every_target_or_says_why_not(x: Tensor, case: str) -> None:
    make, target, _ = CASES[case]
    model = make()
    spec = xattn.infer_spec(model, x, target=target)
    refused = {}
    for name in explainers.names():
        method = small(name)
        try:
            maps = xattn.explain(model, x[:2], method, _first_two(target), spec=spec).maps
        except NotApplicableError as reason:
            refused[name] = str(reason)
        else:
            assert maps.shape[:2] == (2, 1), name
    allowed = {name for name in explainers.names() if explainers.create(name).family in (Family.ATTENTION,)}
    allowed |= {"transformer-attribution", "cam", "br-npa", "brnpa", "finercam"}
    unknown = {name: why for name, why in refused.items() if name not in allowed and "rule" not in why}
    assert not {n: w for n, w in unknown.items() if "; " not in w and "Use " not in w}, unknown  # each names a way out


def _first_two(target: Any) -> Any:
    return target


def small(name: str) -> Explainer:
    """A method with few samples."""
    method = explainers.create(name)
    fields = {"samples": 4, "steps": 4, "count": 4}
    own = {k: v for k, v in fields.items() if k in getattr(method, "__dataclass_fields__", {})}
    return explainers.create(name, **own)


def test_lists_of_detections_of_different_lengths(x: Tensor) -> None:
    model = made(Lists)
    found = xattn.explain(model, x, "gradcam:layer=features.3,relu=false", xattn.Box([4, 6, 15, 20], 1))

    def score(lists: list[dict[str, Tensor]]) -> Tensor:
        rows = []
        for one in lists:
            corners, scores = one["boxes"], one["scores"] * (one["labels"] == 1)
            fake = torch.cat(
                [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2], scores[:, None]], 1
            )
            rows.append(_box_score(fake.T[None], (4, 6, 15, 20), 0)[0])
        return torch.stack(rows)

    same(found.maps, cam_of(model, x, score))


def test_an_image_as_reference_is_embedded_by_the_model_itself_once(x: Tensor) -> None:
    model, calls = made(Ends, 6, lambda z: z), []
    spec = xattn.infer_spec(model, x)
    query = x[:1].flip(3)
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    methods = ["gradcam:relu=false", "smoothgrad:samples=3"]
    found = xattn.explain(model, x, methods, xattn.Similarity(query), spec=spec)[0]
    handle.remove()
    assert len(calls) == 1 + 1 + 1  # the query, the images, their noisy copies
    double = copy.deepcopy(model).double()(query.double()).detach()
    same(found.maps, cam_of(model, x, lambda z: torch.cosine_similarity(z, double)))


def test_a_photograph_as_reference_is_read_as_the_image_is() -> None:
    model = xattn.create_model("tiny-cnn")
    photograph = np.random.default_rng(0).integers(0, 255, (70, 80, 3), dtype=np.uint8)
    # An image is as similar to itself as can be: the gradient is rounding, of which a ReLU may leave nothing.
    found = xattn.explain(model, photograph, "gradcam:relu=false", xattn.Similarity([photograph]))
    score = xattn.record(model, found.inputs, xattn.Similarity(found.inputs), spec=model.spec)
    assert float(score.score(found.inputs, score.target)) == pytest.approx(1, abs=1e-5)


# --------------------------------------------------------------------------------- what they are refused for


@pytest.mark.parametrize(
    ("case", "target", "said"),
    [
        ("scalar", xattn.Similarity(torch.ones(3)), "does not fit 3 images that the model embeds as \\(3, 1\\)"),
        ("scalar", xattn.Similarity(torch.zeros(1)), "no direction"),
        ("region", xattn.Region(torch.zeros(32, 24), 1), "Region of image 0 is empty"),
        ("region", xattn.Region(torch.ones(2, 32, 24), 1), "expected \\(H, W\\)"),
        ("region", xattn.Region(None, 3), "class 3 does not exist"),
        ("scalar", xattn.Region(None, 0), "\\(N, K, H, W\\)"),
        ("scalar", xattn.Box([0, 0, 1, 1], 0), "pass a function of the outputs"),
        ("box", xattn.Box([5, 5, 5, 9], 0), "x1 < x2"),
        ("box", xattn.Box([5, 5, 9, 9], 2), "classes 0 to 1"),
        ("scalar", lambda z: z.mean(), "do not reduce over the batch"),
        ("scalar", lambda z: 3, "gave int"),
        ("region", 1, "name what is to be explained"),
    ],
)
def test_targets_that_do_not_fit_are_refused_in_one_line(x: Tensor, case: str, target: Any, said: str) -> None:
    with pytest.raises(XattnError, match=said) as caught:
        xattn.explain(CASES[case][0](), x, "gradcam", target)
    assert "\n" not in str(caught.value)


def test_class_scores_of_pixels_as_named_output_advise_a_region_which_works(x: Tensor) -> None:
    model = made(Pixels)
    with pytest.raises(NotApplicableError, match=r"target=xattn\.Region\(mask, class\)"):
        xattn.explain(model, x, "gradcam", 1, output="out")
    found = xattn.explain(model, x, "gradcam:relu=false", xattn.Region(torch.ones(32, 24), 1), output="aux")
    assert found.spec is not None
    assert (found.spec.classifier, found.spec.feature_layer) == ("aux", "features")
    same(found.maps, cam_of(model, x, lambda o: o["aux"][:, 1].mean((1, 2))))


def test_methods_that_need_classes_name_one_that_does_not(x: Tensor) -> None:
    model = made(Ends, 5, lambda z: z)
    for method, other in (("cam", "hirescam"), ("finercam", "gradcam")):
        with pytest.raises(NotApplicableError, match=other):
            xattn.explain(model, x, method, xattn.Difference(0, 1))
        assert xattn.explain(model, x, other, xattn.Difference(0, 1)).status == ("ok",) * 3


# ------------------------------------------------------------------------------------------------ outputs


@pytest.mark.parametrize("output", ["second", ("second",), lambda o: o["second"]])
def test_a_named_output_is_explained_and_kept(x: Tensor, output: Any) -> None:
    model = made(Ends, 5, lambda z: {"first": z, "second": -(z**3)})
    found = xattn.explain(model, x, ["gradcam", "occlusion:window=0.5"], 2, output=output)
    same(found[0].maps, grad_cam(model, x, "features.3", 2, scores=lambda o: o["second"]))
    assert found[0].spec is not None
    if not callable(output):
        assert found[0].spec.output == ("second",)
        again = xattn.explain(model, x, "gradcam", 2, spec=found[0].spec)
        torch.testing.assert_close(again.maps, found[0].maps)


def test_facts_about_an_output_that_a_function_names_ask_for_it_and_then_it_is_explained(x: Tensor) -> None:
    model = made(Ends, 5, lambda z: (z, z**3))
    last = lambda o: o[1]  # noqa: E731
    spec = xattn.infer_spec(model, x, output=last)
    with pytest.raises(SpecError, match="pass it here too, output="):
        xattn.explain(model, x, "gradcam", 2, spec=spec)
    found = xattn.explain(model, x, "gradcam", 2, spec=spec, output=last)
    same(found.maps, grad_cam(model, x, "features.3", 2, scores=last))


def test_a_named_output_goes_before_that_of_a_given_spec(x: Tensor) -> None:
    model = made(Ends, 5, lambda z: (z, z**3))
    spec = xattn.infer_spec(model, x, output=0)
    found = xattn.explain(model, x, "gradcam", 2, spec=spec, output=1)
    same(found.maps, grad_cam(model, x, "features.3", 2, scores=lambda o: o[1]))


# -------------------------------------------------------------------------------- what is said of them


def test_saved_explanations_keep_what_was_explained(x: Tensor, tmp_path: Path) -> None:
    model = made(Named)
    found = xattn.explain(model, x, "gradcam", xattn.Difference(["cat", "dog", "dog"], "hare"))
    for suffix in ("npz", "safetensors"):
        path = xattn.save_explanation(found, tmp_path / f"maps.{suffix}", images=True)
        again = xattn.load_explanation(path)
        assert again.described == found.described == ("cat - hare", "dog - hare", "dog - hare")
        assert again.class_name(1) == "dog - hare"
        assert again.overlay(1).size


def test_metrics_measure_the_number_that_is_explained(x: Tensor) -> None:
    """Deletion starts at the value itself, whatever the name of its score: a number has no probability."""
    from xattn.metrics import metrics

    model = made(Ends, 1, lambda z: 50 * z)
    spec = xattn.infer_spec(model, x, target="scalar")
    trace = xattn.record(model, x, "scalar", spec=spec, layers=[spec.feature_layer])
    explanation = explainers.create("gradcam").explanation(trace)
    morf, _ = metrics.create("deletion", steps=4).curves([explanation], trace, "morf"), None
    torch.testing.assert_close(morf[0].scores[:, 0].float(), model(x)[:, 0].detach(), rtol=1e-4, atol=1e-4)
    with pytest.raises(NotApplicableError, match="probability"):
        metrics.create("average_drop").measure(explanation, trace, None)
    with pytest.raises(NotApplicableError, match="no class"):
        metrics.create("random_logit").measure(explanation, trace, None)


def test_metrics_of_a_model_that_gives_probabilities_take_no_softmax_of_them(x: Tensor) -> None:
    from xattn.metrics import metrics

    model = made(Ends, 4, lambda z: (40 * z).softmax(1))
    with pytest.warns(xattn.XattnWarning, match="probabilities"):
        spec = xattn.infer_spec(model, x)
    trace = xattn.record(model, x, 1, spec=spec, layers=[spec.feature_layer])
    curve = metrics.create("deletion", steps=4).curves([explainers.create("gradcam").explanation(trace)], trace, "morf")
    torch.testing.assert_close(curve[0].scores[:, 0].float(), model(x)[:, 1].detach(), rtol=1e-4, atol=1e-6)


def test_as_target_leaves_targets_and_functions_as_they_are() -> None:
    goal = xattn.Scalar()
    assert as_target(goal) is goal
    assert as_target(torch.tensor([1])).has_classes
    assert as_target(len).text(0, xattn.ModelSpec(feature_layer="")) == "len"


@pytest.mark.parametrize("targets", [("scalar:3",), ("3 - 4", "5")])
def test_the_loop_over_files_explains_numbers_and_differences(tmp_path: Path, targets: tuple[str, ...]) -> None:
    from PIL import Image

    from xattn.file_loop import Column, Explained, Network, Settings, explain_files

    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 80, 3), dtype=np.uint8)).save(path)
    model = xattn.create_model("tiny-cnn")
    names = model.spec.classes
    said = [names[3]] if len(targets) == 1 else [f"{names[3]} - {names[4]}", names[5]]
    columns = [Column(explainers.create("gradcam"), Network(model, model.spec, "tiny"))]
    (result,) = explain_files([path], columns, Settings(targets=targets))
    assert isinstance(result, Explained)
    assert [line[0].class_name() for line in result.lines if not isinstance(line[0], str)] == said
    predicted = result.predicted["tiny"]
    assert predicted["class"].startswith(said[0])
    assert predicted["probability"] is None
    with pytest.raises(ParameterError, match="leave one of --topk and --target out"):
        next(iter(explain_files([path], columns, Settings(targets=targets, topk=3))))
