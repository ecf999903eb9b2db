"""The contract of a method: a formula with its parameters, from a recorded pass to an explanation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn

from xattn.device import on_cpu_by_default
from xattn.doubts import doubt
from xattn.errors import NotApplicableError, ShapeError
from xattn.explanation import NON_CONSERVING, OK, Explanation, status_of
from xattn.inputs import Inputs, Volume
from xattn.running import lock_of
from xattn.schema import check_fields
from xattn.spec import CONTRADICTED, ModelSpec
from xattn.trace import INPUT, SCORES_ALONE, Trace, promote, record


class Family(Enum):
    """Kind of a method, for tables."""

    CAM = "CAM"
    ACTIVATION = "activation"
    GRADIENT = "gradient"
    ATTENTION = "attention"
    PERTURBATION = "perturbation"
    PROPAGATION = "propagation"
    CONTROL = "control"


class Explainer(ABC):
    """A formula with its parameters, bound to no model. Subclasses are frozen dataclasses.

    Parameters are checked by their annotations: `Annotated[int, Range(1, 1000)]`, `Literal["sum", "mean"]`.

    Attributes:
        name: how tables and the command line call it; registering sets it.
        title: its name in pictures, where the docstring begins with another one.
        family: kind of method.
        grad: it needs `Trace.gradient`.
        class_specific: its map changes with the target.
        passes: what it costs beyond the shared forward pass, in words.
        paper: where it comes from; registering takes it from the docstring.
        serves: the models that it is defined for, in words.
        computed_by: `"xattn"`, or the library that an adapter calls.
        rank_colors: its parts are drawn in rank colours.
        opposes: its maps are negative where the image speaks against what is explained, unless a parameter, `reduce`
            or `relu`, takes the sign away.
        tolerance: largest relative error of `conservation` that passes.
        volumes: it works value by value or cell by cell, and so on volumes (N, C, D, H, W) too.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    family: ClassVar[Family]
    grad: ClassVar[bool] = False
    class_specific: ClassVar[bool] = True
    passes: ClassVar[str] = "none"
    paper: ClassVar[str] = ""
    serves: ClassVar[str] = "all"
    computed_by: ClassVar[str] = "xattn"
    rank_colors: ClassVar[bool] = False
    opposes: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-2
    volumes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self, self.name)

    @property
    def signed(self) -> bool:
        """Whether maps are drawn around zero, also those that happen to have no negative value."""
        return self.opposes and getattr(self, "reduce", "sum") == "sum" and getattr(self, "relu", False) is not True

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        """Names of the layers to tap; a shared pass taps those of all its methods."""
        return ()

    def check(self, spec: ModelSpec) -> None:  # noqa: B027 (most methods have nothing to refuse)
        """Refuse a model for which the method is not defined.

        Raises:
            NotApplicableError: with the reason, and what to use instead.
        """

    @abstractmethod
    def attribute(self, trace: Trace) -> Tensor:
        """Raw maps (N, 1, h, w), or (N, P, h, w) for a method with P parts, from a recorded pass."""

    def combine(self, parts: Tensor) -> Tensor:
        """One map (N, 1, h, w) from the parts (N, P, h, w)."""
        return parts.mean(dim=1, keepdim=True)

    def conservation(self, trace: Trace, maps: Tensor) -> Tensor | None:
        """Relative error (N,) of what the maps must sum to, or None where the method promises no sum."""
        return None

    def remedy(self, trace: Trace, maps: Tensor, i: int) -> str:
        """What is wrong in numbers with map `i`, which is not conserving, and what to do; empty where nothing helps."""
        return ""

    @on_cpu_by_default()
    def explanation(self, trace: Trace) -> Explanation:
        """Maps with provenance and status from a recorded pass; the model is held alone while they are made."""
        self.check(trace.spec)
        refuse_volumes(self, trace.inputs)
        with lock_of(trace.model), torch.inference_mode(False):
            maps = promote(self.attribute(trace).detach())
            if maps.ndim != 4 or len(maps) != len(trace.x):
                some = maps.ndim == 4 and self.layers(trace.spec)
                why = "; where a model runs a layer on some of the images alone, explain them one at a time"
                raise ShapeError(
                    f"{self.name}: attribute() gave {tuple(maps.shape)}; expected ({len(trace.x)}, P, h, w)"
                    f"{why if some else ''}."
                )
            has_parts = type(self).combine is not Explainer.combine or maps.shape[1] > 1
            parts = maps if has_parts else None
            maps = self.combine(maps) if has_parts else maps
            read = self.layers(trace.spec)
            status = status_of(maps)
            word = doubt(trace, read, reruns="forward" in self.passes)
            if word is not None and self.family is not Family.CONTROL:
                status = [word if s == OK else s for s in status]
            error = self.conservation(trace, maps)
            if error is not None:
                excess = (error > self.tolerance).tolist()
                status = [NON_CONSERVING if s == OK and e else s for s, e in zip(status, excess, strict=True)]
            broken = [i for i, s in enumerate(status) if s == NON_CONSERVING]
            remarks = {i: self.remedy(trace, trace.unfolded(maps, read), i) for i in broken}
            goal, spec = trace.goal, trace.spec
            probability = goal.probability(trace.logits, trace.target, spec.values)
        plain = goal.by_class and goal.has_classes
        return Explanation(
            maps=trace.unfolded(maps, read),
            target=trace.target if goal.by_class else torch.full_like(trace.target, -1),
            described=() if plain else tuple(goal.text(i, spec) for i in range(len(maps))),
            method=self,
            input_size=(trace.extent[-2], trace.extent[-1]),
            parts=None if parts is None else trace.unfolded(parts, read),
            status=tuple(status),
            probability=probability,
            inputs=trace.unfolded(trace.x),
            spec=spec,
            remarks=tuple(remarks.get(i, "") for i in range(len(maps))) if any(remarks.values()) else (),
            predicted=trace.probabilities.argmax(dim=1) if goal.has_classes else None,
        )

    def __call__(self, model: nn.Module, x: Any, target: Any = None, *, spec: ModelSpec) -> Explanation:
        """Explain normalized images (N, C, H, W); `xattn.explain` also reads photographs and finds the facts."""
        return self.explanation(record(model, x, target, spec=spec, **needs_of([self], spec)))


