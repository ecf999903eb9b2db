"""Few-shot classification: which of a few classes, of which a few images were shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from xattn.errors import ParameterError
from xattn.functional.episodes import Comparison, draw_episodes, episode_accuracy, episode_scores, half_interval
from xattn.models.heads import Classifier
from xattn.schema import Range, check_fields
from xattn.training.augment import derive_seed
from xattn.training.data import Source
from xattn.training.evaluation import features_of
from xattn.training.tasks import tasks
from xattn.training.tasks.task import Row, Task, check_groups, groups_of_classes


@tasks.register("fewshot", "few-shot")
@dataclass(frozen=True)
class FewShot(Task):
    """Few-shot classification: new classes by the mean features of a few images (Snell et al. 2017, arXiv:1703.05175).

    Learns by `"pretraining"`, the cross-entropy of the classes to train on, which is the strong simple baseline (Chen
    et al. 2019, arXiv:1904.04232), or by the episodes of `"prototypes"`, whose training loss is Euclidean whatever
    `comparison`, or by those of `"mtl"`, meta-transfer learning (Sun et al. 2019, arXiv:1812.02391): the weights of a
    network that was trained before (`model.start`) stay, a last layer learns from the shown images of an episode, and
    what its answers about the others teach is a scale of each kernel and a shift of each channel. Whole classes are
    held out to choose the best epoch. Judged on episodes of new classes.

    Differs from MTL: the last layer begins at zero instead of from weights that are learned too, its steps are
    differentiated through, and episodes are drawn at random and not from the classes that failed most.

    Args:
        method: how it learns.
        way: classes of an episode that judges.
        shot: images of each class that are shown.
        queries: images of each class that are asked about.
        episodes: that judge a trained network; a tenth of them, and 200 at least, judge an epoch.
        comparison: of features with the means: `"euclidean"` as prototypes have it, or `"cosine"`; or `"learned"`, by a
            last layer that learns from the shown images.
        seed: of the episodes.
    """

    method: Literal["pretraining", "prototypes", "mtl"] = "pretraining"
    way: Annotated[int, Range(2, 1000)] = 5
    shot: Annotated[int, Range(1, 1000)] = 1
    queries: Annotated[int, Range(1, 1000)] = 15
    episodes: Annotated[int, Range(2, 1_000_000)] = 2000
    comparison: Comparison = "cosine"
    seed: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        check_fields(self, "fewshot")

    @property
    def distils(self) -> bool:
        return self.method == "pretraining"

    @property
    def scales(self) -> bool:
        return self.method == "mtl"

    @property
    def least_held(self) -> int:
        return self.way

    def check(self, labels: Tensor, held: Tensor, groups: Tensor | None, batch: int, world: int) -> None:
        self._draw(held, 1)
        if self.method != "pretraining":
            check_groups(self.name, labels, batch, world, self.shot + self.queries, "the parameters shot and queries")

    def order(self, labels: Tensor, batch: int, steps: int, generator: torch.Generator) -> Tensor | None:
        if self.method == "pretraining":
            return None
        return groups_of_classes(labels, batch, self.shot + self.queries, steps, generator)

    def loss(self, classes: Tensor, embedding: Tensor, target: Tensor) -> Tensor:
        if self.method == "pretraining":
            return classes
        each = self.shot + self.queries
        if len(target) % each:
            raise ParameterError(f"fewshot: {len(target)} images make no episode of {each} a class.")
        episode = embedding.view(-1, each, embedding.shape[1])
        shown, asked = episode[:, : self.shot], episode[:, self.shot :].flatten(0, 1)
        scores = episode_scores(shown[None], asked[None], "learned" if self.method == "mtl" else "euclidean")[0]
        answer = torch.arange(len(episode), device=target.device).repeat_interleave(self.queries)
        return F.cross_entropy(scores, answer)

    def judge(self, features: Tensor, labels: Tensor, groups: Tensor | None) -> dict[str, float]:
        """Accuracy over fewer episodes than in the end, always the same ones, with half its 95 % interval."""
        accuracy = self._accuracy(features, labels, max(200, self.episodes // 10))
        return {"accuracy": float(accuracy.mean()), "interval": half_interval(accuracy)}

    def evaluate(
        self, model: Classifier, open_part: Callable[[str | None], Source], split: str | None, **options: Any
    ) -> tuple[dict[str, Any], list[Row]]:
        """Accuracy over episodes of the classes of a part: by cosine, by distance, by a learned last layer."""
        options.pop("ranks", None)
        source = open_part(split or "test")
        self._draw(source.labels, 1)
        features = features_of(model, source, **options)
        values: dict[str, Any] = {
            "split": split or "test",
            "images": len(source),
            "classes": len(source.labels.unique()),
            **{key: getattr(self, key) for key in ("way", "shot", "queries", "episodes", "seed")},
        }
        rows = [
            Row("images", f"{len(source):,}", f"of {values['classes']} classes"),
            Row("episodes", f"{self.episodes:,}", f"{self.way}-way {self.shot}-shot, {self.queries} queries a class"),
        ]
        for kind, what in (
            ("cosine", "cosine with the mean"),
            ("euclidean", "distance to the mean"),
            ("learned", "a last layer learned in the episode"),
        ):
            accuracy = self._accuracy(features, source.labels, self.episodes, kind)  # type: ignore[arg-type]
            mean, half = float(accuracy.mean()), half_interval(accuracy)
            values[kind] = {"accuracy": mean, "interval": half}
            rows.append(Row(f"accuracy, {kind}", f"{mean:.2%} ± {half:.2%}", f"{what}; 95 % interval over episodes"))
        return values, rows

    def _draw(self, labels: Tensor, episodes: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "episodes"))
        return draw_episodes(labels, self.way, self.shot + self.queries, episodes, generator)

    def _accuracy(
        self, features: Tensor, labels: Tensor, episodes: int, comparison: Comparison | None = None
    ) -> Tensor:
        chosen = self._draw(labels.cpu(), episodes)
        return episode_accuracy(features, chosen, self.shot, comparison or self.comparison)
