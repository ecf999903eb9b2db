"""The words that a map can have as its status: what each means and what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """What a word says.

    Args:
        what: it means.
        do: what helps.
    """

    what: str
    do: str


STATUSES = {
    "ok": Status("nothing was found to be wrong", "compare it with the controls"),
    "all-zero": Status(
        "no cell has any importance, often because a ReLU leaves no evidence for the class",
        "try another class, or hirescam, which has a sign",
    ),
    "constant": Status(
        "every cell has the same value, so that nothing can be read off it",
        "try another method; if all are constant, the layer does not depend on the place: name another one, layer=NAME",
    ),
    "nan": Status(
        "a value is NaN or infinite",
        "look at the weights and the features of the network, and compute in full precision: --precision fp32",
    ),
    "non-conserving": Status(
        "the map does not add up to what its method promises",
        "do not read it; the network has a part that the method does not take into account",
    ),
    "not repeatable": Status(
        "the model answers differently when the same image comes again",
        "switch off what is random in its forward pass: F.dropout(x, training=self.training), noise",
    ),
    "images coupled": Status(
        "an image gives other scores alone than beside others, as batch norm without running statistics does",
        "explain one image at a time, --batch-size 1, by a method of one pass such as gradcam",
    ),
    "layer without effect": Status(
        "the scores do not change with what the layer gives",
        "name the layer that is on the way to the scores: gradcam:layer=NAME",
    ),
    "cells elsewhere": Status(
        "the model crops, pads, mirrors, turns, warps, repeats or shuffles the image before the layer, so that its "
        "cells do not lie where the map shows them",
        "do that to the images before the model, and explain the part of it that follows; or a method that reads no "
        "layer, such as occlusion",
    ),
    "layer of another shape": Status(
        "the layer gave another shape than when it was proved that its cells lie on the image",
        "infer the spec again with images of this size: infer_spec(model, x)",
    ),
    "layer called otherwise": Status(
        "the layer ran more or less often than when it was proved",
        "infer the spec again, and name the call: gradcam:layer=NAME[1]",
    ),
    "under no_grad": Status(
        "the model cuts its gradient off (no_grad, inference_mode, detach()), and the map is that of the same function "
        "without the cut",
        "right if that is what you ask; infer_spec(model, x) makes it a known fact",
    ),
    "in training mode": Status(
        "a part of the model stays in training mode when it is told not to",
        "let its train() method follow its argument",
    ),
}
"""By the word."""


def told(status: str, remark: str = "") -> str:
    """A status in a sentence, with the numbers of a map in place of the general ones where there are some.

    >>> told("nan")[:43]
    'nan: a value is NaN or infinite; look at th'
    >>> told("non-conserving", "adds up to 3.1 of 4.0: try steps=200")
    'non-conserving: adds up to 3.1 of 4.0: try steps=200'
    """
    known = STATUSES.get(status)
    text = remark or ("" if known is None else f"{known.what}; {known.do}")
    return f"{status}: {text}" if text else status
