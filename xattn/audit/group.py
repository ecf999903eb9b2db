"""Groups of evidence within a class: found on one half of its images, recognized in the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from xattn.audit.evidence import Evidence
from xattn.audit.pattern import (
    answers,
    cells_of_pattern,
    edges,
    find_overlays,
    find_patterns,
    find_tones,
    place_of_overlay,
)
from xattn.audit.settings import AuditSettings
from xattn.errors import needs
from xattn.functional.relevance_parts import leading_cells

Kind = Literal["parts", "place", "pattern", "overlay", "tone"]
KINDS: dict[str, str] = {
    "parts": "what speaks for the class in the same way, wherever it is",
    "place": "what speaks for the class at the same place of the frame",
    "pattern": "a small picture that repeats, wherever it is, and is hardly in images of other classes",
    "overlay": "a picture that lies over images of the class at the same place",
    "tone": "images of one cast: shifted in colour, contrast, black or white",
}
"""The kinds of groups and what each holds together."""

Half = Literal["find", "test"]

_LEAST_SHARE = 0.1  # of an image's relevance; parts with less are not evidence but what is left over
_SITES = 4000  # that are clustered at once, since the time grows with the square
_MAPS = 1500
_REDUCED = 400  # reduced images of a class in which pictures are sought
_DIMENSIONS = 24  # that part vectors are reduced to before they are clustered
_KEPT = 0.1  # share of the members that found a group which are not recognized in it
_BROAD = 4  # broad groups beside the dense ones
_FIRST = {"pattern": 3, "overlay": 2, "tone": 2}  # groups of a kind that are kept
_SAME = 0.5  # overlap of two groups (intersection over union of their images) from which they count as one


@dataclass(frozen=True, eq=False)
class Member:
    """An image with the evidence of a group.

    Args:
        image: its name.
        index: its place in the data set.
        half: whether it was there to find the group or to test it.
        share: of the image's relevance that is in this evidence.
        similarity: to the middle of the group; larger is nearer, 1 the most.
        right: whether the prediction is right, None where that is not known.
        cells: bool (h, w), the cells that are replaced when the group is tested.
        size: height and width of the network's input in pixels.
        source: where the image is from, empty where that is not known.
    """

    image: str
    index: int
    half: Half
    share: float
    similarity: float
    right: bool | None
    cells: NDArray[np.bool_]
    size: tuple[int, int]
    source: str = ""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The box (x0, y0, x1, y1) around the cells in pixels of the network's input."""
        rows, columns = np.flatnonzero(self.cells.any(1)), np.flatnonzero(self.cells.any(0))
        tall, wide = self.size[0] / self.cells.shape[0], self.size[1] / self.cells.shape[1]
        return (
            float(columns[0] * wide), float(rows[0] * tall), float((columns[-1] + 1) * wide),
            float((rows[-1] + 1) * tall),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Group:
    """Evidence that images of a class share.

    Args:
        key: names it within the audit, such as `"c3-parts-1"`.
        class_index: the class that is predicted.
        class_name: its name.
        kind: what holds the group together, one of `KINDS`.
        members: the images with this evidence, the most typical first.
        place: mean map (h, w) of the evidence over the members, float64, sums to one.
        images: how many images of the class there are.
        share_of_score: of the score of the members that goes with the evidence: the mean fall without it over the mean
            fall without anything; NaN until it was measured.
        tone: mean and deviation of each channel over the members that found a group of tones, (2 channels,).
    """

    key: str
    class_index: int
    class_name: str
    kind: Kind
    members: tuple[Member, ...]
    place: NDArray[np.float64]
    images: int
    share_of_score: float = float("nan")
    tone: NDArray[np.float64] | None = None

    @property
    def share_of_images(self) -> float:
        """Share of the images of the class that have this evidence."""
        return len(self.members) / self.images

    def of_half(self, half: Half) -> tuple[Member, ...]:
        """The members that found the group, or those that test it."""
        return tuple(m for m in self.members if m.half == half)


@dataclass(frozen=True, eq=False)
class Prototype:
    """How a group is recognized.

    Args:
        kind: what is compared.
        centre: the middle of those that it was found from: a unit vector (C,), or a unit map (h, w); or the direction
            of a pattern, an overlay or a tone, as `xattn.audit.pattern.Line` has it.
        least: similarity from which an image belongs to the group.
        offset: of such a direction.
        cells: of an overlay, those under it, bool (h, w).
    """

    kind: Kind
    centre: NDArray[np.float64]
    least: float
    offset: float = 0.0
    cells: NDArray[np.bool_] | None = None

    def similarity(self, evidence: Evidence) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Similarity (N,) of each image to the group, -inf where there is nothing to compare, and by which part (N,).

        Of part vectors and maps it is the cosine; of patterns, overlays and tones the place on a line, where the usual
        image of the group is at 1 and that of the rest of the class at 0.
        """
        none = np.zeros(len(evidence), np.int64)
        if self.kind == "parts":
            found = evidence.vectors.astype(np.float64) @ self.centre
            found[~sites_of(evidence)] = -np.inf
            part = found.argmax(1)
            return found[np.arange(len(found)), part], part
        if self.kind == "place":
            return unit(evidence.whole.reshape(len(evidence), -1)) @ self.centre.ravel(), none
        if self.kind == "pattern":
            return answers(evidence.small, self.centre).max(1).astype(np.float64) - self.offset, none
        described = edges(evidence.small) if self.kind == "overlay" else evidence.tone
        return described.astype(np.float64) @ self.centre - self.offset, none


def sites_of(evidence: Evidence) -> NDArray[np.bool_]:
    """Which parts (N, P) hold enough of the relevance of their image to be evidence."""
    return np.asarray(evidence.shares >= _LEAST_SHARE)


def unit(rows: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (N, D) of length one; zeros stay."""
    length = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(rows / np.where(length == 0, 1, length), np.float64)


def halves(names: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Which images (N,) find groups rather than test them: a share of them, drawn by their names and a seed alone.

    >>> halves(["a", "b", "c", "d"], 0.5, 0).sum()
    np.int64(2)
    """
    numbers = [hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest() for name in names]
    order = sorted(range(len(names)), key=lambda i: (numbers[i], names[i], i))
    chosen = np.zeros(len(names), np.bool_)
    chosen[order[: round(share * len(names))]] = True
    return chosen


def find_prototypes(evidence: Evidence, settings: AuditSettings, others: NDArray[np.float32]) -> list[Prototype]:
    """Groups among these images of one class, those of part vectors first.

    Part vectors of the same direction that lie close together (HDBSCAN), and a few broad groups of them (k-means); maps
    at the same place (spectral clustering with the eigengap; Lapuschkin et al. 2019, SpRAy, arXiv:1902.10178); and
    patterns, overlays and tones (`xattn.audit.pattern`).

    Args:
        evidence: of the images that find groups.
        settings: how small a group may be.
        others: reduced images of other classes (M, C, R, R).
    """
    needs("audit", "xattn audit")
    return [
        *_by_parts(evidence, settings),
        *_by_place(evidence, settings),
        *_by_picture(evidence, settings, others),
    ]


def _by_picture(evidence: Evidence, settings: AuditSettings, others: NDArray[np.float32]) -> list[Prototype]:
    """Patterns, overlays and tones, the strongest of each kind first."""
    drawn = _drawn(len(evidence), _REDUCED, settings.seed)
    small, least = evidence.small[drawn], settings.smallest
    found = [
        Prototype("pattern", one.centre, one.least, one.offset)
        for one in find_patterns(small, others, least, settings.seed)
    ]
    for one in find_overlays(small, others, least):
        member = edges(small).astype(np.float64) @ one.centre - one.offset >= one.least
        place = torch.from_numpy(place_of_overlay(small[member], small[~member])[None])
        cells = leading_cells(place, settings.mass, settings.area)[0].numpy()
        found.append(Prototype("overlay", one.centre, one.least, one.offset, cells))
    tones = find_tones(evidence.tone[drawn], least, settings.seed)
    return [*found, *(Prototype("tone", one.centre, one.least, one.offset) for one in tones)]


def distinct(prototypes: Sequence[Prototype], evidence: Evidence, settings: AuditSettings) -> list[Prototype]:
    """Those that have enough images and, of two groups of a kind with mostly the same images, the first.

    Of patterns, overlays and tones only the strongest few are kept: each group more is a test more to correct for.
    """
    kept: list[tuple[Prototype, set[int]]] = []
    for prototype in prototypes:
        if sum(other.kind == prototype.kind for other, _ in kept) >= _FIRST.get(prototype.kind, len(prototypes)):
            continue
        similarity, _ = prototype.similarity(evidence)
        images = set(np.flatnonzero(similarity >= prototype.least).tolist())
        if len(images) < settings.smallest:
            continue
        if all(other.kind != prototype.kind or _overlap(images, theirs) <= _SAME for other, theirs in kept):
            kept.append((prototype, images))
    return [prototype for prototype, _ in kept]


def _overlap(a: set[int], b: set[int]) -> float:
    return len(a & b) / max(len(a | b), 1)


def _least(similarity: NDArray[np.float64]) -> float:
    return float(np.quantile(similarity, _KEPT))


def _drawn(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """At most so many of `count` places, in order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, count]).choice(count, most, replace=False))


