"""The network of a recipe: built, started from other weights, with the heads of the rank ablation beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from xattn.errors import CheckpointError
from xattn.inspection import IMAGENET_MEAN, IMAGENET_STD
from xattn.models.checkpoint import RANKS, read_state
from xattn.models.converting import before_dilation
from xattn.models.factory import create_model
from xattn.models.header import read_header
from xattn.models.heads import Classifier, Head, pooling_head
from xattn.outputs import take
from xattn.spec import ModelSpec
from xattn.training.augment import finish, sides
from xattn.training.data import Source
from xattn.training.recipe import ModelSection, Recipe
from xattn.training.scaling import folded, is_scale, scale_weights

_NAMING_BATCH = 32
RANK_SUBSETS: Mapping[str, tuple[int, ...]] = {"1+2": (0, 1), "2+3": (1, 2), "1": (0,), "2": (1,), "3": (2,)}


class RankHeads(nn.Module):
    """Linear heads with bias on detached subsets of the parts (BR-NPA, arXiv:2106.02566, table 5).

    They learn what the parts of each rank tell about the class and have no influence on the network.

    Args:
        channels: channels C of one part vector.
        classes: number K of logits.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.channels = channels
        self.heads = nn.ModuleDict(
            {name: nn.Linear(len(parts) * channels, classes) for name, parts in RANK_SUBSETS.items()}
        )

    def forward(self, embedding: Tensor) -> dict[str, Tensor]:
        """Logits (N, K) by subset, of the part vectors one after the other (N, P * C)."""
        parts = embedding.detach().unflatten(1, (-1, self.channels))
        return {name: self.heads[name](parts[:, list(chosen)].flatten(1)) for name, chosen in RANK_SUBSETS.items()}


class Trainee(nn.Module):
    """A classifier and, where the recipe wants them, its rank heads, run in one forward.

    Args:
        model: backbone and head.
        ranks: rank heads.
    """

    def __init__(self, model: Classifier, ranks: RankHeads | None = None) -> None:
        super().__init__()
        self.model = model
        self.ranks = ranks

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Logits (N, K) of images (N, 3, H, W), those of the rank heads by name, and the embedding (N, P * C)."""
        head = cast("Head", self.model.head)
        embedding = head.embed(self.model.backbone(x))
        return head.classify(embedding), {} if self.ranks is None else self.ranks(embedding), embedding

    def weights(self) -> dict[str, Tensor]:
        """The network's tensors, and those of the rank heads under their prefix, as `best.safetensors` has them."""
        tensors = folded(self.model.state_dict())
        if self.ranks is not None:
            tensors.update({f"{RANKS}{name}": t for name, t in self.ranks.state_dict().items()})
        return tensors


def _options_of(section: ModelSection, *, neck: bool) -> dict[str, Any]:
    """Options of the head that differ from the default."""
    options: dict[str, Any] = {"neck": True} if neck else {}
    if section.head == "brnpa" and (not section.refine or section.seed != "activation"):
        options.update(refine=section.refine, seed=section.seed)
    if section.head == "bcnn" and section.attention_width:
        options["width"] = section.attention_width
    return options


def build(recipe: Recipe, classes: Sequence[str]) -> Trainee:
    """The network of a recipe with its starting weights.

    Args:
        recipe: the whole recipe.
        classes: names of the classes.
    """
    section = recipe.model
    model = cast(
        "Classifier",
        create_model(
            section.backbone,
            weights=section.weights or None,
            head=section.head,
            parts=section.parts,
            resolution=section.resolution,
            circular=section.circular,
            num_classes=len(classes),
            options=_options_of(section, neck=recipe.task.neck),
        ),
    )
    head = pooling_head(model, "training")
    head.dropout.p = section.dropout
    for parameter in before_dilation(model) if section.freeze_front else ():
        parameter.requires_grad_(False)
    model.spec = dataclasses.replace(
        model.spec,
        input_size=sides(recipe.run.image_size),
        mean=model.spec.mean or IMAGENET_MEAN,
        std=model.spec.std or IMAGENET_STD,
        classes=tuple(classes),
        crop=recipe.shorter / recipe.augment.resize if recipe.augment.resize else 1.0,
        fit="squash" if recipe.augment.crop == "squash" else "crop",
        name=f"{section.backbone} {section.head}",
    )
    start = section.start
    if not start and recipe.distill.teacher and not model.architecture.get("converted"):
        # A teacher of another kind teaches by its logits alone.
        theirs = read_header(recipe.distill.teacher).architecture
        start = recipe.distill.teacher if theirs is None or theirs.backbone == model.architecture["backbone"] else ""
    if start:
        start_from(model, read_state(start), start)
    if recipe.task.scales:
        scale_weights(model)
    ranks = RankHeads(head.channels, len(classes)) if section.ranks else None
    return Trainee(model, ranks)


