"""Judge a trained network: accuracy, sparsity of its attention, what each rank of parts knows, speed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from xattn.errors import DataError, NotApplicableError
from xattn.functional.sparsity import attention_density, map_density
from xattn.inspection import IMAGENET_MEAN, IMAGENET_STD
from xattn.models.checkpoint import RANKS, read_state
from xattn.models.factory import load_model
from xattn.models.heads import Classifier, Head, pooling_head
from xattn.training.augment import finish
from xattn.training.data import Source
from xattn.training.network import RANK_SUBSETS, RankHeads
from xattn.training.recipe import AugmentSection

WHOLE = "1+2+3"
_FEW = 5  # classes of which all are among the five highest


@dataclasses.dataclass(frozen=True)
class ClassResult:
    """What became of the images of one class: a row of the confusion matrix, without its zeros.

    Args:
        name: of the class.
        images: that show it.
        top1: share of them that the network names so; None without images.
        taken_for: how many are taken for each other class, the most frequent first.
    """

    name: str
    images: int
    top1: float | None
    taken_for: dict[str, int]


def per_class(labels: Tensor, predicted: Tensor, names: Sequence[str]) -> tuple[ClassResult, ...]:
    """The confusion matrix as one result a class.

    Args:
        labels: int64 (n,), the class of each image.
        predicted: int64 (n,), the class of the highest score; it may be one that no image has.
        names: of the classes.

    >>> per_class(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), ["cat", "dog"])[0]
    ClassResult(name='cat', images=2, top1=0.5, taken_for={'dog': 1})
    """
    results = []
    for k, name in enumerate(names):
        found = predicted[labels == k]
        counts = torch.bincount(found, minlength=len(names)).tolist()
        others = sorted((j for j, count in enumerate(counts) if count and j != k), key=lambda j: -counts[j])
        taken = {names[j] if j < len(names) else f"class {j}": counts[j] for j in others}
        results.append(ClassResult(name, len(found), counts[k] / len(found) if len(found) else None, taken))
    return tuple(results)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured, over images one by one.

    Args:
        images: number of images.
        top1: share of images whose class has the highest logit.
        top5: share of images whose class is among the five highest; None of five classes and fewer, where it says
            nothing.
        density: mean over images of x, the mean brightness of the maps in [0, 1]; None without maps.
        sparsity: mean over images of 1 / x, the paper's measure: high is sparse; None without maps.
        maps: what the maps are: `"attention"`, `"cam"` of the predicted class for a convolutional network without
            attention, or `"none"` for a transformer, whose head gives no map.
        ranks: top-1 by subset of the parts, 1 the most active; empty for a network without parts.
        rank_heads: `"trained"` heads stored beside the network, or the network's own classifier with the other parts
            `"masked"`; empty without parts.
        images_per_second: of the forward pass alone, the first batch left out.
        parameters: of the network.
        per_class: of each class of the images, in their order.
    """

    images: int
    top1: float
    top5: float | None
    density: float | None
    sparsity: float | None
    maps: str
    ranks: dict[str, float]
    rank_heads: str
    images_per_second: float
    parameters: int
    per_class: tuple[ClassResult, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return dataclasses.asdict(self)


def load_trained(path: str | Path, factory: str | None = None) -> tuple[Classifier, RankHeads | None]:
    """A trained network and the rank heads that are stored beside it, if there are any; arguments of `load_model`.

    Raises:
        CheckpointError: if the file is no network of xattn.
        NotApplicableError: if the network has no head of xattn.
    """
    model = load_model(path, factory)
    if not isinstance(model, Classifier):
        raise NotApplicableError(f"evaluate: '{path}' holds a {type(model).__name__}; expected a backbone with a head.")
    head = pooling_head(model, f"evaluate: '{path}'")
    state = {name.removeprefix(RANKS): t for name, t in read_state(path).items() if name.startswith(RANKS)}
    if not state:
        return model, None
    ranks = RankHeads(head.channels, head.classifier.out_features)
    ranks.load_state_dict(state)
    return model, ranks.eval()


@torch.no_grad()
def measure(
    model: Classifier,
    source: Source,
    *,
    ranks: RankHeads | None = None,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    watch: Callable[[int], None] | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Measure a network on all images of a source, image by image.

    Args:
        model: backbone and head; left in eval mode on `device`.
        source: images and labels.
        ranks: trained rank heads.
        batch_size: images per pass.
        device: where to run.
        watch: called with the number of images done.

    Returns:
        Columns (n,) in float64: `top1` and `top5` (0 or 1), `predicted` (a class), `density` (NaN for an empty map),
        and for a network with three parts one more of top-1 for each subset of them, `1+2+3` being all. Images per
        second of the forward pass alone, the first batch left out.
    """
    model = model.eval().to(device)
    head = cast("Head", model.head)
    ranks = None if ranks is None else ranks.to(device)
    attention = getattr(head, "attention", None)
    indices = list(torch.arange(len(source)).split(batch_size))
    rows: dict[str, list[Tensor]] = {}
    seconds, timed, done = 0.0, 0, 0
    for number, x in enumerate(prepared(model, source, indices, device)):
        target = source.labels[indices[number]].to(device)
        began = time.perf_counter()
        features = model.backbone(x)
        embedding = head.embed(features)
        logits = head.classify(embedding)
        if not number and not bool(logits.isfinite().all()):
            raise DataError("evaluate: the network answers NaN or infinity; its weights or its mean and std are wrong.")
        _wait(x)
        if number or len(indices) == 1:
            seconds += time.perf_counter() - began
            timed += len(x)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        row = {
            "top1": best[:, 0] == target,
            "predicted": best[:, 0],
            "top5": (best == target[:, None]).any(1),
            "density": _density(features, attention, head, best[:, 0]),
        }
        row.update({k: z.argmax(1) == target for k, z in _by_rank(head, embedding, attention, ranks).items()})
        for name, values in row.items():
            rows.setdefault(name, []).append(values.double().cpu())
        done += len(x)
        if watch is not None:
            watch(done)
    return {name: torch.cat(parts) for name, parts in rows.items()}, timed / max(seconds, 1e-9)


def evaluate(
    model: Classifier,
    source: Source,
    *,
    ranks: RankHeads | None = None,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    watch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measure a network on all images of a source; arguments as of `measure`."""
    columns, speed = measure(model, source, ranks=ranks, batch_size=batch_size, device=device, watch=watch)
    density = columns["density"]
    maps = "attention" if hasattr(model.head, "attention") else "none" if model.spec.tokens else "cam"
    subsets = {name: float(v.mean()) for name, v in columns.items() if name in RANK_SUBSETS or name == WHOLE}
    return Evaluation(
        images=len(density),
        top1=float(columns["top1"].mean()),
        top5=float(columns["top5"].mean()) if _classes(model) > _FEW else None,
        density=None if maps == "none" else float(density.nanmean()),
        sparsity=None if maps == "none" else float((1 / density).nanmean()),
        maps=maps,
        ranks=subsets,
        rank_heads=("masked" if ranks is None else "trained") if subsets else "",
        images_per_second=speed,
        parameters=sum(p.numel() for p in model.parameters()),
        per_class=per_class(source.labels, columns["predicted"].long(), source.classes),
    )


def _classes(model: Classifier) -> int:
    return cast("Head", model.head).classifier.out_features


def prepared(model: Classifier, source: Source, indices: list[Tensor], device: torch.device | str) -> Iterator[Tensor]:
    """Normalized images (n, 3, H, W) on the device, as the network is evaluated on them."""
    size = model.spec.input_size
    whole = model.spec.fit == "squash" and model.spec.crop == 1
    section = AugmentSection(crop="squash" if whole else "none", resize=round(min(size) / model.spec.crop))
    mean, std = (torch.tensor(v) for v in (model.spec.mean or IMAGENET_MEAN, model.spec.std or IMAGENET_STD))
    for images in source.batches(indices, [None] * len(indices), section, size):
        yield finish(images, section, None, mean, std).to(device).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def features_of(
    model: Classifier,
    source: Source,
    *,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    watch: Callable[[int], None] | None = None,
) -> Tensor:
    """The features (n, P * C) of all images of a source by which they are compared; arguments as of `measure`.

    Raises:
        DataError: if the network gives NaN or infinity.
    """
    model = model.eval().to(device)
    head = cast("Head", model.head)
    indices = list(torch.arange(len(source)).split(batch_size))
    found, done = [], 0
    for x in prepared(model, source, indices, device):
        found.append(head.compared(head.embed(model.backbone(x))))
        done += len(x)
        if watch is not None:
            watch(done)
    features = torch.cat(found)
    if not bool(features.isfinite().all()):
        raise DataError("evaluate: the network answers NaN or infinity; its weights or its mean and std are wrong.")
    return features


def _wait(x: Tensor) -> None:
    """Let the device finish, so that the clock sees its work."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _density(features: Tensor, attention: nn.Module | None, head: Head, predicted: Tensor) -> Tensor:
    """Density (N,) of the attention, or of the class activation map of the predicted class; NaN without a map."""
    if features.ndim != 4:
        return torch.full((len(features),), torch.nan, dtype=torch.float64, device=features.device)
    if attention is not None:
        density = attention_density(attention(features), features).double()
    else:
        weight = head.classifier.weight[predicted]
        density = map_density(torch.einsum("nchw,nc->nhw", features, weight)[:, None]).double()
    return density.masked_fill(density <= 0, torch.nan)


def _by_rank(
    head: Head, embedding: Tensor, attention: nn.Module | None, ranks: RankHeads | None
) -> Mapping[str, Tensor]:
    """Logits (N, K) by subset of three parts: of the trained heads, or of the own classifier with the rest at zero."""
    if attention is None or head.parts != 3 or head.batch_norm is not None:
        return {}
    whole = head.classify(embedding)
    if ranks is not None:
        return {WHOLE: whole, **ranks(embedding)}
    parts = embedding.unflatten(1, (head.parts, head.channels))
    weight = head.classifier.weight.unflatten(1, (head.parts, head.channels))
    share = torch.einsum("npc,kpc->npk", parts, weight)
    return {WHOLE: whole, **{name: share[:, list(chosen)].sum(1) for name, chosen in RANK_SUBSETS.items()}}
