"""Score-CAM and Ablation-CAM: how often the network runs, networks of other shapes, and what is undefined."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from xattn.errors import ParameterError
from xattn.explainers import resolve
from xattn.explainers.intervention import scores_without
from xattn.explaining import explain
from xattn.inspection import infer_spec
from xattn.spec import ModelSpec
from xattn.trace import record


class Grown(nn.Module):
    """A block between two paths: added to what came before it, concatenated with it, or alone."""

    def __init__(self, joined: str, size: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.block = nn.Conv2d(4, 4, 3, 1, 1)
        self.fc = nn.Linear(8 if joined == "concatenated" else 4, tiny.CLASSES)
        self.joined, self.size = joined, size
        self.spec = ModelSpec(feature_layer="block", classifier="fc", name=joined)

    def forward(self, x: Tensor) -> Tensor:
        before = self.stem(x).relu()
        after = self.block(before)
        if self.joined == "concatenated":
            after = torch.cat([before, after], dim=1)
        elif self.joined == "added":
            after = before + after
        pooled = after.tanh().mean((2, 3))
        return self.fc(pooled.view(len(x), -1) if self.size else pooled)


def one_by_one(model: nn.Module, x: Tensor, target: int, channels: int) -> Tensor:
    """Score of the target with each channel of `spec.feature_layer` set to zero, a pass for each."""
    found = []
    for k in range(channels):

        def zero(_: nn.Module, __: object, output: Tensor, k: int = k) -> Tensor:
            output = output.clone()
            output.movedim(2 if output.ndim == 3 else 1, 0)[k] = 0
            return output

        handle = model.get_submodule(model.spec.feature_layer).register_forward_hook(zero)
        with torch.no_grad():
            found.append(model(x)[:, target])
        handle.remove()
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("joined", ["added", "concatenated", "alone"])
@pytest.mark.parametrize("size", [True, False])
def test_a_channel_less_whatever_goes_around_the_layer(joined: str, size: bool) -> None:
    model, x = tiny.seeded(lambda: Grown(joined, size)), tiny.images(2, 16, 24)
    trace = record(model, x, 3, spec=model.spec, layers=("block",))
    channels = torch.tensor([2, 0, 3])
    found = torch.stack([scores_without(trace, "block", i, channels) for i in range(2)])
    torch.testing.assert_close(found, one_by_one(model, x, 3, 4)[:, channels])
    assert model.block._forward_hooks == {}


def test_what_comes_before_the_layer_runs_on_one_image() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(3)
    seen: dict[str, list[int]] = {"conv1": [], "fc": []}
    for name, sizes in seen.items():
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, sizes=sizes: sizes.append(len(args[0])))
    trace = record(model, x, spec=model.spec, layers=("trunk",))
    (method,) = resolve("ablationcam")
    method.explanation(trace)
    assert seen == {"conv1": [3, 1, 1, 1], "fc": [3, 8, 8, 8]}
    assert trace.forwards == 4
    chunked = dataclasses.replace(method, chunk=3)
    assert repr(chunked) == repr(method)  # it is no part of the result
    torch.testing.assert_close(chunked.attribute(trace), method.attribute(trace))


def test_score_cam_runs_even_batches_over_all_images() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(3)
    sizes: list[int] = []
    model.conv1.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    trace = record(model, x, spec=model.spec, layers=("trunk",))
    (method,) = resolve("scorecam")
    expected = method.attribute(trace)
    assert sizes == [3, 24]
    torch.testing.assert_close(dataclasses.replace(method, chunk=7).attribute(trace), expected)
    assert sizes[2:] == [6, 6, 6, 6]


def test_ablation_behind_a_mean_weights_by_grad_cam_times_activity() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    trace = record(model, x, 1, spec=model.spec, layers=("trunk",))
    features = trace.activation("trunk")
    weights = trace.gradient("trunk").mean((2, 3)) * features.sum((2, 3))
    expected = (weights[:, :, None, None] * features).sum(1, keepdim=True).relu()
    torch.testing.assert_close(explain(model, x, "ablationcam", 1).maps, expected, rtol=1e-4, atol=1e-5)


def test_convention_a_negative_score_does_not_turn_the_map() -> None:
    """As printed, the fall is divided by the score: of a negative score the map shows what speaks against the class."""
    model, x = tiny.tiny_cnn(), tiny.images(1)
    expected, printed = (found.maps for found in explain(model, x, ["ablationcam", "ablationcam:relative=true"], 1))
    torch.testing.assert_close(printed * model(x)[0, 1].item(), expected)
    with torch.no_grad():
        model.fc.bias -= 100
    shifted, printed = (found.maps for found in explain(model, x, ["ablationcam", "ablationcam:relative=true"], 1))
    torch.testing.assert_close(shifted, expected, rtol=1e-2, atol=1e-2)
    both = torch.stack([printed.flatten(), expected.flatten()])
    assert both.amax(1).min() > 0
    assert torch.corrcoef(both)[0, 1] < 0


@pytest.mark.parametrize("method", ["scorecam", "scorecam:weights=increase", "ablationcam"])
def test_a_layer_that_is_silent_gives_zero(method: str) -> None:
    model = tiny.tiny_cnn()
    model.trunk = nn.Threshold(1e9, 0.0)
    with pytest.warns(UserWarning, match="all-zero"):
        found = explain(model, tiny.images(2), method, 1)
    assert found.status == ("all-zero",) * 2


def test_a_constant_channel_is_left_out() -> None:
    """It has no mask; in the softmax it would take weight from the others, and its cells are all alike anyway."""

    class Beside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, torch.full_like(x[:, :1], 7.0)], dim=1)

    model, x = tiny.tiny_cnn(), tiny.images(2)
    expected = explain(model, x, ["scorecam", "scorecam:weights=increase"], 1)
    classifier = nn.Linear(9, tiny.CLASSES)
    with torch.no_grad():
        classifier.weight.copy_(nn.functional.pad(model.fc.weight, (0, 1)))
        classifier.bias.copy_(model.fc.bias)
    model.trunk, model.fc = Beside(), classifier
    for found, before in zip(explain(model, x, ["scorecam", "scorecam:weights=increase"], 1), expected, strict=True):
        torch.testing.assert_close(found.maps, before.maps)


class Both(NamedTuple):
    tokens: Tensor
    note: str


def test_a_layer_that_gives_a_tuple() -> None:
    class Tuple(nn.Module):
        def forward(self, x: Tensor) -> Both:
            return Both(x, "of any kind")

    class First(tiny.TinyCNN):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = Tuple()

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))
            return self.fc(self.trunk(self.act(self.bn3(self.conv3(x)) + x)).tokens.mean((2, 3)))

    model, x = tiny.seeded(First), tiny.images(2)
    for method in ("ablationcam", "shapleycam"):
        found = explain(model, x, method, 1).maps
        torch.testing.assert_close(found, explain(tiny.tiny_cnn(), x, method, 1).maps)


@pytest.mark.parametrize("method", ["scorecam:weights=both", "scorecam:chunk=0", "ablationcam:chunk=0"])
def test_parameters_that_cannot_be(method: str) -> None:
    with pytest.raises(ParameterError, match="must be"):
        resolve(method)


def test_ablation_of_tokens_takes_the_class_token_too() -> None:
    timm = pytest.importorskip("timm")
    build = timm.models.vision_transformer.VisionTransformer
    model = tiny.seeded(lambda: build(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=5))
    model.spec = infer_spec(model, input_size=(32, 32))
    assert model.spec.feature_layer == "blocks.1.norm1"
    x = tiny.images(2)
    trace = record(model, x, 1, spec=model.spec, layers=(model.spec.feature_layer,))
    channels = torch.arange(24)
    found = torch.stack([scores_without(trace, model.spec.feature_layer, i, channels) for i in range(2)])
    torch.testing.assert_close(found, one_by_one(model, x, 1, 24), rtol=1e-4, atol=1e-5)
