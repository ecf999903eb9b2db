"""Models of several inputs: one of them is explained, the others are held fixed, each image with its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xattn.device import as_set
from xattn.errors import NotApplicableError, ParameterError, ShapeError, unknown

Name = str | int
_IMAGE, _VOLUME = 4, 5  # dimensions of a batch of them
_VIEWS = "views"
_COMMANDS = (
    "Commands take a model of one input by its place: one whose forward() passes it on with the others filled in."
)


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of a model beside the one that is explained.

    Args:
        name: of the one that is explained: a position, or a key.
        others: the rest by position or key.
        own: those that have a row for each image.
        as_one: the model takes a dictionary as its only argument.
    """

    name: Name
    others: dict[Name, Any]
    own: frozenset[Name]
    as_one: bool = False

    def select(self, rows: Tensor) -> Inputs:
        """The inputs beside images that are made of these rows (M,)."""
        picked = {
            name: value.index_select(0, rows.to(value.device)) if name in self.own and len(value) > 1 else value
            for name, value in self.others.items()
        }
        return replace(self, others=picked)

    def call(self, model: nn.Module, x: Tensor) -> Any:
        """What the model returns for images (M, ...) beside the other inputs."""
        values: dict[Name, Any] = {self.name: x}
        for name, value in self.others.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                value = value.to(x.dtype)
            if name in self.own and len(value) != len(x):
                if len(value) != 1:
                    raise ShapeError(
                        f"x: input {name!r} has {len(value)} rows but {len(x)} images are to be run beside it; "
                        "Trace.predict, score and again take rows=, the image that each is made of."
                    )
                value = value.expand(len(x), *value.shape[1:])
            values[name] = value
        if isinstance(self.name, int):
            return model(*(values[i] for i in range(len(values))))
        return model(values) if self.as_one else model(**{str(name): value for name, value in values.items()})

    def laid(self, tensor: Tensor, images: int) -> Tensor:
        """What a layer gives for the explained input of each image, as an image of it would: (N, C, h, w)."""
        return tensor

    def extent(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Height and width, and before them depth where there is one, of inputs that are run as images of a size."""
        return size

    @property
    def shapes(self) -> tuple[Any, ...]:
        """What the facts about a model depend on."""
        shapes = [(n, tuple(v.shape[1:]) if isinstance(v, Tensor) else repr(v)) for n, v in self.others.items()]
        return self.name, self.as_one, *shapes


@dataclass(frozen=True, eq=False)
class Views(Inputs):
    """Several views of each object, (N, V, C, H, W): one is explained, the others are held fixed."""

    @property
    def count(self) -> int:
        """Number of views V."""
        return int(self.others[_VIEWS].shape[1])

    def call(self, model: nn.Module, x: Tensor) -> Any:
        """What the model returns for images (M, C, H, W) in the place of the explained view."""
        whole = self.others[_VIEWS].to(x.dtype)
        if len(whole) not in (1, len(x)):
            raise ShapeError(
                f"x: there are views of {len(whole)} objects but {len(x)} images are to be run beside them; "
                "Trace.predict, score and again take rows=, the object that each is made of."
            )
        views = list(whole.expand(len(x), *whole.shape[1:]).unbind(1))
        views[int(self.name)] = x
        return model(torch.stack(views, dim=1))

    def laid(self, tensor: Tensor, images: int) -> Tensor:
        """The rows of the explained view in what a layer gives for all views of each image, one after the other."""
        if len(tensor) != images * self.count:
            return tensor
        return tensor.unflatten(0, (images, self.count))[:, int(self.name)]


@dataclass(frozen=True, eq=False)
class Volume(Inputs):
    """Volumes (N, C, D, H, W), which methods see as images (N, C, D * H, W): one slice below the other.

    What a formula makes of each value or each cell by itself is the same for both; maps get their depth back.
    """

    depth: int = 1

    def call(self, model: nn.Module, x: Tensor) -> Any:
        """What the model returns for volumes that are given as images."""
        return model(x.unflatten(2, (self.depth, -1)))

    def laid(self, tensor: Tensor, images: int) -> Tensor:
        """A layer's volume (N, C, d, h, w) as an image."""
        return tensor.flatten(2, 3) if tensor.ndim == _VOLUME else tensor

    def extent(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Depth, height and width."""
        return self.depth, size[0] // self.depth, size[1]

    def unfolded(self, tensor: Tensor, shapes: Iterable[torch.Size], extent: tuple[int, ...]) -> Tensor:
        """Maps (N, C, d * h, w) as volumes (N, C, d, h, w), by the depth of what has that grid.

        Args:
            tensor: on the grid of the input, or of a layer.
            shapes: of what the layers gave (N, C, d, h, w).
            extent: of the input.
        """
        grids = [tuple(shape[-3:]) for shape in shapes if len(shape) == _VOLUME] + [extent]
        depths = [d for d, h, w in grids if (d * h, w) == tuple(tensor.shape[-2:])]
        if not depths:
            raise ShapeError(f"maps of {tuple(tensor.shape[-2:])} are of no layer of these volumes.")
        return tensor.unflatten(2, (depths[0], -1))

    @property
    def shapes(self) -> tuple[Any, ...]:
        """What the facts about a model depend on."""
        return "volume", self.depth


def _takes_volumes(model: nn.Module, channels: int) -> bool:
    """Whether five dimensions are volumes to a model, and not views: its convolutions are of three dimensions.

    Raises:
        NotApplicableError: if channels do not come first, as in networks for videos (N, T, C, H, W).
    """
    flat = any(isinstance(module, nn.Conv2d) for module in model.modules())
    solid = {m.in_channels for m in model.modules() if isinstance(m, nn.Conv3d)}
    if solid and channels not in solid:
        raise NotApplicableError(
            f"{type(model).__name__}: volumes are explained as (N, C, D, H, W), but x has {channels} channels and its "
            f"3-D convolutions take {', '.join(map(str, sorted(solid)))}; for videos (N, T, C, H, W) pass the module "
            "that gets x.transpose(1, 2), and that."
        )
    return bool(solid) or not flat


def required(model: nn.Module) -> list[str]:
    """Names of the arguments that a forward pass cannot do without."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind in plain]


def _by_name(model: nn.Module) -> str:
    """The first argument of a forward pass that takes none by place; empty where it takes one."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return ""
    return parameters[0].name if parameters and parameters[0].kind is inspect.Parameter.KEYWORD_ONLY else ""


def feed(model: nn.Module, x: Tensor, inputs: Inputs | None = None) -> Any:
    """What a model returns for images, and for its other inputs beside them.

    Raises:
        NotApplicableError: if it takes several inputs and got one, or takes it by its name alone.
    """
    x = x.clone()  # a model may normalize what it is given in place
    try:
        with as_set():
            return model(x) if inputs is None else inputs.call(model, x)
    except TypeError as error:
        names = required(model)
        if inputs is None and "positional argument" in str(error) and (named := _by_name(model)):
            raise NotApplicableError(
                f"{type(model).__name__} takes its images by name alone; pass them so, x={{{named!r}: images}}. "
                f"{_COMMANDS}"
            ) from None
        if inputs is None and "missing" in str(error) and len(names) > 1:
            raise NotApplicableError(
                f"{type(model).__name__} takes several inputs ({', '.join(names)}); pass all of them as x, "
                f"({', '.join(names)}), and inputs=0, the place of the one that is explained. {_COMMANDS}"
            ) from None
        raise


def split_inputs(x: Any, inputs: Name | None, model: nn.Module) -> tuple[Any, Inputs | None]:
    """The input that is explained, and the others; None for what is one input only.

    Args:
        x: a dictionary of inputs, a tuple of them, one, views (N, V, C, H, W) or volumes (N, C, D, H, W).
        inputs: the key or place of the one that is explained; None is the only one that is a batch of float images.
        model: that takes them.

    Raises:
        ParameterError: if it is not clear which one is explained.
        ShapeError: if there are not as many of the others.
    """
    if isinstance(x, Tensor) and x.ndim == _VOLUME and x.is_floating_point():
        if inputs is None and _takes_volumes(model, x.shape[1]):
            return x.flatten(2, 3), Volume(0, {}, frozenset(), depth=x.shape[2])
        if type(inputs) is not int or not 0 <= inputs < x.shape[1]:
            raise ParameterError(
                f"x: of views (N, V, C, H, W) one is explained beside the others; {tuple(x.shape)} has {x.shape[1]} of "
                f"them, inputs=0 to {x.shape[1] - 1}. Volumes (N, C, D, H, W) are for models of 3-D convolutions."
            )
        return x[:, inputs], Views(inputs, {_VIEWS: x}, frozenset({_VIEWS}))
    several = isinstance(x, Mapping) or (
        isinstance(x, tuple) and any(isinstance(v, Tensor) and (v.ndim >= _IMAGE or inputs is not None) for v in x)
    )
    if not several:
        if inputs is not None:
            raise ParameterError(
                f"inputs={inputs!r} names one of several inputs; pass x as a tuple or dictionary of them."
            )
        return x, None
    values: dict[Name, Any] = dict(x.items() if isinstance(x, Mapping) else enumerate(x))
    images = [n for n, v in values.items() if isinstance(v, Tensor) and v.ndim >= _IMAGE and v.is_floating_point()]
    if inputs is None:
        if len(images) != 1:
            shown = ", ".join(f"{n!r} {tuple(v.shape)}" for n, v in values.items() if isinstance(v, Tensor))
            first = images[0] if images else next(iter(values), 0)
            raise ParameterError(
                f"x: {len(images)} of its inputs are batches of images ({shown}); name the one that is explained, such "
                f"as inputs={first!r}."
            )
        (inputs,) = images
    if inputs not in values:
        raise unknown("input", str(inputs), map(str, values))
    explained = values.pop(inputs)
    count = len(explained) if isinstance(explained, (Tensor, list)) else 1
    own = set()
    for name, value in values.items():
        if isinstance(value, Tensor) and value.ndim and len(value) in ({count} if value.ndim == 1 else {count, 1}):
            own.add(name)
        elif isinstance(value, Tensor) and value.ndim >= _IMAGE:
            raise ShapeError(
                f"x: input {name!r} has {len(value)} images but {inputs!r}, which is explained, has {count}; pass one "
                "for all or one for each."
            )
    names = required(model)
    as_one = isinstance(x, Mapping) and len(names) == 1 and names[0] not in {inputs, *values}
    return explained, Inputs(inputs, values, frozenset(own), as_one)
