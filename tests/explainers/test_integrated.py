"""Path and noise methods and DeepLIFT: exact on linear models, complete or marked, the same in any batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import tiny_models as tiny
from tests.cheap import cheap
from xattn.errors import NotApplicableError, ParameterError, UnknownNameError
from xattn.explainers import explainers
from xattn.explainers.integrated import BlurIG, IntegratedGradients
from xattn.explaining import explain
from xattn.functional.baselines import gaussian_kernel, separable_blur
from xattn.functional.path import blur_matrix, blurred, guided_step, quadrature
from xattn.spec import ModelSpec, TokenGrid
from xattn.trace import record

TARGET = [2, 1]
SPEC = ModelSpec(feature_layer="conv", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


class Linear(nn.Module):
    """Logits that are sums over the pixels."""

    def __init__(self, height: int = 8, width: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.conv = nn.Conv2d(3, 4, (height, width))
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(self.conv.weight.shape, generator=generator))
        self.spec = SPEC

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


def black(x: Tensor) -> Tensor:
    return (-x.new_tensor(SPEC.mean) / x.new_tensor(SPEC.std)).view(3, 1, 1).expand_as(x)


def smooth(x: Tensor, *sigmas: float) -> Tensor:
    rows, columns = (torch.stack([blur_matrix(n, s) for s in sigmas]).to(x) for n in x.shape[-2:])
    return blurred(x, rows, columns)


def maps(model: nn.Module, x: Tensor, method: str, target: Any = TARGET, **options: Any) -> Tensor:
    return explain(model, x, method, target, spec=model.spec, **options).maps


# --- what must come out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "start"),
    [
        ("integrated-gradients:steps=1", black),
        ("integrated-gradients:steps=3,rule=gauss-legendre,baseline=mean", torch.zeros_like),
        ("guided-ig:steps=4", black),
        ("gradient-shap:baseline=black,samples=2", black),
        ("blur-ig:steps=3,sigma=0.1", lambda x: smooth(x, 0.8)[:, 0]),
        ("deeplift", black),
        ("deeplift-shap:baseline=black,samples=2", black),
    ],
)
def test_a_linear_model_is_explained_exactly(method: str, start: Callable[[Tensor], Tensor]) -> None:
    model, x = Linear().double(), tiny.images(2, 8, 12).double()
    weight = model.conv.weight.detach()[TARGET]
    expected = (weight * (x - start(x))).sum(1, keepdim=True)
    torch.testing.assert_close(maps(model, x, method), expected)


@pytest.mark.parametrize("method", ["integrated-gradients:steps=", "blur-ig:sigma=0.1,steps="])
def test_sums_come_nearer_with_more_steps(method: str) -> None:
    model, x = tiny.tiny_cnn().double(), tiny.images(4).double()
    errors = []
    for steps in (4, 32, 256):
        found = explainers.parse(f"{method}{steps}")
        trace = record(model, x, 1, spec=model.spec)
        errors.append(float(found.conservation(trace, found.attribute(trace)).max()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 3e-3


@pytest.mark.filterwarnings("ignore:.*Explanation.status")
def test_too_few_steps_are_told() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(4)
    assert "non-conserving" in explain(model, x, "integrated-gradients:steps=1", 1, spec=model.spec).status
    assert explain(model, x, "integrated-gradients", 1, spec=model.spec).status == ("ok",) * 4
    # No sum is promised of absolute values.
    assert explain(model, x, "integrated-gradients:steps=1,reduce=max", 1, spec=model.spec).status == ("ok",) * 4


def test_a_straight_guided_path_is_that_of_integrated_gradients() -> None:
    model, x = tiny.tiny_cnn().double(), tiny.images(2).double()
    start, points = black(x), []
    for i in range(5):
        at = (start + i / 4 * (x - start)).requires_grad_()
        points.append(torch.autograd.grad(model(at)[[0, 1], TARGET].sum(), at)[0])
    mean = (points[0] / 2 + points[1] + points[2] + points[3] + points[4] / 2) / 4
    expected = ((x - start) * mean).sum(1, keepdim=True)
    torch.testing.assert_close(maps(model, x, "guided-ig:reach=0,steps=4"), expected)


def test_guided_steps_go_where_the_gradient_is_small() -> None:
    place, length = torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 2.0, 0.0]])
    cost = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    # A quarter of the way is 1 of 4: all of the second feature. Then half of the third. One without a way has arrived.
    first = guided_step(place, cost, length, 0.25, 0.01, 1.0)
    assert first.tolist() == [[0, 1, 0, 1]]
    assert guided_step(first, cost, length, 0.5, 0.01, 1.0).tolist() == [[0, 1, 0.5, 1]]
    # No further than the reach allows, and those behind it are fetched first.
    near = guided_step(place, cost, length, 0.5, 0.01, 0.25)
    torch.testing.assert_close(near, torch.tensor([[0.25, 0.75, 0.5, 0.75]]))


def test_equal_gradients_move_together() -> None:
    place, length = torch.zeros(1, 6), torch.ones(1, 6)
    moved = guided_step(place, torch.zeros(1, 6), length, 0.5, 0.2, 1.0)
    assert moved.tolist() == [[0.5] * 6]


def test_quadrature_integrates_polynomials() -> None:
    for rule, degree in (("midpoint", 1), ("gauss-legendre", 7)):
        nodes, weights = quadrature(rule, 4)
        for power in range(degree + 1):
            assert float((nodes**power * weights).sum()) == pytest.approx(1 / (power + 1), rel=1e-12)


def test_blurs_are_those_of_the_baseline() -> None:
    x = tiny.images(2, 8, 12)
    found = smooth(x, 0.0, 1.3)
    torch.testing.assert_close(found[:, 0], x)
    torch.testing.assert_close(found[:, 1], separable_blur(x, gaussian_kernel(1.3, 4), "replicate"))


# --- noise -------------------------------------------------------------------------------------------------------


def test_three_statistics_of_one_noise_share_its_passes() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    trace = record(model, x, spec=model.spec)
    names = ("smoothgrad", "vargrad", "smoothgrad-squared")
    mean, variance, square = (explainers.parse(f"{n}:of=gradcam,samples=6").attribute(trace) for n in names)
    assert (trace.forwards, trace.backwards) == (2, 1)
    torch.testing.assert_close(square, mean.square() + variance)
    assert variance.min() >= 0
    explainers.parse("vargrad:of=gradcam,samples=7").attribute(trace)
    assert (trace.forwards, trace.backwards) == (3, 2)


def test_smoothgrad_keeps_signs_until_the_mean() -> None:
    """The absolute values of a mean are less than the mean of absolute values."""
    model, x = tiny.tiny_cnn(), tiny.images(2)
    signed = maps(model, x, "smoothgrad:of=saliency:reduce=sum,samples=20")
    assert signed.min() < 0 < signed.max()
    largest = maps(model, x, "smoothgrad:samples=20")
    trace = record(model, x, TARGET, spec=model.spec)
    copies = explainers.parse("smoothgrad-squared:samples=20").attribute(trace)
    assert (largest.square() <= copies * (1 + 1e-5)).all()


def test_noise_of_a_method_that_draws_is_new_for_each_copy() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    spread = maps(model, x, "vargrad:of=random,samples=400")
    torch.testing.assert_close(spread, torch.full_like(spread, 1 / 12), atol=0.03, rtol=0)  # of a uniform value


def test_noise_of_paths_and_of_other_tunnels() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    for inner in ("integrated-gradients:steps=2", "smoothgrad:samples=2", "brnpa", "deeplift"):
        assert explain(model, x, f"smoothgrad:samples=3,of={inner}", spec=model.spec).status == ("ok", "ok")


def test_noise_of_what_is_refused() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    with pytest.raises(NotApplicableError, match="no B-CNN head"):
        explain(model, x, "smoothgrad:of=bcnn", spec=model.spec)
    with pytest.raises(UnknownNameError, match="Did you mean 'saliency'"):
        explainers.parse("smoothgrad:of=salency")


# --- batches -----------------------------------------------------------------------------------------------------

CHUNKED = [n for n in explainers.names() if "chunk" in {f.name for f in dataclasses.fields(explainers.get(n))}]


@pytest.mark.parametrize("method", CHUNKED)
def test_chunks_change_nothing(method: str) -> None:
    model, x = tiny.model_for(method).double(), tiny.images(3).double()
    whole = explain(model, x, explainers.parse(cheap(method)), spec=model.spec)
    for chunk in (1, 7):
        parts = explain(model, x, dataclasses.replace(explainers.parse(cheap(method)), chunk=chunk), spec=model.spec)
        torch.testing.assert_close(parts.maps, whole.maps)
        assert parts.method == whole.method


@pytest.mark.parametrize("method", ["integrated-gradients", "smoothgrad", "deeplift-shap", "rise", "kernel-shap"])
def test_batches_are_halved_where_memory_runs_out(method: str) -> None:
    model, x = tiny.tiny_cnn(), tiny.images(3)
    expected = maps(model, x, cheap(method), 1)
    sizes = []

    def small_memory(module: nn.Module, inputs: tuple[Tensor]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(small_memory)
    torch.testing.assert_close(maps(model, x, cheap(method), 1), expected, rtol=1e-4, atol=1e-6)
    too_large = sum(size > 3 for size in sizes)
    assert 0 < too_large <= 5  # what did not fit once is not tried again


def test_memory_for_no_image_at_all() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(1)
    trace = record(model, x, spec=model.spec)

    def no_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        explainers.parse("ig:steps=4").explanation(trace)


# --- DeepLIFT ----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """An activation between two convolutions and after the second."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.fc = nn.Linear(4, 3)
        self.act = act
        self.spec = SPEC

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = self.act(self, y) if self.act in LAYERS.values() else self.act(y)
        return self.fc(F.relu(self.conv2(y)).mean((2, 3)))


