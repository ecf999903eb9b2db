"""From files of any kind to normalized batches, and back: reading, finding, preprocessing, denormalizing images."""

from __future__ import annotations

import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from xattn.errors import DataError, ParameterError, ShapeError, nearest
from xattn.spec import ModelSpec

Fit: TypeAlias = Literal["crop", "squash", "whole"]
ImageLike: TypeAlias = "str | Path | Image.Image | NDArray[Any] | Tensor"

PIXEL_LIMIT = 120_000_000
"""Pixels above which an image is refused unless told otherwise: 360 MB as RGB, more than common cameras give."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm"),
    *(".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga", ".ico", ".heic", ".heif"),
)
"""Endings, in lower case, by which an image is known inside a folder. A file named by itself may end as it likes."""

WHITE = 255
WHOLE_MULTIPLE = 32  # the total stride of common networks: sides of "whole" images are multiples of it
WHOLE_ASPECT = 4  # a longer image would cost memory without bound
WHOLE_RESIZE = 16  # a resized image of more times the crop is never made as a whole

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# All that Pillow's decoders are known to raise on damaged files.
_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, OverflowError, TypeError),
    *(struct.error, zlib.error),
)


# ---------------------------------------------------------------------------------------------------------- reading


def read_image(path: str | Path, *, pixel_limit: int = PIXEL_LIMIT, upright: bool = True) -> Image.Image:
    """Read an image file of any kind as 8-bit RGB, upright.

    - The EXIF orientation is applied.
    - 16-bit grey values are divided by 257, so that 65535 becomes 255; nothing is clipped. 32-bit integers that fit
      16 bits are treated alike. Other integers, and floats outside [0, 1], are stretched from minimum to maximum.
    - Transparent pixels are laid on white.
    - CMYK and other colour spaces are converted without colour management, as training pipelines do.
    - Of an animation or a file of several pages the first is taken.

    Args:
        path: the file.
        pixel_limit: width x height above which the image is refused before it is decoded. Pillow's own bound (twice
            `PIL.Image.MAX_IMAGE_PIXELS`) holds as well.
        upright: apply the EXIF orientation. Data sets whose boxes were drawn on the stored pixels leave it.

    Returns:
        An image of mode RGB, detached from the file.

    Raises:
        DataError: in one line, if the file is missing, unreadable, empty, truncated, too large or no image.
    """
    file = Path(path).expanduser()
    try:
        if file.is_dir():
            raise DataError(f"{file}: is a folder; expected an image file.")
        if not file.exists():
            raise DataError(_missing(file))
        if not file.is_file():
            raise DataError(f"{file}: is neither a file nor a folder; expected an image file.")
        if file.stat().st_size == 0:
            raise DataError(f"{file}: is empty (0 bytes); expected an image. Copy or download it again.")
        with file.open("rb") as stream:
            return _decode(stream, str(file), pixel_limit, upright)
    except PermissionError:
        raise DataError(f"{file}: permission denied; make the file and its folders readable for this user.") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}).") from None


def decode_image(
    data: bytes, name: str = "image", *, pixel_limit: int = PIXEL_LIMIT, upright: bool = True
) -> Image.Image:
    """Decode the bytes of an image file as 8-bit RGB, by the rules of `read_image`.

    Args:
        data: content of the file.
        name: what messages call it.
        pixel_limit: as in `read_image`.
        upright: as in `read_image`.

    Raises:
        DataError: if the bytes are no complete image.
    """
    if not data:
        raise DataError(f"{name}: is empty (0 bytes); expected an image.")
    return _decode(BytesIO(data), name, pixel_limit, upright)


def _decode(stream: BinaryIO | BytesIO, name: str, pixel_limit: int, upright: bool) -> Image.Image:
    """Open, check and convert one image; every failure becomes one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata of an image that can be read is of no interest
            with Image.open(stream) as image:
                width, height = image.size
                if width * height > pixel_limit:
                    raise DataError(
                        f"{name}: has {width} x {height} = {width * height:,} pixels, over the limit of "
                        f"{pixel_limit:,}; make it smaller or raise the limit (pixel_limit)."
                    )
                if width * height == 0:
                    raise DataError(f"{name}: is {width} x {height} pixels; expected at least 1 x 1.")
                image.load()
                return _upright(_to_rgb(image, name), _orientation(image) if upright else 1)
    except DataError:
        raise
    except Image.DecompressionBombError:
        bound = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DataError(
            f"{name}: has more than {bound:,} pixels, where Pillow suspects a decompression bomb; make it smaller."
        ) from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: is not an image, or damaged from its first bytes on.{_hint(name)}") from None
    except MemoryError:
        raise DataError(f"{name}: does not fit the memory; make it smaller.") from None
    except _DECODE_ERRORS as error:
        reason = str(error).split("\n", maxsplit=1)[0].rstrip(".") or type(error).__name__
        raise DataError(f"{name}: is truncated or damaged ({reason}); copy or download it again.") from None


