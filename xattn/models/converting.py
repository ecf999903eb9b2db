"""A trained classifier turned into one whose attention can be read: BR-NPA pooling, at a finer resolution."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError, ParameterError
from xattn.functional.attention import attention_pool
from xattn.functional.br_npa import coverage_maps
from xattn.inspection import infer_spec
from xattn.models.dilated_layers import old_cells
from xattn.models.dilation import SAME, but_for_rounding, dilate, factor_of
from xattn.models.header import Architecture, Weighting
from xattn.models.heads import BCNNAttention, BRNPAAttention, Classifier, Head, heads
from xattn.models.split import Split, split
from xattn.models.trunk import noise
from xattn.outputs import take
from xattn.running import evaluating, unwrap
from xattn.spec import ModelSpec

_WIDEST = 128  # channels inside the attention block of a B-CNN


class CoverageAttention(BRNPAAttention):
    """Part maps of BR-NPA that share every cell out among the parts: a part weighs what it covers."""

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, P, h, w) of features (N, C, h, w); their mean over the parts is 1 / (h w)."""
        return coverage_maps(super().forward(features))


def _attention(parts: int, weighting: Weighting) -> BRNPAAttention:
    return BRNPAAttention(parts) if weighting == "equal" else CoverageAttention(parts)


class SharedHead(Head):
    """BR-NPA with a classifier that was trained for the mean: every part goes through it, and the logits are averaged.

    The matrix stands once for each part, W / P, so that further training may tell the parts apart.

    Args:
        parts: number P of the attention maps.
        classifier: the linear layer, or the 1x1 convolution behind the pooling, from C' values to K.
        neck: what lies between pooling and classifier, run for each part.
        flat: the neck reads (N, C) and not (N, C, 1, 1).
        weighting: of the parts.
    """

    name = "brnpa"

    def __init__(
        self,
        parts: int,
        classifier: nn.Linear | nn.Conv2d,
        neck: nn.Module | None = None,
        *,
        flat: bool = True,
        weighting: Weighting = "equal",
    ) -> None:
        matrix, bias = classifier.weight.detach().flatten(1), classifier.bias
        super().__init__(matrix.shape[1], len(matrix), parts, 0.0, bias=bias is not None)
        self.classifier = self.classifier.to(matrix.device, matrix.dtype)
        self.classifier.weight.data = matrix.repeat(1, parts) / parts
        if bias is not None:
            self.classifier.bias.data = bias.detach().clone()
        self.attention: nn.Module = _attention(parts, weighting)
        self.neck = neck
        self.flat = flat

    def maps(self, features: Tensor) -> Tensor:
        """Maps (N, P, h, w) to pool by."""
        maps: Tensor = self.attention(features)
        return maps

    def embed(self, features: Tensor) -> Tensor:
        """Weighted mean of the features for each part, through the neck (N, P * C')."""
        maps = self.maps(features)
        vectors = attention_pool(features, maps)
        if self.neck is None:
            return vectors.flatten(1)
        # A neck need not be linear: it reads the mean of a part, and its weight comes after it.
        weight = maps.sum((2, 3)).to(vectors.dtype)[:, :, None]
        flat = (vectors / weight.clamp(min=1e-12)).flatten(0, 1)
        made: Tensor = self.neck(flat if self.flat else flat[:, :, None, None])
        return (made.flatten(1).unflatten(0, vectors.shape[:2]) * weight).flatten(1)

    @torch.no_grad()
    def correct(self, matrix: Tensor) -> None:
        """Add a matrix (K, P * C') to the classifier."""
        self.classifier.weight += matrix


class SharedBCNNHead(SharedHead):
    """B-CNN (Hu et al. 2019, WS-DAN, arXiv:1901.09891) with a classifier that was trained for the mean.

    The attention is random, about one at every place, and has to be trained; the same for every conversion, so that a
    run of training can be repeated. Unlike the published one its block is narrow where the features have many channels.

    Args:
        parts: number P of the attention maps.
        classifier: as for `SharedHead`, as are the others.
        neck: what lies between pooling and classifier, run for each part.
        channels: channels C of the feature map.
        flat: the neck reads (N, C) and not (N, C, 1, 1).
    """

    name = "bcnn"

    def __init__(
        self,
        parts: int,
        classifier: nn.Linear | nn.Conv2d,
        neck: nn.Module | None = None,
        *,
        channels: int,
        flat: bool = True,
    ) -> None:
        super().__init__(parts, classifier, neck, flat=flat)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            attention = BCNNAttention(channels, parts, min(channels, _WIDEST))
        nn.init.ones_(attention.conv.bias)  # type: ignore[arg-type]
        self.attention = attention.to(self.classifier.weight.device, self.classifier.weight.dtype)

    def maps(self, features: Tensor) -> Tensor:
        """Maps (N, P, h, w) to pool by: the mean over the cells of what they weigh."""
        return super().maps(features) / features[0, 0].numel()


