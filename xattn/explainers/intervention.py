"""Runs of a network with something else in the place of what one of its layers gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError, ShapeError
from xattn.inputs import Views
from xattn.running import in_this_thread
from xattn.score import apply_score
from xattn.taps import first_tensor, put_back, split_call
from xattn.trace import Trace


def refuse_views(trace: Trace, method: str) -> None:
    """Refuse a pass over several views, whose features this method would take all at once.

    Raises:
        NotApplicableError: with a method to use instead.
    """
    if isinstance(trace.inputs, Views):
        raise NotApplicableError(
            f"{method}: it takes the features of one image, and here each has those of several views; use gradcam."
        )


@contextmanager
def replaced_output(model: nn.Module, layer: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it is entered, what follows a layer reads `change(output)`; of several the first tensor is changed.

    Of a layer that runs more than once, `pool[1]` is the second call.
    """
    name, wanted = split_call(layer, dict(model.named_modules()))
    calls = itertools.count()

    def begin(module: nn.Module, inputs: object) -> None:
        nonlocal calls
        calls = itertools.count()

    def hook(module: nn.Module, inputs: object, output: object) -> object:
        tensor = first_tensor(output)
        if tensor is None or (next(calls) != wanted and wanted is not None):
            return None
        return put_back(output, change(tensor))

    handles = [
        model.register_forward_pre_hook(in_this_thread(begin)),
        model.get_submodule(name).register_forward_hook(in_this_thread(hook)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def fold(trace: Trace, layer: str, tensor: Tensor) -> Tensor:
    """The output of a layer, or a gradient by it, as a feature map (N, C, h, w); tokens are folded to their grid."""
    tokens = trace.spec.layout(layer)
    return tokens.fold(tensor, trace.input_size) if tokens is not None and tokens.folds(tensor) else tensor


def channel_dim(trace: Trace, layer: str, tensor: Tensor) -> int:
    """The dimension of the channels in the output of a layer: the last one of tokens, else 1."""
    tokens = trace.spec.layout(layer)
    return tensor.ndim - 1 if tokens is not None and tokens.folds(tensor) else 1


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
        many.movedim(channel_dim(trace, layer, many), 1)[
            torch.arange(len(channels), device=channels.device), channels
        ] = 0
        return many

    target, own = trace.target[i].expand(len(channels)), trace.target.new_full((len(channels),), i)
    image = trace.x[i : i + 1]
    with replaced_output(trace.model, layer, ablate):
        try:
            again = trace.again(image, rows=own[:1], target=target, grad=False)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ShapeError):
            copies = image.expand(len(channels), -1, -1, -1)
            again = trace.again(copies, rows=own, target=target, grad=False)
    return apply_score(trace.score_fn, again.logits, target)