def _hint(name: str) -> str:
    """What to do about formats that need something else."""
    hints = {
        ".heic": " Convert HEIC to JPEG first.",
        ".heif": " Convert HEIF to JPEG first.",
        ".svg": " Render the drawing as PNG first.",
        ".pdf": " Render the page as PNG first.",
    }
    return hints.get(Path(name).suffix.lower(), "")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 1-8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Any mode to RGB; the result shares nothing with `image`."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if mode == "I" or mode == "F" or mode.startswith("I;"):
        return _deep_grey(image, name)
    if mode in ("RGBa", "La"):  # premultiplied alpha
        image = image.convert("RGBA" if mode == "RGBa" else "LA")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (WHITE, WHITE, WHITE, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image, name: str) -> Image.Image:
    """Grey of 16 or 32 bits, integer or float, to RGB; `convert` would clip it at 255."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{name}: has pixels that are NaN or infinite; expected finite values.")
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" and low >= 0 and high <= 1:
        grey = values * 255
    elif image.mode != "F" and low >= 0 and high <= 65535:
        grey = values / 257
    else:
        grey = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = WHITE
    return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")


def _missing(path: Path) -> str:
    guess = nearest_path(path)
    hint = f" Did you mean '{guess}'?" if guess else ""
    parent = next((p for p in path.parents if p.exists()), None)
    where = f" There is no folder '{path.parent}'." if parent is not None and parent != path.parent else ""
    return f"{path}: does not exist.{where}{hint}"


def nearest_path(path: str | Path) -> Path | None:
    """The existing path that looks most like one that is missing, or None if none comes close.

    The first component that does not exist is compared with what its folder holds.
    """
    missing = Path(path)
    tail: list[str] = []
    while not missing.parent.exists() and missing.parent != missing:
        tail.insert(0, missing.name)
        missing = missing.parent
    try:
        names = [entry.name for entry in missing.parent.iterdir()]
    except OSError:
        return None
    guess = nearest(missing.name, names) or nearest(missing.stem, names)
    if guess is None:
        return None
    found = missing.parent / guess
    return found.joinpath(*tail) if tail and found.joinpath(*tail).exists() else found


# ---------------------------------------------------------------------------------------------------------- finding


@dataclass(frozen=True)
class Problem:
    """Why a path gave no image.

    Args:
        path: as it was given or found.
        reason: what is wrong and what to do, without the path.
        note: True if nothing is lost, as for a path that was given twice.
    """

    path: str
    reason: str
    note: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def natural_key(text: str | Path) -> list[tuple[int, int, str]]:
    """Sorting key under which numbers inside names count as numbers.

    >>> sorted(["b10.png", "b9.png", "a.png"], key=natural_key)
    ['a.png', 'b9.png', 'b10.png']
    """
    pieces = re.split(r"([0-9]+)", str(text))
    return [(0, int(p), "") if i % 2 else (1, 0, p.lower()) for i, p in enumerate(pieces)]


def find_images(
    paths: str | Path | Sequence[str | Path], *, recursive: bool = True
) -> tuple[list[Path], list[Problem]]:
    """Image files that paths, folders and glob patterns stand for.

    Arguments keep their order; inside a folder or a pattern names sort naturally (`9.png` before `10.png`). A folder
    gives the files with the ending of an image (`SUFFIXES`), hidden ones left out; linked folders are not entered. A
    file named by itself is taken whatever its ending. No file is opened.

    Args:
        paths: files, folders or patterns (`*`, `?`, `[]`, `**`), `~` being expanded.
        recursive: also look into the folders of a folder.

    Returns:
        The files, each once, and what went wrong: missing paths with the nearest name, folders without an image,
        folders that cannot be read; a path given twice is a problem with `note=True`.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found: list[Path] = []
    problems: list[Problem] = []
    seen: dict[Path, Path] = {}
    for item in given:
        for path in _expand(item, recursive, problems):
            key = path.resolve()
            if key in seen:
                problems.append(Problem(str(path), f"was given before as '{seen[key]}'; it is used once.", note=True))
            else:
                seen[key] = path
                found.append(path)
    return found, problems


