"""Feature maps of higher resolution from the same weights: the last strides removed, and circular padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError, ParameterError, XattnError, reason_of
from xattn.models.trunk import as_map, noise
from xattn.running import evaluating, in_this_thread
from xattn.spec import TokenGrid

_Pool = nn.MaxPool2d | nn.AvgPool2d


def remove_strides(
    model: nn.Module,
    stages: int = 2,
    *,
    feature_layer: str,
    input_size: tuple[int, int] = (224, 224),
    tokens: TokenGrid | None = None,
) -> nn.Module:
    """Set the last downsampling steps of a CNN to stride 1 (BR-NPA, arXiv:2106.02566, section 3.3).

    A step is every convolution and pooling layer, shortcuts included, that lowers the same resolution; the steps are
    found by running the model on noise. There is no dilation, and the weights and their names stay the same: the map
    grows by 4 in each direction, the receptive field shrinks. Layers with an even kernel are padded on the right and
    the bottom, so that their sampling points of before are among the new ones.

    Args:
        model: a CNN; changed in place, or left as it is if it is refused.
        stages: number of steps to remove, from the features back.
        feature_layer: name of the layer that gives the features.
        input_size: height and width of the probe in pixels.
        tokens: how the features lie, for a network whose maps have their channels last.

    Returns:
        The same model.

    Raises:
        ParameterError: if there are fewer steps.
        NotApplicableError: for transformers, whose tokens have no stride to remove, and for models that lower the
            resolution outside of convolution and pooling layers.
    """
    kind = type(model).__name__
    if tokens is not None and not tokens.channels_last:
        raise NotApplicableError(
            f"{kind} is a transformer: its grid is that of its patches and there is no stride to remove; give it "
            "larger images, or choose a CNN such as resnet50."
        )
    steps, before = _steps(model, feature_layer, input_size, tokens)
    if not 1 <= stages <= len(steps):
        raise ParameterError(
            f"{kind} lowers the resolution {len(steps)} times before '{feature_layer}' (grids "
            f"{', '.join(f'{h}x{w}' for h, w in steps) or 'none'}), so remove_strides cannot remove stages={stages} of "
            "them; keep its resolution low, or choose another model."
        )
    chosen = list(steps)[-stages:]
    undo: list[Callable[[], None]] = []
    try:
        for grid in chosen:
            for name, module in steps[grid].items():
                undo.append(_remove_stride(model, name, module))
        _, after = _steps(model, feature_layer, input_size, tokens)
    except Exception as error:  # whatever foreign code raises
        _revert(undo)
        if isinstance(error, XattnError):
            raise
        raise NotApplicableError(
            f"{kind}: without its last {stages} strides the model does not run ({reason_of(error)}); it needs its own "
            "grid, or lowers the resolution outside of its layers too, so choose another model."
        ) from None
    if after != chosen[0]:
        _revert(undo)
        raise NotApplicableError(
            f"{kind}: without its last {stages} strides the map is {after[0]}x{after[1]} instead of "
            f"{chosen[0][0]}x{chosen[0][1]} (it was {before[0]}x{before[1]}); it lowers the resolution outside of its "
            "layers too, so choose another model."
        )
    return model


def _revert(undo: list[Callable[[], None]]) -> None:
    for step in reversed(undo):
        step()


def _steps(
    model: nn.Module, feature_layer: str, size: tuple[int, int], tokens: TokenGrid | None
) -> tuple[dict[tuple[int, int], dict[str, nn.Module]], tuple[int, int]]:
    """Strided layers before the features by the grid that they read, from the finest; and the grid of the features."""
    steps: dict[tuple[int, int], dict[str, nn.Module]] = {}
    features: list[tuple[int, int]] = []
    handles = []

    def strided(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not features and output.shape[-1] * output.shape[-2] > 1:
                steps.setdefault((inputs[0].shape[-2], inputs[0].shape[-1]), {})[name] = module

        return hook

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            made = as_map(output, tokens)
            features.append((made.shape[-2], made.shape[-1]))

    try:
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) and max(_pair(module.stride)) > 1:
                handles.append(module.register_forward_hook(in_this_thread(strided(name))))
        handles.append(model.get_submodule(feature_layer).register_forward_hook(in_this_thread(end)))
        with evaluating(model), torch.no_grad():
            model(noise(model, size))
    finally:
        for handle in handles:
            handle.remove()
    if not features:
        raise NotApplicableError(f"{type(model).__name__}: layer '{feature_layer}' gives no map; choose one that does.")
    return dict(sorted(steps.items(), reverse=True)), features[0]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _remove_stride(model: nn.Module, name: str, module: nn.Module) -> Callable[[], None]:
    """Set one layer to stride 1 with an output of the size of its input; return what undoes it."""
    if isinstance(module, nn.Conv2d):
        state = dict(vars(module))
        _same_convolution(module)
        return lambda: vars(module).update(state)
    if not isinstance(module, _Pool):
        raise NotApplicableError(
            f"remove_strides: '{name}' is {type(module).__name__}, whose stride cannot be removed."
        )
    kernel = _pair(module.kernel_size)
    pool: _Pool
    if isinstance(module, nn.MaxPool2d):
        pool = nn.MaxPool2d(module.kernel_size, stride=1, dilation=module.dilation)
        dilation = _pair(module.dilation)
        kernel = dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1
    else:
        pool = nn.AvgPool2d(module.kernel_size, stride=1)
    (top, bottom), (left, right) = _margins(kernel[0]), _margins(kernel[1])
    # Repeating the border changes no maximum and keeps means unbiased; zeros would do neither.
    same = nn.Sequential(nn.ReplicationPad2d((left, right, top, bottom)), pool)
    parent = model.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], same)
    return lambda: setattr(parent, name.rpartition(".")[2], module)


def _margins(extent: int) -> tuple[int, int]:
    """Cells before and after that keep the size at stride 1; an odd one goes after."""
    return (extent - 1) // 2, extent - 1 - (extent - 1) // 2


def _same_convolution(conv: nn.Conv2d) -> None:
    conv.stride = (1, 1)
    if type(conv) is not nn.Conv2d or isinstance(conv.padding, str):
        return  # such layers pad to the size of their input by themselves
    (top, bottom), (left, right) = (
        _margins(d * (k - 1) + 1) for k, d in zip(conv.kernel_size, _pair(conv.dilation), strict=True)
    )
    if conv.padding_mode == "zeros" and not any(_pair(conv.padding)) and max(bottom, right):
        conv.padding_mode = "replicate"  # a layer that has never seen zeros
    elif conv.padding_mode == "zeros" and (top, left) != (bottom, right):
        vars(conv)["padding_mode"] = "constant"  # zeros as well, but through the branch that can pad one side more
    conv.padding = (top, left)
    conv._reversed_padding_repeated_twice = [left, right, top, bottom]


def use_circular_padding(model: nn.Module) -> nn.Module:
    """Wrap the image around in all convolutions that pad with zeros, as the released code of BR-NPA does.

    It removes the artefacts at the border that attract the seed (arXiv:2106.02566; the paper does not mention it).

    Args:
        model: a CNN; changed in place.

    Returns:
        The same model.

    Raises:
        NotApplicableError: if no convolution pads, or one pads by itself.
    """
    changed = 0
    for name, conv in model.named_modules():
        if not isinstance(conv, nn.Conv2d) or max(conv.kernel_size) == 1:
            continue
        if type(conv) is not nn.Conv2d:
            raise NotApplicableError(
                f"{type(model).__name__}: '{name}' is {type(conv).__name__}, which pads by itself; circular padding "
                "needs plain convolutions."
            )
        if conv.padding_mode != "circular" and any(conv._reversed_padding_repeated_twice):
            conv.padding_mode = "circular"
            changed += 1
    if not changed:
        raise NotApplicableError(f"{type(model).__name__} has no convolution that pads; leave circular padding off.")
    return model
