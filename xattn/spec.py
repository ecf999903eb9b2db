"""Facts about a model that explaining needs: which layer holds the features, what an input looks like."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

from torch import Tensor

from xattn import schema
from xattn.errors import DataError, ParameterError, SpecError, UnknownNameError, XattnError, nearest
from xattn.schema import Length, Range

# Limits of what a file may say about a model: far above what is in use, far below what exhausts the memory.
LARGEST_SIDE = 1024  # pixels of an input; the largest networks of timm
MOST_CLASSES = 1_000_000
_LARGEST_MEAN = 5  # of pixels in [0, 1]; those of pixels up to 255 are larger
_Name = Annotated[str, Length(0, 1000)]
_Pixels = Annotated[int, Range(1, LARGEST_SIDE)]


@dataclass(frozen=True, kw_only=True)
class TokenGrid:
    """How the tokens of a layer lie on the image.

    Args:
        patch: pixels (height, width) that one token covers.
        prefix: tokens before the grid (class token, distillation token, registers).
        suffix: tokens behind the grid.
        channels_last: the layer gives (N, h, w, C), as Swin does, instead of (N, T, C).
        class_tokens: how many of the prefix the classifier reads, from the first on; with 0 it reads the grid. None is
            one where there is a prefix.
        blocks: sides of the square blocks in whose order the tokens come, the largest first, where they do not come
            row by row: `(7,)` is window by window, each of 7 x 7 tokens.
    """

    patch: tuple[_Pixels, _Pixels]
    prefix: Annotated[int, Range(0, 1000)] = 0
    suffix: Annotated[int, Range(0, 1000)] = 0
    channels_last: bool = False
    class_tokens: int | None = None
    blocks: Annotated[tuple[Annotated[int, Range(2, 1000)], ...], Length(0, 20)] = ()

    def __post_init__(self) -> None:
        if self.class_tokens is None:
            object.__setattr__(self, "class_tokens", min(self.prefix, 1))
        elif not 0 <= self.class_tokens <= self.prefix:
            raise SpecError(
                f"TokenGrid: {self.class_tokens} class tokens are not among {self.prefix} prefix tokens; correct one."
            )

    def folds(self, tensor: Tensor) -> bool:
        """Whether a tensor of this many dimensions has tokens to be folded."""
        return tensor.ndim == 3 or (tensor.ndim == 4 and (self.channels_last or bool(self.blocks)))

    def fold(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (N, T, C), (N, h, w, C) or (N, blocks, T, C) of an image of `size` pixels as a map (N, C, h, w).

        Raises:
            SpecError: if the tokens do not make a grid.
        """
        if tokens.ndim == 4 and not self.blocks:
            return tokens.permute(0, 3, 1, 2) if self.channels_last else tokens
        if tokens.ndim == 4:
            tokens = tokens.flatten(1, 2)
        body = tokens[:, self.prefix : tokens.shape[1] - self.suffix]
        h, w = self.cells(body.shape[1], size)
        return in_rows(body, (h, w), self.blocks).permute(0, 3, 1, 2)

    def cells(self, count: int, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of `count` tokens of an image of `size` pixels.

        A stem without padding gives a row less than the patches would.

        Raises:
            SpecError: if no grid of nearly that shape has so many cells.
        """
        rows, columns = size[0] // self.patch[0], size[1] // self.patch[1]
        for more in (0, -1, 1, -2, 2):
            h = rows + more
            if h > 0 and count % h == 0 and abs(count // h - columns) <= 2:
                return h, count // h
        raise SpecError(
            f"TokenGrid: {count} tokens do not make {self.prefix} prefix tokens and a grid of {rows}x{columns}; "
            "check `patch` and `prefix`."
        )

    def read(self, matrix: Tensor, size: tuple[int, int]) -> Tensor:
        """What the tokens that the classifier reads take from each cell: (N, T, T), rows from columns, as (N, 1, h, w).

        That is the row of the class token, or the mean of the rows where several tokens are read.
        """
        read = slice(0, self.class_tokens) if self.class_tokens else slice(self.prefix, matrix.shape[1] - self.suffix)
        return self.fold(matrix[:, read].mean(dim=1)[:, :, None], size)


def in_rows(tokens: Tensor, grid: tuple[int, int], blocks: tuple[int, ...]) -> Tensor:
    """Tokens (N, h * w, C) that come block by block as (N, h, w, C), row by row.

    >>> import torch
    >>> in_rows(torch.arange(16)[None, :, None], (4, 4), (2,))[0, :, :, 0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """
    if not blocks:
        return tokens.unflatten(1, grid)
    side = blocks[0]
    rows, columns = grid[0] // side, grid[1] // side
    inner = tokens.unflatten(1, (rows * columns, side * side))
    inner = in_rows(inner.flatten(0, 1), (side, side), blocks[1:]).unflatten(0, (len(tokens), rows, columns))
    return inner.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


GIVEN, PROVED, ASSUMED, CONTRADICTED = "given", "proved", "assumed", "contradicted"


@dataclass(frozen=True)
class Evidence:
    """How a fact about a model was found.

    Args:
        how: `given` by the person or the model itself, `proved` by an experiment, `assumed`, or `contradicted` by one.
        why: what was seen, in words.
    """

    how: _Name
    why: _Name = ""

    def __str__(self) -> str:
        return self.how + (f" ({self.why})" if self.why else "")


def sides_of(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of an input, or one side of a square, checked."""
    sides: tuple[int, int] = schema.check(
        (size, size) if isinstance(size, int) else size, tuple[_Pixels, _Pixels], "size", ParameterError
    )
    return sides


BY_FUNCTION = Evidence(GIVEN, "by a function, which is passed along as output=")
"""Of an output that a function names: facts alone do not hold it."""


@dataclass(frozen=True)
class Ran:
    """How a layer ran when it was proved.

    Args:
        calls: how often, in one pass.
        shape: of its output for one image.
        size: height and width of the image.
    """

    calls: Annotated[int, Range(0, 1_000_000)]
    shape: Annotated[tuple[Annotated[int, Range(0, 1_000_000_000)], ...], Length(0, 10)]
    size: tuple[Annotated[int, Range(1, 1_000_000)], Annotated[int, Range(1, 1_000_000)]]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What xattn knows about a model. Facts only; nothing here refers to a live module.

    Args:
        feature_layer: name of the last layer with a spatial output; empty where there is none, or it is to be found.
        classifier: name of the linear layer (or 1x1 convolution) that gives the logits.
        attention_layer: name of the submodule that returns attention maps (N, P, h, w), if the model has one.
        attention: kind of these maps, `"bcnn"` or `"brnpa"`.
        probability_layers: names of the modules that mix tokens by attention probabilities (N, heads, T, T), in order;
            a recorded pass has these as `NAME:probabilities`.
        tokens: how tokens lie on the image; None for convolutional networks.
        input_size: height and width that the model was made for, in pixels.
        mean: per channel, of images scaled to [0, 1]; None if unknown.
        std: per channel; None if unknown.
        classes: names of the classes in order; empty if unknown.
        crop: share of the shorter side that the evaluation crop keeps.
        interpolation: how images are resized, `"bilinear"` or `"bicubic"`.
        fit: how an image of another shape becomes an input: its middle is cut out (`"crop"`), or it is resized
            without its aspect ratio before that (`"squash"`), as image processors of Hugging Face do for transformers.
        name: name of the model for tables and files.
        channels: of the input; None if unknown.
        output: keys and indices that lead to the class scores in what the model returns.
        values: what these are: `"logits"`, `"probabilities"` or `"log-probabilities"`.
        layouts: how the tokens of other layers than `feature_layer` lie, by name.
        evidence: how each of these facts was found, by its name.
        ran: how the layers ran when they were proved, by name.
    """

    feature_layer: _Name = ""
    classifier: _Name | None = None
    attention_layer: _Name | None = None
    attention: _Name | None = None
    probability_layers: Annotated[tuple[_Name, ...], Length(0, 1000)] = ()
    tokens: TokenGrid | None = None
    input_size: tuple[_Pixels, _Pixels] = (224, 224)
    mean: Annotated[tuple[Annotated[float, Range(-1e6, 1e6)], ...], Length(1, 64)] | None = None
    std: Annotated[tuple[Annotated[float, Range(1e-6, 1e6)], ...], Length(1, 64)] | None = None
    classes: Annotated[tuple[_Name, ...], Length(0, MOST_CLASSES)] = ()
    crop: Annotated[float, Range(0.1, 1)] = 0.875
    interpolation: _Name = "bilinear"
    fit: Literal["crop", "squash"] = "crop"
    name: _Name = ""
    channels: Annotated[int, Range(1, 4096)] | None = None
    output: Annotated[tuple[Annotated[str, Length(0, 1000)] | int, ...], Length(0, 20)] = ()
    values: Literal["logits", "probabilities", "log-probabilities"] = "logits"
    layouts: dict[_Name, TokenGrid | None] = field(default_factory=dict, compare=False, repr=False)
    evidence: dict[_Name, Evidence] = field(default_factory=dict, compare=False, repr=False)
    ran: dict[_Name, Ran] = field(default_factory=dict, compare=False, repr=False)

    def layout(self, layer: str) -> TokenGrid | None:
        """How the tokens of a layer lie; None for a feature map (N, C, h, w)."""
        return self.layouts.get(layer, self.tokens)

    def given(
        self,
        *,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        classes: Sequence[str] | Mapping[int, str] | None = None,
        size: int | Sequence[int] | None = None,
    ) -> ModelSpec:
        """The same facts but for those that a person gives.

        Args:
            mean: of images scaled to [0, 1], per channel or one for all.
            std: likewise.
            classes: names in order, or by index.
            size: height and width of the input, or one side of a square.

        Raises:
            ParameterError: if mean and std do not go together, or a value cannot be what it should.

        >>> ModelSpec(feature_layer="", channels=3).given(mean=0.5, std=0.25, size=64).mean
        (0.5, 0.5, 0.5)
        """
        changes: dict[str, Any] = {}
        if (mean is None) != (std is None):
            raise ParameterError("mean and std go together; pass both.")
        if mean is not None and std is not None:
            given = [len(v) for v in (mean, std) if isinstance(v, Sequence)]
            count = self.channels or max(given, default=len(self.mean or (0, 0, 0)))
            for name, value in (("mean", mean), ("std", std)):
                values = [value] * count if isinstance(value, (int, float)) else value
                hint = get_type_hints(ModelSpec, include_extras=True)[name]
                changes[name] = schema.check(values, hint, name, ParameterError)
                if len(changes[name]) != count:
                    raise ParameterError(f"{name} has {len(changes[name])} values; expected {count}, one a channel.")
                if max(map(abs, changes[name])) > _LARGEST_MEAN:
                    raise ParameterError(f"{name} is of images scaled to [0, 1]; divide {list(changes[name])} by 255.")
        if classes is not None:
            if isinstance(classes, Mapping):
                if sorted(classes) != list(range(len(classes))):
                    raise ParameterError(f"classes: expected a name for each index from 0 to {len(classes) - 1}.")
                classes = [classes[i] for i in range(len(classes))]
            changes["classes"] = schema.check(classes, tuple[str, ...], "classes", ParameterError)
        if size is not None:
            changes["input_size"] = sides_of(size)
        if not changes:
            return self
        keys = {"mean": "normalization", "classes": "classes", "input_size": "input_size"}
        evidence = {keys[name]: Evidence(GIVEN) for name in changes if name in keys}
        return dataclasses.replace(self, **changes, evidence=self.evidence | evidence)

    def class_index(self, target: str) -> int:
        """The index of a class given by number or by name ("tabby" finds "tabby, tabby cat").

        Raises:
            UnknownNameError: with the nearest class name.
        """
        if re.fullmatch(r"-?[0-9]{1,300}", target.strip()):
            return int(target)
        wanted = target.strip().lower()
        for match in (lambda c: c == wanted, lambda c: wanted in [w.strip() for w in c.split(",")]):
            for index, name in enumerate(self.classes):
                if match(name.lower()):
                    return index
        if not self.classes:
            raise UnknownNameError(f"class '{target}': the model has no class names; pass the index of the class.")
        guess = nearest(target, [w.strip() for c in self.classes for w in c.split(",")])
        hint = f" Did you mean '{guess}'?" if guess else ""
        raise UnknownNameError(f"unknown class '{target}'.{hint} The model knows {len(self.classes)} classes.")

    def class_name(self, index: int) -> str:
        """The name of a class, or `class 7` where there is none."""
        return self.classes[index] if 0 <= index < len(self.classes) else f"class {index}"

    def to_dict(self) -> dict[str, Any]:
        """As plain values that go into JSON; the layouts of other layers are left out."""
        return dataclasses.asdict(dataclasses.replace(self, layouts={}))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], what: str = "spec", error: type[XattnError] = DataError) -> ModelSpec:
        """The inverse of `to_dict`, also after a round trip through JSON; types and limits are checked.

        Raises:
            XattnError: of the class `error`, naming the fact that does not fit.
        """
        spec = schema.build(cls, values, what, error)
        if spec.mean and spec.std and len(spec.mean) != len(spec.std):
            raise error(f"{what}: mean and std must have the same number of channels but are {spec.mean}, {spec.std}.")
        return spec
