"""Classification heads over a feature map: pooling by the mean, by learned attention maps, by BR-NPA."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from xattn.errors import NotApplicableError, ParameterError, unknown
from xattn.functional.attention import attention_pool
from xattn.functional.br_npa import Activation, Seed, Suppress, br_npa_maps
from xattn.registry import Registry
from xattn.schema import Range, check
from xattn.spec import ModelSpec

LARGEST_CLASSIFIER = 2**27  # weights of a classifier, 0.5 GB; more is a mistake in a number

heads: Registry[Head] = Registry("head", "xattn.models", "xattn.heads", named=True)


class Head(nn.Module, ABC):
    """A linear classifier over pooled features. Subclasses define the pooling, `embed`.

    A subclass is registered by its name and takes (channels, classes, parts, dropout); further arguments, by keyword
    and annotated, are its options: a recipe or a weights file may give them, and they are checked by their annotations.

    Args:
        channels: channels C of the feature map.
        classes: number K of logits.
        parts: number P of the attention maps; 1 for a head without any.
        dropout: probability before the classifier.
        bias: of the classifier.
        neck: batch norm between the pooled features and a classifier without bias: features that are compared with
            those of other images want it (Luo et al. 2019, arXiv:1903.07071, BNNeck).

    Attributes:
        name: of the head on the command line; registering sets it.
        batch_norm: the neck; None without it.
        classifier: the linear layer from the embedding (P * C) to the logits (K).
    """

    name: ClassVar[str]

    def __init__(
        self, channels: int, classes: int, parts: int, dropout: float, *, bias: bool, neck: bool = False
    ) -> None:
        super().__init__()
        if parts < 1:
            raise ParameterError(f"{type(self).__name__}: expected at least one part but got parts={parts}.")
        if classes < 1 or parts * channels * classes > LARGEST_CLASSIFIER:
            raise ParameterError(
                f"{type(self).__name__}: {classes:,} classes of {parts:,} parts with {channels:,} channels are no "
                f"classifier; expected at least one class and at most {LARGEST_CLASSIFIER:,} weights."
            )
        self.channels = channels
        self.parts = parts
        self.dropout = nn.Dropout(dropout)
        self.batch_norm: nn.BatchNorm1d | None = None
        if neck:
            self.batch_norm = nn.BatchNorm1d(parts * channels)
            self.batch_norm.bias.requires_grad_(False)
        self.classifier = nn.Linear(parts * channels, classes, bias=bias and not neck)

    @abstractmethod
    def embed(self, features: Tensor) -> Tensor:
        """Pool features (N, C, h, w) to an embedding (N, P * C), parts first."""

    def compared(self, embedding: Tensor) -> Tensor:
        """What the classifier reads and images are compared by (N, P * C): the embedding, after the neck if any."""
        return embedding if self.batch_norm is None else self.batch_norm(embedding)

    def classify(self, embedding: Tensor) -> Tensor:
        """Logits (N, K) of an embedding (N, P * C)."""
        logits: Tensor = self.classifier(self.dropout(self.compared(embedding)))
        return logits

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, C, h, w)."""
        return self.classify(self.embed(features))


@heads.register("linear")
class LinearHead(Head):
    """Global average pooling and a linear layer, as in most CNNs (Lin et al. 2014, arXiv:1312.4400).

    There are no attention maps, whatever `parts`.

    Args:
        neck: batch norm between the features and the classifier.
    """

    def __init__(
        self, channels: int, classes: int, parts: int = 1, dropout: float = 0.0, *, neck: bool = False
    ) -> None:
        super().__init__(channels, classes, 1, dropout, bias=True, neck=neck)

    def embed(self, features: Tensor) -> Tensor:
        """Mean over the cells (N, C)."""
        return features.mean((2, 3))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around an identity (He et al. 2016, arXiv:1512.03385, fig. 2).

    Args:
        channels: channels in and out.
        width: channels between the two convolutions; None is `channels`, as in the paper.
    """

    def __init__(self, channels: int, width: int | None = None) -> None:
        super().__init__()
        width = channels if width is None else width
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()  # one module per use: a reused one cannot be hooked
        self.conv2 = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape (N, C, h, w)."""
        out: Tensor = self.relu2(x + self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        return out


class BCNNAttention(nn.Module):
    """Attention maps of a B-CNN: ReLU(conv1x1(BasicBlock(F))) (Hu et al. 2019, WS-DAN, arXiv:1901.09891).

    As in the networks that BR-NPA is compared with there is one more map than parts, and it is unused.

    Args:
        channels: channels C of the feature map.
        parts: number P of maps returned.
        width: channels inside the block; None is `channels`, as published.
    """

    def __init__(self, channels: int, parts: int, width: int | None = None) -> None:
        super().__init__()
        self.parts = parts
        self.block = BasicBlock(channels, width)
        self.conv = nn.Conv2d(channels, parts + 1, 1)
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Non-negative maps (N, P, h, w) of features (N, C, h, w)."""
        maps: Tensor = self.relu(self.conv(self.block(features)))
        return maps[:, : self.parts]


@heads.register("bcnn")
class BCNNHead(Head):
    """B-CNN: learned attention maps, g_m = mean_i A_m,i f_i, a linear layer without bias (WS-DAN, arXiv:1901.09891).

    Args:
        width: channels inside the attention block; None is `channels`, as published.
        neck: batch norm between the part vectors and the classifier.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        parts: int = 3,
        dropout: float = 0.0,
        *,
        width: Annotated[int, Range(1, 8192)] | None = None,
        neck: bool = False,
    ) -> None:
        super().__init__(channels, classes, parts, dropout, bias=False, neck=neck)
        self.attention = BCNNAttention(channels, parts, width)

    def embed(self, features: Tensor) -> Tensor:
        """Mean over the cells of the weighted features, per part (N, P * C)."""
        cells = features.shape[2] * features.shape[3]
        return attention_pool(features, self.attention(features) / cells).flatten(1)


