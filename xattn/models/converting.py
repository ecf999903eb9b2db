"""A trained classifier turned into one whose attention can be read: BR-NPA pooling, at a finer resolution."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from xattn.errors import NotApplicableError, ParameterError
from xattn.inspection import infer_spec
from xattn.models.dilated_layers import old_cells
from xattn.models.dilation import SAME, apart, but_for_rounding, dilate, dilated, factor_of
from xattn.models.header import Architecture, Weighting
from xattn.models.heads import Classifier, heads
from xattn.models.shared_heads import (
    CoverageAttention,
    Everywhere,
    MeanHead,
    SharedBCNNHead,
    SharedCellHead,
    SharedHead,
)
from xattn.models.shifting import shift
from xattn.models.split import Split, split
from xattn.models.trunk import features_of, noise
from xattn.outputs import take
from xattn.running import copied, evaluating, unwrap
from xattn.spec import ModelSpec


def convert(
    model: nn.Module,
    *,
    head: str = "brnpa",
    parts: int = 3,
    resolution: str = "low",
    weighting: str | None = None,
    spec: ModelSpec | None = None,
    x: Tensor | None = None,
) -> Classifier:
    """Turn a trained classifier into one whose attention can be read, without training (arXiv:2106.02566).

    The mean over the cells is replaced by the part maps of BR-NPA, and the trained linear classifier is shared by the
    parts: logits = mean over parts of W part + b. With a finer resolution the last strides become dilation, or, where
    layers cannot skip cells, the network runs on shifted copies of the image. That this is the same network but for the
    pooling is checked: its old cells keep their values, and with attention everywhere its logits are those of the
    model. What it costs in accuracy differs from network to network; `xattn convert` measures it.

    >>> import xattn
    >>> net = xattn.create_model("tiny-cnn", num_classes=5)
    >>> xattn.convert(net, parts=2, resolution="x2").spec.attention_layer
    'head.attention'

    Args:
        model: a CNN that pools by the mean and classifies linearly; it stays as it is.
        head: `"brnpa"`, the only one without parameters, or `"bcnn"`, whose attention is random until it is trained, as
            `xattn convert --distil` does.
        parts: number P of attention maps.
        resolution: `"low"` for the grid of the model, `"x2"`, `"x4"` or `"x8"` for a finer one; `"high"` is `"x4"`.
        weighting: `"coverage"`: a part counts as much as it covers, and the last of the parts has what the others
            leave, so that the logits stay those of the mean and the parts say how they come about; behind layers
            between pooling and classifier that are not linear it holds about. `"equal"`: all parts count the same, as
            in BR-NPA, so that cells that resemble no part hardly count. None is `"coverage"` for brnpa, and `"equal"`
            for bcnn, which knows no other.
        spec: facts about the model; None takes `model.spec` or finds them.
        x: images (N, C, H, W) in the model's normalized space to check with; None is noise.

    Returns:
        A `Classifier` in evaluation mode with `spec` and, for models of `create_model`, `architecture`.

    Raises:
        NotApplicableError: for another kind of network, saying what stands in the way.
        ParameterError: if the strides of the model do not make that resolution.
    """
    if weighting not in (None, "equal", "coverage"):
        raise ParameterError(f"weighting must be one of coverage, equal but is '{weighting}'.")
    if head not in ("brnpa", "bcnn"):
        heads.get(head)
        raise ParameterError(f"convert: head {head} is none that a trained classifier can be shared by; choose brnpa.")
    if head == "bcnn" and weighting == "coverage":
        raise ParameterError(
            "convert: weighting coverage is for brnpa; the maps of bcnn weigh what they were taught to."
        )
    model = unwrap(model)
    factor = factor_of(resolution)
    spec = spec if spec is not None else getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec) or not spec.feature_layer:
        spec = infer_spec(model, x)
    x = noise(model, spec.input_size) if x is None else x
    made = _built(model, spec, head, parts, factor, weighting, x)
    _prove(model, spec, made, x)
    made.spec = dataclasses.replace(made.spec, name=f"{spec.name} converted" if spec.name else "converted")
    if given := getattr(model, "architecture", None):
        made.architecture = Architecture(
            **{**given, "head": head, "parts": parts, "resolution": f"x{factor}" if factor > 1 else "low"},
            converted=True,
            weighting=weighting_of(made),
        ).to_dict()
    return made


def finer(model: nn.Module, factor: int, *, spec: ModelSpec, x: Tensor | None = None) -> tuple[nn.Module, ModelSpec]:
    """A copy of a network whose feature map is finer, for methods that read it, and what is known of the copy.

    By dilation where the layers can skip cells; else, for a network that pools by the mean and classifies linearly, by
    shifts of the image, whose cells are pooled together.

    Args:
        model: stays as it is.
        factor: how many times finer, 2, 4 or 8.
        spec: facts about the model, with its feature layer.
        x: images (N, C, H, W) to check with; None is noise.

    Raises:
        NotApplicableError: for a network that cannot be made finer, with what stands in the way of dilation.
        ParameterError: if its strides do not make that factor.
    """
    try:
        layer = spec.feature_layer or ""
        made = dilated(model, factor, feature_layer=layer, input_size=spec.input_size, x=x, tokens=spec.tokens)
    except (NotApplicableError, ParameterError) as error:
        if isinstance(model, Classifier) or not spec.feature_layer:
            raise
        x = noise(model, spec.input_size) if x is None else x
        try:
            return _pooled(model, spec, factor, x)
        except (NotApplicableError, ParameterError):
            raise error from None
    return made, dataclasses.replace(spec, ran={})


def _pooled(model: nn.Module, spec: ModelSpec, factor: int, x: Tensor) -> tuple[Classifier, ModelSpec]:
    """A network taken apart and put together again with a finer map, pooled by the mean as before."""
    taken = _taken(model, spec, factor, x)
    made = Classifier(taken.trunk, MeanHead(taken), dataclasses.replace(spec, output=(), evidence={}, ran={})).eval()
    _prove(model, spec, made, x)
    with torch.no_grad():
        wanted, found = features_of(model, spec.feature_layer or "", x, spec.tokens), taken.trunk(x)
    if apart(wanted, found, factor, old_cells(taken.trunk)) > SAME:
        raise NotApplicableError(f"{type(model).__name__}: layer '{spec.feature_layer}' is not the one that is pooled.")
    linear = taken.neck is None and not taken.rectified
    return made, made.spec if linear else dataclasses.replace(made.spec, classifier=None)


def weighting_of(made: Classifier) -> Weighting:
    """How the parts of a converted network are weighted."""
    return "coverage" if isinstance(made.head.attention, CoverageAttention) else "equal"


def _built(
    model: nn.Module, spec: ModelSpec, name: str, parts: int, factor: int, weighting: str | None, x: Tensor
) -> Classifier:
    """The converted network, on copies of the layers."""
    kind = type(model).__name__
    if spec.attention is not None:
        raise NotApplicableError(f"{kind} cannot be converted: it pools by attention already ({spec.attention}).")
    if spec.tokens is not None and not spec.tokens.channels_last:
        raise NotApplicableError(
            f"{kind} cannot be converted: it is a transformer, whose features are tokens; use a CNN with feature maps."
        )
    taken = _taken(model, spec, factor, x)
    head: Any
    chosen: Weighting = "equal" if weighting == "equal" else "coverage"
    if taken.cells and name == "bcnn":
        raise NotApplicableError(f"{kind} cannot be converted to bcnn: its classifier reads each cell; use brnpa.")
    if name == "bcnn":
        with torch.no_grad():
            channels = taken.trunk(x[:1]).shape[1]
        head = SharedBCNNHead(parts, taken.classifier, taken.neck, channels=channels, flat=taken.flat)
    elif taken.cells:
        head = SharedCellHead(parts, taken.classifier, rectified=taken.rectified, weighting=chosen)  # type: ignore[arg-type]
    else:
        head = SharedHead(parts, taken.classifier, taken.neck, flat=taken.flat, weighting=chosen)
    return Classifier(taken.trunk, head, dataclasses.replace(spec, output=(), evidence={}, ran={})).eval()


def _taken(model: nn.Module, spec: ModelSpec, factor: int, x: Tensor) -> Split:
    """A copy of a model taken apart, its features finer: by dilation, or by shifts where layers cannot skip cells."""

    def apart_again() -> Split:
        made = copied(model)
        if isinstance(made, Classifier):
            return Split(made.backbone, None, True, made.head.classifier)  # type: ignore[arg-type]
        return split(made, spec, x)

    taken, kind = apart_again(), type(model).__name__
    try:
        dilate(taken.trunk, factor, x, kind=kind)
    except (NotApplicableError, ParameterError):
        taken = apart_again()
        if not isinstance(taken.trunk, fx.GraphModule) or not shift(taken.trunk, factor, x):
            raise
    return taken


@torch.no_grad()
def _prove(model: nn.Module, spec: ModelSpec, made: Classifier, x: Tensor) -> None:
    """Check that the logits are those of the model where attention is everywhere on the old cells."""

    def difference(model: nn.Module, made: Classifier, x: Tensor) -> float:
        with evaluating(model):
            wanted = take(model(x), spec.output or None)
        logits = everywhere(made)(x)
        spread = wanted.max() - wanted.min() if wanted.shape[1] > 1 else wanted.abs().max()  # one logit has none
        return (
            float((logits - wanted).abs().max() / spread.clamp(min=1e-12))
            if logits.shape == wanted.shape
            else torch.inf
        )

    error = but_for_rounding(difference(model, made, x), difference, model, made, x)
    if not error <= SAME:
        raise NotApplicableError(
            f"{type(model).__name__} cannot be converted: with parts that cover everything its logits differ by "
            f"{error:.1e} of their spread."
        )


def with_room(made: Classifier, state: Mapping[str, Tensor]) -> Classifier:
    """A converted network that has all that a file holds: a head that was corrected has a layer more."""
    if isinstance(made.head, SharedCellHead) and "head.rest.weight" in state:
        made.head.add_rest()
    return made


def everywhere(converted: Classifier) -> nn.Module:
    """A converted network whose parts all cover everything, read at the old cells: it is the one of before again.

    Args:
        converted: by `convert`; its layers are shared.
    """
    head: nn.Module = converted.head
    if not isinstance(head, MeanHead):
        head = copy.copy(head)
        attention = Everywhere(int(head.parts), summed=not isinstance(head, SharedBCNNHead))  # type: ignore[arg-type]
        head._modules = {**converted.head._modules, "attention": attention}
    return nn.Sequential(converted.backbone, _Cells(old_cells(converted.backbone)), head).eval()


@torch.no_grad()
def recalibrated(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Take the statistics of batch norm anew from images, in place.

    Those of all layers that see another grid or other neighbours than in training; the mean over all batches counts.

    Args:
        model: a network with dilation.
        batches: images (N, C, H, W) in its normalized space.

    Returns:
        The number of images; without any the statistics stay.

    Raises:
        NotApplicableError: if no batch norm lies behind a dilated layer.
    """
    norms = norms_behind(model)
    kept = [m.momentum for m in norms]
    count = 0
    try:
        for x in batches:
            for norm in norms if not count else ():
                norm.reset_running_stats()
            for norm in norms:
                norm.train()
                norm.momentum = None  # the mean of all batches
            model(x)
            count += len(x)
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.eval()
            norm.momentum = momentum
    return count


def norms_behind(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch norms that see other neighbours than in training, for `recalibrated`.

    Raises:
        NotApplicableError: if there is none.
    """
    norms = [m for m in _behind_dilation(model) if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    if not norms:
        raise NotApplicableError(
            "recalibrated: no batch norm lies behind a layer with dilation, so there is nothing to take anew; leave it "
            "out."
        )
    return norms


def _behind_dilation(model: nn.Module) -> list[nn.Module]:
    """Layers from the first one on that skips cells, in the order in which they were made."""
    modules = list(model.modules())
    first = next((i for i, m in enumerate(modules) if hasattr(m, "rate")), len(modules))
    return modules[first:]


def before_dilation(model: Classifier) -> list[nn.Parameter]:
    """The weights of the layers before the first one that skips cells; all of the trunk where none does."""
    behind = {id(p) for module in _behind_dilation(model.backbone) for p in module.parameters(recurse=False)}
    return [p for p in model.backbone.parameters() if id(p) not in behind]


class _Cells(nn.Module):
    """Some cells of a map, the same in height and width."""

    def __init__(self, cells: slice) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, features: Tensor) -> Tensor:
        return features[:, :, self.cells, self.cells]