def _by_parts(evidence: Evidence, settings: AuditSettings) -> list[Prototype]:
    from sklearn.cluster import HDBSCAN, KMeans

    images, parts = np.nonzero(sites_of(evidence))
    drawn = _drawn(len(images), _SITES, settings.seed)
    vectors = unit(evidence.vectors[images[drawn], parts[drawn]])
    smallest = max(settings.smallest, round(0.03 * len(evidence)))
    if len(vectors) < 2 * smallest:
        return []
    centred = vectors - vectors.mean(0)
    reduced = centred @ np.linalg.svd(centred, full_matrices=False)[2][:_DIMENSIONS].T
    dense = HDBSCAN(min_cluster_size=smallest, min_samples=3, cluster_selection_method="leaf", copy=True)
    distinct = len(np.unique(reduced.round(5), axis=0))
    broad = KMeans(min(_BROAD, len(reduced) // smallest, distinct), n_init=4, random_state=settings.seed)
    found = [(vectors, dense.fit_predict(reduced)), (vectors, broad.fit_predict(reduced))]
    return [_of_vectors(rows[labels == k]) for rows, labels in found for k in sorted({*labels.tolist()} - {-1})]


def _of_vectors(vectors: NDArray[np.float64]) -> Prototype:
    centre = unit(vectors.mean(0, keepdims=True))[0]
    return Prototype("parts", centre, _least(vectors @ centre))


def _by_place(evidence: Evidence, settings: AuditSettings) -> list[Prototype]:
    from sklearn.cluster import SpectralClustering
    from sklearn.neighbors import kneighbors_graph

    there = np.flatnonzero(evidence.whole.sum((1, 2)) > 0)
    there = there[_drawn(len(there), _MAPS, settings.seed)]
    maps = unit(evidence.whole[there].reshape(len(there), evidence.whole[0].size))
    if len(maps) < 3 * settings.smallest:
        return []
    near = kneighbors_graph(maps, min(10, len(maps) - 1), include_self=False).toarray()
    affinity = np.maximum(near, near.T)
    count = eigengap(affinity, min(8, len(maps) // settings.smallest))
    labels = SpectralClustering(
        count, affinity="precomputed", assign_labels="cluster_qr", random_state=settings.seed
    ).fit_predict(affinity)
    found = []
    for k in range(count):
        rows = maps[labels == k]
        if len(rows) >= settings.smallest:
            centre = unit(rows.mean(0, keepdims=True))
            found.append(Prototype("place", centre.reshape(evidence.layout.grid), _least((rows @ centre.T)[:, 0])))
    return found


def eigengap(affinity: NDArray[np.float64], most: int) -> int:
    """Number of clusters, from 2 to `most`, after which the eigenvalues of the normalized Laplacian jump the most.

    >>> blocks = np.kron(np.eye(3), np.ones((4, 4)))
    >>> eigengap(blocks, 6)
    3

    Args:
        affinity: (N, N), symmetric, not negative.
        most: clusters at most.
    """
    degree = np.maximum(affinity.sum(1), 1e-12)
    laplacian = np.eye(len(affinity)) - affinity / np.sqrt(degree[:, None] * degree[None, :])
    values = np.linalg.eigvalsh(laplacian)
    most = max(2, min(most, len(values) - 1))
    gaps = values[2 : most + 1] - values[1:most]
    return 2 + int(gaps.argmax())


def members_of(prototype: Prototype, evidence: Evidence, finding: NDArray[np.bool_], settings: AuditSettings) -> Group:
    """The group of a prototype among all images of a class.

    Args:
        prototype: found on one half.
        evidence: of all images of the class.
        finding: which of them found groups, bool (N,).
        settings: how many cells are replaced.

    Returns:
        A group without a key or a name.
    """
    similarity, part = prototype.similarity(evidence)
    chosen = np.flatnonzero(similarity >= prototype.least)
    chosen = chosen[np.argsort(-similarity[chosen], kind="stable")]
    h, w = evidence.layout.grid
    if prototype.kind == "parts":
        maps = evidence.maps[chosen, part[chosen]].astype(np.float64)
        cells = leading_cells(torch.from_numpy(maps), settings.mass, settings.area).numpy()
        share = evidence.shares[chosen, part[chosen]].astype(np.float64)
    elif prototype.kind == "place":
        maps = evidence.whole[chosen].astype(np.float64)
        same = leading_cells(torch.from_numpy(prototype.centre[None]), settings.mass, settings.area).numpy()
        cells = np.repeat(same, len(chosen), axis=0)
        share = (maps * cells).sum((1, 2))
    else:
        small = evidence.small[chosen]
        rows, columns = small.shape[2] // 2, small.shape[3] // 2
        if prototype.kind == "pattern":
            cells = cells_of_pattern(small, prototype.centre, prototype.offset, prototype.least, settings.area)
        else:
            whole = np.ones((rows, columns), np.bool_) if prototype.cells is None else prototype.cells
            cells = np.repeat(whole[None], len(chosen), axis=0)
        maps = cells / np.maximum(cells.sum((1, 2), keepdims=True), 1)
        share = _within(evidence.whole[chosen].astype(np.float64), cells)
    right = evidence.right
    members = tuple(
        Member(
            image=evidence.image[i],
            index=int(evidence.index[i]),
            half="find" if finding[i] else "test",
            share=float(share[k]),
            similarity=float(similarity[i]),
            right=None if np.isnan(right[i]) else bool(right[i]),
            cells=cells[k],
            size=evidence.layout.size,
            source=evidence.source[i],
        )
        for k, i in enumerate(chosen.tolist())
    )
    place = maps.mean(0) if len(maps) else np.zeros((h, w))
    place = place / place.sum() if place.sum() > 0 else np.full((h, w), 1 / (h * w))
    group = Group("", int(evidence.target[0]), "", prototype.kind, members, place, len(evidence))
    if prototype.kind != "tone":
        return group
    own = evidence.tone[chosen[finding[chosen]]]  # means and deviations come first
    return replace(group, tone=own[:, : own.shape[1] // 2].mean(0, dtype=np.float64) if len(own) else None)


def _within(maps: NDArray[np.float64], cells: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of maps (N, h, w) that lies within cells (N, H, W) of a grid that is as fine or finer."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(cells.shape[1:], maps.shape[1:], strict=True))
    finer = maps[:, rows[:, None], columns[None, :]]
    total = finer.sum((1, 2))
    return (finer * cells).sum((1, 2)) / np.where(total > 0, total, 1)
