"""Maps of networks whose head pools by attention, and BR-NPA on the features of any network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError, ParameterError, ShapeError, SpecError
from xattn.explainer import Explainer, Family, LayerExplainer, feature_layer
from xattn.explainers import explainers
from xattn.explainers.linearity import classifier_of, column_of, conservation_error, target_rows, target_sign
from xattn.functional.attention import class_map
from xattn.functional.br_npa import br_npa_maps
from xattn.functional.cam import activation_map, cam
from xattn.schema import Range
from xattn.spec import ModelSpec
from xattn.trace import Trace, promote

SaliencyOf = Literal["first", "mean", "max"]


def _combined(parts: Tensor, saliency: str) -> Tensor:
    """One map (N, 1, h, w) from the maps of the parts (N, P, h, w)."""
    if saliency == "first":
        return parts[:, :1]
    if saliency == "mean":
        return parts.mean(1, keepdim=True)
    if saliency == "max":
        return parts.amax(1, keepdim=True)
    raise ParameterError(f"saliency must be one of first, mean, max but is '{saliency}'.")


def _by_norm(weights: Tensor, features: Tensor, name: str) -> Tensor:
    if weights.shape[2:] != features.shape[2:]:
        raise ShapeError(
            f"{name}: the attention maps are {weights.shape[2]}x{weights.shape[3]} but the features "
            f"{features.shape[2]}x{features.shape[3]}; ModelSpec.feature_layer must be what the head reads."
        )
    return weights * activation_map(features)


def _attention_layer(spec: ModelSpec, name: str) -> str:
    if spec.attention_layer is None:
        raise SpecError(f"{name}: the head is '{spec.attention}' but ModelSpec.attention_layer does not say where.")
    return spec.attention_layer


@explainers.register("bcnn")
@dataclass(frozen=True)
class BCNN(Explainer):
    """B-CNN: the attention maps of the head, times the norm of the features (Hu et al. 2019, WS-DAN, arXiv:1901.09891).

    The same for every class; needs a network trained with this head. The factor is that of BR-NPA
    (arXiv:2106.02566), so that the maps of the two compare.

    Args:
        saliency: the map of all parts is their `"mean"` (as published), their `"max"`, or the `"first"`.
    """

    family: ClassVar[Family] = Family.ATTENTION
    class_specific: ClassVar[bool] = False
    serves: ClassVar[str] = "B-CNN heads"
    saliency: SaliencyOf = "mean"

    def check(self, spec: ModelSpec) -> None:
        if spec.attention != "bcnn":
            raise NotApplicableError(
                "bcnn: the model has no B-CNN head, whose attention maps this method shows; "
                "train one with head='bcnn', or use brnpa, which works on any network."
            )

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        return feature_layer(spec, self.name), _attention_layer(spec, self.name)

    def attribute(self, trace: Trace) -> Tensor:
        features, weights = (trace.activation(layer) for layer in self.layers(trace.spec))
        return _by_norm(weights, features, self.name)

    def combine(self, parts: Tensor) -> Tensor:
        return _combined(parts, self.saliency)


@explainers.register("brnpa", "br-npa")
@dataclass(frozen=True)
class BRNPA(LayerExplainer):
    """BR-NPA: part maps by similarity with the most active cells, times the norm (Gomez et al. 2022, arXiv:2106.02566).

    With a network that was trained with a BR-NPA head, and no parameter changed, these are the maps that the head
    pools by. Otherwise they are computed post hoc from the features of the layer, of any network. Either way they are
    the same for every class, and parts come in order of activity.

    Args:
        parts: number of maps P; None is that of the trained head, or 3.
        saliency: the map of all parts is the `"first"` (as published), their `"mean"` or their `"max"`.
        activation: `"norm"`, or `"squared_norm"` as printed.
        suppress: by the `"similarity"` as in the released code, or by the `"weight"` as printed.
        refine: False shows the seeds alone.
    """

    volumes: ClassVar[bool] = True
    family: ClassVar[Family] = Family.ATTENTION
    class_specific: ClassVar[bool] = False
    paper: ClassVar[str] = "Gomez et al. 2022, arXiv:2106.02566, eqs. 1-4"
    rank_colors: ClassVar[bool] = True
    parts: Annotated[int | None, Range(1, 1000)] = None
    saliency: SaliencyOf = "first"
    activation: Literal["norm", "squared_norm"] = "norm"
    suppress: Literal["similarity", "weight"] = "similarity"
    refine: bool = True

    def trained(self, spec: ModelSpec) -> bool:
        """Whether the maps are those of a trained head rather than computed post hoc."""
        untouched = (self.layer, self.parts, self.activation, self.suppress, self.refine) == (
            None, None, "norm", "similarity", True,
        )  # fmt: skip
        return spec.attention == "brnpa" and untouched

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        features = feature_layer(spec, self.name) if self.layer is None else self.layer
        return (features, _attention_layer(spec, self.name)) if self.trained(spec) else (features,)

    def attribute(self, trace: Trace) -> Tensor:
        features, *attention = (trace.activation(layer) for layer in self.layers(trace.spec))
        weights = (
            attention[0]
            if attention
            else br_npa_maps(
                features,
                3 if self.parts is None else self.parts,
                activation=self.activation,
                suppress=self.suppress,
                refine=self.refine,
            )
        )
        return _by_norm(weights, features, self.name)

    def combine(self, parts: Tensor) -> Tensor:
        return _combined(parts, self.saliency)


@explainers.register("part-cam")
@dataclass(frozen=True)
class PartCAM(Explainer):
    """Part-CAM: logit of a B-CNN or BR-NPA head, cell by cell: sum_m A_m,i W_c^(m) f_i (Zhou 2016, arXiv:1512.04150).

    Class-specific, unlike the attention maps themselves, and signed. The analogue of CAM (Zhou et al. 2016, eq. 2) for
    heads that are linear in their part vectors, with the attention maps taken as constants; not in the papers of the
    two heads. It explains the logit whatever the score and proves itself: the map sums to the logit less the bias.
    """

    title: ClassVar[str] = "Part CAM"
    family: ClassVar[Family] = Family.ATTENTION
    serves: ClassVar[str] = "B-CNN and BR-NPA heads"
    opposes: ClassVar[bool] = True
    paper: ClassVar[str] = "after Zhou et al. 2016, arXiv:1512.04150, eq. 2"

    def check(self, spec: ModelSpec) -> None:
        if spec.attention not in ("bcnn", "brnpa") or spec.classifier is None:
            raise NotApplicableError(
                "part-cam: the model has no B-CNN or BR-NPA head whose logit could be split; use hirescam."
            )

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        return feature_layer(spec, self.name), _attention_layer(spec, self.name)

    def _weights(self, trace: Trace) -> Tensor:
        weights = trace.activation(_attention_layer(trace.spec, self.name))
        # B-CNN pools by the mean over the cells, BR-NPA by weights that sum to one.
        return weights / weights[0, 0].numel() if trace.spec.attention == "bcnn" else weights

    def attribute(self, trace: Trace) -> Tensor:
        features = trace.activation(trace.spec.feature_layer)
        classifier = classifier_of(trace, self.name)
        rows, bias = target_rows(trace, classifier, features.dtype)
        maps = self._weights(trace)
        if isinstance(classifier, nn.Conv2d):  # it reads each cell before the pooling, perhaps with a ReLU behind it
            scores = cam(features, rows) + bias[:, None, None, None]
            ways = [made * maps.mean(1, keepdim=True) for made in (scores, scores.relu())]
            wanted = promote(trace.logits).gather(1, column_of(trace)[:, None])[:, 0]
            errors = [float((way.sum((1, 2, 3)) - wanted).abs().nan_to_num().max()) for way in ways]
            made = ways[errors.index(min(errors))]
        elif rows.shape[1] != maps.shape[1] * features.shape[1]:
            raise NotApplicableError(
                f"part-cam: the classifier reads {rows.shape[1]} values but there are {maps.shape[1]} parts of "
                f"{features.shape[1]} channels: something that is not linear lies between; use hirescam."
            )
        else:
            made = class_map(features, maps, rows)
        return made * target_sign(trace).to(made.dtype)[:, None, None, None]

    def conservation(self, trace: Trace, maps: Tensor) -> Tensor:
        """Relative error (N,) of sum of the map + bias = logit."""
        features = trace.activation(trace.spec.feature_layer)
        classifier = classifier_of(trace, self.name)
        rows, bias = target_rows(trace, classifier, features.dtype)
        weights = self._weights(trace).abs()
        with torch.autocast(features.device.type, enabled=False):
            if isinstance(classifier, nn.Conv2d):
                terms = (cam(features.abs(), rows.abs()) * weights.mean(1, keepdim=True)).sum((1, 2, 3)) + bias.abs()
                bias = torch.zeros_like(bias)  # it is in the map
            else:
                terms = class_map(features.abs(), weights, rows.abs()).sum((1, 2, 3)) + bias.abs()
        return conservation_error(
            trace,
            maps.sum((1, 2, 3)) + bias * target_sign(trace).to(maps.dtype),
            maps.abs().sum((1, 2, 3)),
            terms,
            trace.dtype(trace.spec.feature_layer),
        )
