"""What speaks against a map at the moment it is made, as a word for its status."""

from __future__ import annotations

from collections.abc import Iterable

from xattn.attention_taps import attention_of
from xattn.spec import CONTRADICTED, Ran
from xattn.trace import INPUT, Trace

NOT_REPEATABLE = "not repeatable"
COUPLED = "images coupled"
NO_EFFECT = "layer without effect"
ELSEWHERE = "cells elsewhere"
OTHER_SHAPE = "layer of another shape"
OTHER_CALLS = "layer called otherwise"
CUT = "under no_grad"
TRAINING = "in training mode"


def doubt(trace: Trace, read: Iterable[str], *, reruns: bool) -> str | None:
    """Why maps of a pass are not `ok` whatever they show; None where nothing speaks against them.

    That is a fact behind them that an experiment contradicted, or a pass that ran otherwise than when it was proved.

    Args:
        trace: the pass.
        read: names of the layers that were read.
        reruns: the method ran the model on copies of an image, too, which are a batch.
    """
    contradicted = {name for name, evidence in trace.spec.evidence.items() if evidence.how == CONTRADICTED}
    layers = [layer for layer in read if layer != INPUT and attention_of(layer) is None]
    if trace.training:
        return TRAINING
    if "independent" in contradicted:
        if len(trace.x) > 1 or reruns:
            return COUPLED
    elif "repeatable" in contradicted:
        return NOT_REPEATABLE
    if "alone" in contradicted and trace.spec.feature_layer in layers:
        return NO_EFFECT
    if "layout" in contradicted and layers:
        return ELSEWHERE
    for layer in layers:
        if (proved := trace.spec.ran.get(layer)) is not None and (word := _otherwise(proved, layer, trace)):
            return word
    gradient = trace.spec.evidence.get("gradient")
    return CUT if trace.uncut and (gradient is None or not gradient.why) else None


def _otherwise(proved: Ran, layer: str, trace: Trace) -> str | None:
    shape = trace.shape(layer)
    if len(shape) != len(proved.shape) or (trace.input_size == proved.size and shape != proved.shape):
        return OTHER_SHAPE
    return OTHER_CALLS if trace.calls.get(layer, proved.calls) != proved.calls else None