def _expand(item: str | Path, recursive: bool, problems: list[Problem]) -> list[Path]:
    """Files of one argument, in natural order."""
    text = str(item)
    if not text.strip():
        problems.append(Problem("''", "is an empty path; name a file, a folder or a pattern."))
        return []
    path = Path(item).expanduser()
    try:
        if path.is_dir():
            return _walk(path, recursive, problems)
        if path.exists():
            return [path]
    except PermissionError:
        problems.append(Problem(text, "permission denied; make the folders above it readable for this user."))
        return []
    except OSError as error:
        problems.append(Problem(text, f"cannot be looked up ({error.strerror or error})."))
        return []
    if not any(c in text for c in "*?["):
        problems.append(Problem(text, _missing(path).removeprefix(f"{path}: ")))
        return []
    files: list[Path] = []
    for match in _glob(path):
        if match.is_dir():
            files += _walk(match, recursive, [])  # a folder without images is no fault of the pattern
        elif match.suffix.lower() in SUFFIXES and not match.name.startswith("."):
            files.append(match)
    if not files:
        problems.append(Problem(text, "no image matches this pattern."))
    return sorted(dict.fromkeys(files), key=natural_key)


def _glob(pattern: Path) -> Iterable[Path]:
    """Paths that match; the part of the pattern before the first wildcard is the folder to start from."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
    return Path(*parts[:first]).glob(str(Path(*parts[first:])))


def _walk(folder: Path, recursive: bool, problems: list[Problem]) -> list[Path]:
    """Image files of a folder, in natural order."""

    def refuse(error: OSError) -> None:
        problems.append(Problem(str(error.filename or folder), f"cannot be read ({error.strerror or error})."))

    before = len(problems)
    files: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")] if recursive else []
        files += [Path(root, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES]
    if not files and len(problems) == before:
        deeper = "" if recursive else " Its own folders were not looked into."
        problems.append(Problem(str(folder), f"holds no image (looked for .jpg, .png, .webp and the like).{deeper}"))
    return sorted(files, key=natural_key)


# ----------------------------------------------------------------------------------------------------- preprocessing


def to_pil(image: Image.Image | NDArray[Any] | Tensor) -> Image.Image:
    """An image in memory as RGB.

    Args:
        image: Pillow image, or uint8 values (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); also (3, H, W) where the last
            side cannot be channels.

    Raises:
        ShapeError: for another shape.
        ParameterError: for values that are not uint8: their range is not known.
    """
    if isinstance(image, Image.Image):
        return _upright(_to_rgb(image, "image"), _orientation(image))
    values = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if values.dtype != np.uint8:
        raise ParameterError(
            f"image: expected uint8 values but got {values.dtype}; pass uint8 (H, W, 3), or a normalized float tensor "
            "(N, 3, H, W)."
        )
    if values.ndim == 3 and values.shape[2] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or 0 in values.shape:
        raise ShapeError(f"image: expected (H, W), (H, W, 3) or (H, W, 4) but got {tuple(values.shape)}.")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(values)), "image")


def preprocess(image: ImageLike, spec: ModelSpec, *, fit: Fit = "crop") -> Tensor:
    """Turn an image into what a model takes, as the evaluation of torchvision and timm does.

    Args:
        image: path, Pillow image or uint8 values (H, W, 3).
        spec: `input_size`, `crop`, `interpolation`, `mean` and `std` are read. Without `mean` and `std` the values stay
            in [0, 1].
        fit: how an image of another aspect ratio fits `spec.input_size`.
            `"crop"`: the shorter side is resized to the input divided by `spec.crop`, then the centre is cut out.
            `"squash"`: the whole image is resized to the input size, its aspect ratio is lost.
            `"whole"`: the whole image with its aspect ratio; the shorter side becomes that of the input and the longer
            side a multiple of 32, at most four times the shorter. For models that take any size.

    Returns:
        Normalized float32 (3, H, W), or (1, H, W) where `spec.mean` has one value; (H, W) is `spec.input_size` unless
        `fit="whole"`.

    >>> spec = ModelSpec(feature_layer="", input_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> preprocess(Image.new("RGB", (80, 60), "white"), spec).unique()
    tensor([1.])
    """
    rgb = read_image(image) if isinstance(image, (str, Path)) else to_pil(image)
    channels = 1 if spec.mean is not None and len(spec.mean) == 1 else 3
    if channels == 1:
        rgb = rgb.convert("L")
    resized = place(rgb.size, spec, fit).apply(rgb, _resampling(spec))
    values = np.array(resized, dtype=np.uint8).reshape(resized.height, resized.width, channels)
    x = torch.from_numpy(values).permute(2, 0, 1).to(torch.float32).div(255)
    mean, std = _statistics(spec, x)
    return (x if mean is None or std is None else (x - mean) / std).contiguous()


@dataclass(frozen=True)
class Placement:
    """Where an image lies in what a model sees: resized to `full`, of which `size` is kept from `offset` on.

    Sizes are (width, height) and points (x, y), as in Pillow.

    Args:
        image: the image itself.
        full: the image after resizing.
        offset: left and top of the part that is kept.
        size: the part that is kept.
    """

    image: tuple[int, int]
    full: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    def apply(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        """Resize and cut an image by antialiased resampling."""
        (width, height), (left, top), (full_w, full_h) = self.size, self.offset, self.full
        if full_w * full_h <= WHOLE_RESIZE * width * height:
            return image.resize(self.full, resample).crop((left, top, left + width, top + height))
        # A very wide image would have no bound here. Resampling only the part that is kept gives the same pixels up to
        # rounding, for Pillow's filter reads beyond the box.
        scale_x, scale_y = image.width / full_w, image.height / full_h
        right, bottom = min((left + width) * scale_x, image.width), min((top + height) * scale_y, image.height)
        return image.resize(self.size, resample, box=(left * scale_x, top * scale_y, right, bottom))

    def points(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points (..., 2) of the image as points of what the model sees; they may lie outside."""
        scale = np.array(self.full, np.float64) / np.array(self.image, np.float64)
        return (np.asarray(points, np.float64) * scale - np.array(self.offset, np.float64)).astype(np.float32)

    def boxes(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes (B, 4) of xmin, ymin, xmax, ymax, cut to what the model sees; one outside has no area."""
        corners = self.points(np.asarray(boxes, np.float32).reshape(-1, 2, 2))
        return np.clip(corners, 0, np.array(self.size, np.float32)).reshape(-1, 4)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask (H, W) of the image as the model sees it: cells of which at least half is covered."""
        grey = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
        return np.asarray(self.apply(grey, Image.Resampling.BILINEAR)) >= 128


def place(size: tuple[int, int], spec: ModelSpec, fit: Fit = "crop") -> Placement:
    """Where an image of `size` (width, height) comes to lie under `preprocess(image, spec, fit=fit)`."""
    height, width = spec.input_size
    if fit == "squash":
        return Placement(size, (width, height), (0, 0), (width, height))
    if fit == "whole":
        whole = whole_size(size, spec.input_size)
        return Placement(size, whole, (0, 0), whole)
    if fit != "crop":
        raise ParameterError(f"fit must be one of {', '.join(get_args(Fit))} but is '{fit}'.")
    full = _resized_size(size, spec)
    return Placement(size, full, (round((full[0] - width) / 2), round((full[1] - height) / 2)), (width, height))


def _resampling(spec: ModelSpec) -> Image.Resampling:
    if spec.interpolation not in _RESAMPLING:
        raise ParameterError(f"interpolation must be one of {', '.join(_RESAMPLING)} but is '{spec.interpolation}'.")
    return _RESAMPLING[spec.interpolation]


def _resized_size(size: tuple[int, int], spec: ModelSpec) -> tuple[int, int]:
    """Width and height of the image after resizing and before cropping, never smaller than the crop."""
    w, h = size
    if not 0 < spec.crop <= 1:
        raise ParameterError(f"crop must be in (0, 1] but is {spec.crop}.")
    # 1e-4 mends crops given as a rounded fraction: 224 / 0.9655 is meant to be 232
    goal_h, goal_w = (math.floor(side / spec.crop + 1e-4) for side in spec.input_size)
    if goal_h == goal_w:
        short = goal_h
        full = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
    else:
        ratio = min(h / goal_h, w / goal_w)
        full = (round(w / ratio), round(h / ratio))
    return max(full[0], spec.input_size[1]), max(full[1], spec.input_size[0])


def whole_size(size: tuple[int, int], input_size: tuple[int, int]) -> tuple[int, int]:
    """Width and height that `fit="whole"` gives to an image of `size` (width, height).

    >>> whole_size((640, 480), (224, 224))
    (288, 224)
    """
    w, h = size
    short = min(input_size)
    aspect = min(max(w, h) / min(w, h), WHOLE_ASPECT)
    long = max(short, round(short * aspect / WHOLE_MULTIPLE) * WHOLE_MULTIPLE)
    return (long, short) if w >= h else (short, long)


def _statistics(spec: ModelSpec | None, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Mean and deviation as (C, 1, 1) tensors like `x`; None where the spec has none."""
    if spec is None or spec.mean is None or spec.std is None:
        return None, None
    if len(spec.mean) != x.shape[-3] or len(spec.std) != x.shape[-3]:
        raise ShapeError(
            f"images have {x.shape[-3]} channels but the spec has {len(spec.mean)} means and "
            f"{len(spec.std)} deviations."
        )
    if min(spec.std) <= 0:
        raise ParameterError(f"std must be positive but is {spec.std}.")
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (spec.mean, spec.std))
    return mean, std


def to_batch(images: ImageLike | Sequence[ImageLike], spec: ModelSpec, *, fit: Fit = "crop") -> Tensor:
    """A batch for a model from nearly anything that is an image.

    Args:
        images: one or a sequence of paths, Pillow images and uint8 arrays (H, W, 3), which are preprocessed; a uint8
            array (N, H, W, 3); a float tensor (N, 3, H, W) or (3, H, W), which is taken as already normalized, keeps
            dtype and device and is passed through; a sequence of float tensors (3, H, W).
        spec: facts about the model.
        fit: as in `preprocess`.

    Returns:
        (N, 3, H, W), float32 unless a float tensor of another precision was passed.

    Raises:
        DataError: if there is no image, one cannot be read, or one holds NaN or infinite values.
        ShapeError: if images cannot form one batch.
    """
    if isinstance(images, Tensor) and images.is_floating_point():
        if images.ndim not in (3, 4) or 0 in images.shape:
            raise ShapeError(f"images: expected a float tensor (N, 3, H, W) but got {tuple(images.shape)}.")
        return _finite(images if images.ndim == 4 else images[None])
    if isinstance(images, (str, Path, Image.Image)):
        items: list[ImageLike] = [images]
    elif isinstance(images, (Tensor, np.ndarray)):
        items = list(images) if images.ndim == 4 else [images]
    else:
        items = list(images)
    if not items:
        raise DataError("images: there is none; pass at least one.")
    rows: list[Tensor] = []
    for item in items:
        if isinstance(item, Tensor) and item.is_floating_point():
            rows.append(to_batch(item, spec)[0] if item.ndim == 3 else _refuse_row(item))
        else:
            rows.append(preprocess(item, spec, fit=fit))
    shapes = sorted({tuple(row.shape) for row in rows})
    if len(shapes) > 1:
        raise ShapeError(f"images: shapes {shapes} do not form one batch; pass them one by one or use fit='crop'.")
    return _finite(torch.stack(rows))


def _refuse_row(item: Tensor) -> Tensor:
    raise ShapeError(f"images: expected float tensors (3, H, W) in a sequence but got {tuple(item.shape)}.")


def _finite(x: Tensor) -> Tensor:
    """`x` unchanged; an image with NaN or infinite values is refused by its place in the batch."""
    finite = torch.isfinite(x).flatten(1).all(dim=1)
    if not bool(finite.all()):
        bad = [i for i, good in enumerate(finite.tolist()) if not good]
        raise DataError(f"images: {len(bad)} of {len(x)} hold NaN or infinite values (first: image {bad[0]}).")
    return x


def denormalize(x: Tensor, spec: ModelSpec | None = None) -> Tensor:
    """Images to look at from images that a model takes.

    Args:
        x: normalized (N, C, H, W) or (C, H, W), C being 3 or 1.
        spec: `mean` and `std` are read; where they are unknown each image is stretched from its minimum to its maximum.

    Returns:
        uint8 (N, H, W, 3) on the device of `x`.

    >>> spec = ModelSpec(feature_layer="", mean=(0.5,) * 3, std=(0.25,) * 3)
    >>> denormalize(torch.zeros(1, 3, 2, 2), spec).unique()
    tensor([128], dtype=torch.uint8)
    """
    if x.ndim == 3:
        x = x[None]
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ShapeError(f"denormalize: expected (N, 3, H, W) or (N, 1, H, W) but got {tuple(x.shape)}.")
    values = x.detach().to(torch.float32) if x.dtype != torch.float64 else x.detach()
    mean, std = _statistics(spec, values)
    if mean is None or std is None:
        low, high = values.amin(dim=(1, 2, 3), keepdim=True), values.amax(dim=(1, 2, 3), keepdim=True)
        span = high - low
        values = torch.where(span > 0, (values - low) / torch.where(span > 0, span, 1), values)
    else:
        values = values * std + mean
    pixels = values.nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()
