"""Perturbed images, made and scored in full batches: cells are ranked once, and a step is a comparison of ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from xattn.errors import ParameterError, ShapeError
from xattn.functional.baselines import Replace

ImageScore = Callable[[Tensor, Tensor], Tensor]
"""From images (B, C, H, W) and the index (B,) of the image each is made from to scores (B,), or (B, scores)."""

Order = Literal["morf", "lerf", "insertion"]
"""Most relevant removed first; least relevant removed first; most relevant put back first."""


def tie_orders(cells: int, generators: list[torch.Generator]) -> Tensor:
    """A random order of the cells for each image, by which equal cells are ranked: int64 (N, cells)."""
    return torch.stack([torch.randperm(cells, generator=g) for g in generators])


def ranks(maps: Tensor, ties: Tensor) -> tuple[Tensor, Tensor]:
    """Rank of each cell, 0 = most important; equal cells in the given random order.

    Raster order among equal cells is a bias (a constant map scores 0.34 to 0.41 in one and the same deletion,
    depending on it), so nothing here depends on it.

    >>> ranks(torch.tensor([[[[0.1, 0.9], [0.5, 0.2]]]]), torch.tensor([[3, 1, 0, 2]]))[0].tolist()
    [[3, 0, 1, 2]]

    Args:
        maps: (M, 1, h, w).
        ties: orders (M, cells) from `tie_orders`, one for each map.

    Returns:
        Ranks, int32 (M, cells), and the share (M,) of cells that have an equal, float64. Maps with values that are not
        finite have ranks too, which mean nothing.
    """
    values = maps.flatten(1)
    if ties.shape != values.shape:
        raise ShapeError(f"ranks: ties of shape {tuple(ties.shape)} do not fit {tuple(values.shape)} cells.")
    ties = ties.to(values.device)
    ordered, order = values.gather(1, ties).sort(dim=1, descending=True, stable=True)
    place = torch.arange(values.shape[1], dtype=torch.int32, device=values.device).expand_as(ties)
    rank = torch.empty_like(place, memory_format=torch.contiguous_format).scatter_(1, ties.gather(1, order), place)
    same = ordered[:, 1:] == ordered[:, :-1]
    tied = torch.nn.functional.pad(same, (1, 0)) | torch.nn.functional.pad(same, (0, 1))
    return rank, tied.double().mean(dim=1)


def undefined(maps: Tensor) -> Tensor:
    """Maps (M, 1, h, w) that order nothing, bool (M,): those with NaN or infinite values, and constant ones.

    One cell is not constant: it has nothing to vary over.

    >>> undefined(torch.tensor([[[[1.0, 2.0]]], [[[1.0, 1.0]]], [[[1.0, float("nan")]]]])).tolist()
    [False, True, True]
    """
    flat = maps.flatten(1)
    constant = (flat.amax(dim=1) == flat.amin(dim=1)) & (flat.shape[1] > 1)
    return constant | ~flat.isfinite().all(dim=1)


Build = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Makes perturbed images (B, C, H, W) from their indices (B,), the images they are made from (B or 1, C, H, W), the
numbers of these (B or 1,), and memory for the result."""


