"""What speaks for a shortcut: each sign is a number with its interval or its test, and whether it speaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from xattn.audit.effect import Array, Measured
from xattn.audit.evidence import Evidence
from xattn.audit.group import Prototype, sites_of
from xattn.audit.pattern import usual_gap
from xattn.benchmark.statistics import intervals

APART, OFF, PLACE, CARRIES, NEEDED, SOURCES, WRONG = (
    "set apart", "off the object", "same place", "carries", "needed", "sources", "wrong",
)  # fmt: skip
SIGNS = {
    APART: "the other images of the class have nothing like it",
    OFF: "it lies beside the object",
    PLACE: "it is always at the same place of the frame",
    CARRIES: "images of other classes are taken for this one once they have it",
    NEEDED: "predictions change without it",
    SOURCES: "one source of the data has it more often than another",
    WRONG: "right predictions have it more or less often than wrong ones",
}
"""The signs, and what each says where it speaks."""

_COSINE, _APART = 0.5, 0.1  # of parts; of the way from the middle of the rest to that of a group of pictures
_OFF = 0.5  # share of the evidence beside the object above which it counts as off it
_PLACE = 0.22  # overlap more than that of other evidence
_CARRIES = 0.25  # images of other classes more than the same area from elsewhere takes along
_NEEDED = 0.25  # predictions more than elsewhere
_DIFFERENT = 0.2  # share of the images more in one source than in the other ones
_RESAMPLES = 2000
_TENTH = 0.1


@dataclass(frozen=True)
class Sign:
    """One number that may speak for a shortcut.

    Args:
        name: which.
        value: the number; NaN where it is not defined.
        low: end of its 95 % interval; NaN where there is a test instead.
        high: the other end.
        p: of the test, after Holm's correction over the groups; NaN where there is an interval.
        n: images behind it.
        speaks: whether it does, at the end of the interval that is against it.
        text: the same in words.
    """

    name: str
    value: float
    low: float
    high: float
    p: float
    n: int
    speaks: bool
    text: str


def _mean(name: str, values: Array, limit: float, text: str, seed: int) -> Sign:
    """A sign that is a mean over images."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Sign(name, np.nan, np.nan, np.nan, np.nan, 0, False, "")
    spread = intervals(values, resamples=_RESAMPLES, seed=seed)
    value, low, high = (float(v[0]) for v in (spread.mean, spread.low, spread.high))
    return Sign(name, value, low, high, np.nan, len(values), low > limit, text.format(f"{100 * value:.0f} %"))


def set_apart(
    evidence: Evidence, prototype: Prototype, finding: NDArray[np.bool_], seed: int, resamples: int = 500
) -> Sign:
    """How far the most alike of the other images are from the evidence, on the testing half.

    What makes a class comes in all degrees, so that images which just belong to a group and images which just do not
    are nearly alike. A mark is there or not. The value is the similarity that nine in ten members have less the one
    that one in ten other images of the class has, of pictures less what that is in a single normal distribution of
    which the same share belongs to the group; its interval is that of a bootstrap over both.

    Args:
        evidence: of the class.
        prototype: of the group.
        finding: which images found the groups, bool (N,).
        seed: of the resamples.
        resamples: of the interval.
    """
    similarity, _ = prototype.similarity(evidence)
    here = ~finding & np.isfinite(similarity)
    members, others = (similarity[here & m] for m in (similarity >= prototype.least, similarity < prototype.least))
    if prototype.kind == "place" or len(members) < 2 or len(others) < 2:
        return Sign(APART, np.nan, np.nan, np.nan, np.nan, 0, False, "")
    parts = prototype.kind == "parts"
    usual = 0.0 if parts else usual_gap(len(members) / (len(members) + len(others)))
    rng = np.random.default_rng(seed)
    gaps = [_gap(rng.choice(members, len(members)), rng.choice(others, len(others))) for _ in range(resamples)]
    value, (low, high) = _gap(members, others) - usual, np.quantile(gaps, (0.025, 0.975)) - usual
    ends = np.quantile(members, _TENTH), np.quantile(others, 1 - _TENTH)
    text = f"nine in ten of its images are alike by {ends[0]:.2f} and more, of the others by {ends[1]:.2f} at most"
    speaks = bool(low > (_COSINE if parts else _APART))
    return Sign(APART, value, float(low), float(high), np.nan, len(members), speaks, text)


def _gap(members: Array, others: Array) -> float:
    return float(np.quantile(members, _TENTH) - np.quantile(others, 1 - _TENTH))


