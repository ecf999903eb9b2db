"""How a model wants its images, as its library says: the data config of timm, the image processor of Hugging Face.

What an image processor does is read off its answers, for each family has rules of its own: to black and to white for
mean and standard deviation, to an image whose values are its coordinates for size, crop and resizing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from xattn.data.preprocessing import preprocess
from xattn.errors import ParameterError
from xattn.spec import ASSUMED, PROVED, Evidence, ModelSpec

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_WIDTH, _HEIGHT = 400, 300  # of the images that are tried
_CLOSE = 0.02  # mean difference of pixels in [0, 1] by which two resizings are the same
_CONFIG = "preprocessor_config.json", "processor_config.json"
_UNKNOWN = Evidence(ASSUMED, "the model does not say how its images are normalized")


@dataclass(frozen=True)
class Preprocessing:
    """How images become inputs: fields as in `ModelSpec`, None for what is unknown."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    crop: float = 0.875
    interpolation: str = "bilinear"
    fit: Literal["crop", "squash"] = "crop"
    evidence: Evidence = _UNKNOWN


def timm_config(model: nn.Module) -> Preprocessing:
    """The data config of a network of timm, as timm resolves it."""
    import timm.data

    config = timm.data.resolve_model_data_config(model)  # type: ignore[attr-defined]
    interpolation = str(config["interpolation"])
    return Preprocessing(
        mean=tuple(map(float, config["mean"])),
        std=tuple(map(float, config["std"])),
        size=(int(config["input_size"][1]), int(config["input_size"][2])),
        crop=min(max(float(config["crop_pct"]), 0.1), 1.0),
        interpolation=interpolation if interpolation in _RESAMPLING.values() else "bilinear",
        fit="squash" if config["crop_mode"] == "squash" else "crop",
        evidence=Evidence("given", "by timm's data config"),
    )


def folder_of(model: nn.Module) -> Path | None:
    """Where a network of Hugging Face was loaded from: a folder, or its place in the local cache."""
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    if not isinstance(name, str) or not name:
        return None
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = [try_to_load_from_cache(name, file) for file in _CONFIG]
    except HFValidationError:  # the name of a folder that is gone
        return None
    return next((Path(path).parent for path in cached if isinstance(path, str)), None)


def processor_of(model: nn.Module) -> Preprocessing:
    """What the image processor that lies beside the weights of a network of Hugging Face does with images."""
    folder = folder_of(model)
    if folder is None or not any((folder / name).is_file() for name in _CONFIG):
        return Preprocessing()
    from transformers import AutoImageProcessor

    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            return _observed(lambda image: apply_transform(processor, image), "its image processor", processor)
    except Exception as error:  # whatever the library and its many processors raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Preprocessing(evidence=Evidence(ASSUMED, f"its image processor cannot be read: {reason}"[:900]))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and reports of transformers."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def apply_transform(transform: Callable[..., Any], image: Image.Image) -> Tensor:
    """The input (C, H, W) that a transform of torchvision, albumentations, Hugging Face or one's own makes of an image.

    Raises:
        ParameterError: if it makes something else.
    """
    origin = type(transform).__module__.partition(".")[0]
    if origin == "albumentations":
        made = transform(image=np.asarray(image))
    elif origin == "transformers":
        made = transform(images=image, return_tensors="pt")
    else:
        made = transform(image)
    if isinstance(made, Mapping):
        made = next((made[key] for key in ("pixel_values", "image") if key in made), made)
    if isinstance(made, np.ndarray):
        made = torch.from_numpy(np.ascontiguousarray(made))
        made = made.permute(2, 0, 1) if made.ndim == 3 and made.shape[2] in (1, 3, 4) < made.shape[:1] else made
    if isinstance(made, Tensor) and made.ndim == 4 and len(made) == 1:
        made = made[0]
    if not isinstance(made, Tensor) or made.ndim != 3 or not made.is_floating_point():
        what = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise ParameterError(f"transform: expected a float tensor (C, H, W) of an image but it gave {what}.")
    return made


