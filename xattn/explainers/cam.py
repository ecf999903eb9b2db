"""Class activation maps and the activation map: methods that read one layer of the shared pass."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError
from xattn.explainer import Family, LayerExplainer
from xattn.explainers import explainers
from xattn.explainers.linearity import classifier_of, conservation_error, target_rows, target_sign
from xattn.functional import cam as formulas
from xattn.spec import ModelSpec
from xattn.trace import Trace


@explainers.register("activation", "activation-map")
@dataclass(frozen=True)
class Activation(LayerExplainer):
    """Activation map: length of each cell's feature vector (Gomez et al. 2022, arXiv:2106.02566, sec. 3).

    The same for every class.

    Args:
        reduce: `"norm"`, `"squared_norm"` or `"mean"` over the channels; all three are in use.
    """

    volumes: ClassVar[bool] = True
    title: ClassVar[str] = "Activation"
    family: ClassVar[Family] = Family.ACTIVATION
    class_specific: ClassVar[bool] = False
    reduce: Literal["norm", "squared_norm", "mean"] = "norm"

    def attribute(self, trace: Trace) -> Tensor:
        (layer,) = self.layers(trace.spec)
        return formulas.activation_map(trace.activation(layer), self.reduce)


@explainers.register("cam")
@dataclass(frozen=True)
class CAM(LayerExplainer):
    """CAM: channels weighted by the classifier's row, sum_k w_k^c f_k (Zhou et al. 2016, arXiv:1512.04150, eq. 2).

    It explains the logit whatever the score, is signed, and proves itself: mean of the map + bias = logit. That holds
    for global average pooling before a linear layer, also through a ReLU before the pooling (DenseNet), and for a
    1x1 convolution before the pooling (SqueezeNet), whose output, bias included, is the map. Any other model is
    refused.
    """

    volumes: ClassVar[bool] = True
    family: ClassVar[Family] = Family.CAM
    opposes: ClassVar[bool] = True
    serves: ClassVar[str] = "pooling and a linear layer at the end"

    def check(self, spec: ModelSpec) -> None:
        if spec.classifier is None:
            found = spec.evidence.get("classifier")
            why = found.why if found is not None and found.why else "the model has no linear classifier that is known"
            raise NotApplicableError(f"cam: {why}, so channels have no weights to read; use hirescam.")
        if spec.attention is not None and self.layer is None:
            raise NotApplicableError(
                f"cam: the {spec.attention} head pools by attention maps and not by the mean; use part-cam."
            )

    def attribute(self, trace: Trace) -> Tensor:
        maps, error = self._best(trace)
        # A NaN stays: it is the status of that image, not a fault of the model.
        if bool((error > self.tolerance).any()):
            (layer,) = self.layers(trace.spec)
            raise NotApplicableError(
                f"cam: the logits of {type(trace.model).__name__} are not a linear function of the mean of '{layer}': "
                f"mean of the map + bias misses them by {float(error.nan_to_num().max()):.0%}; use hirescam."
            )
        return maps

    def _best(self, trace: Trace) -> tuple[Tensor, Tensor]:
        """The maps of the way from features to logits that conserves best, and its relative errors (N,)."""
        (layer,) = self.layers(trace.spec)
        features = trace.activation(layer)
        classifier = classifier_of(trace, self.name)
        weight, bias = target_rows(trace, classifier, features.dtype)
        if weight.shape[1] != features.shape[1]:
            raise NotApplicableError(
                f"cam: the classifier reads {weight.shape[1]} values but '{layer}' has {features.shape[1]} channels, "
                "so it is not their mean; use hirescam."
            )
        sign = target_sign(trace).to(features.dtype)
        candidates = []
        for source in (features, features.relu()):
            maps = formulas.cam(source, weight)
            terms = (source.abs().mean((2, 3)) * weight.abs()).sum(1) + bias.abs()
            if isinstance(classifier, nn.Conv2d):
                maps = maps + bias[:, None, None, None]
                ways = [(maps, torch.zeros_like(bias)), (maps.relu(), torch.zeros_like(bias))]
            else:
                ways = [(maps, bias)]
            for candidate, rest in ways:
                total = candidate.mean((1, 2, 3)) + rest
                magnitude = candidate.abs().mean((1, 2, 3))
                error = conservation_error(trace, total * sign, magnitude, terms, trace.dtype(layer))
                candidates.append((candidate * sign[:, None, None, None], error))
        # Where two ways agree on a whole batch their maps are the same, so the choice does not couple the images.
        return min(candidates, key=lambda candidate: float(candidate[1].nan_to_num().max()))

    def conservation(self, trace: Trace, maps: Tensor) -> Tensor:
        """Relative error (N,) of mean of the map + bias = logit."""
        return self._best(trace)[1]


@dataclass(frozen=True)
class GradientCAM(LayerExplainer):
    """A map made of the features of one layer and the gradient of the score by them, from the pass that all share."""

    volumes: ClassVar[bool] = True
    family: ClassVar[Family] = Family.CAM
    grad: ClassVar[bool] = True
    passes: ClassVar[str] = "shared backward"

    @abstractmethod
    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        """Maps (N, 1, h, w) of features and gradient (N, C, h, w)."""

    def attribute(self, trace: Trace) -> Tensor:
        (layer,) = self.layers(trace.spec)
        return self.maps(trace.activation(layer), trace.gradient(layer))


@explainers.register("gradcam")
@dataclass(frozen=True)
class GradCAM(GradientCAM):
    """Grad-CAM: channels by their mean gradient, then ReLU (Selvaraju et al. 2017, arXiv:1610.02391, eqs. 1-2).

    Args:
        relu: False keeps the evidence against the class, as captum does by default.
    """

    opposes: ClassVar[bool] = True
    relu: bool = True

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        return formulas.grad_cam(features, gradient, self.relu)


@explainers.register("gradcam++")
@dataclass(frozen=True)
class GradCAMPlusPlus(GradientCAM):
    """Grad-CAM++: pixel-wise weights of the positive gradients (Chattopadhyay et al. 2018, arXiv:1710.11063, eq. 19).

    The paper scores exp(logit) so that its higher derivatives are powers of the gradient of the logit; that
    exponential scales each map as a whole and is left out. There is no epsilon in the denominator.
    """

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        return formulas.grad_cam_plus_plus(features, gradient)


@explainers.register("hirescam")
@dataclass(frozen=True)
class HiResCAM(GradientCAM):
    """HiResCAM: features times gradient cell by cell, summed over channels (Draelos, Carin 2020, arXiv:2011.08891).

    Signed. Where a single linear layer follows the features, with pooling or without, the map sums to logit - bias.

    Args:
        relu: drop the evidence against the class, as pytorch-grad-cam does; the formula has no ReLU.
    """

    title: ClassVar[str] = "HiRes-CAM"
    opposes: ClassVar[bool] = True
    relu: bool = False

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        return formulas.hires_cam(features, gradient, self.relu)


@explainers.register("xgradcam")
@dataclass(frozen=True)
class XGradCAM(GradientCAM):
    """XGrad-CAM: channels weighted by their activation-weighted mean gradient (Fu et al. 2020, arXiv:2008.02312).

    A channel whose activations sum to zero has no such mean and adds nothing.

    Args:
        relu: False keeps the evidence against the class.
    """

    opposes: ClassVar[bool] = True
    relu: bool = True

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        return formulas.xgrad_cam(features, gradient, self.relu)


@explainers.register("layercam")
@dataclass(frozen=True)
class LayerCAM(GradientCAM):
    """LayerCAM: each cell weighted by its positive gradient (Jiang et al. 2021, IEEE TIP, 10.1109/TIP.2021.3089943).

    Made to work at earlier, finer layers too.
    """

    paper: ClassVar[str] = "Jiang et al. 2021, 10.1109/TIP.2021.3089943"

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        return formulas.layer_cam(features, gradient)


@explainers.register("eigencam")
@dataclass(frozen=True)
class EigenCAM(LayerExplainer):
    """Eigen-CAM: features projected on their first right singular vector (Muhammad, Yeasin 2020, arXiv:2008.00299).

    The same for every class. A singular vector has no sign: active cells are made high.

    Args:
        center: subtract the mean over the cells first, as pytorch-grad-cam does; the paper does not.
    """

    volumes: ClassVar[bool] = True
    family: ClassVar[Family] = Family.CAM
    class_specific: ClassVar[bool] = False
    center: bool = False

    def attribute(self, trace: Trace) -> Tensor:
        (layer,) = self.layers(trace.spec)
        return formulas.eigen_cam(trace.activation(layer), self.center)
