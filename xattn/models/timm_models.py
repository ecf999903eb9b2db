"""Classifiers of timm as `timm/NAME`; timm is optional and imported when one is asked for."""

from __future__ import annotations

from typing import Any

from torch import nn

from xattn.errors import CheckpointError, UnknownNameError, unknown

PREFIX = "timm/"


def names() -> list[str]:
    """Names of all classifiers that timm has, as `timm/NAME`; none where it is not installed."""
    try:
        import timm
    except (ImportError, RuntimeError):  # a torchvision made for another torch raises RuntimeError
        return []
    return [PREFIX + name for name in timm.list_models()]


def build(name: str, pretrained: bool = False, classes: int | None = None) -> nn.Module:
    """A classifier of timm.

    Args:
        name: as in `timm.list_models()`, with or without `timm/` before it and a tag of weights behind it.
        pretrained: download the published weights unless they are in the cache.
        classes: number of logits; None is what the weights have. The classifier is then new.

    Raises:
        UnknownNameError: if timm cannot be imported or has no such model.
        CheckpointError: if the weights cannot be downloaded.
    """
    try:
        import timm
    except (ImportError, RuntimeError):
        raise UnknownNameError(f"model '{name}' needs timm, which cannot be imported: pip install timm.") from None
    short = name.removeprefix(PREFIX)
    if not timm.is_model(short.partition(".")[0]):
        raise unknown("timm model", short, timm.list_models())
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    try:
        return timm.create_model(short, pretrained=pretrained, **options)
    except Exception as error:
        if not pretrained:
            raise
        # Whatever the hub's client, its HTTP library and its cache raise: all of it means that no weights came.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"weights of {PREFIX}{short} cannot be downloaded ({reason}); where there is a network, fetch them from "
            f"https://huggingface.co/timm and pass the file as weights."
        ) from None
