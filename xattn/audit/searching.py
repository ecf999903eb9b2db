"""From a box in one image to the other images that have the same evidence, and to what the score is without it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xattn.audit.auditing import check_sources, facts_of, lacking, of_other_classes
from xattn.audit.effect import NOTHING, Effect, Probe, effect_of, moves
from xattn.audit.evidence import EvidenceStore
from xattn.audit.gather import Progress, evidence_key, gather, labels_for, outputs_of, relevance_of, traced
from xattn.audit.group import Group, Member, Prototype, members_of
from xattn.audit.settings import AuditSettings
from xattn.data.dataset import Dataset
from xattn.data.sample import Sample, collate
from xattn.errors import DataError, ParameterError
from xattn.functional.grid import resample
from xattn.models.checkpoint import digest_of
from xattn.running import unwrap
from xattn.spec import ModelSpec

_EMPTY = 1e-12
_FEW = 5  # images, of which Wilcoxon's test can show nothing at 5 %


@dataclass(frozen=True, eq=False)
class Search:
    """What has the evidence in a box of an image, and what it is worth.

    Args:
        box: (x, y, width, height) in pixels of the image.
        cells: bool (h, w), the cells of the feature layer that the box covers.
        share: of the relevance of the image that lies in them.
        fall: of the score of the predicted class without these cells.
        elsewhere: without as many cells elsewhere in the image.
        group: the other images of the class that have it, the most similar first; `similarity` is the cosine.
        effect: of the replacement in these, uncorrected: one question was asked.
        unreadable: names of images that could not be read, with the reason.
    """

    box: tuple[float, float, float, float]
    cells: NDArray[np.bool_]
    share: float
    fall: float
    elsewhere: float
    group: Group
    effect: Effect
    unreadable: dict[str, str]

    @property
    def members(self) -> tuple[Member, ...]:
        """The images that have it, the most similar first."""
        return self.group.members

    @property
    def sentences(self) -> tuple[str, str]:
        """What the box is worth in its image, and in the others."""
        name, count, images = self.group.class_name, len(self.members), self.group.images
        own = (
            f"The box holds {self.share:.0%} of what speaks for {name}; without it the score falls by {self.fall:.2f}, "
            f"without as much elsewhere by {self.elsewhere:.2f}."
        )
        if not count:
            return own, f"None of the {images} images of {name} has the same."
        e = self.effect
        if e.n < _FEW:
            return own, f"{count} of {images} images of {name} have the same, too few to test what they do without it."
        sure = "is shown to go with it" if e.moves else "is not shown to go with it"
        return own, (
            f"{count} of {images} images of {name} have the same. Their score {sure}: without it, it falls "
            f"by {e.fall:.2f}, by {e.elsewhere:.2f} elsewhere (difference {e.difference:.2f}, 95 % interval "
            f"{e.low:.2f} to {e.high:.2f}, p {e.p:.2g}, on {e.n} images)."
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "class": self.group.class_name, "box": list(self.box), "share": self.share, "fall": self.fall,
            "elsewhere": self.elsewhere, "images": self.group.images, "effect": asdict(self.effect),
            "unreadable": self.unreadable,
            "found": [
                {"image": m.image, "similarity": m.similarity, "share": m.share, "box": list(m.box), "right": m.right}
                for m in self.members
            ],
        }  # fmt: skip


def search(
    model: nn.Module,
    dataset: Dataset,
    image: NDArray[np.uint8],
    box: Sequence[float],
    *,
    spec: ModelSpec | None = None,
    settings: AuditSettings | None = None,
    folder: str | Path | None = None,
    sources: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Search:
    """Find which images of a data set have the evidence in a box of an image, and what the score is without it.

    The evidence in the box is its mean relevance by channel, a direction; an image has the same if one of its parts is
    nearer to it (cosine) than the rest of the box's own image is.

    Args:
        model: any network with a feature map and a class score.
        dataset: the images that are searched: those in which the class of `image` is predicted.
        image: uint8 (H, W, 3).
        box: (x, y, width, height) in pixels of the image.
        spec: facts about the model; None takes `model.spec`.
        settings: as for `audit`.
        folder: where the evidence is kept, as for `audit`, with which it is shared.
        sources: where each image is from, as for `audit`; evidence is shared where they are the same.
        progress: called with how much is done, of how much, and what is being done.

    Raises:
        ParameterError: if the box is not in the image or what the model sees of it, or covers all of that.
        ShapeError: if `sources` are not one for each image.
        DataError: if nothing in the box speaks for the class, or no image of the class is in the data.
    """
    model = unwrap(model)
    settings = AuditSettings() if settings is None else settings
    facts = facts_of(model, spec)
    check_sources(sources, dataset)
    x, values, cells, goal = _evidence_in(model, image, box, facts, settings)
    own = _direction(values, cells)
    rest = _direction(values, ~cells)
    if own is None:
        raise DataError(f"nothing in the box speaks for {facts.class_name(goal)}; choose another box.")
    least = float(np.nextafter(0.0 if rest is None else own @ rest, 2))  # nearer, not as near
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else Path(folder)
        store = EvidenceStore(place, evidence_key(digest_of(model), dataset, facts, settings, sources))
        labels, _ = labels_for(dataset, facts, outputs_of(model, dataset, facts))
        gather(model, dataset, facts, store, settings, labels=labels, sources=sources, progress=progress)
        overview = store.overview()
        if goal not in overview.target:
            raise DataError(f"{facts.class_name(goal)}, which the image is taken for, is predicted in no other image.")
        evidence = store.read([goal])
        group = members_of(Prototype("parts", own, least), evidence, np.zeros(len(evidence), np.bool_), settings)
        group = replace(group, class_name=facts.class_name(goal), key=f"c{goal}-box")
        probe = Probe(model, dataset, facts, settings)
        rng = np.random.default_rng([settings.seed, goal])
        others, _ = lacking(probe, group, evidence, of_other_classes(probe, overview, goal, rng), rng)
        share = float(values[:, torch.from_numpy(cells)].sum() / values.sum())
        itself = Member("", -1, "test", share, 1.0, None, cells, (x.shape[2], x.shape[3]))
        fall, elsewhere = _falls(probe, x, others, group, itself)
        effect = _effect(probe, group, others, settings)
    return Search(
        (float(box[0]), float(box[1]), float(box[2]), float(box[3])), cells,
        share, fall, elsewhere, group, effect, overview.failed,
    )  # fmt: skip


def _evidence_in(
    model: nn.Module, image: NDArray[np.uint8], box: Sequence[float], spec: ModelSpec, settings: AuditSettings
) -> tuple[Tensor, Tensor, NDArray[np.bool_], int]:
    """The input (1, C, H, W), its relevance (C, h, w) in double precision, the cells of the box, and the class."""
    height, width = image.shape[:2]
    left, top, wide, tall = (float(v) for v in box)
    inside = 0 <= left < width and 0 <= top < height and wide > 0 and tall > 0
    if not inside or left + wide > width or top + tall > height:
        raise ParameterError(
            f"box {left:g},{top:g},{wide:g},{tall:g} is not in the image of {width}x{height} pixels; expected "
            "x,y,width,height."
        )
    boxes = np.array([[left, top, left + wide, top + tall]], np.float32)
    batch = collate([Sample("image", image, 0, boxes=boxes)], spec)
    trace = traced(model, batch.x, spec, settings)
    values = relevance_of(trace)[0].double().cpu()
    mask = batch.object_masks()
    covered = resample(mask.double().cpu(), (values.shape[1], values.shape[2]))[0, 0] if mask is not None else None
    if covered is None or not bool((covered > 0).any()):
        if batch.boxes is not None and bool((batch.boxes[0][0, 2:] > batch.boxes[0][0, :2]).all()):
            raise ParameterError("the box is smaller than a pixel of what the model sees; choose a larger one.")
        raise ParameterError("the box lies outside of what the model sees, which is the middle of the image.")
    cells = covered >= min(0.5, float(covered.max()))
    if bool(cells.all()):
        raise ParameterError(
            "the box covers all that the model sees, and leaves nothing to compare; choose a smaller one."
        )
    return batch.x, values, cells.numpy(), int(trace.target[0])


def _direction(values: Tensor, cells: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Mean relevance by channel (C,) over cells, of length one; None where there is none."""
    vector = values[:, torch.from_numpy(cells)].sum(1).numpy()
    length = float(np.linalg.norm(vector))
    return vector / length if length > _EMPTY else None


def _falls(probe: Probe, x: Tensor, others: Tensor, group: Group, itself: Member) -> tuple[float, float]:
    """Fall of the score of one image without some cells, and without as many elsewhere, replaced as in the others."""
    variants = probe.variants(group, [itself], x, others, others[:0])
    scores = {name: float(probe.ask(images, group.class_index)[0][0]) for name, images in variants.items()}
    away = [score for name, score in scores.items() if name.startswith("elsewhere")]
    return scores["as it is"] - scores["in place"], scores["as it is"] - float(np.mean(away))


def _effect(probe: Probe, group: Group, others: Tensor, settings: AuditSettings) -> Effect:
    """Of the evidence on the images that have it; a question of its own, so that nothing is corrected."""
    members = group.members
    if not members:
        return NOTHING
    drawn = np.random.default_rng(settings.seed).permutation(len(members))[: settings.per_group]
    measured = probe.measure(group, [members[i] for i in sorted(drawn.tolist())], others, others[:0])
    effect = effect_of(measured, settings.seed)
    effect = replace(effect, adjusted=effect.p)
    return replace(effect, moves=moves(effect, settings.alpha))
