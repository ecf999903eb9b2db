"""Methods of other libraries by name: the library's own numbers, its parameters, and nothing left on the model."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from xattn.errors import MissingExtraError, NotApplicableError, ParameterError, UnknownNameError, XattnWarning
from xattn.explainers import explainers, resolve
from xattn.explainers.peers import LIBRARIES, names
from xattn.explaining import explain
from xattn.labels import label_of
from xattn.spec import ModelSpec

for module in ("captum", "pytorch_grad_cam", "zennit"):
    pytest.importorskip(module)

TARGET = [2, 1]
EVERY = [name for library in LIBRARIES for name in names(library)]
QUICK = {
    "captum/KernelShap": ":n_samples=20", "captum/Lime": ":n_samples=20",
    "captum/ShapleyValueSampling": ":n_samples=2,cells=3",
    "captum/IntegratedGradients": ":n_steps=8", "captum/FeatureAblation": ":cells=3", "captum/Occlusion": ":cells=3",
}  # fmt: skip
REFUSED = {"captum/LRP", "captum/LayerLRP"}  # no rule for nn.Flatten


class Plain(nn.Module):
    """As the libraries want it: every module runs once, none in place."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.fc = nn.Linear(8, tiny.CLASSES)
        self.spec = ModelSpec(
            feature_layer="features", classifier="fc", name="plain", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flat(self.pool(self.features(x))))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny.seeded(Plain)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return tiny.images(2, 32, 32, seed=3)


@pytest.mark.parametrize("name", EVERY)
def test_every_one_explains_or_says_why_not(name: str, model: nn.Module, x: Tensor) -> None:
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    text = name + QUICK.get(name, "")
    if name in REFUSED:
        with pytest.raises(NotApplicableError, match=rf"^{name}: captum fails on Plain \(TypeError: .*\)\.$"):
            explain(model, x, text, TARGET, spec=model.spec)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", XattnWarning)  # of a map that is constant
            explanation = explain(model, x, text, TARGET, spec=model.spec)
        assert explanation.maps.shape[:2] == (2, 1)
        assert torch.isfinite(explanation.maps).all()
        assert explanation.method.name == name
    assert torch.equal(torch.get_rng_state(), state)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert not any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["captum/GradientShap", "captum/Saliency", "grad-cam/GradCAM", "zennit/EpsilonPlus"])