def tokens(layer: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    """A layer of tokens (T, N, C) on a feature map."""
    return lambda net, y: layer(net, y.flatten(2).permute(2, 0, 1)).permute(1, 2, 0).unflatten(2, y.shape[2:])


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu in place": lambda y: F.relu(y, True),
    "relu_": lambda y: torch.relu_(y),
    "in place on a view": lambda y: torch.cat([y.clone()[:, :2].relu_(), y[:, 2:]], 1),
    "clamp": lambda y: y.clamp_(-0.3, 0.4),
    "leaky": nn.LeakyReLU(0.2, inplace=True),
    "prelu": nn.PReLU(4),
    "gelu": F.gelu,
    "silu": nn.SiLU(inplace=True),
    "swish by hand": lambda y: y * y.sigmoid(),
    "swish in place": lambda y: y.mul_(torch.sigmoid(y)),
    "hardswish": nn.Hardswish(),
    "softplus and log": lambda y: (1 + F.softplus(y)).log(),
    "powers": lambda y: y**2 / 3 + (y.square() + 1).sqrt() + 1 / (y.abs() + 1) + 0.5**y,
    "max pool": nn.MaxPool2d(2),
    "overlapping max pool": nn.MaxPool2d(3, 2, 1),
    "max pool by position": lambda y: F.max_pool2d(y, 3, 1, 1),
    "adaptive max pool": nn.AdaptiveMaxPool2d(3),
    "softmax": lambda y: 5 * F.softmax(30 * y, 1),
    "masked softmax": lambda y: F.softmax(y.masked_fill(torch.eye(8, dtype=bool), -torch.inf), 3),
    "Tensor.softmax": lambda y: y.flatten(2).softmax(dim=-1).view_as(y) * y,
    "squeeze-excitation": lambda y: y * y.mean((2, 3), keepdim=True).sigmoid(),
    "quotient": lambda y: y / (1 + y.exp().sum(1, keepdim=True)),
    "matmul": lambda y: y @ y.transpose(2, 3) @ y,
    "einsum": lambda y: torch.einsum("nchw,ndhw->ncd", y, y.relu())[..., None],
    "scaled dot product": lambda y: F.scaled_dot_product_attention(y, y.relu(), y),
}
LAYERS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "layer norm": tokens(lambda net, t: net.norm(t)),
    "attention": tokens(lambda net, t: net.attention(t, t, t, need_weights=False)[0]),
}