def transformed(transform: Callable[..., Any]) -> Preprocessing:
    """What a transform does with images.

    Raises:
        ParameterError: if it makes no input of an image, or another one each time.
    """
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
    first, *others = (apply_transform(transform, image) for _ in range(3))
    if any(first.shape == other.shape and not torch.equal(first, other) for other in others):
        raise ParameterError("transform: gives another input each time; pass that of the evaluation, without chance.")
    return _observed(lambda image: apply_transform(transform, image), "the transform", transform)


def prepared_by(spec: ModelSpec, images: Preprocessing, *, normalized: bool = True) -> ModelSpec:
    """The facts with what a transform says of images, so that pictures show what the model sees.

    Where it does more than resize, crop and normalize, only the normalization can be said.

    Args:
        spec: the other facts.
        images: what the transform does.
        normalized: take mean and standard deviation, too.
    """
    changes: dict[str, Any] = {"mean": images.mean, "std": images.std} if normalized else {}
    if images.size is not None and images.evidence.how == PROVED:
        changes |= {"input_size": images.size, "crop": images.crop, "interpolation": images.interpolation}
        changes["fit"] = images.fit
    evidence = {"normalization": images.evidence} if normalized else {}
    return replace(spec, **changes, evidence=spec.evidence | evidence)


def _observed(apply: Callable[[Image.Image], Tensor], what: str, source: Any) -> Preprocessing:
    """Read the facts off what a function makes of four images.

    Args:
        apply: from an image to an input (C, H, W).
        what: how messages call it.
        source: the processor, which may say how it resizes.
    """
    blank = np.zeros((_HEIGHT, _WIDTH, 3), np.uint8)
    black, white = (apply(Image.fromarray(pixels)) for pixels in (blank, blank + 255))
    size = (black.shape[1], black.shape[2])
    middle = (slice(None), size[0] // 2, size[1] // 2)  # the border may be padding
    low, span = black[middle], (white - black)[middle]
    coordinates = blank.copy()
    coordinates[..., 0] = np.rint(np.linspace(0, 255, _WIDTH))[None]
    coordinates[..., 1] = np.rint(np.linspace(0, 255, _HEIGHT))[:, None]
    seen = (apply(Image.fromarray(coordinates)) - low[:, None, None]) / span[:, None, None]
    across, down = _kept(seen[0].mean(0), _WIDTH), _kept(seen[1 % len(seen)].mean(1), _HEIGHT)
    steps = across * _WIDTH / size[1], down * _HEIGHT / size[0]  # pixels of the image for one of the input
    squash = abs(across - down) / down < abs(steps[0] - steps[1]) / steps[1]
    crop = size[0] / round(size[0] / min(max(down, 0.1), 1.0))  # of a whole number of rows
    found = Preprocessing(
        mean=tuple(round(value, 6) + 0.0 for value in (-low / span).tolist()),
        std=tuple(round(value, 6) for value in (1 / span).tolist()),
        size=size,
        crop=crop if crop < 0.995 else 1.0,
        interpolation=_RESAMPLING.get(int(getattr(source, "resample", 2) or 0), "bilinear"),
        fit="squash" if squash else "crop",
        evidence=Evidence(PROVED, f"{what} gives the same on an image"),
    )
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
    spec = ModelSpec(
        feature_layer="", input_size=size, mean=found.mean, std=found.std, crop=found.crop, channels=len(black),
        interpolation=found.interpolation, fit=found.fit,
    )  # fmt: skip
    error = (apply(image) - preprocess(image, spec)) / span[:, None, None]
    if float(error.abs().mean()) > _CLOSE:
        why = f"{what} does more to an image than to resize, crop and normalize it"
        return replace(found, evidence=Evidence("contradicted", why))
    return found


def _kept(values: Tensor, side: int) -> float:
    """Share of a side that is kept, where the values along it are the coordinates in [0, 1] that are seen."""
    inner = values[len(values) // 8 : -(len(values) // 8)]  # antialiasing bends the ends
    return float(inner[-1] - inner[0]) / (len(inner) - 1) * len(values) * (side - 1) / side
