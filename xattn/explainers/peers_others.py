"""The class activation maps of pytorch-grad-cam and the composites of zennit."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError
from xattn.explainer import Family
from xattn.explainers.peers import Peer, Scores, build, on_grid, settable
from xattn.trace import Trace

_WITHOUT = ("uses_gradients", "compute_input_gradient", "detach")
_ZENNIT = (
    "EpsilonGammaBox", "EpsilonPlus", "EpsilonAlpha2Beta1", "EpsilonPlusFlat", "EpsilonAlpha2Beta1Flat", "DeconvNet",
    "GuidedBackprop", "ExcitationBackprop", "BetaSmooth",
)  # fmt: skip


@dataclass(frozen=True)
class GradCAMLibrary(Peer):
    """A method of pytorch-grad-cam (Gildenblat et al. 2021): maps at the size of the image, scaled to [0, 1]."""

    reads_layer: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = ()

    def _maps(self, scores: Scores, x: Tensor, target: Tensor, trace: Trace) -> Tensor:
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        fields = self.settings()
        made = {name: fields.pop(name) for name in self.own}
        layer = scores.layer(trace.spec, self.name)
        if "reshape_transform" in inspect.signature(self.peer.__init__).parameters:
            made["reshape_transform"] = lambda tensor: on_grid(trace, tensor)
        for parameter in scores.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        with self.peer(model=scores, target_layers=[layer], **made) as cam:
            maps = cam(input_tensor=x, targets=[ClassifierOutputTarget(k) for k in target.tolist()], **fields)
        return torch.from_numpy(maps).to(x)[:, None]


@dataclass(frozen=True)
class Zennit(Peer):
    """A composite of zennit (Anders et al. 2021, arXiv:2106.13200), on a copy, as its canonizers leave their marks.

    Batch norms are folded where they follow each other in the model; residual sums have a rule in the networks of
    torchvision alone, so that relevance is not conserved in others.
    """

    def _maps(self, scores: Scores, x: Tensor, target: Tensor, trace: Trace) -> Tensor:
        from zennit.attribution import Gradient

        fields = self.settings()
        if self.peer.__name__ == "EpsilonGammaBox":
            fields |= dict(zip(("low", "high"), _box(self.name, trace), strict=True))
        composite = self.peer(**fields, canonizers=[_canonizer(scores.model)])
        with Gradient(model=scores, composite=composite) as attributor:
            seed = torch.nn.functional.one_hot(target, max(2, trace.logits.shape[1]))
            _, relevance = attributor(x, lambda output: output.detach() * seed.to(output))
        return relevance


def _box(name: str, trace: Trace) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value that a pixel can have."""
    mean, std = trace.spec.mean, trace.spec.std
    if mean is None or std is None:
        raise NotApplicableError(f"{name}: needs the range of the pixels; pass mean= and std=.")
    m, s = (torch.tensor(v).view(1, -1, 1, 1).to(trace.x) for v in (mean, std))
    return (-m / s).expand_as(trace.x[:1]), ((1 - m) / s).expand_as(trace.x[:1])


def _canonizer(model: nn.Module) -> Any:
    from torchvision.models.resnet import ResNet
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.torchvision import ResNetCanonizer

    return ResNetCanonizer() if isinstance(model, ResNet) else SequentialMergeBatchNorm()


def found(library: str) -> list[str]:
    """Names of the methods of a library."""
    if library == "zennit":
        return list(_ZENNIT)
    import pytorch_grad_cam
    from pytorch_grad_cam.base_cam import BaseCAM

    return [
        name
        for name, kind in vars(pytorch_grad_cam).items()
        if inspect.isclass(kind) and issubclass(kind, BaseCAM) and kind is not BaseCAM
    ]


def make(library: str, name: str) -> type[Peer]:
    """The class of one method."""
    if library == "zennit":
        from zennit import composites

        kind = getattr(composites, name)
        return build(Zennit, library, name, kind, settable(kind.__init__), family=Family.PROPAGATION)
    import pytorch_grad_cam
    from pytorch_grad_cam.base_cam import BaseCAM

    kind = getattr(pytorch_grad_cam, name)
    own = settable(kind.__init__, without=_WITHOUT)
    fields = {**own, **settable(BaseCAM.__call__, without=_WITHOUT)}
    facts = {"family": Family.CAM, "own": tuple(own), "scattered": name == "RandomCAM"}
    return build(GradCAMLibrary, library, name, kind, fields, **facts)
