"""Raw maps of a method with their provenance, to look at, to measure and to store."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xattn.errors import DataError, MissingExtraError, ShapeError
from xattn.functional.pixels import denormalize
from xattn.functional.resize import resize
from xattn.labels import first_name, label_of
from xattn.spec import ModelSpec
from xattn.statuses import told

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL.Image import Image

    from xattn.explainer import Explainer

OK, ALL_ZERO, CONSTANT, NAN = "ok", "all-zero", "constant", "nan"
NON_CONSERVING = "non-conserving"


# Cells that differ by less than this many units in the last place are one number, rounded along several ways: maps of
# mean-pooled DINOv2 by transformer attribution are 1/16 in all cells and differ by 27.
_ROUNDING = 64


def constant(maps: Tensor) -> Tensor:
    """Whether the cells of each map (N, ...) differ by no more than rounding, (N,).

    Rounding is relative to the largest value of the map, in the map's own precision.
    """
    high, low = maps.flatten(1).amax(dim=1), maps.flatten(1).amin(dim=1)
    return high - low <= _ROUNDING * torch.finfo(maps.dtype).eps * torch.maximum(high.abs(), low.abs())


def status_of(maps: Tensor) -> list[str]:
    """What is wrong with each of the maps (N, 1, h, w): `ok`, `all-zero`, `constant` (but for rounding) or `nan`."""
    flat = maps.flatten(1)
    finite = torch.isfinite(flat).all(dim=1)
    zero = (flat == 0).all(dim=1)
    # One cell is not a constant map: it has nothing to vary over.
    table = torch.stack([finite, zero, constant(flat) & (flat.shape[1] > 1)]).cpu().T.tolist()
    return [NAN if not f else ALL_ZERO if z else CONSTANT if c else OK for f, z, c in table]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Saliency maps of a batch with everything needed to know where they come from.

    Args:
        maps: raw importance (N, 1, h, w) on the method's own grid, float32 or float64, higher = more important; of
            volumes (N, 1, d, h, w).
        target: int64 (N,), the class that was explained, or the column of a number; -1 for what is neither.
        method: the explainer, whose `repr` holds all parameters.
        input_size: height and width of the images in pixels.
        parts: the maps (N, P, h, w) of the parts, for methods that have them.
        status: per image `ok`, `all-zero`, `constant`, `nan`, `non-conserving`, or what speaks against the map
            (`xattn.doubts`).
        probability: (N,), what the model gives the target: softmax, or sigmoid where there is one output; None for
            what has no probability.
        inputs: the images, normalized floats or uint8 pixels (N, C, H, W), for pictures.
        spec: facts about the model.
        described: what was explained in each image, in words; empty where it was a class.
        bands: the three channels of an image that are drawn, or one in grey; by default the first ones.
        photographs: what the images were made of, paths or pictures, if that is known; pictures have its resolution.
        fit: how they became inputs, as in `preprocess`.
        original: (N,), what the network itself gives the target, where the maps are those of a changed copy of it, as
            with `resolution="x2"`; `probability` is what the copy gives it.
        predicted: int64 (N,), the class of the highest score; None where there are no classes.
        labels: the class that the folder of each photograph names; empty texts where none does.
        remarks: what the method says of each map in numbers, and what to do; empty texts where it says nothing.
    """

    maps: Tensor
    target: Tensor
    method: Explainer
    input_size: tuple[int, int]
    parts: Tensor | None = None
    status: tuple[str, ...] = ()
    probability: Tensor | None = None
    inputs: Tensor | None = None
    spec: ModelSpec | None = None
    described: tuple[str, ...] = ()
    bands: tuple[int, ...] = ()
    photographs: tuple[Any, ...] = ()
    fit: Any = None
    original: Tensor | None = None
    predicted: Tensor | None = None
    labels: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.maps.ndim not in (4, 5) or self.maps.shape[1] != 1:
            raise ShapeError(
                f"Explanation: expected maps of shape (N, 1, h, w) or (N, 1, d, h, w) but got {tuple(self.maps.shape)}."
            )
        if len(self.target) != len(self.maps):
            raise ShapeError(f"Explanation: {len(self.maps)} maps do not fit {len(self.target)} targets.")
        if self.described and len(self.described) != len(self.maps):
            raise ShapeError(f"Explanation: {len(self.maps)} maps do not fit {len(self.described)} descriptions.")
        if not self.status:
            object.__setattr__(self, "status", tuple(status_of(self.maps)))

    def __len__(self) -> int:
        return len(self.maps)

    def __repr__(self) -> str:
        n, _, *grid = self.maps.shape
        trouble = sorted({s for s in self.status if s != OK})
        state = ", ".join(f"{self.status.count(s)} {s}" for s in trouble) or OK
        of = f" of {self.spec.name}" if self.spec is not None and self.spec.name else ""
        return f"<Explanation: {n} maps of {'x'.join(map(str, grid))} by {self.method!r}{of}, status {state}>"

    def resized(self, size: tuple[int, int] | None = None, mode: str = "bilinear") -> Tensor:
        """Maps (N, 1, H, W) on the grid of the image, or of `size`, without normalization.

        Of volumes (N, 1, D, H, W), trilinear; `size` is that of a slice.
        """
        if self.maps.ndim == 5:
            depth = self.maps.shape[2] if self.inputs is None else self.inputs.shape[2]
            whole = (depth, *(size or self.input_size))
            return torch.nn.functional.interpolate(self.maps, whole, mode="trilinear", align_corners=False)
        return resize(self.maps, size or self.input_size, mode)

    @property
    def images(self) -> Tensor:
        """The images as they are seen: uint8 (N, H, W, C), on the CPU.

        Raises:
            DataError: if the explanation was loaded from a file that has none.
        """
        if self.inputs is None:
            raise DataError("Explanation: it holds no images; save it with images=True or pass an image to overlay().")
        if self.inputs.dtype == torch.uint8:
            return self.inputs.permute(0, 2, 3, 1).cpu()
        mean, std = (None, None) if self.spec is None else (self.spec.mean, self.spec.std)
        return denormalize(self.inputs, mean, std, self.bands).cpu()

    def slices(self) -> tuple[Explanation, ...]:
        """Of volumes the middle slices across depth, height and width, each an explanation of images.

        Raises:
            DataError: if these are no volumes, or it holds none of them.
        """
        if self.inputs is None or self.maps.ndim != 5:
            raise DataError("Explanation: only explanations of volumes that hold them have slices.")
        maps, inputs, cut = self.resized(), self.inputs, []
        for axis in (2, 3, 4):
            middle = inputs.shape[axis] // 2
            images, across = inputs.select(axis, middle), maps.select(axis, middle)
            size = (images.shape[-2], images.shape[-1])
            cut.append(replace(self, maps=across, inputs=images, parts=None, input_size=size))
        return tuple(cut)

    def told(self, i: int = 0) -> str:
        """The status of image `i` in a sentence: what happened, and what to do."""
        return told(self.status[i], self.remarks[i] if self.remarks else "")

    def frame(self) -> DataFrame:
        """What there is to know of each image without its map, as a data frame of pandas with a row an image.

        Columns are `image` (its path, else its number), `label` (the class that its folder names), `model`,
        `predicted`, `right` (whether that is the label; missing without one), `method`, `explained`, `probability` of
        what is explained, and `status`.

        Raises:
            MissingExtraError: if pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError:
            raise MissingExtraError("frame() needs pandas; pip install pandas") from None
        known = [str(p) if isinstance(p, (str, Path)) else i for i, p in enumerate(self.photographs)]
        spec = self.spec or ModelSpec()
        predicted = [None] * len(self) if self.predicted is None else map(spec.class_name, self.predicted.tolist())
        rows = {
            "image": known or list(range(len(self))),
            "label": [label or None for label in self.labels or [""] * len(self)],
            "model": spec.name,
            "predicted": list(predicted),
            "method": label_of(self.method),
            "explained": [self.class_name(i) for i in range(len(self))],
            "probability": math.nan if self.probability is None else self.probability.double().tolist(),
            "status": list(self.status),
        }
        table = DataFrame(rows)
        right = (table["label"] == table["predicted"]).where(table["label"].notna() & table["predicted"].notna())
        table.insert(4, "right", right.astype("boolean"))
        return table

    def class_name(self, i: int = 0) -> str:
        """Name of the class explained in image `i`, or what else was explained there."""
        if self.described:
            return self.described[i]
        index = int(self.target[i])
        return self.spec.class_name(index) if self.spec is not None else f"class {index}"

    def short_name(self, i: int = 0) -> str:
        """The same for pictures: of a class that has several names the first."""
        return self.class_name(i) if self.described else first_name(self.class_name(i))

    def overlay(self, i: int = 0, **options: Any) -> Image:
        """Picture of image `i` with its map over it; the options are those of `xattn.viz.render`.

        Of a volume its middle slices, side by side.
        """
        from xattn.viz import render

        return render(self, i, **options)

    def _repr_png_(self) -> bytes:
        """The picture that a notebook shows: one row an image, the first eight of them."""
        from xattn.viz import gallery

        buffer = io.BytesIO()
        (self.overlay() if self.maps.ndim == 5 else gallery([self], limit=8)).save(buffer, "PNG")
        return buffer.getvalue()


def joined(some: Sequence[Explanation]) -> Explanation:
    """Explanations of batches by one method and of one network as one, without the inputs.

    Raises:
        ShapeError: if their maps have different grids.
    """
    grids = {tuple(e.maps.shape[1:]) for e in some}
    if len(grids) > 1:
        raise ShapeError(f"Explanation: maps of grids {sorted(grids)} do not go together; pass fit='crop'.")

    def all_of(name: str) -> Tensor | None:
        values = [getattr(e, name) for e in some]
        return None if any(v is None for v in values) else torch.cat(values)

    def each(name: str) -> tuple[Any, ...]:
        return tuple(value for e in some for value in getattr(e, name))

    tensors = {name: all_of(name) for name in ("maps", "target", "parts", "probability", "original", "predicted")}
    texts = {name: each(name) for name in ("status", "described", "photographs", "labels")}
    if any(e.remarks for e in some):
        texts["remarks"] = tuple(text for e in some for text in e.remarks or [""] * len(e))
    return replace(some[0], inputs=None, **tensors, **texts)  # type: ignore[arg-type]
