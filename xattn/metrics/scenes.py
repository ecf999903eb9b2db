"""Parts that are taken away for real: does a map mark those that the network needs? The protocol of FunnyBirds.

Nothing is blurred or painted over: the images without a part were rendered, so that the network sees what it was
trained on. The data have to come with them (`xattn.data.scene`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from xattn.errors import DataError
from xattn.explanation import Explanation
from xattn.functional.perturb import undefined
from xattn.functional.ranking import spearman
from xattn.functional.resize import resize
from xattn.functional.scenes import important_parts, opposed_classes, part_sums, sufficient_sets
from xattn.metric import HIGHER, NEITHER, Direction, Metric
from xattn.metrics import metrics
from xattn.metrics.perturbation import clean_scores
from xattn.metrics.rerun import maps_again
from xattn.schema import Range
from xattn.score import apply_score, find_score
from xattn.trace import Trace

THRESHOLDS = tuple(0.01 + 0.49 * i / 79 for i in range(80))
"""Shares of a map from which a part counts as important, as in the released code; values are means over them."""
_CHUNK = 64  # images a batch
Lacking = dict[frozenset[str], Tensor]


@dataclass(frozen=True)
class SceneMetric(Metric):
    """A metric of the parts of rendered images.

    Args:
        margin_px: pixels around a part that belong to it, as the released code has them.
        score: the scalar that falls without a part.
    """

    family: ClassVar[str] = "ground_truth"
    needs: ClassVar[frozenset[str]] = frozenset({"scenes"})
    paper: ClassVar[str] = "Hesse et al. 2023, FunnyBirds, arXiv:2308.06248"

    margin_px: Annotated[int, Range(0, 100)] = field(default=2, kw_only=True)
    score: Annotated[str, find_score] = field(default="logit", kw_only=True)

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        return self.measure_many([explanation], trace, batch)[0]

    def measure_many(self, explanations: Sequence[Explanation], trace: Trace, batch: Any) -> list[dict[str, Tensor]]:
        if batch.scenes is None or len(batch.scenes) != len(trace.x):
            raise DataError(
                f"{self.name}: the data have no images without single parts; it needs a rendered data set such as "
                "funnybirds."
            )
        without = logits_without(trace, batch.scenes)
        return [self._over(e, trace, batch.scenes, without) for e in explanations]

    def _over(
        self, explanation: Explanation, trace: Trace, scenes: Sequence[Any], without: Sequence[Lacking]
    ) -> dict[str, Tensor]:
        maps = explanation.resized().to(trace.x.device)
        nothing = undefined(explanation.maps).tolist()
        rows = []
        for i, scene in enumerate(scenes):
            known = not nothing[i] and all(mask.shape == maps.shape[-2:] for mask in scene.masks.values())
            rows.append(self._values(maps[i, 0], trace, i, scene, without[i]) if known else {})
        columns = {name: [row.get(name, torch.nan) for row in rows] for name in self.columns}
        return {name: torch.tensor(v, dtype=torch.float64, device=trace.x.device) for name, v in columns.items()}

    @abstractmethod
    def _values(self, maps: Tensor, trace: Trace, i: int, scene: Any, without: Lacking) -> dict[str, float]:
        """The columns of one image, from its map (H, W) and the logits (K,) without what is missing."""

    def sums(self, maps: Tensor, scene: Any, names: Sequence[str]) -> Tensor:
        """Sums of a map (H, W) over regions by name."""
        return part_sums(maps, torch.stack([scene.masks[name] for name in names]), self.margin_px)

    def falls(self, trace: Trace, i: int, without: Lacking, names: Sequence[str]) -> Tensor | None:
        """Fall of the score (R,) without each region alone, float64; None where one of the images is not there."""
        gone = [without.get(frozenset([name])) for name in names]
        if any(logits is None for logits in gone) or not gone:
            return None
        logits = torch.stack([found for found in gone if found is not None])
        scores = apply_score(trace.named(self.score), logits, trace.target[i].expand(len(names)))
        return clean_scores(trace, self.score)[i].double() - scores.double()


def logits_without(trace: Trace, scenes: Sequence[Any]) -> list[Lacking]:
    """Logits (K,) of every image without something, for each image of a trace; made once for all metrics."""

    def make() -> list[Lacking]:
        keys = [(i, gone) for i, scene in enumerate(scenes) for gone in scene.lacking]
        found: list[Lacking] = [{} for _ in scenes]
        for start in range(0, len(keys), _CHUNK):
            some = keys[start : start + _CHUNK]
            x = torch.stack([scenes[i].lacking[gone] for i, gone in some]).to(trace.x)
            rows = torch.tensor([i for i, _ in some], device=trace.x.device)
            for (i, gone), logits in zip(some, trace.predict(x, rows), strict=True):
                found[i][gone] = logits
        return found

    return trace.once(("scenes", len(scenes)), make)


@metrics.register("part_deletion")
@dataclass(frozen=True)
class PartDeletion(SceneMetric):
    """Single deletion of FunnyBirds: whether parts with more of the map cost the network more (Hesse et al. 2023).

    Spearman's correlation of the sums of the map over the parts with the falls of the score without each part, moved to
    [0, 1] (arXiv:2308.06248, sec. 4.2). Random: 0.5. Differs from the paper: the class is the one explained, not the
    label.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"single_deletion": HIGHER}

    def _values(self, maps: Tensor, trace: Trace, i: int, scene: Any, without: Lacking) -> dict[str, float]:
        falls = self.falls(trace, i, without, scene.parts)
        if falls is None:
            return {}
        return {"single_deletion": float((1 + spearman(self.sums(maps, scene, scene.parts)[None], falls[None])) / 2)}