class BRNPAAttention(nn.Module):
    """Part maps of BR-NPA as a module without parameters (Gomez et al. 2022, arXiv:2106.02566).

    Args:
        parts: number P of maps.
        activation: see `xattn.functional.br_npa.br_npa_maps`, as for the other options.
        suppress: what suppresses the parts before.
        refine: False pools the seeds alone.
        seed: how the seeds are chosen.
    """

    def __init__(
        self,
        parts: int = 3,
        *,
        activation: Activation = "norm",
        suppress: Suppress = "similarity",
        refine: bool = True,
        seed: Seed = "activation",
    ) -> None:
        super().__init__()
        self.parts = parts
        self.activation = activation
        self.suppress = suppress
        self.refine = refine
        self.seed = seed

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("activation", "suppress", "refine", "seed")}

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, P, h, w) of features (N, C, h, w); each sums to one."""
        return br_npa_maps(features, self.parts, **self._options())

    def extra_repr(self) -> str:
        """Options, for the printed model."""
        return ", ".join(f"{name}={value!r}" for name, value in {"parts": self.parts, **self._options()}.items())


@heads.register("brnpa")
class BRNPAHead(Head):
    """BR-NPA: non-parametric part maps, their weighted means, a linear layer without bias (arXiv:2106.02566).

    Args:
        refine: False pools the seeds alone (ablation).
        seed: `"random"` for the ablation.
        activation: what ranks the cells.
        suppress: what suppresses the parts before.
        neck: batch norm between the part vectors and the classifier.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        parts: int = 3,
        dropout: float = 0.0,
        *,
        neck: bool = False,
        refine: bool = True,
        seed: Seed = "activation",
        activation: Activation = "norm",
        suppress: Suppress = "similarity",
    ) -> None:
        super().__init__(channels, classes, parts, dropout, bias=False, neck=neck)
        self.attention = BRNPAAttention(parts, activation=activation, suppress=suppress, refine=refine, seed=seed)

    def embed(self, features: Tensor) -> Tensor:
        """Weighted mean of the features, per part (N, P * C)."""
        return attention_pool(features, self.attention(features)).flatten(1)


def create_head(
    name: str,
    channels: int,
    classes: int,
    *,
    parts: int = 3,
    dropout: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Head:
    """The head called `name`.

    >>> create_head("brnpa", 8, 10, options={"refine": False}).attention.refine
    False

    Args:
        name: a registered name: `"linear"`, `"bcnn"`, `"brnpa"`.
        channels: channels C of the feature map.
        classes: number K of logits.
        parts: number of attention maps; a linear head has none.
        dropout: probability before the classifier.
        options: what else the head takes by keyword, for ablations.

    Raises:
        UnknownNameError: for another name.
        ParameterError: for an option that the head does not have, or a value outside what it can take.
    """
    return heads.get(name)(channels, classes, parts, dropout, **checked_options(name, options or {}))


def checked_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a head, each one known and as its annotation says.

    Raises:
        ParameterError: for an option that the head does not have, or a value outside what it can take.
    """
    parameters = inspect.signature(heads.get(name), eval_str=True).parameters.values()
    hints = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    for option in options:
        if option not in hints:
            raise ParameterError(str(unknown(f"option of head '{name}'", option[:60], hints)))
    return {option: check(value, hints[option], f"head '{name}': {option}") for option, value in options.items()}


class Classifier(nn.Module):
    """A trunk from images to a feature map, and a head from there to the logits.

    Args:
        backbone: module from images (N, 3, H, W) to features (N, C, h, w).
        head: module from features to logits (N, K).
        spec: facts about the input (size, normalization, classes); the names of the layers are filled in.

    Attributes:
        spec: the facts that explaining needs.
        architecture: arguments of `create_model` that make this network, where it was made so.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, spec: ModelSpec | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        attentive = isinstance(getattr(head, "attention", None), nn.Module)
        facts = {} if spec is None else {**vars(spec)}
        facts.update(
            feature_layer="backbone",
            # Behind a neck the logits are not linear in the pooled features, as methods would take them to be.
            classifier="head.classifier" if getattr(head, "batch_norm", None) is None else None,
            attention_layer="head.attention" if attentive else None,
            attention=getattr(head, "name", None) if attentive else None,
            probability_layers=(),
            tokens=None,
        )
        self.spec = ModelSpec(**facts)
        self.architecture: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, 3, H, W)."""
        logits: Tensor = self.head(self.backbone(x))
        return logits

    def facts_of(self, written: ModelSpec) -> ModelSpec:
        """Facts from a file about a network like this one, with the names that its layers have here."""
        return type(self)(self.backbone, self.head, written).spec


def pooling_head(model: Classifier, what: str) -> Head:
    """The head of a network, whose classifier reads pooled features.

    Args:
        model: trunk and head.
        what: needs it, for messages.

    Raises:
        NotApplicableError: if the classifier reads each cell before they are pooled, as in a converted SqueezeNet.
    """
    if not isinstance(model.head, Head):
        raise NotApplicableError(
            f"{what}: the classifier of this network reads each cell before they are pooled, so there are no pooled "
            "features to classify anew; convert --fit brings such a network nearer to the one that it was made of."
        )
    return model.head