def facts_of(model: nn.Module) -> ModelSpec:
    """The spec of a network of `create_model`."""
    return cast("ModelSpec", model.spec)


@torch.no_grad()
def named_by(
    teacher: nn.Module, source: Source, recipe: Recipe, place: Callable[[Tensor], Tensor]
) -> tuple[Tensor, tuple[str, ...]]:
    """What a teacher names in each image (n,), and the names of its classes.

    Args:
        teacher: a network in evaluation mode.
        source: the images.
        recipe: says how they are cut.
        place: puts images on the device of the teacher.
    """
    spec = facts_of(teacher)
    mean, std = torch.tensor(spec.mean or IMAGENET_MEAN), torch.tensor(spec.std or IMAGENET_STD)
    indices = list(torch.arange(len(source)).split(_NAMING_BATCH))
    logits = []
    for images in source.batches(indices, [None] * len(indices), recipe.augment, recipe.run.image_size):
        x = place(finish(images, recipe.augment, None, mean, std))
        logits.append(take(teacher(x), spec.output or None).cpu())
    values = torch.cat(logits)
    return values.argmax(1), spec.classes or tuple(f"class {i}" for i in range(values.shape[1]))


def start_from(model: Classifier, state: Mapping[str, Tensor], source: str) -> None:
    """Start a network from the weights of another one with the same backbone.

    The head is taken over if it is of the same kind. If it is not, but the other classifier reads one vector of C
    channels and this one P of them, every part gets the other's matrix divided by P: with parts that equal the mean
    the logits are the same, less the bias.

    Args:
        model: network to change.
        state: tensors by name, `backbone.` and `head.`.
        source: where they come from, for messages.

    Raises:
        CheckpointError: if the backbone does not fit.
    """
    own = model.state_dict()
    backbone = {name: t for name, t in state.items() if name.startswith("backbone.")}
    for name, t in own.items():
        if name.startswith("backbone.") and (name not in backbone or backbone[name].shape != t.shape):
            have = f"has shape {tuple(backbone[name].shape)}" if name in backbone else "is missing"
            raise CheckpointError(f"'{source}' does not fit the backbone: '{name}' {have}, expected {tuple(t.shape)}.")
    heads = {name: t for name, t in state.items() if name.startswith("head.")}
    mine = [name for name in own if name.startswith("head.")]
    taken = {name: t for name, t in backbone.items() if name in own}
    if all(name in heads and heads[name].shape == own[name].shape for name in mine):
        taken.update({name: heads[name] for name in mine})
    else:
        key = "head.classifier.weight"
        matrix, target = heads.get(key), own[key]
        if matrix is not None and matrix.shape[0] == target.shape[0] and target.shape[1] % matrix.shape[1] == 0:
            parts = target.shape[1] // matrix.shape[1]
            taken[key] = matrix.repeat(1, parts) / parts
    model.load_state_dict(taken, strict=False)


def freeze_batchnorm(module: nn.Module) -> None:
    """Put batch norm into eval mode, so that it uses its statistics and keeps them."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights with decay; biases, scales of weights and the parameters of normalization layers without."""
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, p in module.named_parameters():
        if p.requires_grad:
            groups[p.ndim <= 1 or is_scale(name)].append(p)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


@torch.no_grad()
def average(mean: nn.Module, current: nn.Module, decay: float, step: int) -> None:
    """Move `mean` towards `current`: an exponential moving average whose memory grows with the first steps.

    Args:
        mean: same network; changed in place. Whole numbers are copied.
        current: network in training.
        decay: share of the old value once warm.
        step: steps done.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    old, new = [], []
    for a, b in zip(mean.state_dict().values(), current.state_dict().values(), strict=True):
        if a.is_floating_point():
            old.append(a)
            new.append(b)
        else:
            a.copy_(b)
    torch._foreach_lerp_(old, new, share)