@pytest.mark.parametrize("name", [*ACTIVATIONS, *LAYERS])
def test_deeplift_is_complete(name: str) -> None:
    """However an activation is written, and without a change of the logits."""
    model = tiny.seeded(lambda: Net({**ACTIVATIONS, **LAYERS}[name])).double()
    x = tiny.images(2, 8, 8).double()
    trace = record(model, x, TARGET, spec=SPEC)
    for spec in ("deeplift", "deeplift:baseline=blur", "deeplift-shap:samples=2"):
        method = explainers.parse(spec)
        found = method.attribute(trace)
        assert found.abs().max() > 0
        assert method.conservation(trace, found).max() < 1e-10
    end = trace.logits[[0, 1], TARGET]
    start = model(black(x)).detach()[[0, 1], TARGET]
    torch.testing.assert_close(explainers.parse("deeplift").attribute(trace).sum((1, 2, 3)), end - start)


def test_deeplift_of_one_module_used_three_times() -> None:
    x = tiny.images(2)
    torch.testing.assert_close(maps(tiny.tiny_cnn(), x, "deeplift"), maps(tiny.tiny_functional(), x, "deeplift"))


@pytest.mark.parametrize("score", ["prob", "sigmoid", "logit"])
def test_deeplift_goes_through_the_score(score: str) -> None:
    model, x = tiny.tiny_cnn().double(), tiny.images(2).double()
    trace = record(model, x, TARGET, spec=model.spec, score=score)
    method = explainers.create("deeplift")
    assert method.conservation(trace, method.attribute(trace)).max() < 1e-10


