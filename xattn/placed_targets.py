"""Targets that lie somewhere in the image: a class over a region of a segmentation, a detection in a box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError, ParameterError, ShapeError
from xattn.outputs import Which, spelled, take, tensors
from xattn.spec import ModelSpec
from xattn.targets import Target, indices_of, name_of


def maps_of(output: Any, model: nn.Module, which: Which) -> Tensor:
    """Class scores of every pixel (N, K, H, W) in what a model returned."""
    if callable(which) or which not in (None, ()):
        chosen = [take(output, which)]
    else:
        found = [(path, t) for path, t in tensors(output) if t.ndim == 4 and t.shape[2] * t.shape[3] > 1]
        named = [t for path, t in found if path and path[-1] in ("out", "logits")]
        chosen = named[:1] or [t for _, t in found][:1]
    if not chosen or chosen[0].ndim != 4:
        shapes = ", ".join(f"{spelled(p)} {tuple(t.shape)}" for p, t in tensors(output)) or type(output).__name__
        raise NotApplicableError(
            f"{type(model).__name__}: a Region needs class scores of every pixel, (N, K, H, W), but the model "
            f"returned {shapes}; name them by output=."
        )
    return chosen[0]


def _is_list(output: Any) -> bool:
    """Whether a model returned a dictionary of detections for each image, as torchvision's do."""
    return isinstance(output, (list, tuple)) and all(isinstance(o, dict) and "boxes" in o for o in output)


def detections_of(output: Any, model: nn.Module, which: Which) -> Tensor:
    """Detections (N, M, 6) of lists: corners, score, label; or outputs (N, 4 + K, anchors) as they are."""
    named = callable(which) or which not in (None, ())
    chosen: Any = take(output, which) if named else output
    if _is_list(chosen):
        most = max(max(len(o["boxes"]) for o in chosen), 1)
        each = [torch.cat([o["boxes"], o["scores"][:, None], o["labels"][:, None].to(o["boxes"])], 1) for o in chosen]
        return torch.stack([nn.functional.pad(e, (0, 0, 0, most - len(e))) for e in each])
    if not isinstance(chosen, Tensor):
        chosen = next((t for _, t in tensors(chosen) if t.ndim == 3), None)
    if chosen is None or chosen.ndim != 3 or chosen.shape[1] < 5:
        shapes = ", ".join(f"{spelled(p)} {tuple(t.shape)}" for p, t in tensors(output)) or type(output).__name__
        raise NotApplicableError(
            f"{type(model).__name__}: a Box reads lists of boxes, labels and scores, or (N, 4 + K, anchors), but "
            f"the model returned {shapes}; pass a function of the outputs as target."
        )
    return chosen


