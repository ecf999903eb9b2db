"""The calls of a forward pass: one name for all spellings, kinds, what is in place, what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn.calls import _NAMES, KINDS, Call, Calls, Kind, Notes, Refusal, Ruled, bounds, refuse_scripts, tracked
from xattn.errors import NotApplicableError


class Seen(Calls):
    """Keeps what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Kind, bool]] = []

    def handle(self, call: Call) -> Any:
        self.calls.append((call.name, call.kind, call.in_place))
        return call.run()


def raised(x: Tensor) -> Tensor:
    x **= 2
    return x


def added(x: Tensor) -> Tensor:
    x += 1
    return x


SPELLINGS: list[tuple[Callable[[Tensor], Any], str, Kind, bool]] = [
    (F.relu, "relu", Kind.RECTIFIER, False),
    (torch.relu, "relu", Kind.RECTIFIER, False),
    (lambda x: x.relu(), "relu", Kind.RECTIFIER, False),
    (torch.relu_, "relu", Kind.RECTIFIER, True),
    (lambda x: F.relu(x, True), "relu", Kind.RECTIFIER, True),
    (lambda x: F.relu(input=x, inplace=True), "relu", Kind.RECTIFIER, True),
    (lambda x: F.relu6(x, True), "relu6", Kind.RECTIFIER, True),
    (nn.ReLU(), "relu", Kind.RECTIFIER, False),
    (nn.LeakyReLU(0.1, inplace=True), "leaky_relu", Kind.ACTIVATION, True),
    (lambda x: F.leaky_relu(x, 0.1, True), "leaky_relu", Kind.ACTIVATION, True),
    (lambda x: F.threshold(x, 0, 0, True), "threshold", Kind.CLIP, True),
    (lambda x: F.hardtanh(x, -1, 1, False), "hardtanh", Kind.CLIP, False),
    (lambda x: x.clamp_(0), "clamp", Kind.CLIP, True),
    (lambda x: x + 1, "add", Kind.SUM, False),
    (lambda x: torch.add(x, 1), "add", Kind.SUM, False),
    (added, "add", Kind.SUM, True),
    (lambda x: x.add_(1), "add", Kind.SUM, True),
    (lambda x: x.__iadd__(1), "add", Kind.SUM, True),
    (lambda x: 1 - x, "rsub", Kind.SUM, False),
    (lambda x: torch.rsub(x, 1), "rsub", Kind.SUM, False),
    (lambda x: x @ x, "matmul", Kind.MATMUL, False),
    (lambda x: x.__rmatmul__(x), "rmatmul", Kind.MATMUL, False),
    (raised, "pow", Kind.CURVE, True),
    (lambda x: -x, "neg", Kind.NEGATION, False),
    (lambda x: x[0], "getitem", Kind.MOVE, False),
    (lambda x: x.mT, "get", Kind.MOVE, False),
    (lambda x: ~(x > 0), "invert", Kind.OTHER, False),
    (lambda x: x.int(), "int", Kind.OTHER, False),
    (lambda x: F.max_pool2d(x, 2), "max_pool2d", Kind.MAX_POOL, False),
    (nn.Dropout(inplace=True).eval(), "dropout", Kind.MOVE, True),
]


@pytest.mark.parametrize(("act", "name", "kind", "in_place"), SPELLINGS)
def test_one_name_for_all_spellings(act: Callable[[Tensor], Any], name: str, kind: Kind, in_place: bool) -> None:
    with Seen() as seen:
        act(torch.rand(1, 4, 4))
    assert seen.calls[-1] == (name, kind, in_place)


def test_each_operation_has_one_kind() -> None:
    names = [name for listed in _NAMES.values() for name in listed.split()]
    assert len(names) == len(set(names)) == len(KINDS)
    assert set(_NAMES) == set(Kind) - {Kind.OTHER}


def test_sides_of_an_operator() -> None:
    pairs = []

    class Pairs(Calls):
        def handle(self, call: Call) -> Any:
            pairs.append(call.pair)
            return call.run()

    x = torch.rand(2)
    with Pairs():
        _ = x - 1, 1 - x, 2 / x, torch.sub(x, other=3)
    assert [tuple("x" if side is x else side for side in pair) for pair in pairs] == [
        ("x", 1), (1, "x"), (2, "x"), ("x", 3),
    ]  # fmt: skip


class InPlace(Calls):
    """Each value is made without a graph, doubled, and written where the call writes."""

    def handle(self, call: Call) -> Any:
        return call.finish(2 * call.value())


def test_a_value_changes_nothing_and_is_written_where_the_call_writes() -> None:
    x = torch.tensor([-1.0, 3.0])
    with InPlace():
        y = F.relu(x)
        z = F.relu(x, inplace=True)
    assert y.tolist() == [0, 6]
    assert z is x
    assert x.tolist() == [0, 6]


