"""The contract of a method, and `explain`, which runs any number of them on one shared pass."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError, ShapeError, SpecError, XattnWarning
from xattn.explanation import NON_CONSERVING, OK, Explanation, status_of
from xattn.score import ScoreFn, prob
from xattn.spec import ModelSpec
from xattn.trace import Trace, place_of, promote, record, unwrap


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

    Attributes:
        name: how tables and the command line call it.
        title: its name in pictures, where the docstring begins with another one.
        family: kind of method.
        grad: it needs `Trace.gradient`.
        class_specific: its map changes with the target.
        passes: what it costs beyond the shared forward pass, in words.
        paper: where it comes from.
        serves: the models that it is defined for, in words.
        computed_by: `"xattn"`, or the library that an adapter calls.
        rank_colors: its parts are drawn in rank colours.
        tolerance: largest relative error of `conservation` that passes.
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
    tolerance: ClassVar[float] = 1e-2

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        """Names of the layers to tap; `explain` takes the union over all methods."""
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

    def explanation(self, trace: Trace) -> Explanation:
        """Maps with provenance and status from a recorded pass."""
        self.check(trace.spec)
        with torch.inference_mode(False):
            found = promote(self.attribute(trace).detach())
            if found.ndim != 4 or len(found) != len(trace.x):
                raise ShapeError(
                    f"{self.name}: attribute() gave {tuple(found.shape)}; expected ({len(trace.x)}, P, h, w)."
                )
            has_parts = type(self).combine is not Explainer.combine or found.shape[1] > 1
            maps = self.combine(found) if has_parts else found
            status = status_of(maps)
            error = self.conservation(trace, maps)
            if error is not None:
                excess = (error > self.tolerance).tolist()
                status = [NON_CONSERVING if s == OK and e else s for s, e in zip(status, excess, strict=True)]
            chance = prob(trace.logits, trace.target)
        return Explanation(
            maps=maps,
            target=trace.target,
            method=self,
            input_size=trace.input_size,
            parts=found if has_parts else None,
            status=tuple(status),
            probability=chance,
            inputs=trace.x,
            spec=trace.spec,
        )

    def __call__(
        self,
        model: nn.Module,
        x: Any,
        target: Tensor | Sequence[int] | int | None = None,
        *,
        spec: ModelSpec | None = None,
    ) -> Explanation:
        """`explain` with this one method."""
        return explain(model, x, self, target, spec=spec)


@dataclass(frozen=True)
class LayerExplainer(Explainer):
    """A method that reads one layer.

    Args:
        layer: name of the layer; None is the model's last layer with a spatial output.
    """

    layer: str | None = None

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        """The one layer that is read."""
        return (spec.feature_layer if self.layer is None else self.layer,)


def explain_trace(trace: Trace, methods: Sequence[Explainer], *, skip: bool = False) -> list[Explanation]:
    """Explanations of one recorded pass, a warning for each method whose maps are not all `ok`.

    Args:
        trace: with the layers of all methods.
        methods: in the order of the result.
        skip: leave a method out that refuses the model only now, with a warning, instead of raising.
    """
    found = []
    for method in methods:
        try:
            explanation = method.explanation(trace)
        except NotApplicableError as reason:
            if not skip:
                raise
            warnings.warn(f"left out: {reason}", XattnWarning, stacklevel=3)
            continue
        if trouble := {s: explanation.status.count(s) for s in explanation.status if s != OK}:
            first = next(i for i, s in enumerate(explanation.status) if s != OK)
            counts = ", ".join(f"{count} {name}" for name, count in trouble.items())
            warnings.warn(
                f"{method.name}: {counts} of {len(explanation)} maps (first: image {first}); "
                "see Explanation.status before you read them.",
                XattnWarning,
                stacklevel=3,
            )
        found.append(explanation)
    return found


@overload
def explain(
    model: nn.Module, x: Any, methods: str | Explainer, target: Any = None, *, spec: ModelSpec | None = None,
    seeds: Sequence[int] | None = None, score: str | ScoreFn = "logit",
) -> Explanation: ...  # fmt: skip
@overload
def explain(
    model: nn.Module, x: Any, methods: Sequence[str | Explainer], target: Any = None, *, spec: ModelSpec | None = None,
    seeds: Sequence[int] | None = None, score: str | ScoreFn = "logit",
) -> list[Explanation]: ...  # fmt: skip
def explain(
    model: nn.Module,
    x: Any,
    methods: str | Explainer | Sequence[str | Explainer],
    target: Any = None,
    *,
    spec: ModelSpec | None = None,
    seeds: Sequence[int] | None = None,
    score: str | ScoreFn = "logit",
) -> Explanation | list[Explanation]:
    """Explain what a model sees in images, with one forward and at most one backward pass for all layer methods.

    Args:
        model: any module from images to logits (N, K). It leaves as it came.
        x: float tensor (N, C, H, W) in the model's normalized space, or images to be read and normalized: a path,
            a Pillow image, a uint8 array (H, W, C), or a list of these.
        methods: a name such as `"gradcam"` or `"brnpa:parts=4"`, an `Explainer`, or a sequence of them; `["all"]`
            stands for every method, and `"all"` for every one that is defined for the model.
        target: class of each image, one class for all (index or name), or None for the predicted class.
        spec: facts about the model; None takes `model.spec` or infers them.
        seeds: one number per image, for methods that draw random numbers; None derives it from the image.
        score: the scalar to explain: `"logit"`, `"prob"`, `"sigmoid"`, `"margin"`, or a callable.

    Returns:
        One `Explanation` for one method, a list for a sequence and for `"all"`.

    Raises:
        UnknownNameError: for a method, class, layer or score that does not exist.
        SpecError: if a fact about the model cannot be inferred.
        NotApplicableError: if a method is not defined for the model.
    """
    from xattn.explainers import applicable, resolve

    every = isinstance(methods, str) and methods.strip().lower() == "all"
    single = isinstance(methods, (str, Explainer)) and not every
    chosen = resolve(methods)
    if not chosen:
        raise NotApplicableError("explain: no method given; see `xattn list methods`.")
    model = unwrap(model)
    if isinstance(x, Tensor) and x.ndim == 3 and x.is_floating_point():
        x = x[None]
    if spec is None:
        spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        from xattn.inspection import infer_spec

        size = (x.shape[-2], x.shape[-1]) if isinstance(x, Tensor) and x.is_floating_point() else None
        spec = infer_spec(model, input_size=size)
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        from xattn.data.preprocessing import to_batch

        if spec.mean is None or spec.std is None:
            raise SpecError(
                f"{type(model).__name__}: how its images are normalized is unknown; pass "
                "spec=ModelSpec(mean=…, std=…), or a float tensor that is already normalized. "
                "mean=(0, 0, 0) and std=(1, 1, 1) leave [0, 1] as it is."
            )
        x = to_batch(x, spec).to(place_of(model)[0])
    if isinstance(target, str):
        target = spec.class_index(target)
    if every:
        chosen = [method for method in chosen if applicable(method, spec) is None]
    for method in chosen:
        method.check(spec)
    layers = [layer for method in chosen for layer in method.layers(spec)]
    grad = any(method.grad for method in chosen)
    trace = record(model, x, target, spec=spec, layers=layers, grad=grad, score=score, seeds=seeds)
    found = explain_trace(trace, chosen, skip=every)
    return found[0] if single else found