@metrics.register("part_checks")
@dataclass(frozen=True)
class PartChecks(SceneMetric):
    """Checks of FunnyBirds: whether the parts that a map marks are enough, and are needed (Hesse et al. 2023).

    A part is important if it holds more than a share of the map. `preservation`: the prediction stays when all other
    parts are taken away. `deletion_check`: it changes when the important ones are. `sufficiency` (the controlled
    synthetic data check): the largest share of a smallest set of parts that tells the class which is important. Each is
    the mean over 80 shares from 0.01 to 0.5 (arXiv:2308.06248, sec. 4.1). Differs from the paper: it takes the best
    share for the whole data set; here no method chooses its own.
    """

    columns: ClassVar[Mapping[str, Direction]] = {
        "preservation": HIGHER, "deletion_check": HIGHER, "sufficiency": HIGHER,
    }  # fmt: skip

    def _values(self, maps: Tensor, trace: Trace, i: int, scene: Any, without: Lacking) -> dict[str, float]:
        everything = frozenset(scene.parts)
        own = {**without, frozenset(): trace.logits[i]}
        marked = important_parts(self.sums(maps, scene, scene.parts), maps.double().sum(), torch.tensor(THRESHOLDS))
        sets = [frozenset(p for p, m in zip(scene.parts, row, strict=True) if m) for row in marked.tolist()]
        values = {}
        if all(everything - some in own and some in own for some in sets):
            before = int(trace.logits[i].argmax())
            kept = [int(own[everything - some].argmax()) == before for some in sets]
            gone = [int(own[some].argmax()) != before for some in sets]
            values = {"preservation": sum(kept) / len(sets), "deletion_check": sum(gone) / len(sets)}
        if enough := [*sufficient_sets(scene.parts, scene.shared)]:
            values["sufficiency"] = sum(max(len(s & e) / len(e) for e in enough) for s in sets) / len(sets)
        return values


