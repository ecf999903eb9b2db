"""Localisation: does the map lie on the object? Against masks, or boxes where there are no masks.

All maps are enlarged to the image first (bilinear). A photograph's object is often large and in the middle, so read
every score beside those of the centre and random controls, and beside `object_size`.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from xattn.errors import DataError, ShapeError
from xattn.explanation import Explanation
from xattn.functional import boxes as B
from xattn.functional import localization as F
from xattn.metric import HIGHER, NEITHER, Direction, Metric
from xattn.metrics import metrics
from xattn.schema import Range
from xattn.trace import Trace

THRESHOLDS = tuple(i / 20 for i in range(20))
"""Of the metrics that choose one threshold for a whole data set: 0, 0.05 to 0.95."""
_NAMES = tuple(f"{round(100 * t):02d}" for t in THRESHOLDS)


def object_masks(metric: Metric, batch: Any, explanation: Explanation, *, boxes: bool = False) -> Tensor:
    """Masks bool (N, 1, H, W) of the objects on the device of the maps.

    Args:
        metric: its name, for messages.
        batch: the data.
        explanation: whose maps are measured.
        boxes: prefer the filled boxes to the outline.

    Raises:
        DataError: if the data set has neither masks nor boxes.
        ShapeError: if the masks do not fit the images that were explained.
    """
    if boxes and batch.boxes is not None and batch.masks is not None:
        batch = dataclasses.replace(batch, masks=None)
    masks = batch.object_masks()
    if masks is None:
        raise DataError(
            f"{metric.name}: the data set has neither masks nor boxes; leave this metric out, or measure on mosaics of "
            "its images with grid_pointing_game."
        )
    if masks.shape != (len(explanation), 1, *explanation.input_size):
        raise ShapeError(
            f"{metric.name}: masks {tuple(masks.shape)} do not fit {len(explanation)} maps of images of "
            f"{explanation.input_size[0]}x{explanation.input_size[1]}; pass the batch that was explained."
        )
    return masks.to(explanation.maps.device)


def object_boxes(metric: Metric, batch: Any, explanation: Explanation) -> list[Tensor]:
    """Boxes (B, 4) of each image; where the data set has masks alone, the rectangle around each mask."""
    if batch.boxes is not None:
        if len(batch.boxes) != len(explanation):
            raise ShapeError(
                f"{metric.name}: boxes of {len(batch.boxes)} images do not fit {len(explanation)} maps; pass the batch "
                "that was explained."
            )
        return [rows.to(explanation.maps.device) for rows in batch.boxes]
    boxes = []
    for mask in object_masks(metric, batch, explanation)[:, 0]:
        y, x = mask.nonzero(as_tuple=True)
        sides = [torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])] if len(x) else []
        boxes.append(torch.stack(sides) if sides else mask.new_zeros((0, 4), dtype=torch.int64))
    return boxes


class _OnMasks(Metric):
    """A metric of the enlarged map and the object's mask alone."""

    family: ClassVar[str] = "localization"
    needs: ClassVar[frozenset[str]] = frozenset({"masks"})
    boxes: ClassVar[bool] = False  # compare with boxes even where there is an outline

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        return self.compare(explanation.resized(), object_masks(self, batch, explanation, boxes=self.boxes))

    @abstractmethod
    def compare(self, maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """The columns, from maps (N, 1, H, W) and masks bool (N, 1, H, W)."""


@metrics.register("pointing_game")
@dataclass(frozen=True)
class PointingGame(_OnMasks):
    """Whether the highest point of the map lies on the object (Zhang et al. 2018, Excitation Backprop, IJCV 126).

    Several highest points give the share of them that hit; an empty mask and a constant map are NaN. `hit` allows the
    tolerance, `hit_exact` none. Random: the share of the (widened) mask.

    Args:
        tolerance_px: a point so far off the object still hits; 15 as in TorchRay, which suits images of 224 pixels.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"hit": HIGHER, "hit_exact": HIGHER}
    paper: ClassVar[str] = "Zhang et al. 2018, IJCV 126"
    tolerance_px: Annotated[int, Range(0, 10_000)] = 15

    def compare(self, maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
        return {
            "hit": F.pointing_hit(maps, masks, self.tolerance_px),
            "hit_exact": F.pointing_hit(maps, masks, 0),
        }


@metrics.register("energy_pointing_game")
@dataclass(frozen=True)
class EnergyPointingGame(_OnMasks):
    """Share of the energy of the min-max scaled map inside the object's box (Wang et al. 2020, arXiv:1910.01279).

    Random: the share of the box.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"energy": HIGHER}
    paper: ClassVar[str] = "Wang et al. 2020, Score-CAM, arXiv:1910.01279"
    boxes: ClassVar[bool] = True

    def compare(self, maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
        return {"energy": F.energy_pointing(maps, masks)}


@metrics.register("relevance_mass")
@dataclass(frozen=True)
class RelevanceMass(_OnMasks):
    """Share of the positive relevance that lies on the object (Arras et al. 2022, CLEVR-XAI, arXiv:2003.07258).

    The zero of the map counts: nothing is rescaled. Random (uniform, positive): the share of the mask.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"mass": HIGHER}
    paper: ClassVar[str] = "Arras et al. 2022, arXiv:2003.07258"

    def compare(self, maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
        return {"mass": F.energy_share(maps, masks)}


@metrics.register("relevance_rank")
@dataclass(frozen=True)
class RelevanceRank(_OnMasks):
    """Share of the K highest pixels on an object of K pixels (Arras et al. 2022, CLEVR-XAI, arXiv:2003.07258).

    Random: the share of the mask.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"rank": HIGHER}
    paper: ClassVar[str] = "Arras et al. 2022, arXiv:2003.07258"

    def compare(self, maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
        return {"rank": F.relevance_rank(maps, masks)}


@metrics.register("top_k_intersection")
@dataclass(frozen=True)
class TopKIntersection(_OnMasks):
    """Share of the highest pixels that lie on the object (Theiner et al. 2021, arXiv:2104.14995).

    Random: the share of the mask.

    Args:
        share: of the image's pixels that are taken, at least one pixel. 0.02 is k = 1000 at 224 x 224.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"intersection": HIGHER}
    share: Annotated[float, Range(0, 1, open_low=True)] = 0.02

    def compare(self, maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
        k = max(1, round(self.share * maps.shape[-2] * maps.shape[-1]))
        return {"intersection": F.top_k_intersection(maps, masks, k)}


@metrics.register("pixel_auc")
@dataclass(frozen=True)
class PixelAUC(_OnMasks):
    """ROC AUC and average precision of the pixels as a detector of the object (Fawcett 2006; ties as in scikit-learn).

    Random: 0.5 and the share of the mask.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"roc_auc": HIGHER, "average_precision": HIGHER}
    paper: ClassVar[str] = "Fawcett 2006, Pattern Recognition Letters 27(8)"

    def compare(self, maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
        auc, precision = F.pixel_ranking(maps, masks)
        return {"roc_auc": auc, "average_precision": precision}


@metrics.register("threshold_overlap")
@dataclass(frozen=True)
class ThresholdOverlap(_OnMasks):
    """Rectangles around what exceeds a threshold, against the object's boxes (AGCAM; Leem, Seo 2024).

    Precision and pixel accuracy have no direction: marking almost nothing can win the one, and on small objects also
    the other. The authors keep to correctly classified images.

    Args:
        threshold: on the min-max scaled map, strictly above.
        rectangles: compare the bounding rectangles of the regions with the object's boxes, as published; False compares
            the regions themselves with the outline.
    """

    columns: ClassVar[Mapping[str, Direction]] = {
        "iou": HIGHER, "dice": HIGHER, "precision": NEITHER, "recall": NEITHER, "pixel_accuracy": NEITHER,
    }  # fmt: skip
    paper: ClassVar[str] = "Leem, Seo 2024, AGCAM, AAAI"
    threshold: Annotated[float, Range(0, 1, open_high=True)] = 0.5
    rectangles: bool = True

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        return self.compare(explanation.resized(), object_masks(self, batch, explanation, boxes=self.rectangles))

    def compare(self, maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
        return B.threshold_overlap(maps, masks, self.threshold, boxes=self.rectangles)


@metrics.register("max_box_accuracy", "maxboxaccv2")
@dataclass(frozen=True)
class MaxBoxAccuracy(Metric):
    """MaxBoxAccV2: boxes of the map that overlap a box of the object (Choe et al. 2020, arXiv:2001.07437).

    The score is one of a data set: at the one threshold that is best for all of it. So the columns are the best IoU of
    each image at each of 20 thresholds (`iou_05` at 0.05), and `pool` chooses the thresholds and counts. The paper
    has thresholds 0.001 apart; `functional.localization.box_iou_curve` takes any.

    Args:
        largest: only the largest region gives a box (MaxBoxAcc, the first version).
    """

    family: ClassVar[str] = "localization"
    columns: ClassVar[Mapping[str, Direction]] = {f"iou_{name}": NEITHER for name in _NAMES}
    pooled: ClassVar[Mapping[str, Direction]] = {
        "max_box_acc_v2": HIGHER, "max_box_acc_30": HIGHER, "max_box_acc_50": HIGHER, "max_box_acc_70": HIGHER,
    }  # fmt: skip
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    largest: bool = False

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        boxes = object_boxes(self, batch, explanation)
        curves = B.box_iou_curve(explanation.resized(), boxes, THRESHOLDS, largest=self.largest)
        return dict(zip(self.columns, curves.unbind(1), strict=True))

    def pool(self, columns: Mapping[str, Tensor]) -> dict[str, float]:
        return B.max_box_accuracy(torch.stack([torch.as_tensor(columns[name]) for name in self.columns], 1))


@metrics.register("pxap", "pixel_average_precision")
@dataclass(frozen=True)
class PxAP(_OnMasks):
    """PxAP: average precision over the pixels of all images together (Choe et al. 2020, arXiv:2001.07437).

    The columns count the pixels at or above each of 20 thresholds of the min-max scaled map, on (`tp_05` at 0.05) and
    off the object; `pool` adds them up over the data set. The paper has 1000 thresholds.
    """

    columns: ClassVar[Mapping[str, Direction]] = {f"{kind}_{name}": NEITHER for kind in ("tp", "fp") for name in _NAMES}
    pooled: ClassVar[Mapping[str, Direction]] = {"pxap": HIGHER}

    def compare(self, maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
        true, false = F.pixel_counts(maps, masks, THRESHOLDS)
        return dict(zip(self.columns, (*true.unbind(1), *false.unbind(1)), strict=True))

    def pool(self, columns: Mapping[str, Tensor]) -> dict[str, float]:
        counts = torch.stack([torch.as_tensor(columns[name]) for name in self.columns], 1)
        many = len(THRESHOLDS)
        return {"pxap": F.pixel_average_precision(counts[:, :many], counts[:, many:])}


@metrics.register("grid_pointing_game")
@dataclass(frozen=True)
class GridPointingGame(Metric):
    """Share of positive relevance in the cell of the explained class of a mosaic (Böhle et al. 2021, arXiv:2104.00032).

    For data sets without boxes: `xattn.data.mosaic.Mosaic` puts images of different classes on a grid, its label is the
    class of one cell and its box is that cell. An image whose explained class is not that of its cell is NaN: explain
    the label, not the prediction. Random: one over the number of cells.
    """

    family: ClassVar[str] = "localization"
    columns: ClassVar[Mapping[str, Direction]] = {"cell": HIGHER}
    needs: ClassVar[frozenset[str]] = frozenset({"mosaic"})
    paper: ClassVar[str] = "Böhle et al. 2021, CoDA-Nets, arXiv:2104.00032"

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        share = F.energy_share(explanation.resized(), object_masks(self, batch, explanation))
        same = explanation.target == batch.target.to(explanation.target.device)
        return {"cell": share.masked_fill(~same, torch.nan)}


@metrics.register("object_size")
@dataclass(frozen=True)
class ObjectSize(_OnMasks):
    """How much of the image the object covers, and whether that is little: no score, but what to split scores by.

    Where objects fill half of the image, as in Tiny-ImageNet, a map in the centre scores well; the small ones tell.

    Args:
        below: objects that cover less are small.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"mask_share": NEITHER, "small": NEITHER}
    below: Annotated[float, Range(0, 1)] = 0.25

    def compare(self, maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
        share = F.mask_share(masks)
        return {"mask_share": share, "small": (share < self.below).double().masked_fill(share.isnan(), torch.nan)}