class SharedCellHead(nn.Module):
    """BR-NPA for a classifier that reads each cell before the mean is taken, as in SqueezeNet (arXiv:1602.07360).

    Class scores of the cells are averaged by the attention maps instead, and over the parts.

    Attributes:
        rest: a linear layer over the parts, whose output is added; None unless there is something to correct.

    Args:
        parts: number P of the attention maps.
        classifier: the 1x1 convolution.
        rectified: only positive scores of a cell count, as a ReLU behind the classifier has it.
        weighting: of the parts.
    """

    name = "brnpa"

    def __init__(self, parts: int, classifier: nn.Conv2d, *, rectified: bool, weighting: Weighting = "equal") -> None:
        super().__init__()
        self.parts = parts
        self.classifier = copy.deepcopy(classifier)
        self.attention = _attention(parts, weighting)
        self.rectified = rectified
        self.rest: nn.Linear | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, C, h, w)."""
        scores: Tensor = self.classifier(features)
        maps: Tensor = self.attention(features)
        scores = scores.relu() if self.rectified else scores
        logits = attention_pool(scores, maps.mean(1, keepdim=True)).flatten(1)
        return logits if self.rest is None else logits + self.rest(attention_pool(features, maps).flatten(1))

    def embed(self, features: Tensor) -> Tensor:
        """Weighted mean of the features for each part (N, P * C)."""
        return attention_pool(features, self.attention(features)).flatten(1)

    @torch.no_grad()
    def correct(self, matrix: Tensor) -> None:
        """Add what a matrix (K, P * C) makes of the parts to the logits."""
        if self.rest is None:
            self.add_rest()
        self.rest.weight += matrix  # type: ignore[union-attr]

    def add_rest(self) -> None:
        """Make room for a correction, which is zero at first."""
        like = self.classifier.weight
        self.rest = nn.Linear(self.parts * like.shape[1], len(like), bias=False, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.rest.weight)

    def extra_repr(self) -> str:
        """Options, for the printed model."""
        return f"parts={self.parts}, rectified={self.rectified}"


class _Everywhere(nn.Module):
    """Attention maps that cover everything: pooling by them is the mean.

    Args:
        parts: number of maps.
        summed: pooling sums up what the maps weigh, so that each is one over the number of cells; else it is the mean.
    """

    def __init__(self, parts: int, *, summed: bool) -> None:
        super().__init__()
        self.parts = parts
        self.summed = summed

    def forward(self, features: Tensor) -> Tensor:
        n, _, h, w = features.shape
        return features.new_full((n, self.parts, h, w), 1 / (h * w) if self.summed else 1.0)


def convert(
    model: nn.Module,
    *,
    head: str = "brnpa",
    parts: int = 3,
    resolution: str = "low",
    weighting: str = "auto",
    spec: ModelSpec | None = None,
    x: Tensor | None = None,
) -> Classifier:
    """Turn a trained classifier into one whose attention can be read, without training (arXiv:2106.02566).

    The mean over the cells is replaced by the part maps of BR-NPA, and the trained linear classifier is shared by the
    parts: logits = mean over parts of W part + b. With a finer resolution the last strides become dilation. That this
    is the same network but for the pooling is checked: its old cells keep their values, and with attention everywhere
    its logits are those of the model. What it costs in accuracy differs from network to network; `xattn convert`
    measures it.

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
        weighting: `"equal"`: all parts count the same, as in BR-NPA, so that cells that resemble no part hardly count.
            `"coverage"`: a part counts as much as it covers, and the last of the parts has what the others leave, so
            that the logits stay those of the mean and the parts say how they come about; behind layers between pooling
            and classifier that holds about. `"auto"` is `"coverage"` where the classifier reads each cell before the
            mean, as in SqueezeNet, and `"equal"` elsewhere.
        spec: facts about the model; None takes `model.spec` or finds them.
        x: images (N, C, H, W) in the model's normalized space to check with; None is noise.

    Returns:
        A `Classifier` in evaluation mode with `spec` and, for models of `create_model`, `architecture`.

    Raises:
        NotApplicableError: for another kind of network, saying what stands in the way.
        ParameterError: if the strides of the model do not make that resolution.
    """
    if weighting not in ("auto", "equal", "coverage"):
        raise ParameterError(f"weighting must be one of auto, equal, coverage but is '{weighting}'.")
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


def weighting_of(made: Classifier) -> Weighting:
    """How the parts of a converted network are weighted."""
    return "coverage" if isinstance(made.head.attention, CoverageAttention) else "equal"


def _built(
    model: nn.Module, spec: ModelSpec, name: str, parts: int, factor: int, weighting: str, x: Tensor
) -> Classifier:
    """The converted network, on copies of the layers."""
    kind = type(model).__name__
    if spec.attention is not None:
        raise NotApplicableError(f"{kind} cannot be converted: it pools by attention already ({spec.attention}).")
    if spec.tokens is not None:
        raise NotApplicableError(
            f"{kind} cannot be converted: it is a transformer, whose features are tokens; use a CNN."
        )
    made = copy.deepcopy(model)
    if isinstance(made, Classifier):
        taken = Split(made.backbone, None, True, made.head.classifier)  # type: ignore[arg-type]
    else:
        taken = split(made, spec, x)
    dilate(taken.trunk, factor, x, kind=kind)
    head: Any
    chosen: Weighting = "coverage" if weighting == "coverage" or (weighting == "auto" and taken.cells) else "equal"
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


@torch.no_grad()
def _prove(model: nn.Module, spec: ModelSpec, made: Classifier, x: Tensor) -> None:
    """Check that the logits are those of the model where attention is everywhere on the old cells."""

    def difference(model: nn.Module, made: Classifier, x: Tensor) -> float:
        with evaluating(model):
            wanted = take(model(x), spec.output or None)
        logits = everywhere(made)(x)
        spread = wanted.max() - wanted.min() if wanted.numel() > 1 else wanted.abs().max()  # one logit has none
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
    head = copy.copy(converted.head)
    attention = _Everywhere(int(head.parts), summed=not isinstance(head, SharedBCNNHead))  # type: ignore[arg-type]
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
            "out, or convert with a finer resolution."
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
