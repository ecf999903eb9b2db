"""Sanity: does the map move when the network forgets what it learned, or when another class is asked for?

Two maps are compared by Spearman's rank correlation on their own grid and by SSIM at the size of the image. A high
value after a change that should matter means that the map shows something else than what was asked for, such as edges.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError
from xattn.explanation import Explanation
from xattn.functional.complexity import histogram_entropy
from xattn.metric import HIGHER, LOWER, Direction, Metric
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
    With more than one of `samples` this is smooth MPRT (Hedström et al. 2024, arXiv:2401.06465): the maps that are
    compared are means over noisy copies of the image, the same for all networks, so that a noisy method does not pass
    by its noise.

    Args:
        order: `"cascading"` leaves earlier stages random, `"independent"` takes one stage at a time.
        how: `"reset"` initializes a layer anew with its own `reset_parameters`, and permutes the values where it has
            none; `"permute"` permutes the values of each tensor, which keeps their distribution.
        stages: how often maps are made; no more than there are layers.
        absolute: compare absolute values of the maps.
        samples: noisy copies of the image whose maps are averaged; 1 is the image itself. The paper has 50.
        noise: standard deviation of the noise of these copies, as a share of the range of the normalized image.
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
    samples: Annotated[int, Range(1, 1000)] = 1
    noise: Annotated[float, Range(0, 100, open_low=True)] = 0.1
    seed: Annotated[int, Range(0, 2**62)] = 0

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        return self.measure_many([explanation], trace, batch)[0]

    def measure_many(self, explanations: Sequence[Explanation], trace: Trace, batch: Any) -> list[dict[str, Tensor]]:
        stages: list[list[dict[str, Tensor]]] = [[] for _ in explanations]
        first = [e.maps for e in explanations] if self.samples == 1 else self._maps(explanations, trace, None)
        networks = random_networks(
            trace, stages=self.stages, how=self.how, cascading=self.order == "cascading", seed=self.seed
        )
        for network in networks:
            maps = self._maps(explanations, trace, network)
            for stage, explanation, before, again in zip(stages, explanations, first, maps, strict=True):
                stage.append(similarity(before, again, explanation.input_size, absolute=self.absolute))
        return [_over_stages(stage) for stage in stages]

    def _maps(self, explanations: Sequence[Explanation], trace: Trace, network: nn.Module | None) -> list[Tensor]:
        """Maps of a network, or their means over the noisy copies of the images."""
        if self.samples == 1:
            return maps_again(explanations, trace, model=network)
        sums: list[Tensor] = []
        for x in noisy_copies(trace, self.samples, self.noise):
            maps = [m.double() / self.samples for m in maps_again(explanations, trace, model=network, x=x)]
            sums = [a + b for a, b in zip(sums, maps, strict=True)] if sums else maps
        return sums


def random_networks(trace: Trace, *, stages: int, how: str, cascading: bool, seed: int) -> Iterator[nn.Module]:
    """The network of a trace with its layers made random stage by stage: see `randomized`."""
    return randomized(
        trace.model,
        trace.x[:1],
        stages=stages,
        how=how,
        cascading=cascading,
        seed=seed,
        inputs=None if trace.inputs is None else trace.inputs.select(trace.target.new_zeros(1)),
    )


def noisy_copies(trace: Trace, samples: int, noise: float) -> Iterator[Tensor]:
    """Images (N, C, H, W) with Gaussian noise, each from its own generator and the same whenever they are asked for."""
    x = trace.x
    sigma = (noise * (x.amax((1, 2, 3)) - x.amin((1, 2, 3)))).view(-1, 1, 1, 1)
    generators = [trace.generator(i, "smooth mprt") for i in range(len(x))]
    for _ in range(samples):
        yield x + sigma * torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x)


@metrics.register("efficient_mprt", "emprt")
@dataclass(frozen=True)
class EfficientMPRT(Metric):
    """Rise of the complexity of a map when all weights are random (eMPRT; Hedström et al. 2024, arXiv:2401.06465).

    (H(M') - H(M)) / H(M), where M' is the map of the network with random weights and H the entropy of the histogram of
    a map's values: what a network has learned leaves structure in a map, and noise has none. It takes one network where
    the cascade of `parameter_randomization` takes one a stage, and compares no pair of maps. A map that does not depend
    on the weights scores 0.

    Args:
        bins: of the histogram, over the map's own range.
        how: as in `parameter_randomization`.
        seed: of all random numbers.
    """

    family: ClassVar[str] = "sanity"
    columns: ClassVar[Mapping[str, Direction]] = {"complexity_rise": HIGHER}
    bins: Annotated[int, Range(2, 10_000)] = 100
    how: Literal["reset", "permute"] = "reset"
    seed: Annotated[int, Range(0, 2**62)] = 0

    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        return self.measure_many([explanation], trace, batch)[0]

    def measure_many(self, explanations: Sequence[Explanation], trace: Trace, batch: Any) -> list[dict[str, Tensor]]:
        # The last layer alone, then all others too.
        *_, network = random_networks(trace, stages=2, how=self.how, cascading=True, seed=self.seed)
        results = []
        for explanation, again in zip(explanations, maps_again(explanations, trace, model=network), strict=True):
            before, after = (histogram_entropy(maps, self.bins) for maps in (explanation.maps, again))
            results.append({"complexity_rise": (after - before) / before})
        return results


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
