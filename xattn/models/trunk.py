"""The convolutional trunk of a classifier: its children up to the feature layer, as a plain sequence."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError, unknown
from xattn.running import evaluating, in_this_thread
from xattn.spec import TokenGrid
from xattn.trace import place_of


class ChannelsFirst(nn.Module):
    """Maps (N, h, w, C), as networks like Swin and MambaOut have them, as (N, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """Turn it around."""
        return x.permute(0, 3, 1, 2)


def as_map(output: Tensor, tokens: TokenGrid | None) -> Tensor:
    """What a layer gives as (N, C, h, w), where its facts say that its channels come last."""
    last = tokens is not None and tokens.channels_last and output.ndim == 4
    return output.permute(0, 3, 1, 2) if last else output


def noise(model: nn.Module, size: tuple[int, int]) -> Tensor:
    """One seeded image of noise (1, channels, *size) on the device and in the type of the model."""
    device, dtype = place_of(model)
    inputs = [m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    channels = 3 if 3 in inputs or not inputs else inputs[0]  # layers may be defined in another order than they run
    image = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0))
    return (2 * image - 1).to(device, dtype)


@torch.no_grad()
def features_of(model: nn.Module, feature_layer: str, x: Tensor, tokens: TokenGrid | None = None) -> Tensor:
    """Output of the feature layer as (N, C, h, w), where `tokens` says that its channels come last, too."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            found.append(as_map(output, tokens).clone())

    handle = model.get_submodule(feature_layer).register_forward_hook(in_this_thread(keep))
    try:
        with evaluating(model):
            model(x)
    finally:
        handle.remove()
    if len(found) != 1:
        raise NotApplicableError(
            f"{type(model).__name__}: layer '{feature_layer}' does not give one feature map (N, C, h, w), so there is "
            "none to be made finer."
        )
    return found[0]


def cut(
    model: nn.Module, feature_layer: str, size: tuple[int, int], tokens: TokenGrid | None = None
) -> tuple[nn.Sequential, int]:
    """The part of a CNN that makes its features, as a sequence of its own children in the order of their calls.

    Names of weights stay as they are. The sequence is run on an image of noise and must give exactly what the
    feature layer gives inside the model; a model that does more between its children than calling them is refused.

    Args:
        model: a classifier; its modules are shared, not copied.
        feature_layer: name of the layer to end with.
        size: height and width of the probe in pixels.
        tokens: how the features lie, for a network whose maps have their channels last; they are turned around.

    Returns:
        The trunk, from images (N, 3, H, W) to features (N, C, h, w), and its number of channels C.

    Raises:
        NotApplicableError: for transformers, and where the sequence does not reproduce the features.
    """
    kind = type(model).__name__
    if tokens is not None and not tokens.channels_last:
        raise NotApplicableError(
            f"{kind} is a transformer: its features are tokens, and a linear, B-CNN or BR-NPA head needs the feature "
            "map of a CNN; choose a CNN such as resnet50."
        )
    if feature_layer not in dict(model.named_modules()):
        raise unknown(f"layer of {kind}", feature_layer, [name for name, _ in model.named_modules() if name])
    order: dict[str, list[str]] = {}
    tapped: list[Tensor] = []
    handles = []
    path = feature_layer.split(".")
    parents = [".".join(path[:depth]) for depth in range(len(path))]

    def note(parent: str, child: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            if not tapped:
                order.setdefault(parent, []).append(child)

        return hook

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            tapped.append(output.clone())  # what follows may work in place

    try:
        for parent in parents:
            for name, child in model.get_submodule(parent).named_children():
                handles.append(child.register_forward_pre_hook(in_this_thread(note(parent, name))))
        handles.append(model.get_submodule(feature_layer).register_forward_hook(in_this_thread(keep)))
        x = noise(model, size)
        with evaluating(model), torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    if len(tapped) != 1 or tapped[0].ndim != 4:
        raise NotApplicableError(
            f"{kind}: layer '{feature_layer}' does not give one feature map (N, C, h, w) in a pass."
        )
    trunk = _sequence(model, parents, path, order)
    if tokens is not None:
        children = OrderedDict(trunk.named_children())
        children[_free("channels_first", children)] = ChannelsFirst()
        trunk = nn.Sequential(children)
    features = as_map(tapped[0], tokens)
    with evaluating(trunk), torch.no_grad():
        try:
            same = torch.equal(trunk(x), features)
        except Exception:  # children that take other inputs than a tensor
            same = False
    if not same:
        raise NotApplicableError(
            f"{kind}: calling its layers one after the other does not give the features of '{feature_layer}', so it "
            "cannot take another head; give it one in your own code, or choose a model whose layers form a sequence."
        )
    return trunk, features.shape[1]


def _free(name: str, taken: Collection[str]) -> str:
    """A name that is not taken, with a number behind it where it has to be."""
    return name if name not in taken else next(n for i in itertools.count(2) if (n := f"{name}_{i}") not in taken)


def _sequence(model: nn.Module, parents: list[str], path: list[str], order: dict[str, list[str]]) -> nn.Sequential:
    """Children of each module on the path, in the order of their calls, from the innermost out."""
    inner: nn.Module = model.get_submodule(".".join(path))
    for parent, last in zip(reversed(parents), reversed(path), strict=True):
        owner = model.get_submodule(parent)
        children: OrderedDict[str, nn.Module] = OrderedDict()
        for name in order.get(parent, []):
            if name in children:
                raise NotApplicableError(
                    f"{type(model).__name__}: layer '{parent and parent + '.'}{name}' runs twice before the features, "
                    "so the model is no sequence of layers and cannot take another head."
                )
            children[name] = inner if name == last else owner.get_submodule(name)
        inner = nn.Sequential(children)
    return inner  # type: ignore[return-value]
