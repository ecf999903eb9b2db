"""Sanity: does the map move when the network forgets what it learned, or when another class is asked for?

Two maps are compared by Spearman's rank correlation on their own grid and by SSIM at the size of the image. A high
value after a change that should matter means that the map shows something else than what was asked for, such as edges.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from xattn.errors import NotApplicableError
from xattn.explanation import Explanation
from xattn.metric import LOWER, Direction, Metric
from xattn.metrics import metrics
from xattn.metrics.randomization import randomized
from xattn.metrics.rerun import maps_again, similarity
from xattn.schema import Range
from xattn.trace import Trace


@metrics.register("parameter_randomization", "mprt")
@dataclass(frozen=True)
class ParameterRandomization(Metric):
    """Similarity of the map with that of a network whose weights are random (Adebayo et al. 2018, arXiv:1810.03292).

    The layers are made random from the output to the input, in stages: the first is the last layer alone, the others
    share the rest equally. `spearman` and `ssim` are means over the stages, `..._first` is after the first stage,
    `..._last` after the last one (cascading: all weights are random). A copy of the model is changed, never the model.
    A map that does not depend on the weights scores 1. Random numbers of the layers follow from `seed` and their names.

    Args:
        order: `"cascading"` leaves earlier stages random, `"independent"` takes one stage at a time.
        how: `"reset"` initializes a layer anew with its own `reset_parameters`, and permutes the values where it has
            none; `"permute"` permutes the values of each tensor, which keeps their distribution.
        stages: how often maps are made; no more than there are layers.
        absolute: compare absolute values of the maps.
        seed: of all random numbers.
    """

    family: ClassVar[str] = "sanity"
    columns: ClassVar[Mapping[str, Direction]] = {
        "spearman": LOWER, "spearman_first": LOWER, "spearman_last": LOWER,
        "ssim": LOWER, "ssim_first": LOWER, "ssim_last": LOWER,
    }  # fmt: skip
    order: Literal["cascading", "independent"] = "cascading"
    how: Literal["reset", "permute"] = "reset"
    stages: Annotated[int, Range(1, 1000)] = 5
    absolute: bool = False
    seed: Annotated[int, Range(0, 2**62)] = 0

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        return self.measure_many([explanation], trace, batch)[0]

    def measure_many(self, explanations: Sequence[Explanation], trace: Trace, batch: Any) -> list[dict[str, Tensor]]:
        stages: list[list[dict[str, Tensor]]] = [[] for _ in explanations]
        networks = randomized(
            trace.model,
            trace.x[:1],
            stages=self.stages,
            how=self.how,
            cascading=self.order == "cascading",
            seed=self.seed,
            inputs=None if trace.inputs is None else trace.inputs.select(trace.target.new_zeros(1)),
        )
        for network in networks:
            maps = maps_again(explanations, trace, model=network)
            for stage, explanation, again in zip(stages, explanations, maps, strict=True):
                stage.append(similarity(explanation.maps, again, explanation.input_size, absolute=self.absolute))
        return [_over_stages(stage) for stage in stages]


def _over_stages(stages: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    columns: dict[str, Tensor] = {}
    for name in ("spearman", "ssim"):
        values = torch.stack([stage[name] for stage in stages])
        columns |= {name: values.mean(0), f"{name}_first": values[0], f"{name}_last": values[-1]}
    return columns


class _OtherClass(Metric):
    """Similarity of the map with that of another class."""

    family: ClassVar[str] = "sanity"
    columns: ClassVar[Mapping[str, Direction]] = {"spearman": LOWER, "ssim": LOWER}

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        return self.measure_many([explanation], trace, batch)[0]

    def measure_many(self, explanations: Sequence[Explanation], trace: Trace, batch: Any) -> list[dict[str, Tensor]]:
        if not (trace.goal.by_class and trace.goal.has_classes):
            raise NotApplicableError(
                f"{self.name}: '{trace.goal.text(0, trace.spec)}' is no class, so there is no other."
            )
        again = maps_again(explanations, trace, target=self.other(trace))
        return [similarity(e.maps, m, e.input_size) for e, m in zip(explanations, again, strict=True)]

    @abstractmethod
    def other(self, trace: Trace) -> Tensor:
        """A class (N,) for each image that is not the one that was explained."""


@metrics.register("random_logit")
@dataclass(frozen=True)
class RandomLogit(_OtherClass):
    """Similarity of the map with that of a random other class (Sixt et al. 2020, arXiv:1912.09818).

    The class is drawn from the image's own seed. A map that is the same for every class scores 1.
    """

    def other(self, trace: Trace) -> Tensor:
        classes = max(trace.logits.shape[1], 2)
        draws = [
            int(torch.randint(1, classes, (), generator=trace.generator(i, self.name))) for i in range(len(trace.x))
        ]
        return (trace.target + torch.tensor(draws, device=trace.target.device)) % classes


@metrics.register("class_sensitivity")
@dataclass(frozen=True)
class ClassSensitivity(_OtherClass):
    """Similarity of the map with that of the least likely class (Li et al. 2021, arXiv:2012.15616).

    Args:
        other_class: `"least"` likely, or the `"next"` most likely, which looks most like the one explained.
    """

    other_class: Literal["least", "next"] = "least"

    def other(self, trace: Trace) -> Tensor:
        logits = trace.logits if trace.logits.shape[1] > 1 else torch.cat([-trace.logits, trace.logits], 1)
        own = torch.nn.functional.one_hot(trace.target, logits.shape[1]).bool()
        if self.other_class == "least":
            return logits.masked_fill(own, torch.inf).argmin(1)
        return logits.masked_fill(own, -torch.inf).argmax(1)
