"""What holds for every registered method, whoever wrote it: a new entry of the registry is tested unasked."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import tiny_models as tiny
from tests.cheap import CONTRASTS, cheap
from xattn.errors import NotApplicableError, ParameterError, ShapeError
from xattn.explainer import Explainer
from xattn.explainers import applicable, explainers, resolve
from xattn.explaining import explain
from xattn.explanation import Explanation
from xattn.trace import record

METHODS = explainers.names()
TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-11}}


def run(method: str | Explainer, model: nn.Module, x: Tensor, target: Any = None, **options: Any) -> Explanation:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, message=".*Explanation.status")
        chosen = cheap(method) if isinstance(method, str) else method
        return explain(model, x, chosen, target, spec=model.spec, **options)


def same(a: Explanation, b: Explanation, **tolerance: float) -> None:
    torch.testing.assert_close(a.maps, b.maps, **(tolerance or TOLERANCE[a.maps.dtype]))


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    def test_shape_dtype_device_and_status(self, method: str) -> None:
        x = tiny.images(3)
        found = run(method, tiny.model_for(method), x)
        assert found.maps.shape[:2] == (3, 1)
        assert found.maps.dtype == torch.float32
        assert found.maps.device == x.device
        assert not found.maps.requires_grad
        assert found.status == ("ok",) * 3
        assert found.maps.flatten(1).std(dim=1).min() > 0

    def test_float64_stays(self, method: str) -> None:
        model, x = tiny.model_for(method), tiny.images(2)
        exact = run(method, model.double(), x.double(), seeds=[1, 2])
        assert exact.maps.dtype == torch.float64
        single = run(method, model.float(), x, seeds=[1, 2]).maps
        torch.testing.assert_close(exact.maps.float(), single, rtol=1e-3, atol=1e-4)

    def test_batch_equals_one_by_one(self, method: str) -> None:
        model, x, target = tiny.model_for(method), tiny.images(4), torch.tensor([3, 0, 4, 1])
        together = run(method, model, x, target)
        for i in range(4):
            alone = run(method, model, x[i : i + 1], target[i : i + 1])
            torch.testing.assert_close(together.maps[i : i + 1], alone.maps, **TOLERANCE[torch.float32])
            assert together.status[i] == alone.status[0]

    def test_scale_of_another_image_does_not_matter(self, method: str) -> None:
        model, x = tiny.model_for(method), tiny.images(2)
        louder = torch.cat([x[:1], 100 * x[1:]])
        same_image = run(method, model, louder, 1).maps[:1]
        torch.testing.assert_close(same_image, run(method, model, x, 1).maps[:1], **TOLERANCE[torch.float32])

    def test_train_mode_does_not_matter(self, method: str) -> None:
        model, x = tiny.model_for(method), tiny.images(2)
        expected = run(method, model, x)
        same(run(method, model.train(), x), expected)

    def test_non_square_images(self, method: str) -> None:
        found = run(method, tiny.model_for(method), tiny.images(2, 24, 40))
        h, w = found.maps.shape[-2:]
        assert (h, w) in ((6, 10), (24, 40), (8, 13))  # of the features, of the pixels, the common grid
        assert found.resized().shape == (2, 1, 24, 40)

    def test_same_seed_same_map(self, method: str) -> None:
        model, x = tiny.model_for(method), tiny.images(2)
        torch.manual_seed(1)
        first = run(method, model, x, seeds=[7, 8])
        torch.manual_seed(2)
        torch.testing.assert_close(run(method, model, x, seeds=[7, 8]).maps, first.maps, rtol=0, atol=0)

    def test_model_leaves_as_it_came(self, method: str) -> None:
        model = tiny.model_for(method)
        mixed_up(model)
        with unchanged(model):
            run(method, model, tiny.images(2))

    def test_model_leaves_as_it_came_after_an_exception(self, method: str) -> None:
        model = tiny.model_for(method)
        mixed_up(model)
        last = getattr(model, "fc", None) or model.head.classifier
        last.register_forward_pre_hook(fail)
        with unchanged(model), pytest.raises(RuntimeError, match="the layer broke"):
            run(method, model, tiny.images(2))

    def test_the_callers_tensors_stay(self, method: str) -> None:
        x, target = tiny.images(2).requires_grad_(), torch.tensor([0, 1])
        copies = x.detach().clone(), target.clone()
        run(method, tiny.model_for(method), x, target)
        assert torch.equal(x, copies[0])
        assert torch.equal(target, copies[1])
        assert x.grad is None

    def test_frozen_weights_under_no_grad_and_inference_mode(self, method: str) -> None:
        model, x = tiny.model_for(method), tiny.images(2)
        expected = run(method, model, x)
        model.requires_grad_(False)
        same(run(method, model, x), expected)
        with torch.no_grad():
            same(run(method, model, x), expected)
        with torch.inference_mode():
            inside = run(method, model, x)
            same(run(method, model, x.clone()), expected)
        same(inside, expected)
        assert not inside.maps.is_inference()

    def test_repr_and_parse_round_trip(self, method: str) -> None:
        one = explainers.create(method)
        assert repr(one) == repr(explainers.create(method))
        assert hash(one) == hash(explainers.create(method))
        assert resolve([method, one]) == [one, one]

    def test_describes_itself(self, method: str) -> None:
        kind = explainers.get(method)
        assert kind.name == method
        first = (kind.__doc__ or "").splitlines()[0]
        assert kind.family.value == "control" or any(source in first for source in ("arXiv:", "10.1109/", "10.1609/"))
        assert kind.paper
        assert kind.passes

    def test_class_specific_or_not(self, method: str) -> None:
        model, x = tiny.model_for(method), tiny.images(2)
        moved = not torch.allclose(run(method, model, x, 0).maps, run(method, model, x, 3).maps, atol=1e-6)
        assert moved == explainers.get(method).class_specific

    def test_in_place_layer_after_the_tap(self, method: str) -> None:
        if applicable(explainers.create(method), tiny.tiny_relu_then_pool().spec) is not None:
            pytest.skip("needs a head with attention; its features are read by the head alone")
        in_place, copying = tiny.tiny_relu_then_pool(), tiny.tiny_relu_then_pool()
        copying.forward = lambda x: copying.classifier(F.relu(copying.features(x)).mean((2, 3)))
        same(run(method, in_place, tiny.images(2)), run(method, copying, tiny.images(2)))

    def test_half_precision_model(self, method: str) -> None:
        model, x = tiny.model_for(method), tiny.images(2)
        expected = run(method, model, x, 1).maps
        found = run(method, copy.deepcopy(model).bfloat16(), x, 1)
        assert found.maps.dtype == torch.float32
        assert not set(found.status) & {"nan", "non-conserving"}
        assert alike(found.maps, expected) > 0.8

    def test_autocast(self, method: str) -> None:
        model, x = tiny.model_for(method), tiny.images(2)
        expected = run(method, model, x, 1).maps
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = run(method, model, x, 1)
        assert found.maps.dtype == torch.float32
        assert not set(found.status) & {"nan", "non-conserving"}
        assert alike(found.maps, expected) > 0.8

    def test_channels_last(self, method: str) -> None:
        model, x = tiny.model_for(method), tiny.images(2)
        expected = run(method, model, x)
        model = model.to(memory_format=torch.channels_last)
        same(run(method, model, x.to(memory_format=torch.channels_last)), expected)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_gpu_equals_cpu(self, method: str) -> None:
        model, x = tiny.model_for(method), tiny.images(3)
        expected = run(method, model, x, 1, seeds=[1, 2, 3])
        found = run(method, model.cuda(), x.cuda(), 1, seeds=[1, 2, 3])
        assert found.maps.is_cuda
        assert found.status == expected.status
        torch.testing.assert_close(found.maps.cpu(), expected.maps, rtol=1e-2, atol=1e-3)  # TF32 in the convolutions

    @pytest.mark.parametrize("score", ["prob", "sigmoid", "margin", lambda z, t: z[:, 0] - 2 * z[:, 1]])
    def test_other_scores(self, method: str, score: Any) -> None:
        model, x = tiny.model_for(method), tiny.images(2)
        found = run(method, model, x, 1, score=score)
        assert "nan" not in found.status
        if explainers.get(method).grad or method == "guided-backprop":
            logit = run(method, model, x, 1)
            if score == "sigmoid" and "++" not in method:  # a factor for each image, and the formula is linear in it
                assert alike(found.maps, logit.maps) > 0.999
            assert not torch.allclose(found.maps, logit.maps)

    def test_nan_image_is_an_error_and_nan_weights_are_a_status(self, method: str) -> None:
        model = tiny.model_for(method)
        last = getattr(model, "conv3", None) or model.backbone[3]
        with torch.no_grad():
            last.weight[0, 0] = torch.nan
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, message=".*Explanation.status")
            found = run(method, model, tiny.images(2), 1)
        knows_the_model = explainers.get(method).family.value != "control" or explainers.get(method).grad
        assert found.status == (("nan",) * 2 if knows_the_model else ("ok",) * 2)


@pytest.mark.parametrize("target", [[0], [0, 1, 2], torch.tensor([[0], [1]])])
def test_targets_that_do_not_fit(target: Any) -> None:
    with pytest.raises(ShapeError, match="2 images"):
        run("gradcam", tiny.tiny_cnn(), tiny.images(2), target)


def test_a_class_that_does_not_exist() -> None:
    with pytest.raises(ParameterError, match="class 5 does not exist"):
        run("gradcam", tiny.tiny_cnn(), tiny.images(2), 5)


GENERAL = [m for m in METHODS if applicable(explainers.create(m), tiny.tiny_cnn().spec) is None]


@pytest.mark.parametrize("method", GENERAL)
class TestOutputs:
    def test_binary(self, method: str) -> None:
        model, x = tiny.tiny_binary(), tiny.images(3)
        two = tiny.tiny_binary()
        two.fc = nn.Linear(8, 2)
        with torch.no_grad():  # the same classifier with a logit for each class
            two.fc.weight.copy_(torch.cat([-model.fc.weight, model.fc.weight]))
            two.fc.bias.copy_(torch.cat([-model.fc.bias, model.fc.bias]))
        for target in (0, 1, [0, 1, 0]):
            same(run(method, model, x, target), run(method, two, x, target))

    def test_multi_label(self, method: str) -> None:
        """Labels are independent: rows of the classifier for other labels do not matter to a logit or its sigmoid."""
        if method in CONTRASTS:
            return
        model, other, x = tiny.tiny_cnn(), tiny.tiny_cnn(), tiny.images(2)
        with torch.no_grad():
            other.fc.weight[1:] *= -3
        for score in ("logit", "sigmoid"):
            same(run(method, model, x, 0, score=score), run(method, other, x, 0, score=score))

    @pytest.mark.parametrize("how", ["wrapped", "in place"])
    def test_compiled_models_are_unwrapped(self, method: str, how: str) -> None:
        model, x = tiny.tiny_cnn(), tiny.images(2)
        expected = run(method, model, x)
        if how == "wrapped":
            compiled = torch.compile(model, backend="eager")
        else:
            model.compile(backend="eager")
            compiled = model
        with torch.no_grad():
            compiled(x)  # warm: hooks added from here on would not fire on the compiled code
        found = explain(compiled, x, cheap(method), spec=model.spec)
        same(found, expected)

    def test_compiled_part_of_a_model(self, method: str) -> None:
        model, x = tiny.tiny_cnn(), tiny.images(2)
        expected = run(method, model, x)
        model.conv3 = torch.compile(nn.Sequential(model.conv3, nn.Identity()), backend="eager")
        model.trunk = torch.compile(nn.Sequential(nn.Identity()), backend="eager")
        model.spec = dataclasses.replace(model.spec, feature_layer="trunk._orig_mod.0")  # a hook inside compiled code
        with torch.no_grad():
            model(x)
        same(run(method, model, x), expected)


def test_data_parallel_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="DataParallel"):
        explain(nn.DataParallel(tiny.tiny_cnn()), tiny.images(2), "gradcam", spec=tiny.tiny_cnn().spec)


def test_all_layer_methods_share_one_forward_and_one_backward() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    methods = [m for m in resolve(GENERAL) if "forward" not in m.passes]
    assert sum(m.family.value == "CAM" for m in methods) >= 7
    counts = {"forward": 0, "backward": 0}
    model.conv2.register_forward_hook(lambda *_: counts.update(forward=counts["forward"] + 1))
    model.conv2.register_full_backward_hook(lambda *_: counts.update(backward=counts["backward"] + 1))
    model.act.inplace = False  # torch's own backward hooks cannot stand the in-place layer after them
    trace = record(model, x, spec=model.spec, layers=[layer for m in methods for layer in m.layers(model.spec)])
    found = [method.explanation(trace) for method in methods]
    assert len(found) >= 12
    assert counts == {"forward": 1, "backward": 1}
    assert (trace.forwards, trace.backwards) == (1, 1)
    for one in found:
        same(one, run(one.method, model, x))


def test_three_guided_methods_share_one_pass_of_their_own() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    methods = resolve(["guided-backprop", "guided-gradcam", "guided-gradcam++", "gradcam"])
    trace = record(model, x, spec=model.spec, layers=[layer for m in methods for layer in m.layers(model.spec)])
    for method in methods:
        method.explanation(trace)
    assert (trace.forwards, trace.backwards) == (2, 2)


def test_hundred_calls_leave_nothing_behind() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(1)
    methods = resolve(["gradcam", "guided-backprop"])
    with unchanged(model):
        for _ in range(100):
            explain(model, x, methods, spec=model.spec)


def mixed_up(model: nn.Module) -> None:
    """Give the model a state that a careless method would lose."""
    model.train()
    for i, module in enumerate(model.modules()):
        module.training = i % 2 == 0
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 != 0)
        if i % 2 and parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.5)


def fail(*_: Any) -> None:
    raise RuntimeError("the layer broke")


def hooks_of(module: nn.Module) -> dict[str, list[int]]:
    return {name: [id(hook) for hook in value.values()] for name, value in vars(module).items() if "_hooks" in name}


def state(model: nn.Module) -> list[Any]:
    names: list[Callable[[nn.Module], Any]] = [
        lambda m: m.training,
        hooks_of,
        lambda m: sorted(k for k in vars(m)),
        lambda m: {k: v for k, v in vars(m).items() if isinstance(v, (int, float, str, bool, tuple, type(None)))},
    ]
    modules = [(name, id(m), *[look(m) for look in names]) for name, m in model.named_modules()]
    tensors = [
        (name, id(p), p._version, p.requires_grad, None if p.grad is None else (id(p.grad), p.grad._version))
        for name, p in (*model.named_parameters(), *model.named_buffers())
    ]
    return [modules, tensors]


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Hooks, modes, attributes, `requires_grad`, `.grad` and weights are what they were, bit by bit."""
    before, weights = state(model), copy.deepcopy(model.state_dict())
    yield
    assert state(model) == before
    after = model.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def alike(a: Tensor, b: Tensor) -> float:
    """Smallest correlation over the images."""
    pairs = zip(a.flatten(1).double(), b.flatten(1).double(), strict=True)
    return min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)
