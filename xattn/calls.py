"""The calls of torch functions that a forward pass makes: what is called, of which kind, with what, in place or not.

Methods that treat operations differently stand on it, as tables from names or kinds of operations to rules. Calls are
seen and not modules, so functional, reused and in-place layers and sums of any spelling are too, and no module is
touched.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum, auto
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xattn.errors import NotApplicableError

Rule = TypeVar("Rule")
T = TypeVar("T")


class Kind(Enum):
    """What an operation does, as far as any rule tells operations apart."""

    LINEAR = auto()
    CONV = auto()
    BATCH_NORM = auto()
    NORM = auto()
    """Normalization by statistics of the image itself."""
    POOL = auto()
    """Sums and means over places."""
    MAX_POOL = auto()
    MATMUL = auto()
    SUM = auto()
    PRODUCT = auto()
    QUOTIENT = auto()
    NEGATION = auto()
    RECTIFIER = auto()
    CLIP = auto()
    ACTIVATION = auto()
    """A function of each value by itself that keeps zero."""
    CURVE = auto()
    """Any other function of each value by itself."""
    GATE = auto()
    SOFTMAX = auto()
    ATTENTION = auto()
    EXTREME = auto()
    MIXTURE = auto()
    """Any other function of several values that is not linear."""
    MOVE = auto()
    """Values are moved, chosen or left as they are."""
    JOIN = auto()
    FILL = auto()
    """Some values become a constant."""
    OTHER = auto()
    """Not in the table: a question about a tensor (its size), or an operation that no rule knows."""


_NAMES: dict[Kind, str] = {
    Kind.LINEAR: "linear",
    Kind.CONV: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    Kind.BATCH_NORM: "batch_norm",
    Kind.NORM: "layer_norm rms_norm group_norm instance_norm local_response_norm normalize",
    Kind.POOL: "mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "interpolate upsample fold",
    Kind.MAX_POOL: "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    Kind.MATMUL: "matmul rmatmul bmm mm einsum",
    Kind.SUM: "add radd sub subtract rsub",
    Kind.PRODUCT: "mul multiply rmul",
    Kind.QUOTIENT: "div divide true_divide truediv rdiv rtruediv",
    Kind.NEGATION: "neg negative",
    Kind.RECTIFIER: "relu relu6",
    Kind.CLIP: "clamp clip clamp_min clamp_max hardtanh threshold",
    Kind.ACTIVATION: "leaky_relu prelu rrelu elu celu selu gelu silu mish hardswish tanh softsign tanhshrink "
    "hardshrink softshrink",
    Kind.CURVE: "softplus logsigmoid erf exp log sqrt rsqrt reciprocal square pow rpow abs sin cos",
    Kind.GATE: "sigmoid hardsigmoid",
    Kind.SOFTMAX: "softmax",
    Kind.ATTENTION: "scaled_dot_product_attention multi_head_attention_forward",
    Kind.EXTREME: "max min maximum minimum amax amin topk sort",
    Kind.MIXTURE: "addcdiv addcmul baddbmm bilinear cosine_similarity cumprod glu log_softmax logsumexp norm prod std "
    "var",
    Kind.MOVE: "view reshape flatten unflatten ravel permute transpose t adjoint movedim moveaxis swapaxes swapdims "
    "squeeze unsqueeze expand expand_as view_as reshape_as broadcast_to contiguous clone alias to float double type "
    "type_as requires_grad split split_with_sizes chunk tensor_split unbind narrow select index_select gather getitem "
    "get roll flip repeat tile repeat_interleave dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout "
    "feature_alpha_dropout pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle unfold",
    Kind.JOIN: "cat concat concatenate stack hstack vstack",
    Kind.FILL: "pad masked_fill",
}
KINDS: dict[str, Kind] = {name: kind for kind, names in _NAMES.items() for name in names.split()}
"""Kind of each operation by its canonical name."""

# Names of the leading parameters of operations, where a rule reads more of them than the first.
_PARAMETERS: dict[str, str] = {
    **dict.fromkeys(("linear", *_NAMES[Kind.CONV].split()), "input weight bias"),
    **dict.fromkeys(("relu", "relu6", "silu", "mish", "selu", "hardswish", "hardsigmoid"), "input inplace"),
    **dict.fromkeys(("elu", "celu"), "input alpha inplace"),
    **dict.fromkeys(("clamp", "clip"), "input min max"),
    "batch_norm": "input running_mean running_var weight bias training momentum eps",
    "layer_norm": "input normalized_shape weight bias eps",
    "leaky_relu": "input negative_slope inplace",
    "rrelu": "input lower upper training inplace",
    "hardtanh": "input min_val max_val inplace",
    "threshold": "input threshold value inplace",
    "clamp_min": "input min",
    "clamp_max": "input max",
    "softmax": "input dim",
    "pad": "input pad mode value",
    "masked_fill": "input mask value",
}
_IN_PLACE_OPERATORS = frozenset(f"__i{name}__" for name in ("add", "sub", "mul", "div", "truediv", "pow", "matmul"))
_REFLECTED = frozenset({"radd", "rsub", "rmul", "rdiv", "rtruediv", "rmatmul", "rpow"})


@functools.cache
def canonical(name: str) -> tuple[str, bool]:
    """The name of an operation without the marks of operators, methods and in-place versions, and if it is in place.

    >>> canonical("__iadd__"), canonical("relu_"), canonical("__rsub__"), canonical("conv2d")
    (('add', True), ('relu', True), ('rsub', False), ('conv2d', False))
    """
    if name in _IN_PLACE_OPERATORS:
        return name[3:-2], True
    if name.startswith("_"):
        return name.strip("_"), False
    return name.rstrip("_"), name.endswith("_")


class Call:
    """One call of a torch function, not run yet.

    Attributes:
        function: what is called.
        args: by position; an `input` given by keyword is the first.
        kwargs: by keyword.
        name: canonical, the same for all spellings.
        kind: of the operation.
    """

    __slots__ = ("_in_place", "args", "function", "kind", "kwargs", "name")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args and next(iter(kwargs), None) == "input":
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"),)
        self.function, self.args, self.kwargs = function, args, kwargs
        self.name, self._in_place = canonical(getattr(function, "__name__", type(function).__name__))
        self.kind = KINDS.get(self.name, Kind.OTHER)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name, as far as a rule reads them."""
        return dict(zip(_PARAMETERS.get(self.name, "input").split(), self.args, strict=False)) | self.kwargs

    @property
    def in_place(self) -> bool:
        """Whether it writes into its first argument."""
        return self._in_place or bool(self.arguments.get("inplace"))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, also in lists."""
        return list(tensors_in((self.args, self.kwargs)))

    @property
    def reflected(self) -> bool:
        """Whether the second argument stands on the left of the operator."""
        return self.name in _REFLECTED

    @property
    def pair(self) -> tuple[Any, Any]:
        """Left and right side of a sum, a product or a quotient."""
        a, b = self.args[0], self.args[1] if len(self.args) > 1 else self.kwargs["other"]
        return (b, a) if self.reflected else (a, b)

    def run(self, *first: Any) -> Any:
        """What it gives, with other first arguments where there are any."""
        return self.function(*first, *self.args[len(first) :], **self.kwargs)

    def value(self) -> Any:
        """What it gives, without a graph; nothing is written in place."""
        with torch.no_grad():
            return self.run(self.args[0].clone()) if self.in_place else self.run()

    def constant(self) -> Any:
        """What it gives where nothing that it reads is followed: without a graph and what marks tensors of one."""
        with torch.no_grad():
            return _unmarked(self.run())

    def finish(self, result: Any) -> Any:
        """The result, written into the first argument where the call works in place."""
        written = self.in_place and isinstance(result, Tensor) and result is not self.args[0]
        return self.args[0].copy_(result) if written else result

    def rule(self, rules: Mapping[str | Kind, Rule]) -> Rule | None:
        """What a table says of its name, or else of its kind."""
        rule = rules.get(self.name)
        return rules.get(self.kind) if rule is None else rule


class Refusal(Exception):  # noqa: N818 (it becomes an error outside of the model)
    """No rule fits a call. Not a TypeError, which Python's operators would take for an operand that does not fit."""


