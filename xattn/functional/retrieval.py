"""Search by likeness: how well it finds images of the same identity, and what each part adds to a likeness."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from xattn.errors import ParameterError, ShapeError

Distance = Literal["cosine", "euclidean"]

_ROWS = 256  # queries at a time


def pair_distances(a: Tensor, b: Tensor, distance: Distance = "cosine") -> Tensor:
    """Distance of each row of `a` (N, D) to each row of `b` (M, D), as (N, M): 1 - cosine, or Euclidean."""
    if distance == "cosine":
        return 1 - F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    if distance == "euclidean":
        return torch.cdist(a, b)
    raise ParameterError(f"distance must be cosine or euclidean but is '{distance}'.")


def retrieval_ranks(
    query: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_groups: Tensor | None = None,
    gallery_groups: Tensor | None = None,
    *,
    distance: Distance = "cosine",
    own: Tensor | None = None,
    rows: int = _ROWS,
) -> tuple[Tensor, Tensor]:
    """Average precision and rank of the first match of each query (Market-1501 protocol, Zheng et al. 2015, ICCV).

    The gallery is put in the order of its distance to the query. Images of the same identity *and* the same group, the
    camera or the day, are left out, so that finding nearly the same photograph again counts for nothing; so are
    images with a negative identity, which the authors call junk. With h the ranks of the r matches that are left,
    the average precision is (1 / r) sum_j j / h_j.

    Differs from the authors' program, which sums trapezoids under the curve of precision and recall: this is the sum
    that public toolboxes report. Where distances are equal the wrong image comes first, so that a network which gives
    every image the same features gains nothing by the order of the gallery.

    Args:
        query: embeddings (Q, D).
        gallery: embeddings (G, D).
        query_ids: identities (Q,).
        gallery_ids: identities (G,), negative for junk.
        query_groups: camera or day (Q,); None where it is not known: then no image is left out for it.
        gallery_groups: (G,).
        distance: one minus the cosine, or Euclidean.
        own: place of each query in the gallery (Q,), which is left out; for a set that is searched in itself.
        rows: queries that are compared at once; changes memory, not the result.

    Returns:
        Average precision (Q,) and rank of the first match (Q,), counted from 1; float64, NaN where there is no match.

    >>> ids = torch.tensor([0, 1, 0])
    >>> retrieval_ranks(torch.eye(2)[:1], torch.tensor([[0.9, 0.1], [1.0, 0.0], [0.5, 0.5]]), ids[:1], ids)
    (tensor([0.5833], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """
    _check(query, gallery, query_ids, gallery_ids)
    if (query_groups is None) != (gallery_groups is None):
        raise ShapeError("retrieval: pass the groups of both the query and the gallery, or of neither.")
    precision, first = [], []
    gallery = gallery.double()  # float32 cannot tell near-duplicates apart, and which it confuses depends on the rows
    place = torch.arange(len(gallery), device=gallery.device)
    for start in range(0, len(query), rows):
        part = slice(start, start + rows)
        away = pair_distances(query[part].double(), gallery, distance)
        match = query_ids[part, None] == gallery_ids
        left = gallery_ids.ge(0).expand_as(match)
        if query_groups is not None and gallery_groups is not None:
            left = left & ~(match & (query_groups[part, None] == gallery_groups))
        if own is not None:
            left = left & (place != own[part, None])
        ap, hit = _rank(away.masked_fill(~left, torch.inf), match & left)
        precision.append(ap)
        first.append(hit)
    empty = torch.empty(0, dtype=torch.float64, device=query.device)
    return torch.cat([empty, *precision]), torch.cat([empty, *first])


def _rank(away: Tensor, match: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision and rank of the first match (Q,) from distances and matches (Q, G); infinity is left out."""
    wrong_first = match.to(torch.uint8).argsort(dim=1, stable=True)
    order = wrong_first.gather(1, away.gather(1, wrong_first).argsort(dim=1, stable=True))
    hits = match.gather(1, order).double()
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device, dtype=torch.float64)
    count = hits.sum(1)
    precision = (hits * hits.cumsum(1) / rank).sum(1) / count
    first = torch.where(hits > 0, rank, torch.inf).amin(1) if hits.shape[1] else count.new_full(count.shape, torch.inf)
    return precision, first.masked_fill(count == 0, torch.nan)


def _check(query: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> None:
    flat = query.ndim == gallery.ndim == 2 and query.shape[1] == gallery.shape[1]
    if not flat or query_ids.shape != query.shape[:1] or gallery_ids.shape != gallery.shape[:1]:
        raise ShapeError(
            "retrieval: expected embeddings (Q, D) and (G, D) with an identity each but got "
            f"{tuple(query.shape)} and {tuple(gallery.shape)} with {tuple(query_ids.shape)} and "
            f"{tuple(gallery_ids.shape)}."
        )


def part_shares(a: Tensor, b: Tensor) -> Tensor:
    """Share of each part in the cosine of two concatenations of part vectors: a_p . b_p / (|a| |b|).

    The cosine of concatenated vectors compares part p of one image with part p of the other and no other pair, so
    that these shares sum to it exactly.

    Args:
        a: part vectors (N, P, C).
        b: those of the other image (N, P, C).

    Returns:
        (N, P), float32 (float64 is kept); zero where an image has no feature at all.

    >>> a, b = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    >>> cosine = torch.cosine_similarity(a.flatten(1), b.flatten(1))
    >>> bool(torch.allclose(part_shares(a, b).sum(1), cosine))
    True
    """
    if a.ndim != 3 or a.shape != b.shape:
        raise ShapeError(f"part_shares: expected two tensors (N, P, C) but got {tuple(a.shape)} and {tuple(b.shape)}.")
    dtype = torch.promote_types(a.dtype, torch.float32)
    a, b = (F.normalize(t.to(dtype).flatten(1), dim=1).view_as(t) for t in (a, b))
    return (a * b).sum(2)


def part_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine (N, P, P) of each part of one image (N, P, C) with each part of another: which part is most like which."""
    if a.ndim != 3 or a.shape != b.shape:
        raise ShapeError(f"part_cosines: expected two tensors (N, P, C) but got {tuple(a.shape)} and {tuple(b.shape)}.")
    dtype = torch.promote_types(a.dtype, torch.float32)
    return F.normalize(a.to(dtype), dim=2) @ F.normalize(b.to(dtype), dim=2).transpose(1, 2)
