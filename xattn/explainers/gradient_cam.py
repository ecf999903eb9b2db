"""Class activation maps whose gradient is another than that of the score: compared, smoothed, corrected, cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from xattn.errors import NotApplicableError
from xattn.explainer import Family, LayerExplainer
from xattn.explainers import explainers
from xattn.explainers.cam import GradientCAM
from xattn.explainers.intervention import fold, refuse_views, replaced_output
from xattn.functional import cam as formulas
from xattn.schema import Range
from xattn.score import apply_score
from xattn.trace import Trace, promote


@explainers.register("gradcam-elementwise")
@dataclass(frozen=True)
class GradCAMElementWise(GradientCAM):
    """Element-wise Grad-CAM: sum of ReLU(gradient x feature) (Pillai, Pirsiavash 2021, 10.1609/aaai.v35i3.16344).

    As pytorch-grad-cam computes it. Where no feature is negative, as behind a ReLU, this is LayerCAM.
    """

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        return formulas.grad_cam_elementwise(features, gradient)


@explainers.register("finercam", "finer-cam")
@dataclass(frozen=True)
class FinerCAM(LayerExplainer):
    """Finer-CAM: Grad-CAM of the score less that of the most similar classes (Zhang et al. 2025, arXiv:2501.11309).

    The score is y_c - strength * mean_d y_d over the classes d whose logits are closest to that of the target, so that
    what the classes share cancels. pytorch-grad-cam weights these classes by their probability, through which it
    differentiates too.

    Args:
        strength: how much the other classes count; 0 is Grad-CAM, 1 leaves the differences alone.
        classes: number of classes to compare with, at most all others.
    """

    volumes: ClassVar[bool] = True
    family: ClassVar[Family] = Family.CAM
    passes: ClassVar[str] = "1 forward, 1 backward to the layer"
    strength: Annotated[float, Range(-1000, 1000)] = 0.6
    classes: Annotated[int, Range(1, 10_000)] = 3

    def attribute(self, trace: Trace) -> Tensor:
        (layer,) = self.layers(trace.spec)
        others = self.similar(trace)

        def difference(logits: Tensor, target: Tensor) -> Tensor:
            score = trace.score_fn
            compared = torch.stack([score(logits, other) for other in others.T]).mean(0)
            return score(logits, target) - self.strength * compared

        gradient = trace.again(layers=(layer,), score=difference).gradient(layer)
        return formulas.grad_cam(trace.activation(layer), gradient)

    def similar(self, trace: Trace) -> Tensor:
        """The classes (N, T) whose logits are closest to that of the target; the other one of a binary model."""
        if not (trace.goal.by_class and trace.goal.has_classes):
            raise NotApplicableError(
                f"{self.name}: '{trace.goal.text(0, trace.spec)}' is no class that others could be compared with; "
                "use gradcam."
            )
        logits, target = trace.logits, trace.target[:, None]
        if logits.shape[1] == 1:
            return 1 - target
        distance = (logits - logits.gather(1, target)).abs().scatter(1, target, torch.inf)
        return distance.topk(min(self.classes, logits.shape[1] - 1), dim=1, largest=False).indices


@explainers.register("shapleycam")
@dataclass(frozen=True)
class ShapleyCAM(LayerExplainer):
    """ShapleyCAM: Grad-CAM with a second-order correction of the gradient (Cai 2025, arXiv:2501.06261).

    Channels are weighted by the mean of g - H A / 2, gradient and Hessian of the utility by the features A, and the map
    ends in a ReLU. With a utility that is piecewise linear in the features, as a logit is behind the last convolution,
    H is zero and the map is Grad-CAM.

    Args:
        utility: `"rest"` is the paper's logit plus log-probability of the target (ReST), whatever the score; a model
            with one output z is taken as one with the logits -z and z. `"score"` is the score, as for targets that
            are no class.
    """

    family: ClassVar[Family] = Family.CAM
    passes: ClassVar[str] = "1 forward, 2 backward to the layer"
    utility: Literal["rest", "score"] = "rest"

    def attribute(self, trace: Trace) -> Tensor:
        refuse_views(trace, self.name)
        (layer,) = self.layers(trace.spec)
        classes = trace.goal.by_class and trace.goal.has_classes
        utility = residual_softmax if self.utility == "rest" and classes else trace.score_fn
        kept: dict[str, Tensor] = {}

        def cut(features: Tensor) -> Tensor:
            torch.set_grad_enabled(True)  # what comes before the layer needs no graph
            kept["features"] = features.detach().requires_grad_()
            return kept["features"].clone()

        def keep(logits: Tensor, target: Tensor) -> Tensor:
            kept["utility"] = apply_score(utility, logits, target)
            return kept["utility"]

        plain = sdpa_kernel(SDPBackend.MATH)  # the fused kernels of attention have no second derivative
        with replaced_output(trace.model, layer, cut), plain:
            trace.again(score=keep)
        features = kept["features"]
        with torch.inference_mode(False), torch.enable_grad():
            (gradient,) = torch.autograd.grad(kept["utility"].sum(), features, create_graph=True)
            curvature = None
            if gradient.requires_grad:  # else the utility is linear in the features
                (curvature,) = torch.autograd.grad(gradient, features, features.detach(), allow_unused=True)
        weights = promote(gradient.detach())
        if curvature is not None:
            weights = weights - promote(curvature) / 2
        trace.count(backwards=2)
        return formulas.grad_cam(trace.activation(layer), fold(trace, layer, weights))


def residual_softmax(logits: Tensor, target: Tensor) -> Tensor:
    """ReST: logit plus log-probability of the target (Cai 2025, arXiv:2501.06261), (N,)."""
    both = torch.cat([-logits, logits], dim=1) if logits.shape[1] == 1 else logits
    return (both + both.log_softmax(dim=1)).gather(1, target[:, None])[:, 0]


@explainers.register("smoothgradcam++", "smooth-gradcam++")
@dataclass(frozen=True)
class SmoothGradCAMPlusPlus(LayerExplainer):
    """Smooth Grad-CAM++: Grad-CAM++ with derivatives averaged over noisy images (Omeiza et al. 2019, arXiv:1908.01224).

    Differs from the paper in the numerator of its alpha, mean g^2 here, with which one image without noise gives
    Grad-CAM++. Powers are those of the gradient of the score.

    Args:
        samples: number of noisy copies of each image, from its own seed.
        noise: standard deviation of the Gaussian noise as a share of the image's range, max - min.
    """

    volumes: ClassVar[bool] = True
    family: ClassVar[Family] = Family.CAM
    passes: ClassVar[str] = "8 forward, 8 backward to the layer"
    samples: Annotated[int, Range(1, 10_000)] = 8
    noise: Annotated[float, Range(0, 100)] = 0.15

    def attribute(self, trace: Trace) -> Tensor:
        (layer,) = self.layers(trace.spec)
        x = trace.x
        deviation = self.noise * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
        generators = [trace.generator(i, self.name) for i in range(len(x))]
        gradients = []
        for _ in range(self.samples):
            drawn = torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators])
            noisy = x + deviation * drawn.to(x)
            again = trace.again(noisy, layers=(layer,))
            gradients.append(again.gradient(layer))
        return formulas.smooth_grad_cam_plus_plus(trace.activation(layer), gradients)