class Needs(TypedDict):
    """What a pass has to keep, as arguments of `record`."""

    layers: list[str]
    grad: bool


def needs_of(methods: Iterable[Explainer], spec: ModelSpec) -> Needs:
    """What a pass has to keep for all of these methods."""
    chosen = list(methods)
    return {
        "layers": [layer for method in chosen for layer in method.layers(spec)],
        "grad": any(method.grad for method in chosen),
    }


@dataclass(frozen=True)
class LayerExplainer(Explainer):
    """A method that reads one layer.

    Args:
        layer: name of the layer; None is the model's last layer with a spatial output.
    """

    layer: str | None = None

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        """The one layer that is read."""
        return (feature_layer(spec, self.name) if self.layer is None else self.layer,)


def feature_layer(spec: ModelSpec, method: str) -> str:
    """The layer whose output is the features.

    Raises:
        NotApplicableError: with the reason, if the model has none.
    """
    if spec.feature_layer:
        return spec.feature_layer
    reason = spec.evidence["feature_layer"].why if "feature_layer" in spec.evidence else "the spec names none"
    raise NotApplicableError(f"{method}: reads layers, but {reason}. {SCORES_ALONE}")


def refuse_volumes(method: Explainer, inputs: Inputs | None) -> None:
    """Check that a method works on volumes, where the inputs are.

    Raises:
        NotApplicableError: with methods that do.
    """
    if isinstance(inputs, Volume) and not method.volumes:
        raise NotApplicableError(
            f"{method.name}: is not defined for volumes (N, C, D, H, W); use gradcam, saliency, integrated-gradients, "
            "occlusion or rise."
        )


def refuse(method: Explainer, spec: ModelSpec) -> None:
    """Check what is known of a model against what a method reads.

    Raises:
        NotApplicableError: with the reason why it is not defined for the model.
    """
    layer, gradient = spec.evidence.get("feature_layer"), spec.evidence.get("gradient")
    try:
        method.check(spec)
        needs = method.layers(spec)
    except NotApplicableError as reason:
        if not spec.feature_layer and layer is not None:
            raise NotApplicableError(f"{method.name}: reads layers, but {layer.why}. {SCORES_ALONE}") from None
        if gradient is None or gradient.how != CONTRADICTED:
            raise
        # What it advises may read gradients.
        raise NotApplicableError(f"{str(reason).partition('; use ')[0].rstrip('.')}. {SCORES_ALONE}") from None
    reads = method.grad or INPUT in needs or "backward" in method.passes
    if gradient is not None and gradient.how == CONTRADICTED and reads:
        raise NotApplicableError(f"{method.name}: reads gradients, but {gradient.why}. {SCORES_ALONE}")
