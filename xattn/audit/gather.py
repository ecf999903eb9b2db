"""One pass over a data set: what speaks for the predicted class in each image, into parts on the disk."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xattn.audit.evidence import BLOCK, EvidenceStore, Layout
from xattn.audit.pattern import side_of
from xattn.audit.replace import tone_of
from xattn.audit.settings import AuditSettings
from xattn.data.dataset import Dataset
from xattn.data.sample import Batch, Sample, collate
from xattn.errors import DataError
from xattn.functional.grid import resample
from xattn.functional.pixels import denormalize_pixels
from xattn.functional.relevance_parts import relevance, relevance_parts, whole_relevance
from xattn.score import apply_score
from xattn.spec import ModelSpec
from xattn.trace import Trace, place_of, record

Progress = Callable[[int, int, str], None]
"""Called with how much is done, of how much, and what is being done."""

FORMAT = 3
"""Of the parts; those of another one are made anew."""

GRID = 16
"""Rows and columns of the maps that are kept, at most; finer ones are summed over cells."""


def labels_for(dataset: Dataset, spec: ModelSpec, outputs: int) -> tuple[NDArray[np.int64], str]:
    """The labels of a data set in the numbers of a model's classes, and how that was found; -1 is not known.

    Classes are compared by their names where the model has names and those of the data set are among them, else by
    their numbers where both have equally many.
    """
    labels, names = dataset.labels, dataset.classes
    known = {name: i for i, name in reversed(list(enumerate(spec.classes or ())))}
    if spec.classes and tuple(names) == tuple(spec.classes):
        return labels, "by number: both have the same classes"
    if known and all(name in known for name in names):
        table = np.array([known[name] for name in names], np.int64)
        return table[labels], "by name"
    if len(names) == outputs:
        return labels, "by number: both have as many classes"
    return np.full(len(labels), -1, np.int64), "not known: the classes of the data set are not those of the network"


def evidence_key(digest: str, dataset: Dataset, spec: ModelSpec, settings: AuditSettings, sources: Any) -> str:
    """A digest of all that the evidence depends on.

    Args:
        digest: of the weights.
        dataset: what is audited.
        spec: facts about the model.
        settings: those that change the evidence count.
        sources: a text for each image, or None.
    """
    facts = dataclasses.replace(spec, evidence={}, ran={})
    parts = (FORMAT, digest, dataset.fingerprint(), repr(facts), settings.parts, settings.score, BLOCK, GRID)
    named = hashlib.blake2b("\0".join(sources or ()).encode(), digest_size=8).hexdigest()
    return hashlib.blake2b(repr((parts, named)).encode(), digest_size=16).hexdigest()


def gather(
    model: nn.Module,
    dataset: Dataset,
    spec: ModelSpec,
    store: EvidenceStore,
    settings: AuditSettings,
    *,
    labels: NDArray[np.int64],
    sources: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Fill a store with the evidence of every image that is not there yet; memory does not grow with their number.

    Args:
        model: any network with a feature map.
        dataset: the images.
        spec: facts about the model.
        store: of parts.
        settings: how many parts, of which score.
        labels: of the images in the numbers of the model's classes, (n,).
        sources: a text for each image.
        progress: called after each block.
    """
    total = len(dataset)
    for block in range(-(-total // BLOCK)):
        if progress is not None:
            progress(block * BLOCK, total, "gathering evidence")
        if block in store.done:
            continue
        stop = min((block + 1) * BLOCK, total)
        rows: list[dict[str, Any]] = []
        layout = store.layout
        for start in range(block * BLOCK, stop, settings.batch_size):
            batch, kept, failed = read_some(dataset, range(start, min(start + settings.batch_size, stop)), spec)
            if batch is not None:
                values, layout = describe(traced(model, batch.x, spec, settings), batch, settings, layout)
                rows.append({**values, "index": np.array(kept), "failed": [""] * len(kept), "label": labels[kept]})
            if failed:
                rows.append(_unread(failed))
        merged = _merged(rows, layout)
        merged["source"] = [sources[i] if sources else "" for i in merged["index"]]
        store.write(block, merged, layout)
    if progress is not None:
        progress(total, total, "gathering evidence")


def outputs_of(model: nn.Module, dataset: Dataset, spec: ModelSpec) -> int:
    """How many classes a network tells apart, by its answer to the first image that can be read.

    Raises:
        DataError: if none can.
    """
    for index in range(len(dataset)):
        batch, _, _ = read_some(dataset, [index], spec)
        if batch is not None:
            trace = record(model, batch.x.to(place_of(model)[0]), spec=spec, grad=False)
            return max(trace.logits.shape[1], 2)
    raise DataError("audit: none of the images can be read.")


def read_some(
    dataset: Dataset, indices: Sequence[int], spec: ModelSpec
) -> tuple[Batch | None, list[int], dict[int, str]]:
    """A batch of the images that can be read, their places, and the reason for each that cannot."""
    samples: list[Sample] = []
    kept, failed = [], {}
    for index in indices:
        try:
            samples.append(dataset[index])
            kept.append(index)
        except (DataError, OSError) as error:
            failed[index] = " ".join(str(error).split()) or type(error).__name__
    return (collate(samples, spec) if samples else None), kept, failed


def traced(model: nn.Module, x: Tensor, spec: ModelSpec, settings: AuditSettings) -> Trace:
    """Record what the evidence in images (N, C, H, W) is made of."""
    attention = [spec.attention_layer] if spec.attention == "brnpa" and spec.attention_layer else []
    layers = [str(spec.feature_layer), *attention]
    return record(model, x.to(place_of(model)[0]), spec=spec, layers=layers, score=settings.score)


def relevance_of(trace: Trace) -> Tensor:
    """Relevance (N, C, h, w) of the cells and channels of the feature layer for what is explained."""
    layer = str(trace.spec.feature_layer)
    return relevance(trace.activation(layer), trace.gradient(layer))


def describe(
    trace: Trace, batch: Batch, settings: AuditSettings, layout: Layout | None
) -> tuple[dict[str, Any], Layout]:
    """The evidence of a recorded batch as columns of a part, and the sizes of its arrays.

    Args:
        trace: with the feature layer, and the attention of a trained BR-NPA head.
        batch: the same images, for their names, masks and boxes.
        settings: how many parts.
        layout: of the images before, which these must share; None for the first ones.
    """
    spec = trace.spec
    values = relevance_of(trace)
    attention = trace.activation(spec.attention_layer) if spec.attention == "brnpa" and spec.attention_layer else None
    vectors, maps, shares = relevance_parts(values, settings.parts, attention)
    whole = whole_relevance(values)
    grid = layout.grid if layout is not None else (min(values.shape[2], GRID), min(values.shape[3], GRID))
    maps, whole = _summed(maps, grid), _summed(whole[:, None], grid)[:, 0]
    masks = batch.object_masks()
    n, parts = shares.shape
    inside = torch.full((n, parts), torch.nan)
    covered = torch.full((n,), torch.nan)
    if masks is not None:
        there = masks.flatten(1).any(1)
        on = resample(masks.float().cpu(), grid)
        share = torch.einsum("nphw,nhw->np", maps.cpu(), on[:, 0])
        inside = torch.where(there[:, None] & (maps.cpu().sum((2, 3)) > 0), share, torch.nan)
        covered = torch.where(there, masks.float().mean((1, 2, 3)), torch.nan)
    pixels = denormalize_pixels(trace.x, spec.mean, spec.std).clamp(0, 1)
    small = resample(pixels, side_of(*trace.input_size))
    size = (small.shape[1], small.shape[2], small.shape[3])
    own = Layout(parts, vectors.shape[2], grid, 4 * trace.x.shape[1], size, trace.input_size)
    if layout is not None and layout != own:
        raise DataError(f"audit: the images have other sizes, {own} after {layout}; give the model one input size.")
    target = trace.target
    probability = trace.probabilities.gather(1, target[:, None])[:, 0]
    return {
        "image": list(batch.ids),
        "target": target.cpu().numpy(),
        "score": apply_score(trace.score_fn, trace.logits, target).double().cpu().numpy(),
        "probability": probability.double().cpu().numpy(),
        "object": covered.double().numpy(),
        "shares": shares.cpu().numpy(),
        "inside": inside.numpy(),
        # scaled, since half precision neither holds large numbers nor tells small ones apart
        "vectors": torch.nn.functional.normalize(vectors, dim=2).flatten(1).cpu().numpy(),
        "maps": maps.flatten(1).cpu().numpy(),
        "whole": whole.flatten(1).cpu().numpy(),
        "tone": tone_of(trace.x).cpu().numpy(),
        "small": small.flatten(1).cpu().numpy(),
    }, own


def _summed(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps (N, P, h, w) on a coarser grid, with the same sums."""
    if maps.shape[2:] == grid:
        return maps
    return resample(maps, grid) * (maps.shape[2] * maps.shape[3] / (grid[0] * grid[1]))


def _unread(failed: dict[int, str]) -> dict[str, Any]:
    """Rows of images that could not be read."""
    n = len(failed)
    rows: dict[str, Any] = {
        "index": np.array([*failed]), "image": [f"image {i}" for i in failed], "failed": [*failed.values()],
        "label": np.full(n, -1), "target": np.full(n, -1), "score": np.full(n, np.nan),
        "probability": np.full(n, np.nan), "object": np.full(n, np.nan),
    }  # fmt: skip
    return rows


def _merged(rows: list[dict[str, Any]], layout: Layout | None) -> dict[str, Any]:
    """The rows of a block, one column each."""
    merged: dict[str, Any] = {}
    for name in ("index", "label", "target", "score", "probability", "object"):
        merged[name] = np.concatenate([r[name] for r in rows])
    for name in ("image", "failed"):
        merged[name] = [text for r in rows for text in r[name]]
    if layout is not None:
        for name in ("shares", "inside", "vectors", "maps", "whole", "tone", "small"):
            empty = [np.zeros((len(r["index"]), layout.width(name)), np.float32) for r in rows]
            merged[name] = np.concatenate([r.get(name, none) for r, none in zip(rows, empty, strict=True)])
    return merged
