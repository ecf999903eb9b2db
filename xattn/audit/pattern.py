"""Pictures that repeat in a class: a pattern anywhere in its images, one laid over them at one place, or a cast.

All three are found from reduced images, without the network, and are a line through some description of an image: what
lies on one side of a cut belongs to the group. Whether the network cares is for the test to say.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch.nn import functional as F

Array = NDArray[np.float64]
Small = NDArray[np.float32]

SIDE = 32
"""Rows and columns of the reduced images, at most."""

PATCH = 5
"""Rows and columns of a pattern in a reduced image."""

_PER_IMAGE = 24  # patches of an image that seed patterns
_SEEDS = 48  # patterns that are begun, the means of similar patches
_STARTS = 4  # images from whose edges an overlay is begun
_ROUNDS = 2  # in which a pattern becomes the mean of the patches that answer it, an overlay that of its images
_RARE = 0.99  # share of the images of other classes that must not answer
_RIDGE = 0.002  # added to the variance of pixels, so that noise is not taken for a pattern
_EDGE_RIDGE = 0.01  # likewise for edges
_OTHERS = 256  # images of other classes whose patches are looked at
_FEWEST = 24  # images of other classes, without which nothing can be told apart
_STANDS_OUT = 4.0  # standard errors by which a mean differs from that of other classes
_LEAST_GAP = 0.3  # of the distance of two middles, below which images do not fall into two groups
_MOST = 0.9  # of the images that a group may hold
_SHARE = 0.04  # of the images that it holds at least
_TENTH = 0.1
_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Line:
    """A direction in a description of images, scaled so that the usual image of the rest is at 0 and of the group at 1.

    Args:
        centre: what a description is multiplied by.
        offset: what is taken off.
        least: from which an image belongs to the group.
        strength: from the lowest tenth of the group to the highest tenth of the rest, more than in a single normal
            distribution, times the root of the number of images in the smaller of the two: in few images a wide gap
            comes about by chance.
    """

    centre: Array
    offset: float
    least: float
    strength: float


def side_of(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the reduced image: even, so that two by two make a cell."""
    return max(2, min(SIDE, height // 2 * 2)), max(2, min(SIDE, width // 2 * 2))


def patches(small: Small) -> Small:
    """All patches (N, P, D) of reduced images (N, C, R, R), by rows and columns of their upper left corner."""
    windows = np.lib.stride_tricks.sliding_window_view(small, (PATCH, PATCH), axis=(2, 3))
    n, c, rows, columns = windows.shape[:4]
    return np.ascontiguousarray(windows.transpose(0, 2, 3, 1, 4, 5)).reshape(n, rows * columns, c * PATCH**2)


def edges(small: Small) -> Small:
    """Differences of neighbours (N, 2 C R R) down and across, which a picture laid over an image shares with others."""
    down = np.diff(small, axis=2, prepend=small[:, :, :1])
    across = np.diff(small, axis=3, prepend=small[:, :, :, :1])
    return np.concatenate([down, across], axis=1).reshape(len(small), -1)


def answers(small: Small, centre: Array) -> Small:
    """What each patch of reduced images answers to a pattern (N, P), in memory for a few images at a time."""
    weights = centre.astype(np.float32)
    parts = [patches(small[k : k + _AT_ONCE]) @ weights for k in range(0, len(small), _AT_ONCE)]
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def cut(values: Array, smallest: int) -> tuple[float, float, float, float] | None:
    """Where values fall apart the most: at which one tenth of those above is furthest from one tenth of those below.

    The distance of the lowest tenth above to the highest tenth below is taken in units of that of the two middles, so
    that it is near 1 for two narrow groups and about 0.2 for one group, wherever that is cut.

    Args:
        values: of images (n,).
        smallest: images above, at least; there are as many below.

    Returns:
        The cut, the two middles (above, below) and the distance; None where there are too few.
    """
    ordered = -np.sort(-values)
    best: tuple[float, float, float, float] | None = None
    for count in range(smallest, min(int(_MOST * len(ordered)), len(ordered) - smallest) + 1):
        above, below = ordered[:count], ordered[count:]
        end, start = above[-1 - int(_TENTH * (count - 1))], below[int(_TENTH * (len(below) - 1))]
        middles = float(above[count // 2]), float(below[len(below) // 2])
        apart = middles[0] - middles[1]
        gap = float(end - start) / apart if apart > 0 else -1.0
        if apart > 0 and (best is None or gap > best[3]):
            best = float(end + start) / 2, *middles, gap
    return best


def line(centre: Array, values: Array, smallest: int) -> Line | None:
    """A direction with its cut, by what images answer to it (n,); None where they do not fall into two groups."""
    found = cut(values, max(smallest, round(_SHARE * len(values))))
    if found is None or found[3] < _LEAST_GAP:
        return None
    least, above, below, gap = found
    scale = above - below
    return Line(centre / scale, below / scale, (least - below) / scale, _strength(gap, values >= least))


def usual_gap(share: float) -> float:
    """The gap of a single normal distribution that is cut so that a share of it lies above.

    It is larger for small groups: 0.19 for a half, 0.32 for one in twenty.

    >>> round(usual_gap(0.5), 2), round(usual_gap(0.05), 2)
    (0.19, 0.32)
    """
    places = [1 - share * (1 - _TENTH), (1 - share) * (1 - _TENTH), 1 - share / 2, (1 - share) / 2]
    end, start, above, below = norm.ppf(places).tolist()
    return float((end - start) / (above - below))


def _strength(gap: float, member: NDArray[np.bool_]) -> float:
    """That of a `Line`, for a gap between the images of a group and the rest."""
    fewer = min(int(member.sum()), int((~member).sum()))
    return (gap - usual_gap(float(member.mean()))) * fewer**0.5


def _strongest(lines: list[Line]) -> list[Line]:
    return sorted(lines, key=lambda one: -one.strength)


def find_patterns(small: Small, others: Small, smallest: int, seed: int) -> list[Line]:
    """Patterns that some images of a class have, wherever, and hardly any image of other classes has.

    Patches that are unusual among those of other classes are grouped, and each group becomes the mean of the patches
    that answer it more than others do, as mid-level patches are discovered without labels of their own (Singh, Gupta
    and Efros 2012, arXiv:1205.3137), with the covariance of patches in place of trained classifiers (Hariharan, Malik
    and Ramanan 2012, ECCV). The strongest come first.

    Args:
        small: reduced images of the class (n, C, R, R).
        others: of other classes.
        smallest: images that a group holds at least.
        seed: of the groups.
    """
    from sklearn.cluster import KMeans

    if len(others) < _FEWEST or len(small) < 2 * smallest or min(small.shape[2:]) < PATCH:
        return []
    theirs, mine = patches(others[:_OTHERS]), patches(small)
    sample = theirs[:, :: max(1, theirs.shape[1] // 112)].reshape(-1, theirs.shape[2]).astype(np.float64)
    mean = sample.mean(0)
    values, vectors = np.linalg.eigh(np.cov((sample - mean).T) + _RIDGE * np.eye(len(mean)))
    white = (vectors / np.sqrt(values)).astype(np.float32)
    theirs, mine = (theirs - mean.astype(np.float32)) @ white, (mine - mean.astype(np.float32)) @ white
    unusual = np.argsort(-np.linalg.norm(mine, axis=2), axis=1)[:, : 4 * _PER_IMAGE : 4]
    seeds = _unit(mine[np.arange(len(mine))[:, None], unusual].reshape(-1, mine.shape[2]))
    count = min(_SEEDS, len(np.unique(seeds.round(3), axis=0)))
    starts = _unit(KMeans(count, n_init=1, max_iter=20, random_state=seed).fit(seeds).cluster_centers_)
    found = []
    for w in starts:
        for _ in range(_ROUNDS):
            own = mine @ w
            here = np.flatnonzero(own.max(1) > np.quantile((theirs @ w).max(1), _RARE))
            if len(here) < smallest:
                break
            w = _unit(mine[here, own[here].argmax(1)].mean(0)[None])[0]
        one = line(white.astype(np.float64) @ w.astype(np.float64), (mine @ w).max(1).astype(np.float64), smallest)
        if one is not None:
            found.append(replace(one, offset=one.offset + float(mean @ one.centre)))
    return _strongest(found)


def find_overlays(small: Small, others: Small, smallest: int) -> list[Line]:
    """Pictures that lie over some images of a class at one place, as a frame, a stamp or a watermark does.

    What is laid over many images shows where the mean edges of a class are not those of other classes (as the mean
    edges of a collection show its watermark; Dekel et al. 2017, "On the effectiveness of visible watermarks", CVPR);
    what is laid over few makes the edges of these images alike. So the search begins from all images, and from those
    most alike to one of them; an image has the picture if its own edges are like what sets these apart, each weighed
    by how much edges vary there. The strongest come first.

    Args:
        small: reduced images of the class (n, C, R, R).
        others: of other classes.
        smallest: images that a group holds at least.
    """
    if len(others) < _FEWEST or len(small) < 2 * smallest:
        return []
    mine, theirs = edges(small).astype(np.float64), edges(others).astype(np.float64)
    spread = theirs.var(0) + _EDGE_RIDGE
    begun = [np.ones(len(mine), np.bool_), *_alike((mine - theirs.mean(0)) / np.sqrt(spread), smallest)]
    found = (_overlay(mine, theirs, spread, member, smallest) for member in begun)
    return _strongest([one for one in found if one is not None])


def _alike(standard: Array, smallest: int) -> list[NDArray[np.bool_]]:
    """Images most alike to one of them, by the cosine of their standard edges (n, D): those who stand out the most."""
    length = np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-12)
    cosine = (standard / length) @ (standard / length).T
    found = []
    for k, row in enumerate(cosine):
        split = cut(np.delete(row, k), max(smallest, round(_SHARE * len(row))))
        if split is not None:
            member = row >= split[0]
            found.append((_strength(split[3], member), member))
    return [member for _, member in sorted(found, key=lambda one: -one[0])[:_STARTS]]


def _overlay(mine: Array, theirs: Array, spread: Array, member: NDArray[np.bool_], smallest: int) -> Line | None:
    """What sets the edges of some images apart, found again from the images that have it; None if nothing does."""
    found: Line | None = None
    for _ in range(_ROUNDS + 1):
        own, rest = mine[member], np.concatenate([theirs, mine[~member]])
        apart = own.mean(0) - rest.mean(0)
        error = np.sqrt(own.var(0) / len(own) + rest.var(0) / len(rest) + 1e-8)
        weights = np.where(np.abs(apart) > _STANDS_OUT * error, apart / spread, 0)
        again = line(weights, mine @ weights, smallest) if weights.any() else None
        if again is None:
            break
        found, member = again, mine @ again.centre - again.offset >= again.least
    return found


def find_tones(tones: NDArray[np.float32], smallest: int, seed: int) -> list[Line]:
    """Images of one cast: means, deviations and ends of the channels that fall into groups of one shape.

    They are the components of a normal mixture with one covariance, which tells a shift from what tones do anyway.

    Args:
        tones: of images of the class (n, T).
        smallest: images that a group holds at least.
        seed: of the mixtures.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mean, deviation = tones.mean(0, dtype=np.float64), np.maximum(tones.std(0, dtype=np.float64), 1e-6)
    standard = (tones - mean) / deviation
    if len(tones) < max(4 * smallest, 2 * tones.shape[1]):
        return []
    found = []
    for count in (2, 3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture = GaussianMixture(count, covariance_type="tied", n_init=6, reg_covar=1e-2, random_state=seed)
            mixture.fit(standard)
        inverse = np.linalg.inv(mixture.covariances_)
        for k in range(count):
            weight = np.delete(mixture.weights_, k)
            rest = np.average(np.delete(mixture.means_, k, 0), axis=0, weights=np.maximum(weight, 1e-12))
            direction = inverse @ (mixture.means_[k] - rest)
            one = line(direction / deviation, standard @ direction, smallest)
            if one is not None:
                found.append(replace(one, offset=one.offset + float(mean @ one.centre)))
    return _strongest(found)


def cells_of_pattern(small: Small, centre: Array, offset: float, least: float, area: float) -> NDArray[np.bool_]:
    """Cells (N, R / 2, R / 2) of reduced images that hold a pattern: those under patches that answer strongly.

    A patch counts if its answer is above the middle of `least` and the strongest of its image; the strongest always
    does, and so do the cells under it.

    Args:
        small: reduced images (N, C, R, R).
        centre: of the pattern.
        offset: likewise.
        least: answer from which an image has the pattern.
        area: share of the cells at most, the strongest first.
    """
    n, rows, columns = len(small), small.shape[2], small.shape[3]
    found = torch.from_numpy(answers(small, centre) - offset).view(n, 1, rows - PATCH + 1, columns - PATCH + 1)
    # a cell of two by two is under the patches that begin from four before to one after its own beginning
    padded = F.pad(found, [PATCH - 1] * 4, value=-torch.inf)
    level = F.max_pool2d(padded, PATCH + 1, stride=2)[:, 0]
    flat = level.flatten(1)
    most = max(1, int(area * flat.shape[1]))
    order = flat.argsort(dim=1, descending=True, stable=True)[:, :most]
    best = flat.amax(1, keepdim=True)
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True) & (flat >= (least + best) / 2)
    chosen |= flat >= best
    return np.asarray(chosen.view(level.shape).numpy(), np.bool_)


def place_of_overlay(members: Small, rest: Small) -> Array:
    """Where two means of reduced images (n, C, R, R) differ: a map (R / 2, R / 2) that sums to one."""
    apart = members.mean(0, dtype=np.float64) - rest.mean(0, dtype=np.float64)
    error = members.var(0, dtype=np.float64) / len(members) + rest.var(0, dtype=np.float64) / len(rest) + 1e-6
    level = (apart**2 / error).sum(0)
    rows, columns = level.shape
    level = level.reshape(rows // 2, 2, columns // 2, 2).mean((1, 3))
    return np.asarray(level / level.sum(), np.float64)


def _unit(rows: Small) -> Small:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-12), np.float32)
