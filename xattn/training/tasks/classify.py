"""Classification: images of known classes."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from xattn.data.opening import NoPartError
from xattn.data.tree import class_of
from xattn.errors import ParameterError, XattnWarning
from xattn.labels import counted, first_name
from xattn.models.heads import Classifier
from xattn.spec import ModelSpec
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
        some = _as_the_network_names_them(source, model.spec)
        result = evaluate(model, source, **options)
        if some:
            result = dataclasses.replace(result, per_class=tuple(r for r in result.per_class if r.images))
        maps = "of the attention maps" if result.maps == "attention" else "of the class activation map"
        rows = [
            Row("images", f"{result.images:,}", some),
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


def _as_the_network_names_them(source: Source, spec: ModelSpec) -> str:
    """Give the images of some of the classes, or of all in another order, the numbers that the network has for them.

    Returns:
        How many classes of the network the images are of; empty where they are of all.

    Raises:
        ParameterError: for classes that the network does not name, unless there are as many as it has.
    """
    names = spec.classes
    if not names or source.classes == names:
        return ""
    numbers = [names.index(own) if own in names else class_of(Path(own), spec) for own in source.classes]
    found = [number for number in numbers if number is not None]
    if len(found) < len(numbers) or len(set(found)) < len(found):
        strange = [own for own, number in zip(source.classes, numbers, strict=True) if number is None]
        if len(numbers) == len(names) and not any(own in names for own in source.classes):
            return ""  # the same classes, as far as anybody knows, by names of their own
        why = f"none of its classes is called {strange[0]!r}" if strange else "two of these are one of its classes"
        raise ParameterError(
            f"evaluate: the network knows {len(names)} classes and the images have {len(numbers)}, but {why}; "
            "pass images of its classes, by their names."
        )
    source.labels = torch.tensor(found)[source.labels]
    source.classes = names
    return f"of {len(found)} of the {len(names):,} classes that the network knows" if len(found) < len(names) else ""


def class_rows(results: Sequence[ClassResult]) -> list[Row]:
    """Accuracy class by class, the lowest first, and what the others are taken for; of many classes the lowest ones."""
    known = [r for r in results if r.top1 is not None]
    order = sorted(known, key=lambda r: (r.top1, r.name))
    times = Counter(first_name(r.name) for r in known)
    rows = [
        Row(
            f"class {first_name(r.name) if times[first_name(r.name)] == 1 else r.name}",
            f"{r.top1:.2%}",
            f"of {counted(r.images, 'image')}{_taken(r)}",
        )
        for r in order[:_SHOWN]
    ]
    if len(order) > _SHOWN:
        rows.append(Row("more classes", f"{len(order) - _SHOWN}", "higher; --out writes a table of all"))
    return rows


def _taken(result: ClassResult) -> str:
    some = [f"{first_name(name)} {count}" for name, count in list(result.taken_for.items())[:3]]
    more = ", …" if len(result.taken_for) > len(some) else ""
    return f"; taken for {', '.join(some)}{more}" if some else ""