def test_deeplift_where_image_and_baseline_are_equal() -> None:
    model = tiny.tiny_cnn()
    x = black(tiny.images(2)).clone()
    with pytest.warns(match="2 all-zero"):
        assert maps(model, x, "deeplift").abs().max() == 0
    x[:, :, 8:, 8:] = 1.0  # units that only see the rest have no difference to divide by
    assert explain(model, x, "deeplift", 1, spec=model.spec).status == ("ok", "ok")


class Odd(torch.autograd.Function):
    """An activation that no torch function shows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.abs().sqrt()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * x.sign() / (2 * x.abs().sqrt())


def one_colour(y: Tensor) -> bool:
    a, b = y.detach()[0, 0, 3:5, 4].tolist()
    return abs(a - b) < 1e-3


@pytest.mark.filterwarnings("ignore:.*Explanation.status", "ignore:.*torch.jit.script")
def test_deeplift_tells_what_it_cannot_explain() -> None:
    x = tiny.images(2, 8, 8)
    with pytest.raises(NotApplicableError, match="calls glu, for which DeepLIFT has no rule"):
        maps(tiny.seeded(lambda: Net(lambda y: F.glu(torch.cat([y, y], 1), 1))), x, "deeplift")
    unseen = explain(tiny.seeded(lambda: Net(Odd.apply)), x, "deeplift", TARGET, spec=SPEC)
    assert "non-conserving" in unseen.status
    branching = tiny.seeded(lambda: Net(lambda y: y.relu() if one_colour(y) else y.sigmoid()))
    with pytest.raises(NotApplicableError, match="calls sigmoid for the image where it has relu for the baseline"):
        maps(branching, x, "deeplift", 0)
    scripted = Net(torch.jit.script(nn.ReLU()))
    with pytest.raises(NotApplicableError, match="'act' of Net is TorchScript"):
        maps(scripted, x, "deeplift", 0)


def test_deeplift_lets_weights_be_normalized() -> None:
    """An operation without a rule is none on the way from the image."""
    weight = torch.randn(4, 4, 1, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model = tiny.seeded(lambda: Net(lambda y: F.conv2d(y, F.normalize(weight)).relu()))
    assert explain(model, tiny.images(2, 8, 8), "deeplift", TARGET, spec=SPEC).status == ("ok", "ok")


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ig", "guided-ig", "gradient-shap", "deeplift", "rise"])
def test_a_baseline_must_be_an_image(method: str) -> None:
    model = tiny.tiny_cnn()
    with pytest.raises(NotApplicableError, match="baseline 'linear' fills holes and is no image by itself"):
        maps(model, tiny.images(2), f"{method}:baseline=linear")


@pytest.mark.parametrize(
    "method",
    [
        "ig:steps=0",
        "ig:chunk=0",
        "blur-ig:sigma=0",
        "guided-ig:fraction=0",
        "guided-ig:reach=1.5",
        "gradient-shap:samples=0",
        "smoothgrad:noise=0",
        "vargrad:samples=1",
        "deeplift-shap:samples=0",
    ],
)
def test_parameters_out_of_range(method: str) -> None:
    with pytest.raises(ParameterError):
        explainers.parse(method)


def test_unknown_rules_and_baselines() -> None:
    with pytest.raises(ParameterError, match="midpoint, gauss-legendre"):
        IntegratedGradients(rule="simpson")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="Did you mean 'black'"):
        explainers.parse("ig:baseline=blak")
    with pytest.raises(ParameterError, match="steps must be none or at least 1"):
        BlurIG(steps=0)


def test_gradients_of_images_are_images_in_networks_whose_tokens_have_channels_last() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2, 16, 24)
    expected = maps(model, x, "saliency")
    model.spec = dataclasses.replace(model.spec, tokens=TokenGrid(patch=(4, 4), channels_last=True))
    torch.testing.assert_close(maps(model, x, "saliency"), expected)
