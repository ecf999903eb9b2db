"""Classifiers of timm as `timm/NAME`; timm is imported when one is asked for."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from xattn.errors import CheckpointError, reason_of, unknown

PREFIX = "timm/"


def names() -> list[str]:
    """Names of all classifiers that timm has, as `timm/NAME`."""
    import timm

    return [PREFIX + name for name in timm.list_models()]


def knows(name: str) -> bool:
    """Whether `timm/NAME` or `timm/NAME.TAG` is a network of timm itself, and no address of a hub or a folder.

    >>> knows("timm/resnet18.a1_in1k"), knows("timm/hf-hub:someone/net"), knows("timm/local-dir:net")
    (True, False, False)
    """
    import timm

    short, _, tag = name.removeprefix(PREFIX).partition(".")
    plain = re.fullmatch(r"[A-Za-z0-9_]+", short) and re.fullmatch(r"[A-Za-z0-9_]*", tag)
    return name.startswith(PREFIX) and plain is not None and bool(timm.is_model(short))


def count_parameters(name: str) -> int:
    """Number of weights of `timm/NAME`, without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(name).parameters())


def build(name: str, pretrained: bool = False, classes: int | None = None) -> nn.Module:
    """A classifier of timm.

    Args:
        name: as in `timm.list_models()`, with `timm/` before it and perhaps a tag of weights behind it.
        pretrained: download the published weights unless they are in the cache.
        classes: number of logits; None is what the weights have. The classifier is then new.

    Raises:
        UnknownNameError: if timm has no such model.
        CheckpointError: if the weights cannot be downloaded.
    """
    import timm

    short = name.removeprefix(PREFIX)
    if not knows(name):
        raise unknown("timm model", short, timm.list_models())
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    try:
        return timm.create_model(short, pretrained=pretrained, **options)
    except Exception as error:
        if not pretrained:
            raise
        # Whatever the hub's client, its HTTP library and its cache raise: all of it means that no weights came.
        raise CheckpointError(
            f"weights of {PREFIX}{short} cannot be downloaded ({reason_of(error)}); where there is a network, fetch "
            f"them from https://huggingface.co/timm and pass the file as weights."
        ) from None
