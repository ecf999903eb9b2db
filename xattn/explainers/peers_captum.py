"""The attributions of captum, with what each needs besides the image."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from xattn.errors import NotApplicableError
from xattn.explainer import Family
from xattn.explainers.peers import Peer, Scores, build, on_grid, settable
from xattn.spec import ModelSpec
from xattn.trace import Trace

# Bases, and what explains no image by itself: neurons, texts, data loaders, other images of the batch.
_NOT = {
    "Attribution", "GradientAttribution", "PerturbationAttribution", "LayerAttribution", "NeuronAttribution",
    "DataLoaderAttribution", "LLMAttribution", "LLMGradientAttribution", "RemoteLLMAttribution", "LimeBase",
    "FeaturePermutation", "LayerFeaturePermutation", "ShapleyValues",
}  # fmt: skip
_RANDOM = {"NoiseTunnel", "GradientShap", "LayerGradientShap", "KernelShap", "Lime", "ShapleyValueSampling"}
_SEGMENTS = {"FeatureAblation", "KernelShap", "Lime", "ShapleyValueSampling"}
_WITHOUT = ("return_convergence_delta", "show_progress", "verbose", "memory_efficient", "return_input_shape")
_CELLS = 7  # on each side, for methods that take parts of the image away
_AT_ONCE = 16  # images that go through the model together


@dataclass(frozen=True)
class Captum(Peer):
    """A method of captum (Kokhlikyan et al. 2020, arXiv:2009.07896)."""

    own: ClassVar[tuple[str, ...]] = ()
    """Parameters of the class; the others are those of `attribute`."""

    def check(self, spec: ModelSpec) -> None:
        """Refuse tokens where channels are expected before the grid."""
        super().check(spec)
        if self.peer.__name__ in ("LayerGradCam", "GuidedGradCam") and spec.layout(spec.feature_layer) is not None:
            raise NotApplicableError(
                f"{self.name}: averages over what it takes for the grid, which tokens have elsewhere; use gradcam."
            )

    def _maps(self, scores: Scores, x: Tensor, target: Tensor, trace: Trace) -> Tensor:
        kind = self.peer
        fields = self.settings()
        extra = {name: fields.pop(name) for name in ("cells", "of") if name in fields}
        made = {name: fields.pop(name) for name in self.own}
        takes = inspect.signature(kind.attribute).parameters
        needs: dict[str, Any] = {"target": target} if "target" in takes or "kwargs" in takes else {}
        if "internal_batch_size" in takes:
            needs["internal_batch_size"] = max(_AT_ONCE, len(x))
        if takes.get("baselines") is not None and takes["baselines"].default is inspect.Parameter.empty:
            needs["baselines"] = torch.zeros_like(x[:1]).expand(2, -1, -1, -1).clone()  # a distribution of one point
        if "cells" in extra:
            needs |= _segments(self.name, x, int(extra["cells"]), occlusion="sliding_window_shapes" in takes)
        if "of" in extra:
            made["attribution_method"] = _inner(self.name, str(extra["of"]))(scores)
            method = kind(**made)
        elif self.reads_layer:
            method = kind(scores, scores.layer(trace.spec, self.name), **made)
        else:
            method = kind(scores, **made)
        maps = method.attribute(x, **needs, **fields)
        maps = maps[0] if isinstance(maps, tuple) else maps
        return on_grid(trace, maps) if self.reads_layer and maps.shape[-2:] != x.shape[-2:] else maps


def _segments(name: str, x: Tensor, cells: int, *, occlusion: bool) -> dict[str, Any]:
    """The parts of the image that are taken away: cells of a grid, or a window of two of them."""
    size = x.shape[-2], x.shape[-1]
    if not 1 <= cells <= min(size):
        raise NotApplicableError(f"{name}: cells must be from 1 to {min(size)} but is {cells}.")
    if occlusion:
        strides = tuple(max(1, side // cells) for side in size)
        window = tuple(min(side, 2 * stride) for side, stride in zip(size, strides, strict=True))
        return {"sliding_window_shapes": (x.shape[1], *window), "strides": (x.shape[1], *strides)}
    rows, columns = (torch.arange(side, device=x.device) * cells // side for side in size)
    return {"feature_mask": (rows[:, None] * cells + columns)[None, None]}


def _inner(name: str, of: str) -> Any:
    import captum.attr

    kind = getattr(captum.attr, of, None) if of in found("captum") else None
    if kind is None or issubclass(kind, captum.attr.LayerAttribution) or of == "NoiseTunnel":
        raise NotApplicableError(f"{name}: of must be a method of captum without a layer, as Saliency, but is '{of}'.")
    return kind


def found(library: str) -> list[str]:
    """Names of the methods that explain images."""
    import captum.attr

    classes = {name: getattr(captum.attr, name) for name in captum.attr.__all__}
    return [
        name
        for name, kind in classes.items()
        if inspect.isclass(kind)
        and issubclass(kind, captum.attr.Attribution)
        and not issubclass(kind, captum.attr.NeuronAttribution)
        and name not in _NOT
    ]


def make(library: str, name: str) -> type[Peer]:
    """The class of one method."""
    import captum.attr

    kind = getattr(captum.attr, name)
    own = settable(kind.__init__, without=_WITHOUT)
    fields = {**own, **settable(kind.attribute, without=_WITHOUT)}
    segments = name in _SEGMENTS or name == "Occlusion"
    fields |= {"cells": _CELLS} if segments else {}
    fields |= {"of": "Saliency"} if name == "NoiseTunnel" else {}
    layer = issubclass(kind, captum.attr.LayerAttribution) or name == "GuidedGradCam"
    families = {
        Family.PERTURBATION: segments,
        Family.PROPAGATION: "LRP" in name or "DeepLift" in name,
        Family.CAM: layer,
    }
    family = next((family for family, there in families.items() if there), Family.GRADIENT)
    facts = {"family": family, "scattered": name in _RANDOM, "reads_layer": layer, "own": tuple(own)}
    return build(Captum, library, name, kind, fields, **facts)