def test_inactive_and_nested_calls_are_not_seen() -> None:
    with Seen() as seen:
        F.multi_head_attention_forward(*_attention())
        seen.active = False
        torch.relu(torch.zeros(1))
    assert [name for name, *_ in seen.calls if KINDS.get(name) in (Kind.ATTENTION, Kind.RECTIFIER, Kind.LINEAR)] == [
        "multi_head_attention_forward"
    ]


def _attention() -> tuple[Any, ...]:
    x = torch.rand(3, 1, 4)
    return (x, x, x, 4, 2, torch.rand(12, 4), None, None, None, False, 0.0, torch.rand(4, 4), None)


class Refusing(Calls):
    def handle(self, call: Call) -> Any:
        raise Refusal(f"no rule for {call.name}")


@pytest.mark.parametrize("act", [lambda x: x + x, lambda x: 2 * x, lambda x: x / x, torch.relu, lambda x: x @ x])
def test_a_refusal_comes_out_of_operators_too(act: Callable[[Tensor], Any]) -> None:
    """Python would take a TypeError of `+` for an operand that does not fit, and try the other one."""
    with pytest.raises(NotApplicableError, match="no rule for"), Refusing():
        act(torch.ones(1, 1))


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), Seen():
        torch.rand(2, 3) @ torch.rand(2, 3)


def test_constants_are_not_tracked() -> None:
    """A chunk of a parameter would require a gradient even without a graph."""

    class Constant(Calls):
        def handle(self, call: Call) -> Any:
            return call.constant()

    parameter = nn.Parameter(torch.rand(4, 2))
    with Constant():
        parts = parameter.chunk(2)
    assert not any(map(tracked, parts))
    assert not tracked(parameter)
    assert tracked(parameter * 1)


def test_a_rule_makes_the_gradient() -> None:
    a, b = (torch.rand(3, requires_grad=True) for _ in range(2))
    y = Ruled.apply(lambda: a.detach() * b.detach(), lambda a, b, above: (above + a, above - b), a, b)
    torch.testing.assert_close(y, a * b)
    found = torch.autograd.grad(y.sum(), (a, b))
    torch.testing.assert_close(found, (1 + a.detach(), 1 - b.detach()))
    same = Ruled.apply(lambda: a.detach() ** 2, None, a)
    same.mul_(3)  # in place behind it
    assert torch.autograd.grad(same.sum(), a)[0].tolist() == [3, 3, 3]


def test_notes_go_with_their_tensors() -> None:
    notes: Notes[str] = Notes()
    a, b = torch.zeros(1), torch.zeros(1)
    notes[a] = "a"
    assert (notes.get(a), notes.get(b)) == ("a", None)
    address = id(a)
    del a
    reused = next((t for t in (torch.zeros(1) for _ in range(1000)) if id(t) == address), None)
    assert reused is None or notes.get(reused) is None
    notes[b] = "b"
    notes.pop(b)
    assert notes.get(b) is None


def test_a_name_comes_before_its_kind() -> None:
    relu, clamp = (Call(function, (torch.zeros(1),), {}) for function in (torch.relu, torch.clamp))
    rules: dict[str | Kind, str] = {"relu": "a", Kind.RECTIFIER: "b", Kind.CLIP: "c"}
    assert (relu.rule(rules), clamp.rule(rules)) == ("a", "c")
    assert Call(torch.sin, (torch.zeros(1),), {}).rule(rules) is None


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "expected"),
    [
        (F.relu, (), {}, (0, None)),
        (F.relu6, (), {}, (0, 6)),
        (F.hardtanh, (), {}, (-1, 1)),
        (F.hardtanh, (0,), {"max_val": 3}, (0, 3)),
        (torch.clamp, (0.5,), {}, (0.5, None)),
        (torch.clamp, (), {"max": 2}, (None, 2)),
        (torch.clamp_min, (1,), {}, (1, None)),
        (torch.clamp_max, (1,), {}, (None, 1)),
        (torch.clamp, (torch.zeros(1),), {}, None),
        (torch.clamp, (torch.tensor(-torch.inf), torch.tensor(2.0)), {}, (-torch.inf, 2)),
        (F.threshold, (0, 0), {}, (0, None)),
        (F.threshold, (0.5, 0.5), {}, None),
    ],
)
def test_bounds_of_clips(function: Any, args: Any, kwargs: Any, expected: Any) -> None:
    assert bounds(Call(function, (torch.zeros(1), *args), kwargs)) == expected


def test_scripts_are_refused_by_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(nn.ReLU(), torch.zeros(1))
    model = nn.Sequential(nn.ReLU(), nn.Sequential(script))
    with pytest.raises(NotApplicableError, match=r"a: layer '1\.0' of Sequential is TorchScript.* or use b\."):
        refuse_scripts(model, "a", "b")
    refuse_scripts(model[0], "a", "b")
