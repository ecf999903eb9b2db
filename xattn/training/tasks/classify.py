"""Classification: images of known classes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from xattn.data.opening import NoPartError
from xattn.errors import ParameterError, XattnWarning
from xattn.labels import counted
from xattn.models.heads import Classifier
from xattn.training.data import Source, hold_out
from xattn.training.evaluation import ClassResult, evaluate
from xattn.training.tasks import tasks
from xattn.training.tasks.task import Row, Task

_SHOWN = 20  # classes in a table for people


@tasks.register("classify")
@dataclass(frozen=True)
class Classify(Task):
    """Classification: the cross-entropy of the classes, judged by accuracy on images held out of each class."""

    compares: ClassVar[bool] = False

    def hold_out(self, labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
        return hold_out(labels, share, seed)

    def order(self, labels: Tensor, batch: int, steps: int, generator: torch.Generator) -> Tensor | None:
        return None

    def evaluate(
        self, model: Classifier, open_part: Callable[[str | None], Source], split: str | None, **options: Any
    ) -> tuple[dict[str, Any], list[Row]]:
        """Top-1, top-5, sparsity of the maps, accuracy by rank of the parts, speed."""
        try:
            source, used = open_part(split or "test"), split or "test"
        except NoPartError:
            if split is not None:
                raise
            source, used = open_part(None), "all"
            warnings.warn(
                "the data have no test part, so all of them are scored: if the network was trained on these images, "
                "new ones will score lower.",
                XattnWarning,
                stacklevel=2,
            )
        known = len(source.classes)
        if model.spec.classes and len(model.spec.classes) != known:
            raise ParameterError(
                f"evaluate: the network knows {len(model.spec.classes)} classes but the images have {known}; pass the "
                "data set that it was trained on."
            )
        names = model.spec.classes
        if moved := [c for c, own in zip(source.classes, names, strict=False) if c != own and c in names]:
            raise ParameterError(
                f"evaluate: the classes of the images are in another order than those of the network ('{moved[0]}' is "
                f"class {source.classes.index(moved[0])} of the images and {names.index(moved[0])} of the network); "
                "pass the data set or the list of classes that it was trained on."
            )
        result = evaluate(model, source, **options)
        maps = "of the attention maps" if result.maps == "attention" else "of the class activation map"
        rows = [
            Row("images", f"{result.images:,}"),
            Row("top-1", f"{result.top1:.2%}"),
            *([Row("top-5", f"{result.top5:.2%}")] if result.top5 is not None else []),
        ]
        if result.density is not None and result.sparsity is not None:
            rows += [
                Row("density x", f"{result.density:.4f}", f"mean brightness {maps}"),
                Row("sparsity 1/x", f"{result.sparsity:.2f}", "mean over images; high is sparse"),
            ]
        rows += [Row(f"parts {k}", f"{v:.2%}", f"top-1, {result.rank_heads}") for k, v in result.ranks.items()]
        rows += [
            Row("images per second", f"{result.images_per_second:.0f}", "forward pass"),
            Row("parameters", f"{result.parameters:,}"),
        ]
        rows += class_rows(result.per_class)
        return {"split": used, **dataclasses.asdict(result)}, rows


def class_rows(results: Sequence[ClassResult]) -> list[Row]:
    """Accuracy class by class, the lowest first, and what the others are taken for; of many classes the lowest ones."""
    known = [r for r in results if r.top1 is not None]
    order = sorted(known, key=lambda r: (r.top1, r.name))
    rows = [
        Row(f"class {r.name}", f"{r.top1:.2%}", f"of {counted(r.images, 'image')}{_taken(r)}") for r in order[:_SHOWN]
    ]
    if len(order) > _SHOWN:
        rows.append(Row("more classes", f"{len(order) - _SHOWN}", "higher; --out writes a table of all"))
    return rows


def _taken(result: ClassResult) -> str:
    some = [f"{name} {count}" for name, count in list(result.taken_for.items())[:3]]
    more = ", …" if len(result.taken_for) > len(some) else ""
    return f"; taken for {', '.join(some)}{more}" if some else ""
