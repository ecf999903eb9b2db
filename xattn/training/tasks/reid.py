"""Re-identification: whether two photographs show the same individual."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from xattn.data.opening import NoPartError
from xattn.errors import DataError, UnknownNameError, XattnWarning
from xattn.functional.retrieval import Distance, retrieval_ranks
from xattn.models.heads import Classifier
from xattn.schema import Range, check_fields
from xattn.training.data import Source
from xattn.training.evaluation import features_of
from xattn.training.losses import triplet_loss
from xattn.training.tasks import tasks
from xattn.training.tasks.task import Row, Task, check_groups, groups_of_classes

_RANKS = (1, 5, 10)


@tasks.register("reid")
@dataclass(frozen=True)
class Reid(Task):
    """Re-identification: features of individuals that are new are compared (Luo et al. 2019, arXiv:1903.07071).

    The classes to train on are individuals. The loss is their cross-entropy and the batch-hard triplet loss; batches
    hold some images of each of several individuals. Whole identities are held out to choose the best epoch. Judged as
    Market-1501 is: images of the same identity and the same camera or day are left out.

    Args:
        instances: images of an identity in a batch.
        margin: of the triplet loss; 0 is its soft form.
        triplet: weight of the triplet loss; 0 leaves it out.
        unit: triplets of unit vectors, so that the loss cannot fall by shrinking all features. A head whose attention
            ends in a ReLU (B-CNN) shrinks to nothing without it.
        distance: by which features are compared in the end.
    """

    measure: ClassVar[str] = "mAP"
    neck: ClassVar[bool] = True
    instances: Annotated[int, Range(2, 256)] = 4
    margin: Annotated[float, Range(0, 100)] = 0.3
    triplet: Annotated[float, Range(0, 1000)] = 1.0
    unit: bool = False
    distance: Distance = "cosine"

    def __post_init__(self) -> None:
        check_fields(self, "reid")

    def check(self, labels: Tensor, held: Tensor, groups: Tensor | None, batch: int, world: int) -> None:
        check_groups(self.name, labels, batch, world, self.instances, "the parameter instances")
        if bool((torch.bincount(labels) == 1).all()):
            raise DataError("reid: no identity to train on has two images, so that nothing can be learned to match.")
        alone = [i for i in held.unique().tolist() if not _has_match(held, groups, only=i)]
        if len(alone) == len(held.unique()):
            raise DataError(
                "reid: no held-out image has another one of its identity from another camera or day, so that no epoch "
                "can be judged; raise data.held_out, or name a part for it (data.validation)."
            )
        if alone:
            warnings.warn(
                f"reid: {len(alone)} of {len(held.unique())} individuals that are held out have no second image from "
                "another camera or day, so that they are searched for in vain and only distract.",
                XattnWarning,
                stacklevel=2,
            )

    def order(self, labels: Tensor, batch: int, steps: int, generator: torch.Generator) -> Tensor:
        return groups_of_classes(labels, batch, self.instances, steps, generator)

    def loss(self, classes: Tensor, embedding: Tensor, target: Tensor) -> Tensor:
        if not self.triplet:
            return classes
        whole = embedding.to(torch.promote_types(embedding.dtype, torch.float32))  # half is too coarse for a length
        points = normalize(whole) if self.unit else embedding
        return classes + self.triplet * triplet_loss(points, target, self.margin)

    def judge(self, features: Tensor, labels: Tensor, groups: Tensor | None) -> dict[str, float]:
        """Every held-out image is searched among all others."""
        own = torch.arange(len(features), device=features.device)
        found = retrieval_ranks(features, features, labels, labels, groups, groups, distance=self.distance, own=own)
        return {key: value for key, value in _summary(*found).items() if key != "queries"}

    def evaluate(
        self, model: Classifier, open_part: Callable[[str | None], Source], split: str | None, **options: Any
    ) -> tuple[dict[str, Any], list[Row]]:
        """Rank-1, rank-5, rank-10 and mAP of the query part in the gallery part, or of one part in itself."""
        options.pop("ranks", None)
        query = gallery = None
        if split is None:
            try:
                query, gallery = open_part("query"), open_part("gallery")
            except (NoPartError, UnknownNameError):
                split = "test"
        if query is None or gallery is None:
            query = gallery = open_part(split)
        if not _has_match(query.labels, query.groups, gallery.labels, gallery.groups, own=query is gallery):
            raise DataError("reid: no query has an image of its identity from another camera or day in the gallery.")
        found = features_of(model, query, **options)
        others = found if query is gallery else features_of(model, gallery, **options)
        device = found.device
        place = lambda t: None if t is None else t.to(device)  # noqa: E731
        precision, first = retrieval_ranks(
            found,
            others,
            query.labels.to(device),
            gallery.labels.to(device),
            place(query.groups),
            place(gallery.groups),
            distance=self.distance,
            own=torch.arange(len(found), device=device) if query is gallery else None,
        )
        values = _summary(precision, first)
        without = len(precision) - int(values["queries"])
        facts = {
            "split": split or "query in gallery",
            **values,
            "queries": int(values["queries"]),
            "without_match": without,
            "gallery": len(gallery),
            "identities": len(query.labels.unique()),
            "distance": self.distance,
            "features": others.shape[1],
        }
        rows = [Row("queries", f"{len(precision) - without:,}", f"in {len(gallery):,} images of the gallery")]
        if without:
            rows.append(Row("left out", f"{without:,}", "queries without a match from another camera or day"))
        rows += [Row(f"rank-{k}", f"{values[f'rank{k}']:.2%}") for k in _RANKS]
        rows += [Row("mAP", f"{values['mAP']:.2%}", f"{self.distance}, {others.shape[1]:,} features")]
        return facts, rows


def _summary(precision: Tensor, first: Tensor) -> dict[str, float]:
    """Means over the queries that have a match."""
    known = ~precision.isnan()
    values = {f"rank{k}": float((first[known] <= k).double().mean()) for k in _RANKS}
    return {**values, "mAP": float(precision[known].mean()), "queries": float(known.sum())}


def _has_match(
    query: Tensor,
    groups: Tensor | None,
    gallery: Tensor | None = None,
    others: Tensor | None = None,
    *,
    own: bool = True,
    only: int | None = None,
) -> bool:
    """Whether an identity of the query, or this one, has an image in the gallery that matches one of its images."""
    gallery, others = (query, groups) if gallery is None else (gallery, others)
    for identity in query.unique().tolist() if only is None else [only]:
        mine, theirs = query == identity, gallery == identity
        if groups is None or others is None:
            if int(theirs.sum()) > int(own):
                return True
        elif bool((groups[mine][:, None] != others[theirs]).any()):
            return True
    return False
