"""Runs of a network with something else in the place of what one of its layers gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xattn.errors import ShapeError
from xattn.score import apply_score
from xattn.trace import Trace


@contextmanager
def replaced_output(model: nn.Module, layer: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it is entered, what follows a layer reads `change(output)`; of a tuple the first item is changed."""

    def hook(module: nn.Module, inputs: object, output: object) -> object:
        if not isinstance(output, (tuple, list)):
            return change(output)  # type: ignore[arg-type]
        parts = (change(output[0]), *output[1:])
        return output._make(parts) if hasattr(output, "_make") else type(output)(parts)

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def fold(trace: Trace, tensor: Tensor) -> Tensor:
    """The output of a layer, or a gradient by it, as a feature map (N, C, h, w); tokens are folded to their grid."""
    tokens = trace.spec.tokens
    return tensor if tokens is None or tensor.ndim not in (3, 4) else tokens.fold(tensor, trace.input_size)


def channel_dim(trace: Trace, tensor: Tensor) -> int:
    """The dimension of the channels in the output of a layer: the last one of tokens, else 1."""
    tokens = trace.spec.tokens
    return tensor.ndim - 1 if tokens is not None and (tensor.ndim == 3 or tokens.channels_last) else 1


def scores_without(trace: Trace, layer: str, i: int, channels: Tensor) -> Tensor:
    """Score of image `i` with one channel of a layer set to zero at a time.

    All changed features go through the rest of the network as one batch, while what comes before the layer runs on the
    one image alone: a batch that grows in the middle of a network, past which a skip connection is broadcast. Where the
    network cannot stand that (it concatenates, or keeps the number of images), it runs on copies of the image from the
    beginning.

    Args:
        trace: the recorded pass.
        layer: name of the layer.
        i: index of the image.
        channels: which are set to zero, int64 (M,).

    Returns:
        (M,), without a graph.
    """

    def ablate(features: Tensor) -> Tensor:
        many = features.expand(len(channels), *features.shape[1:]).clone(memory_format=torch.contiguous_format)
        many.movedim(channel_dim(trace, many), 1)[torch.arange(len(channels), device=channels.device), channels] = 0
        return many

    target = trace.target[i].expand(len(channels))
    image = trace.x[i : i + 1]
    with replaced_output(trace.model, layer, ablate):
        try:
            again = trace.again(image, target=target, grad=False)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ShapeError):
            copies = image.expand(len(channels), -1, -1, -1)
            again = trace.again(copies, target=target, grad=False)
    return apply_score(trace.score_fn, again.logits, target)
