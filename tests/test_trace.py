"""What a recorded pass holds, on models small enough to derive by hand."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from xattn.errors import DataError, NotApplicableError, ParameterError, ShapeError, UnknownNameError
from xattn.functional.baselines import baselines
from xattn.running import unwrap
from xattn.spec import ModelSpec, TokenGrid
from xattn.trace import INPUT, record

SPEC = ModelSpec(feature_layer="conv", classifier="fc")


class Small(nn.Module):
    """Convolution, in-place ReLU, mean, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 5)
        self.unused = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 6, 5, generator=torch.Generator().manual_seed(1))


def test_gradient_by_hand(model: Small, x: Tensor) -> None:
    trace = record(model, x, 2, spec=SPEC, layers=("conv", "relu"))
    on = (trace.activation("conv") > 0).float()
    by_relu = model.fc.weight[2].detach().view(1, 4, 1, 1) / 30
    torch.testing.assert_close(trace.gradient("relu"), by_relu.expand(3, 4, 6, 5))
    torch.testing.assert_close(trace.gradient("conv"), by_relu * on)
    assert (trace.forwards, trace.backwards) == (1, 1)


def test_input_gradient(model: Small, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    model(leaf)[:, 1].sum().backward()
    trace = record(model, x, 1, spec=SPEC, layers=(INPUT, "conv"))
    torch.testing.assert_close(trace.gradient(INPUT), leaf.grad)
    torch.testing.assert_close(trace.activation(INPUT), x)


def test_in_place_successor_does_not_change_what_is_kept(model: Small, x: Tensor) -> None:
    trace = record(model, x, spec=SPEC, layers=("conv",))
    torch.testing.assert_close(trace.activation("conv"), model.conv(x))
    assert trace.activation("conv").min() < 0


def test_parameters_keep_no_gradient(model: Small, x: Tensor) -> None:
    record(model, x, spec=SPEC, layers=("conv",)).gradient("conv")
    assert all(p.grad is None for p in model.parameters())


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    model.requires_grad_(False)
    yield
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("where", ["no_grad", "inference_mode", "frozen"])
def test_gradients_do_not_depend_on_surroundings(model: Small, x: Tensor, where: str) -> None:
    expected = record(model, x, spec=SPEC, layers=("conv",)).gradient("conv")
    around = {"no_grad": torch.no_grad(), "inference_mode": torch.inference_mode(), "frozen": _frozen(model)}[where]
    with around:
        inside = x.clone()
        torch.testing.assert_close(record(model, inside, spec=SPEC, layers=("conv",)).gradient("conv"), expected)


def test_bf16_model_gives_float32(model: Small, x: Tensor) -> None:
    expected = record(model, x, 0, spec=SPEC, layers=("conv",))
    trace = record(model.bfloat16(), x, 0, spec=SPEC, layers=("conv",))
    assert trace.activation("conv").dtype == trace.gradient("conv").dtype == trace.logits.dtype == torch.float32
    torch.testing.assert_close(trace.logits, expected.logits, atol=2e-2, rtol=2e-2)


def test_autocast(model: Small, x: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        trace = record(model, x, 0, spec=SPEC, layers=("conv",))
    assert trace.activation("conv").dtype == torch.float32
    assert trace.gradient("conv").abs().sum() > 0


def test_float64_stays(model: Small, x: Tensor) -> None:
    trace = record(model.double(), x.double(), spec=SPEC, layers=("conv",))
    assert trace.gradient("conv").dtype == torch.float64


def test_compiled_models_are_unwrapped(model: Small, x: Tensor) -> None:
    assert unwrap(torch.compile(model, backend="eager")) is model
    expected = record(model, x, spec=SPEC, layers=("conv",)).gradient("conv")
    model.compile(backend="eager")
    model(x)
    torch.testing.assert_close(record(model, x, spec=SPEC, layers=("conv",)).gradient("conv"), expected)
    assert model._compiled_call_impl is not None


def test_data_parallel_is_refused(model: Small, x: Tensor) -> None:
    with pytest.raises(NotApplicableError, match=r"pass model\.module"):
        record(nn.DataParallel(model), x, spec=SPEC)


class Pair(NamedTuple):
    maps: Tensor
    other: int


class Odd(nn.Module):
    """A layer that gives a named tuple, one that runs twice, one that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = type("GivesPair", (nn.Module,), {"forward": lambda self, x: Pair(x * 2, 7)})()
        self.twice = nn.ReLU()
        self.lost = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        maps, other = self.pair(x)
        self.lost(x)
        return self.twice(self.twice(maps)).mean((2, 3)), other


def test_odd_layers(x: Tensor) -> None:
    model = Odd()
    torch.testing.assert_close(record(model, x, spec=SPEC, layers=("pair",)).activation("pair"), x * 2)
    with pytest.raises(NotApplicableError, match="'twice' runs more than once"):
        record(model, x, spec=SPEC, layers=("twice",))
    with pytest.raises(NotApplicableError, match="does not depend on layer 'lost'"):
        record(model, x, spec=SPEC, layers=("pair", "lost")).gradient("lost")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": ("conf",)}, UnknownNameError, "Did you mean 'conv'"),
        ({"layers": ("unused",)}, NotApplicableError, "'unused' did not run"),
        ({"target": torch.tensor([0, 1])}, ShapeError, r"\(2,\) does not fit 3 images"),
        ({"target": 5}, ParameterError, "class 5 does not exist; the model has classes 0 to 4"),
        ({"target": torch.tensor([0.5, 1, 2])}, ParameterError, "expected class indices"),
        ({"score": "logits"}, UnknownNameError, "Did you mean 'logit'"),
        ({"seeds": [1, 2]}, ShapeError, "2 do not fit 3 images"),
    ],
)
def test_faults_are_told(model: Small, x: Tensor, change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        record(model, x, **{"spec": SPEC, **change})
    assert not any(m._forward_hooks for m in model.modules())


def test_bad_images_are_told(model: Small, x: Tensor) -> None:
    x[1, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="image 1 has values that are NaN"):
        record(model, x, spec=SPEC)
    for wrong in (x[0], x[:0], x[:, :, :0], x.to_sparse()):
        with pytest.raises(ShapeError, match="expected float images"):
            record(model, wrong, spec=SPEC)


def test_an_exception_leaves_nothing_behind(model: Small, x: Tensor) -> None:
    model.train()
    model.fc.eval()
    model.relu.forward = lambda x: (_ for _ in ()).throw(RuntimeError("broken"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="broken"):
        record(model, x, spec=SPEC, layers=("conv",))
    assert model.training
    assert not model.fc.training
    assert torch.is_grad_enabled()
    assert not any(m._forward_hooks for m in model.modules())


def test_gradient_needs_a_graph(model: Small, x: Tensor) -> None:
    trace = record(model, x, spec=SPEC, layers=("conv",), grad=False)
    with pytest.raises(NotApplicableError, match="record it with grad=True"):
        trace.gradient("conv")
    with pytest.raises(UnknownNameError, match="unknown recorded layer 'relu'"):
        trace.activation("relu")


def test_again_counts_and_repeats(model: Small, x: Tensor) -> None:
    trace = record(model, x, spec=SPEC, layers=("conv",))
    again = trace.again(layers=(INPUT,))
    assert again.target.equal(trace.target)
    again.gradient(INPUT)
    assert (trace.forwards, trace.backwards) == (2, 1)
    torch.testing.assert_close(trace.score(x, trace.target), trace.logits.gather(1, trace.target[:, None])[:, 0])
    assert trace.forwards == 3


def test_again_changes_what_is_said_and_keeps_the_rest(model: Small, x: Tensor) -> None:
    trace = record(model, x, [0, 1, 2], spec=SPEC, scoring=model)
    rows = torch.tensor([2, 0])
    again = trace.again(x[rows] + 1, rows=rows, grad=False)
    assert again.target.tolist() == [2, 0]
    assert [again.seed(i) for i in range(2)] == [trace.seed(2), trace.seed(0)]
    assert again.scoring is trace.scoring
    assert trace.again(model=Small(), grad=False).scoring is None
    deeper = again.again(grad=False)
    assert [deeper.seed(i) for i in range(2)] == [trace.seed(2), trace.seed(0)]
    assert (trace.forwards, again.forwards) == (4, 2)


def test_once_is_made_once_and_goes_with_the_trace(model: Small, x: Tensor) -> None:
    trace = record(model, x, spec=SPEC, grad=False)
    made = [trace.once("key", lambda: torch.rand(2)) for _ in range(2)]
    assert made[0] is made[1]
    trace.replacement(baselines.parse("noise"))
    gone = weakref.ref(trace)
    del trace
    assert gone() is None  # no circle keeps it


def test_random_numbers_belong_to_image_and_method(model: Small, x: Tensor) -> None:
    def draw(trace_x: Tensor, i: int, method: str, seeds: list[int] | None = None) -> float:
        return torch.rand(1, generator=record(model, trace_x, spec=SPEC, seeds=seeds).generator(i, method)).item()

    assert draw(x, 2, "random") == draw(x[2:], 0, "random")
    assert draw(x, 2, "random") != draw(x, 1, "random")
    assert draw(x, 2, "random") != draw(x, 2, "other")
    assert draw(x, 0, "random", [4, 5, 6]) == draw(x, 1, "random", [7, 4, 6])


def test_tokens_become_a_grid() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x[:, :, ::2, ::2].flatten(2).transpose(1, 2)
            prefix = torch.zeros(len(x), 2, 3)
            return self.norm(torch.cat([prefix, tokens], 1))[:, 5]

    x = torch.randn(2, 3, 6, 8)
    spec = ModelSpec(feature_layer="norm", tokens=TokenGrid(patch=(2, 2), prefix=2))
    trace = record(Tokens(), x, 1, spec=spec, layers=("norm",))
    expected = nn.LayerNorm(3)(x[:, :, ::2, ::2].permute(0, 2, 3, 1)).permute(0, 3, 1, 2).detach()
    torch.testing.assert_close(trace.activation("norm"), expected)
    moved = trace.gradient("norm").abs().sum((0, 1)).nonzero().tolist()
    assert moved == [[0, 3]]  # token 5 less two of the prefix: row 0, column 3