@dataclass(frozen=True, eq=False)
class Region(Target):
    """A class of a segmentation over a region: the mean of its scores (N, K, H, W) there.

    Args:
        mask: where, (H, W), (N, H, W) or (N, 1, H, W), truth values or weights on the image or on the model's own grid;
            None is where the model predicts the class.
        target: the class, index or name.
    """

    mask: Any
    target: int | str

    def which(self, model: nn.Module, output: Which) -> Which:
        # Facts are found by the mean over the pixels, (N, K): a head of 1x1 convolutions then is the classifier.
        return lambda out: maps_of(out, model, output).mean((2, 3))

    def _column(self, classes: int, spec: ModelSpec) -> int:
        like = torch.zeros(1)
        return int(indices_of(self.target, spec, 1, max(classes, 2), like)[0])

    def read(self, output: Any, model: nn.Module, images: int, which: Which) -> Tensor:
        return maps_of(output, model, which).flatten(1)

    def bind(self, output: Any, values: Tensor, spec: ModelSpec, which: Which) -> tuple[Target, Tensor]:
        maps = maps_of(output, nn.Identity(), which)
        n, k, h, w = maps.shape
        column = self._column(k, spec)
        if self.mask is None:
            best = maps.detach().argmax(1) if k > 1 else (maps.detach()[:, 0] > 0).long()
            mask = (best == column)[:, None].to(values)
        else:
            mask = torch.as_tensor(self.mask, device=values.device).to(values.dtype)
            mask = mask[None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
            if mask.ndim != 4 or mask.shape[1] != 1 or len(mask) not in (1, n):
                raise ShapeError(
                    f"target: the mask of a Region is {tuple(mask.shape)}; expected (H, W) for all of {n} images, or "
                    f"({n}, H, W)."
                )
            if mask.shape[2:] != (h, w):
                mask = nn.functional.adaptive_avg_pool2d(mask, (h, w))
        total = mask.flatten(1).sum(1)
        if not bool((total > 0).all()) or bool((mask < 0).any()):
            empty = int((total <= 0).nonzero()[0]) if not bool((total > 0).all()) else 0
            why = "the model predicts the class nowhere in it" if self.mask is None else "its mask has no pixel"
            raise ParameterError(f"target: the Region of image {empty} is empty or negative ({why}); pass another one.")
        weights = (mask.flatten(1) / total[:, None]).expand(n, -1)
        bound = _BoundRegion(weights, column, k, name_of(column, spec))
        return bound, torch.arange(n, device=values.device)

    def score(self, values: Tensor, index: Tensor) -> Tensor:
        raise NotImplementedError("a Region is bound to the model's grid first")

    def text(self, i: int, spec: ModelSpec) -> str:
        return f"{self.target} in a region"


@dataclass(frozen=True, eq=False)
class _BoundRegion(Target):
    """A region on the model's own grid: weights (N, h * w) that sum to one."""

    weights: Tensor
    column: int
    classes: int
    name: str

    def read(self, output: Any, model: nn.Module, images: int, which: Which) -> Tensor:
        return maps_of(output, model, which).flatten(1)

    def score(self, values: Tensor, index: Tensor) -> Tensor:
        maps = values.unflatten(1, (self.classes, -1))
        # As everywhere one output is that of class 1, and class 0 has its negative.
        chosen = maps[:, self.column] if self.classes > 1 else maps[:, 0] if self.column else -maps[:, 0]
        return (chosen * self.weights.to(values)[index]).sum(1)

    def text(self, i: int, spec: ModelSpec) -> str:
        return f"{self.name} in a region"


@dataclass(frozen=True, eq=False)
class Box(Target):
    """A detection: the score of a class in a box, as the detector gives it to the box that overlaps most with it.

    Of all the detections of an image the largest product of overlap (intersection over union) and score counts.
    Reads the lists of dictionaries of torchvision's detectors, and outputs (N, 4 + K, anchors) as YOLO gives them, with
    centre, width and height; for other detectors pass a function of the raw outputs as target.

    Args:
        box: x1, y1, x2, y2 in pixels of the input, (4,) or one for each image (N, 4).
        target: the class, index or name.
    """

    box: Any
    target: int | str

    def which(self, model: nn.Module, output: Which) -> Which:
        def summary(out: Any) -> Tensor:
            found = detections_of(out, model, output)
            # The number of detections varies, that of anchors does not.
            return found[..., :5].sum(1) if _is_list(out) else found.flatten(1)

        return summary

    def read(self, output: Any, model: nn.Module, images: int, which: Which) -> Tensor:
        return detections_of(output, model, which).flatten(1)

    def bind(self, output: Any, values: Tensor, spec: ModelSpec, which: Which) -> tuple[Target, Tensor]:
        found = detections_of(output, nn.Identity(), which)
        listed = _is_list(output)
        box = torch.as_tensor(self.box, device=values.device).to(values.dtype)
        box = box[None] if box.ndim == 1 else box
        n = len(values)
        if box.ndim != 2 or box.shape[1] != 4 or len(box) not in (1, n) or not bool((box[:, 2:] > box[:, :2]).all()):
            raise ShapeError(
                f"target: the box must be x1, y1, x2, y2 with x1 < x2 and y1 < y2, (4,) or ({n}, 4), but is "
                f"{box.tolist() if box.numel() < 9 else tuple(box.shape)}."
            )
        name = self.target
        column = spec.class_index(name) if isinstance(name, str) else int(name)
        if not listed and not 0 <= column < found.shape[1] - 4:
            raise ParameterError(
                f"target: class {column} does not exist; the detector has classes 0 to {found.shape[1] - 5}."
            )
        bound = _BoundBox(box.expand(n, 4), column, 0 if listed else found.shape[1], name_of(name, spec))
        return bound, torch.arange(n, device=values.device)

    def score(self, values: Tensor, index: Tensor) -> Tensor:
        raise NotImplementedError("a Box is bound to the outputs first")

    def text(self, i: int, spec: ModelSpec) -> str:
        return f"{name_of(self.target, spec)} in a box"


@dataclass(frozen=True, eq=False)
class _BoundBox(Target):
    """A box for each image; `channels` are those of outputs (N, 4 + K, anchors), 0 for lists of detections."""

    box: Tensor
    column: int
    channels: int
    name: str

    def read(self, output: Any, model: nn.Module, images: int, which: Which) -> Tensor:
        return detections_of(output, model, which).flatten(1)

    def score(self, values: Tensor, index: Tensor) -> Tensor:
        if self.channels:
            found = values.unflatten(1, (self.channels, -1))
            centre, half = found[:, :2], found[:, 2:4] / 2
            corners = torch.cat([centre - half, centre + half], 1).transpose(1, 2)
            scores = found[:, 4 + self.column]
        else:
            found = values.unflatten(1, (-1, 6))
            corners, scores = found[..., :4], found[..., 4] * (found[..., 5] == self.column)
        return (_overlap(corners, self.box.to(values)[index][:, None]) * scores).amax(1)

    def text(self, i: int, spec: ModelSpec) -> str:
        return f"{self.name} in a box"


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4), as x1, y1, x2, y2."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    first, second = ((c[..., 2:] - c[..., :2]).clamp(min=0).prod(-1) for c in (a, b))
    return shared / (first + second - shared).clamp(min=1e-12)