@metrics.register("distractibility")
@dataclass(frozen=True)
class Distractibility(SceneMetric):
    """Distractibility of FunnyBirds: whether a map leaves out what the network does not look at (Hesse et al. 2023).

    Of the parts and background objects without which the score falls by less than `tolerance` of itself, or rises, the
    share that the map does not call important, the mean over 80 shares of the map as for `part_checks`
    (arXiv:2308.06248, sec. 4.1). `background_independence` says of the network, not of the map, how many of the
    background objects it does not look at.

    Args:
        tolerance: share of the score below which a fall is none.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"distractibility": HIGHER, "background_independence": NEITHER}
    tolerance: Annotated[float, Range(0, 1)] = 0.05

    def _values(self, maps: Tensor, trace: Trace, i: int, scene: Any, without: Lacking) -> dict[str, float]:
        names = [*scene.parts, *scene.beside]
        falls = self.falls(trace, i, without, names)
        if falls is None or not scene.beside:
            return {}
        bound = self.tolerance * clean_scores(trace, self.score)[i].double().abs()
        idle = (falls.abs() < bound) | (falls < 0)
        marked = important_parts(self.sums(maps, scene, names), maps.double().sum(), torch.tensor(THRESHOLDS))
        values = {"background_independence": float(idle[len(scene.parts) :].double().mean())}
        if idle.any():
            values["distractibility"] = 1 - float(marked[:, idle].double().mean())
        return values


@metrics.register("target_sensitivity")
@dataclass(frozen=True)
class TargetSensitivity(SceneMetric):
    """Target sensitivity of FunnyBirds: whether the map of a class lies on the parts of that class (Hesse et al. 2023).

    Two classes are explained that share two parts each with the bird, not the same ones; the parts of each should hold
    more of its own map than of the other's (arXiv:2308.06248, sec. 4.3). 1 if both do, 0.5 if one, undefined where the
    network itself does not tell them apart: where it does not lose more of each class without that class's parts.
    Random: 0.5.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"target_sensitivity": HIGHER}

    def measure_many(self, explanations: Sequence[Explanation], trace: Trace, batch: Any) -> list[dict[str, Tensor]]:
        results = super().measure_many(explanations, trace, batch)
        pairs = [opposed_classes(scene.shared) for scene in batch.scenes]
        without = logits_without(trace, batch.scenes)
        chosen = [
            i
            for i, (pair, scene) in enumerate(zip(pairs, batch.scenes, strict=True))
            if pair is not None and self._apart(trace.logits[i], scene, without[i], pair)
        ]
        targets = trace.target.tolist()
        classes = [[c if pair is None else pair[k] for pair, c in zip(pairs, targets, strict=True)] for k in range(2)]
        if not chosen:
            return results
        both = [maps_again(explanations, trace, target=torch.tensor(c, device=trace.x.device)) for c in classes]
        for j, explanation in enumerate(explanations):
            maps = [resize(both[k][j], explanation.input_size).to(trace.x.device) for k in range(2)]
            nothing = torch.stack([undefined(m) for m in (explanation.maps, both[0][j], both[1][j])]).any(0).tolist()
            for i in chosen:
                if nothing[i]:
                    continue
                scene, hits = batch.scenes[i], 0
                for k in range(2):
                    names = sorted(scene.shared[classes[k][i]])
                    own, other = (float(self.sums(maps[m][i, 0], scene, names).sum()) for m in (k, 1 - k))
                    hits += own > other
                results[j]["target_sensitivity"][i] = hits / 2
        return results

    def _values(self, maps: Tensor, trace: Trace, i: int, scene: Any, without: Lacking) -> dict[str, float]:
        return {}  # maps of other classes are needed, which are made for all images at once

    def _apart(self, logits: Tensor, scene: Any, without: Lacking, pair: tuple[int, int]) -> bool:
        """Whether each of two classes loses more without the parts that the bird shares with it."""
        a, b = pair
        gone = [without.get(scene.shared[c]) for c in pair]
        if gone[0] is None or gone[1] is None:
            return False
        first, second = gone[0] - logits, gone[1] - logits
        return bool(first[a] < second[a] and second[b] < first[b])
