"""Facts about a model that explaining needs: which layer holds the features, what an input looks like."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from xattn import schema
from xattn.errors import DataError, SpecError, UnknownNameError, XattnError, nearest
from xattn.schema import Length, Range

# Limits of what a file may say about a model: far above what is in use, far below what exhausts the memory.
LARGEST_SIDE = 1024  # pixels of an input; the largest networks of timm
MOST_CLASSES = 1_000_000
_Name = Annotated[str, Length(0, 1000)]
_Pixels = Annotated[int, Range(1, LARGEST_SIDE)]


@dataclass(frozen=True, kw_only=True)
class TokenGrid:
    """How the tokens of a transformer lie on the image.

    Args:
        patch: pixels (height, width) that one token covers.
        prefix: tokens before the grid (class token, distillation token, registers).
        channels_last: the layer gives (N, h, w, C), as Swin does, instead of (N, T, C).
        class_tokens: how many of the prefix the classifier reads, from the first on; with 0 it reads the grid. None is
            one where there is a prefix.
    """

    patch: tuple[_Pixels, _Pixels]
    prefix: Annotated[int, Range(0, 1000)] = 0
    channels_last: bool = False
    class_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.class_tokens is None:
            object.__setattr__(self, "class_tokens", min(self.prefix, 1))
        elif not 0 <= self.class_tokens <= self.prefix:
            raise SpecError(
                f"TokenGrid: {self.class_tokens} class tokens are not among {self.prefix} prefix tokens; correct one."
            )

    def fold(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (N, T, C) or (N, h, w, C) of an image of `size` pixels as a feature map (N, C, h, w)."""
        if tokens.ndim == 4:
            return tokens.permute(0, 3, 1, 2) if self.channels_last else tokens
        h, w = size[0] // self.patch[0], size[1] // self.patch[1]
        if tokens.shape[1] != h * w + self.prefix:
            raise SpecError(
                f"TokenGrid: {tokens.shape[1]} tokens do not make {self.prefix} prefix tokens and a grid of {h}x{w}; "
                "check `patch` and `prefix`."
            )
        return tokens[:, self.prefix :].transpose(1, 2).unflatten(2, (h, w))

    def read(self, matrix: Tensor, size: tuple[int, int]) -> Tensor:
        """What the tokens that the classifier reads take from each cell: (N, T, T), rows from columns, as (N, 1, h, w).

        That is the row of the class token, or the mean of the rows where several tokens are read.
        """
        read = slice(0, self.class_tokens) if self.class_tokens else slice(self.prefix, None)
        return self.fold(matrix[:, read].mean(dim=1)[:, :, None], size)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What xattn knows about a model. Facts only; nothing here refers to a live module.

    Args:
        feature_layer: name of the last layer with a spatial output.
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
        name: name of the model for tables and files.
    """

    feature_layer: _Name
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
    name: _Name = ""

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
        """As plain values that go into JSON."""
        return dataclasses.asdict(self)

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