class Calls(TorchFunctionMode):
    """While it is entered, each call of a torch function goes through `handle`.

    A `Refusal` leaves it as `NotApplicableError`.

    Attributes:
        active: set it to False to let calls pass.
    """

    active = True

    def handle(self, call: Call) -> Any:
        """What the model gets from a call; the functions that it calls itself are not seen."""
        raise NotImplementedError

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        return self.handle(Call(func, args, kwargs)) if self.active else func(*args, **kwargs)

    def __exit__(self, kind: Any = None, error: Any = None, *rest: Any) -> None:
        super().__exit__(kind, error, *rest)
        if isinstance(error, Refusal):
            raise NotApplicableError(str(error)) from None


class Notes(Generic[T]):
    """What is known of tensors, by identity; a note is void once its tensor is gone."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[Tensor], T]] = {}

    def __setitem__(self, tensor: Tensor, note: T) -> None:
        self._kept[id(tensor)] = weakref.ref(tensor), note

    def get(self, tensor: Tensor) -> T | None:
        """The note of a tensor, None where there is none."""
        ref, note = self._kept.get(id(tensor), (None, None))
        return note if ref is not None and ref() is tensor else None

    def pop(self, tensor: Tensor) -> None:
        """Forget the note of a tensor."""
        self._kept.pop(id(tensor), None)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


class Ruled(torch.autograd.Function):
    """A value whose gradient is made by a rule.

    `Ruled.apply(value, rule, *inputs)`: `value` makes it, the rule takes the inputs and the gradient of the value and
    gives those of the inputs; without a rule the gradient of the value is that of the only input.
    """

    @staticmethod
    def forward(ctx: Any, value: Callable[[], Tensor], rule: Callable[..., Any] | None, *inputs: Tensor) -> Tensor:
        """The value."""
        ctx.rule = rule
        if rule is not None:
            ctx.save_for_backward(*inputs)
        return value()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """What the rule makes of the gradient of the value."""
        given = gradients if ctx.rule is None else ctx.rule(*ctx.saved_tensors, gradients[0])
        return None, None, *given


def refuse_scripts(model: nn.Module, method: str, instead: str) -> None:
    """Check that all parts of a model are Python, whose calls can be seen.

    Raises:
        NotApplicableError: naming the part that is TorchScript.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotApplicableError(
                f"{method}: layer '{name}' of {type(model).__name__} is TorchScript, whose calls cannot be seen; "
                f"pass the Python module it was made from, or use {instead}."
            )


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors in lists, tuples and dictionaries."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(tuple(values.values()))


