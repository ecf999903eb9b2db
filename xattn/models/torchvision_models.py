"""Classifiers of torchvision by name; torchvision is imported when one is asked for."""

from __future__ import annotations

from typing import Any

from torch import nn

from xattn.errors import CheckpointError, reason_of, unknown


def names() -> list[str]:
    """Names of all classifiers that torchvision has."""
    from torchvision import models

    return list(models.list_models(module=models))


def weights_of(name: str) -> list[str]:
    """Names of the published weights of a model, for example `IMAGENET1K_V2`, and `DEFAULT`.

    >>> weights_of("resnet50")
    ['IMAGENET1K_V1', 'IMAGENET1K_V2', 'DEFAULT']
    """
    from torchvision import models

    published = [member.name for member in models.get_model_weights(name)]
    return [*published, "DEFAULT"] if published else []


def count_parameters(name: str) -> int:
    """Number of weights of a model with 1000 classes, as torchvision publishes it."""
    from torchvision import models

    return max(int(member.meta["num_params"]) for member in models.get_model_weights(name))


def build(name: str, weights: str | None = None, classes: int | None = None) -> nn.Module:
    """A classifier of torchvision, with random weights or with published ones.

    Args:
        name: as in `torchvision.models.list_models()`.
        weights: name of published weights, which are downloaded unless they are in torch's cache; None is random.
        classes: number of logits; None is what the weights have, 1000.

    Raises:
        CheckpointError: if the weights do not exist or cannot be downloaded.
    """
    from torchvision import models

    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = weights is None  # without a value they warn
    if weights is None:
        return models.get_model(name, weights=None, **options)
    known = weights_of(name)
    if weights not in known:
        raise CheckpointError(str(unknown(f"weights of {name}", weights, [*known, "a file"])))
    entry = models.get_model_weights(name)[weights]
    options.pop("init_weights", None)
    options.pop("num_classes", None)
    try:
        return models.get_model(name, weights=entry, **options)
    except (OSError, RuntimeError) as error:  # no network, a proxy, a truncated download
        raise CheckpointError(
            f"weights {weights} of {name} cannot be downloaded ({reason_of(error)}); where there is a "
            f"network, fetch {entry.url} and pass the file as weights."
        ) from None


def preprocessing(name: str, weights: str | None = None) -> tuple[tuple[int, int], float, str]:
    """Input size (height, width), share that the crop keeps, and interpolation; None takes the first weights."""
    from torchvision import models

    published = models.get_model_weights(name)
    entries = [member for member in published if member.name == weights] or list(published)
    if not entries:
        return (224, 224), 0.875, "bilinear"
    preset = published.DEFAULT.transforms() if weights == "DEFAULT" else entries[0].transforms()
    side = int(preset.crop_size[0])
    return (side, side), side / int(preset.resize_size[0]), str(preset.interpolation.value)