def packed_scores(score: ImageScore, x: Tensor, build: Build, owner: Tensor, chunk: int) -> Tensor:
    """Scores of many perturbed images in even batches, whatever image, map and step each belongs to.

    Args:
        score: what is measured.
        x: images (N, C, H, W).
        build: makes a batch of perturbed images, on the device.
        owner: int64 (T,) on the CPU: the image that each of the T is made from.
        chunk: images a batch at most.

    Returns:
        (T,), or (T, scores), on the device of `x`.

    Raises:
        ParameterError: if `chunk` is less than one.
    """
    if chunk < 1:
        raise ParameterError(f"chunk: need at least one image a batch but got {chunk}.")
    total = len(owner)
    chunk = -(-total // max(1, -(-total // chunk)))  # the same number of batches, without a small one at the end
    if x.device.type == "cpu":  # where convolutions are up to a third faster on channels-last images
        x = x.contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    buffer = torch.empty((min(chunk, total), *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=layout)
    rows = owner.to(x.device)
    scores = []
    for start in range(0, total, chunk):
        here = slice(start, min(start + chunk, total))
        index = torch.arange(here.start, here.stop, device=x.device)
        out = buffer[: len(index)]
        first = int(owner[start])
        if bool((owner[here] == first).all()):  # known on the CPU; a batch of one image needs no copies of it
            images = build(index, x[first : first + 1], rows[start : start + 1], out)
        else:
            images = build(index, torch.index_select(x, 0, rows[here], out=out), rows[here], out)
        scores.append(score(images, rows[here]))
    return torch.cat(scores) if scores else x.new_empty(0)


def removal(replace: Replace, removed: Callable[[Tensor], Tensor]) -> Build:
    """Perturbed images that lack the pixels of a mask; `removed` gives the masks (B, 1, H, W) of indices (B,)."""
    return lambda index, kept, own, out: replace(kept, removed(index), own, out)


def curve_scores(
    score: ImageScore,
    x: Tensor,
    replace: Replace,
    ranks: Tensor,
    owner: Tensor,
    counts: Tensor,
    ends: tuple[Tensor, Tensor],
    *,
    cells: Tensor | None = None,
    order: Order = "morf",
    chunk: int = 64,
) -> Tensor:
    """Scores while cells are replaced by rank (Petsiuk et al. 2018, RISE, arXiv:1806.07421, alg. 1).

    Maps times steps are one list, cut into batches of one size; the batches are made on the device. Untouched and fully
    replaced images are not scored again: their scores are given, and shared by all maps of an image.

    Args:
        score: what is measured.
        x: images (N, C, H, W).
        replace: puts the baseline in.
        ranks: int (M, H * W), the rank of the cell that each pixel belongs to, 0 = most important.
        owner: int64 (M,): the image that each map explains.
        counts: int64 (M, S + 1), cells replaced (inserted) at each point. A point where nothing or all is replaced
            costs nothing, so that curves of unequal length are filled up with it.
        ends: scores (N,), or (N, scores), of the untouched and of the fully replaced images.
        cells: int64 (M,), cells of each map; None if the last count is all of them.
        order: which cells go first, and whether they are removed or put back.
        chunk: images a batch.

    Returns:
        (M, S + 1), or (M, S + 1, scores).

    Raises:
        ShapeError: if maps, owners and counts differ in number.
        ParameterError: if the order is unknown.
    """
    if order not in get_args(Order):
        raise ParameterError(f"order: must be one of {', '.join(get_args(Order))} but is '{order}'.")
    if not len(ranks) == len(owner) == len(counts) or ranks.shape[1] != x.shape[-2] * x.shape[-1]:
        raise ShapeError(
            f"curve_scores: ranks {tuple(ranks.shape)}, owner {tuple(owner.shape)} and counts {tuple(counts.shape)} "
            f"do not fit images {tuple(x.shape)}."
        )
    owner, counts = owner.cpu(), counts.cpu()
    cells = counts[:, -1:] if cells is None else cells.cpu()[:, None]
    if order == "morf":
        low, high = torch.zeros_like(counts), counts
    else:
        low, high = counts if order == "insertion" else cells - counts, cells.expand_as(counts)
    gone = high - low
    rows = owner.to(x.device)
    clean, replaced = (end.to(x.device).index_select(0, rows)[:, None] for end in ends)
    untouched = (gone == 0).to(x.device).view(*gone.shape, *([1] * (clean.ndim - 2)))
    scores = torch.where(untouched, clean, replaced).contiguous()
    where_map, where_step = ((gone > 0) & (gone < cells)).nonzero(as_tuple=True)
    if len(where_map):
        which, at = where_map.to(x.device), where_step.to(x.device)
        first = low[where_map, where_step].to(x.device, torch.int32)[:, None]
        last = high[where_map, where_step].to(x.device, torch.int32)[:, None]

        def removed(index: Tensor) -> Tensor:
            rank = ranks.index_select(0, which[index])
            mask = rank < last[index] if order == "morf" else rank >= first[index]
            return mask.view(-1, 1, *x.shape[-2:])

        values = packed_scores(score, x, removal(replace, removed), owner[where_map], chunk)
        scores = scores.to(values.dtype).index_put((which, at), values)
    return scores


def replaced_scores(score: ImageScore, x: Tensor, replace: Replace, chunk: int) -> Tensor:
    """Scores (N,), or (N, scores), of the images with every pixel replaced."""
    everything = torch.ones(1, 1, *x.shape[-2:], dtype=torch.bool, device=x.device)
    build = removal(replace, lambda index: everything.expand(len(index), -1, -1, -1))
    return packed_scores(score, x, build, torch.arange(len(x)), chunk)


def seen_through(masks: Tensor, replace: Replace) -> Build:
    """Images seen through soft masks (T, 1, H, W): mask * image + (1 - mask) * baseline.

    Raises:
        ParameterError: for a baseline that depends on which pixels are gone.
    """
    image = replace.image
    if image is None:
        raise ParameterError("baseline: imputation needs pixels to be gone or not; choose mean, black, blur or noise.")

    def build(index: Tensor, kept: Tensor, own: Tensor, out: Tensor) -> Tensor:
        behind = image if len(image) == 1 else image.index_select(0, own)
        return torch.add(behind, (kept - behind) * masks.index_select(0, index), out=out)

    return build


def segment_means(maps: Tensor, labels: Tensor, segments: int) -> Tensor:
    """Mean of each map over each segment.

    Args:
        maps: (M, H * W).
        labels: int64 (M, H * W) or (1, H * W), the segment of each pixel.
        segments: number of segments of the image that has most.

    Returns:
        float64 (M, segments); -inf for segments that an image does not have, which ranks them last.
    """
    labels = labels.expand_as(maps)
    total = maps.new_zeros(len(maps), segments, dtype=torch.float64).scatter_add_(1, labels, maps.double())
    size = torch.zeros_like(total).scatter_add_(1, labels, torch.ones_like(maps, dtype=torch.float64))
    return torch.where(size > 0, total / size.clamp(min=1), -torch.inf)