def tracked(value: object) -> bool:
    """Whether it is a tensor that autograd follows back to the image: parameters are not."""
    return isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter)


def _unmarked(result: Any) -> Any:
    """Without the `requires_grad` that a view of a parameter has even under `no_grad`."""
    if isinstance(result, Tensor):
        return result.detach() if tracked(result) else result
    return tuple(map(_unmarked, result)) if type(result) in (tuple, list) else result


def bounds(call: Call) -> tuple[float | None, float | None] | None:
    """Least and largest value that a rectifier or clip lets pass; None where it is none, or they are no numbers."""
    given = call.arguments
    if call.kind is Kind.RECTIFIER:
        return 0, 6 if call.name == "relu6" else None
    if call.name == "threshold":
        return (0, None) if given["threshold"] == given["value"] == 0 else None
    ends = ("min_val", -1), ("max_val", 1)
    low, high = (
        (given.get(key, usual) for key, usual in ends)
        if call.name == "hardtanh"
        else (given.get("min"), given.get("max"))
    )
    low, high = (
        float(end) if isinstance(end, Tensor) and end.ndim == 0 and not tracked(end) else end for end in (low, high)
    )
    numbers = all(end is None or isinstance(end, (int, float)) for end in (low, high))
    return (low, high) if numbers else None