def off_object(evidence: Evidence, prototype: Prototype, chosen: NDArray[np.int64], seed: int) -> Sign:
    """How much of the evidence lies beside the object, where masks or boxes tell.

    Args:
        evidence: of the class.
        prototype: of the group.
        chosen: places of the members.
        seed: of the interval.
    """
    _, part = prototype.similarity(evidence)
    if prototype.kind == "parts":
        inside = evidence.inside[chosen, part[chosen]].astype(np.float64)
    elif prototype.kind == "place":
        shares = evidence.shares[chosen].astype(np.float64)
        held = np.where(np.isnan(evidence.inside[chosen]), 0, evidence.inside[chosen]) * shares
        known = ~np.isnan(evidence.inside[chosen]).all(1)
        inside = np.where(known, held.sum(1) / np.maximum(shares.sum(1), 1e-12), np.nan)
    else:
        inside = np.full(len(chosen), np.nan)
    return _mean(OFF, 1 - inside, _OFF, "{} of it lies off the object", seed)


def same_place(
    evidence: Evidence, prototype: Prototype, chosen: NDArray[np.int64], finding: NDArray[np.bool_], seed: int
) -> Sign:
    """How much more the evidence lies where it lay on the finding half than other evidence of the class does.

    Overlap is the sum over cells of the smaller of two maps that sum to one. Groups that were found by their place have
    none of this: there it would be found again by construction.

    Args:
        evidence: of the class.
        prototype: of the group.
        chosen: places of the members.
        finding: which images found the groups, bool (N,).
        seed: of the interval.
    """
    if prototype.kind != "parts":
        return Sign(PLACE, np.nan, np.nan, np.nan, np.nan, 0, False, "")
    _, part = prototype.similarity(evidence)
    member = np.zeros(len(evidence), np.bool_)
    member[chosen] = True
    own = np.zeros(evidence.shares.shape, np.bool_)
    own[chosen, part[chosen]] = True
    found = evidence.maps[own & finding[:, None]].astype(np.float64)
    tested = evidence.maps[own & ~finding[:, None]].astype(np.float64)
    rest = evidence.maps[sites_of(evidence) & ~own & ~finding[:, None]].astype(np.float64)
    if not len(found) or not len(tested) or not len(rest):
        return Sign(PLACE, np.nan, np.nan, np.nan, np.nan, 0, False, "")
    place = found.mean(0)
    usual = float(np.minimum(rest, place).sum((1, 2)).mean())
    return _mean(
        PLACE, np.minimum(tested, place).sum((1, 2)) - usual, _PLACE,
        "it is at its usual place {} more than other evidence is", seed,
    )  # fmt: skip


def carries(measured: Measured, seed: int) -> Sign:
    """How many images of other classes are taken for the class once the evidence is in them, more than elsewhere."""
    return _mean(
        CARRIES, measured.carried - measured.carried_elsewhere, _CARRIES,
        "put into images of other classes it takes {} of them along", seed,
    )  # fmt: skip


def needed(measured: Measured, seed: int) -> Sign:
    """How many predictions change without the evidence, more than elsewhere."""
    return _mean(
        NEEDED, measured.flips - measured.flips_elsewhere, _NEEDED, "{} of the predictions hang on it alone", seed
    )


def apart(name: str, member: NDArray[np.bool_], where: Sequence[str], text: str) -> Sign:
    """How much more often images of one source have the evidence than those of the other ones (Fisher's exact test).

    Args:
        name: of the sign.
        member: which images have the evidence, bool (N,).
        where: the source of each, empty where it is not known.
        text: with the source, its share and that of the others.
    """
    labels = np.array(where, dtype=object)
    known = labels != ""
    best = Sign(name, np.nan, np.nan, np.nan, np.nan, int(known.sum()), False, "")
    names = sorted(set(labels[known].tolist()))
    if len(names) < 2:
        return best
    for source in names if len(names) > 2 else names[:1]:
        here, other = known & (labels == source), known & (labels != source)
        table = [[int(member[s].sum()), int((~member[s]).sum())] for s in (here, other)]
        shares = [row[0] / max(sum(row), 1) for row in table]
        p = min(1.0, float(stats.fisher_exact(table)[1]) * (len(names) if len(names) > 2 else 1))
        if np.isnan(best.p) or p < best.p:
            first, second = (source, "the others") if len(names) > 2 else (names[0], names[1])
            if shares[0] < shares[1] and len(names) == 2:
                first, second, shares = second, first, shares[::-1]
            words = text.format(first, f"{100 * shares[0]:.0f} %", second, f"{100 * shares[1]:.0f} %")
            best = Sign(name, shares[0] - shares[1], np.nan, np.nan, p, int(known.sum()), False, words)
    return best


def decided(sign: Sign, adjusted: float, alpha: float) -> Sign:
    """A sign with a test, once its p value was corrected over the groups."""
    speaks = sign.name == SOURCES and adjusted < alpha and abs(sign.value) > _DIFFERENT
    return Sign(sign.name, sign.value, sign.low, sign.high, adjusted, sign.n, bool(speaks), sign.text)
