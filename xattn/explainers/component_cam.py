"""Maps of what the cells of a layer have in common: principal components, strong responses, non-negative factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from xattn.explainer import Family, LayerExplainer
from xattn.explainers import explainers
from xattn.explainers.cam import GradientCAM
from xattn.functional import components
from xattn.functional.components import Kernel
from xattn.schema import Range
from xattn.trace import Trace


@explainers.register("eigengradcam")
@dataclass(frozen=True)
class EigenGradCAM(GradientCAM):
    """Eigen-Grad-CAM: Eigen-CAM of features times gradient, as in pytorch-grad-cam (after arXiv:2008.00299).

    It has no paper of its own. A singular vector has no sign: what speaks for the class is made high.

    Args:
        center: subtract the mean over the cells first, as pytorch-grad-cam does.
    """

    paper: ClassVar[str] = "pytorch-grad-cam, after Muhammad, Yeasin 2020, arXiv:2008.00299"
    center: bool = False

    def maps(self, features: Tensor, gradient: Tensor) -> Tensor:
        return components.eigen_grad_cam(features, gradient, self.center)


@explainers.register("kpca-cam")
@dataclass(frozen=True)
class KPCACAM(LayerExplainer):
    """KPCA-CAM: features on their first kernel principal component (Karmani et al. 2024, arXiv:2410.00267).

    The same for every class. A component has no sign: active cells are made high. The features are centred before the
    kernel, as in the released code.

    Args:
        kernel: `"sigmoid"` or `"rbf"`.
        gamma: scale of the kernel; None is 1 / number of channels.
    """

    volumes: ClassVar[bool] = True
    family: ClassVar[Family] = Family.CAM
    class_specific: ClassVar[bool] = False
    kernel: Kernel = "sigmoid"
    gamma: Annotated[float | None, Range(0, 1e6, open_low=True)] = None

    def attribute(self, trace: Trace) -> Tensor:
        (layer,) = self.layers(trace.spec)
        return components.kernel_cam(trace.activation(layer), self.kernel, self.gamma)


@explainers.register("fem")
@dataclass(frozen=True)
class FEM(LayerExplainer):
    """FEM: cells where channels respond far above their mean (Fuad et al. 2020, 10.1109/IPTA50016.2020.9286629).

    The same for every class. Each channel gives its mean to its strong cells; pytorch-grad-cam weights the features by
    the share of strong cells instead.

    Args:
        k: how many standard deviations above its mean a response is strong.
    """

    volumes: ClassVar[bool] = True
    family: ClassVar[Family] = Family.ACTIVATION
    class_specific: ClassVar[bool] = False
    k: Annotated[float, Range(-100, 100)] = 2.0

    def attribute(self, trace: Trace) -> Tensor:
        (layer,) = self.layers(trace.spec)
        return components.strong_cells(trace.activation(layer), self.k)


@explainers.register("dff", "deep-feature-factorization")
@dataclass(frozen=True)
class DFF(LayerExplainer):
    """Deep feature factorization: non-negative factors of the features (Collins et al. 2018, arXiv:1806.10206).

    The same for every class. Parts come in order of activity, and their mean is the map. Differs from the paper: each
    image is factorized alone, so that its maps do not depend on the images beside it; the factors of one image are then
    not those of another. The start and the updates are others too, for a better and repeatable minimum of the same
    error. Negative features are cut to zero, as by the ReLU that the paper reads behind.

    Args:
        parts: number of factors P.
        iterations: updates of all factors.
    """

    volumes: ClassVar[bool] = True
    family: ClassVar[Family] = Family.ACTIVATION
    class_specific: ClassVar[bool] = False
    rank_colors: ClassVar[bool] = True
    parts: Annotated[int, Range(1, 1000)] = 3
    iterations: Annotated[int, Range(1, 10_000)] = 30

    def attribute(self, trace: Trace) -> Tensor:
        (layer,) = self.layers(trace.spec)
        return components.factor_maps(trace.activation(layer), self.parts, self.iterations)