def test_a_batch_is_its_images_one_by_one(name: str, model: nn.Module, x: Tensor) -> None:
    both = explain(model, x, name, TARGET, spec=model.spec, seeds=[3, 4]).maps
    for i in range(2):
        alone = explain(model, x[i : i + 1], name, TARGET[i : i + 1], spec=model.spec, seeds=[3 + i]).maps
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_captum_gets_the_parameters_that_are_named(model: nn.Module, x: Tensor) -> None:
    from captum.attr import IntegratedGradients

    ours = explain(model, x, "captum/IntegratedGradients:n_steps=7", TARGET, spec=model.spec).maps
    theirs = IntegratedGradients(model.eval()).attribute(x, target=torch.tensor(TARGET), n_steps=7)
    torch.testing.assert_close(ours, theirs.float().sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_grad_cam_is_that_of_the_library(model: nn.Module, x: Tensor) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    own = copy.deepcopy(model)
    with GradCAM(model=own, target_layers=[own.get_submodule(model.spec.feature_layer)]) as cam:
        theirs = torch.from_numpy(cam(input_tensor=x, targets=[ClassifierOutputTarget(k) for k in TARGET]))
    ours = explain(model, x, "grad-cam/GradCAM", TARGET, spec=model.spec).maps[:, 0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_tokens_are_a_grid_for_layer_methods() -> None:
    model = tiny.tiny_vit()
    size = model.spec.input_size
    x = tiny.images(2, *size, seed=3)
    for name in ("captum/LayerActivation", "grad-cam/GradCAM"):
        assert explain(model, x, name, TARGET, spec=model.spec).maps.shape[:2] == (2, 1)
    with pytest.raises(NotApplicableError, match="use gradcam"):
        explain(model, x, "captum/LayerGradCam", TARGET, spec=model.spec)


def test_names_and_parameters_are_forgiving_and_told() -> None:
    (method,) = resolve("captum/integratedgradients:n_steps=20")
    assert label_of(method) == "captum/IntegratedGradients:n_steps=20"
    assert explainers.parse(label_of(method)) == method
    assert method.computed_by == "captum"
    with pytest.raises(UnknownNameError, match="Did you mean 'captum/IntegratedGradients'"):
        resolve("captum/IntegratedGradient")
    with pytest.raises(UnknownNameError, match=r"unknown library of methods 'captun'\. Did you mean 'captum'"):
        resolve("captun/Saliency")
    with pytest.raises(UnknownNameError, match="Did you mean 'n_steps'"):
        resolve("captum/IntegratedGradients:n_step=20")
    with pytest.raises(ParameterError, match="n_steps must be int"):
        resolve("captum/IntegratedGradients:n_steps=many")


def test_what_a_library_cannot_see_is_refused(model: nn.Module, x: Tensor) -> None:
    with pytest.raises(NotApplicableError, match="explains the logit or the probability of a class"):
        explain(model, x, "captum/Saliency", "1 - 2", spec=model.spec)
    with pytest.raises(NotApplicableError, match="must be a method of captum without a layer"):
        explain(model, x, "captum/NoiseTunnel:of=LayerGradCam", spec=model.spec)


def test_probabilities_are_explained_where_they_are_asked_for(model: nn.Module, x: Tensor) -> None:
    from captum.attr import Saliency

    ours = explain(model, x, "captum/Saliency", TARGET, spec=model.spec, score="prob").maps
    leaf = x.clone().requires_grad_()
    theirs = Saliency(lambda z: model.eval()(z).softmax(1)).attribute(leaf, target=torch.tensor(TARGET)).detach()
    torch.testing.assert_close(ours, theirs.sum(1, keepdim=True), rtol=1e-4, atol=1e-7)


def test_a_benchmark_scores_them_like_any_other(tmp_path: Path) -> None:
    from tests.benchmark.runs import rows, small
    from xattn.benchmark.run import run

    methods = ["gradcam", "captum/IntegratedGradients:n_steps=4", "grad-cam/GradCAM", "zennit/EpsilonPlus"]
    run(
        small(methods=methods, data={"source": "synthetic:length=4"}, metrics=["sparsity", "deletion:steps=4"]),
        tmp_path,
    )
    stored = rows(tmp_path)
    for method in methods:
        own = [row for row in stored if row.method == method]
        assert {row.metric.partition(":")[0] for row in own} == {"status", "sparsity", "deletion"}
        assert all(row.value == row.value for row in own if row.metric == "sparsity")


def test_without_the_libraries_the_line_that_installs_them_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xattn\[peers\]'$"):
        resolve("captum/Saliency")


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ("input-x-gradient", "captum/InputXGradient"),
        ("gradcam", "captum/LayerGradCam"),
        ("gradcam", "grad-cam/GradCAM"),
    ],
)
@pytest.mark.parametrize("target", [0, 1])
def test_one_output_speaks_for_class_1_and_its_negative_for_class_0(own: str, other: str, target: int) -> None:
    binary: nn.Module = tiny.seeded(Plain)
    binary.fc = nn.Linear(8, 1)
    maps, theirs = (e.maps for e in explain(binary, tiny.images(2, 32, 32, seed=3), [own, other], target))
    theirs = torch.nn.functional.interpolate(theirs, maps.shape[2:], mode="area").relu() if own == "gradcam" else theirs
    cosine = torch.cosine_similarity(maps.flatten(1), theirs.flatten(1))
    assert bool((cosine[maps.flatten(1).any(1)] > 0.9).all()), cosine
    assert bool((cosine[~maps.flatten(1).any(1)] == 0).all()), "a map that is all zero for xattn is so for the library"


def test_one_call_of_a_layer_is_refused_by_the_reason() -> None:
    class Twice(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.flat(self.pool(self.again(self.again(x)))))

    twice: nn.Module = tiny.seeded(Twice)
    twice.again, twice.fc = nn.Conv2d(3, 3, 3, 2, 1), nn.Linear(3, 4)
    twice.spec = ModelSpec(feature_layer="again[1]")
    for name in ("captum/LayerGradCam", "grad-cam/GradCAM"):
        with pytest.raises(NotApplicableError, match=r"'again\[1\]' is one call of a layer that runs several times"):
            explain(twice, tiny.images(1, 32, 32), name)
