"""What an audit found: tested groups in order of harm, each with a sentence, how sure it is and what to do next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xattn.audit.effect import Effect
from xattn.audit.group import Group
from xattn.audit.sign import APART, CARRIES, NEEDED, OFF, PLACE, SIGNS, SOURCES, Sign
from xattn.labels import first_name

_PLACES = (("top left", "top", "top right"), ("left", "centre", "right"), ("bottom left", "bottom", "bottom right"))


@dataclass(frozen=True, eq=False)
class Finding:
    """A tested group.

    Args:
        rank: 1 is first: shortcut candidates, then by harm.
        group: the evidence.
        effect: what the score does without it.
        signs: what speaks for a shortcut and what does not.
        candidate: whether it is a shortcut candidate.
        harm: see `harm_of`.
        tests: over how many groups was corrected.
        alpha: of the tests.
        tested: places in the data set of the images that it was tested on.
        others: places of those without it, whose mean stood in for it.
        foreign: places of images of other classes, into which it was put.
    """

    rank: int
    group: Group
    effect: Effect
    signs: tuple[Sign, ...]
    candidate: bool
    harm: float
    tests: int
    alpha: float
    tested: tuple[int, ...]
    others: tuple[int, ...]
    foreign: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """Names it within the audit."""
        return self.group.key

    def sign(self, name: str) -> Sign | None:
        """The sign of that name."""
        return next((sign for sign in self.signs if sign.name == name), None)

    @property
    def background(self) -> bool:
        """Whether it moves the score and lies beside the object, as far as masks or boxes tell."""
        sign = self.sign(OFF)
        return self.effect.moves and sign is not None and sign.speaks

    @property
    def level(self) -> str:
        """What kind of finding it is, in a word or two."""
        if self.candidate:
            return "shortcut candidate"
        return "beside the object" if self.background else "evidence" if self.effect.moves else "not shown"

    @property
    def why(self) -> str:
        """What speaks for a shortcut, or for the background, in words; empty where nothing does."""
        return "; ".join(SIGNS[s.name] for s in self.signs if s.speaks and s.name not in (CARRIES, NEEDED))

    @property
    def where(self) -> str:
        """The place in words, where there is one; else empty."""
        sign = self.sign(PLACE)
        if self.group.kind not in ("place", "overlay") and not (sign and sign.speaks):
            return ""
        return place_in_words(self.group.place)

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        group, effect = self.group, self.effect
        what = {
            "parts": "the same evidence",
            "place": "evidence at one place",
            "pattern": "a small picture that repeats",
            "overlay": "a picture laid over them at one place",
            "tone": "a cast of colour or contrast",
        }[group.kind]
        where = f" ({self.where})" if self.where else ""
        share = f"{100 * group.share_of_images:.0f} % of the images taken for {first_name(group.class_name)}"
        if not effect.moves:
            return f"{share} share {what}{where}; that the score goes with it is not shown."
        drawn = "" if math.isnan(effect.draw) else f", of other classes {effect.draw:.2f}"
        return (
            f"{share} share {what}{where}: without it the score falls by {effect.fall:.2f}, by {effect.elsewhere:.2f} "
            f"{self.control}; images of the class that are given it gain {effect.gain:.2f}{drawn}, and "
            f"{100 * effect.flips:.0f} % of the predictions change without it ({100 * effect.flips_elsewhere:.0f} % "
            "elsewhere)."
        )

    @property
    def control(self) -> str:
        """What the fall is compared with, in words."""
        return (
            "under as large another change of colours" if self.group.kind == "tone" else "where as much elsewhere goes"
        )

    @property
    def sure(self) -> str:
        """How sure that is."""
        e = self.effect
        if e.n == 0:
            return "No image is left to test it on."
        word = "Significant" if e.moves else "Not significant"
        drawn = "" if math.isnan(e.draw) else f", in other classes {e.draw:.2f} ({e.draw_low:.2f} to {e.draw_high:.2f})"
        return (
            f"{word} with {e.n} images that did not find the group: difference {e.difference:.2f} (95 % interval "
            f"{e.low:.2f} to {e.high:.2f}), gain {e.gain:.2f} ({e.gain_low:.2f} to {e.gain_high:.2f}){drawn}, "
            f"p {_p(e.adjusted)} after Holm's correction over {self.tests} groups."
        )

    @property
    def next(self) -> str:
        """What to do next."""
        if not self.effect.moves:
            return "Nothing, or audit more images of the class: what is not shown on few may still be there."
        spoken = {sign.name for sign in self.signs if sign.speaks}
        if not self.candidate and self.background:
            return "Look at the images: if the surroundings are not what makes the class, vary them in training."
        if not self.candidate:
            return "Look at the images once: if this is part of what makes the class, it is as it should be."
        if SOURCES in spoken:
            return "Compare how the sources were made; balance or remove what differs, train again, audit again."
        if self.group.kind == "tone":
            return "Compare how these images were taken; vary colours in training, then audit again with --against."
        return (
            "Look at the images: if this does not make the class, cover or vary it in training and audit again with "
            "--against."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        g = self.group
        return {
            "rank": self.rank, "id": self.id, "level": self.level, "candidate": self.candidate, "harm": self.harm,
            "why": self.why,
            "class": g.class_name, "class_index": g.class_index, "kind": g.kind, "where": self.where,
            "images": g.images, "members": len(g.members), "share_of_images": g.share_of_images,
            "share_of_score": g.share_of_score, "place": np.round(g.place, 6).tolist(),
            "sentence": self.sentence, "sure": self.sure, "next": self.next,
            "effect": {name: getattr(self.effect, name) for name in self.effect.__dataclass_fields__},
            "signs": [{name: getattr(s, name) for name in s.__dataclass_fields__} for s in self.signs],
            "member_images": [
                {
                    "image": m.image, "index": m.index, "half": m.half, "share": m.share, "similarity": m.similarity,
                    "right": m.right, "source": m.source, "box": m.box,
                }
                for m in g.members
            ],
        }  # fmt: skip


def place_in_words(place: Any) -> str:
    """Where the middle of a map (h, w) lies, in thirds of the frame.

    >>> place_in_words(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    'bottom right'
    """
    h, w = place.shape
    total = place.sum()
    y = float((place.sum(1) * (np.arange(h) + 0.5)).sum() / total / h)
    x = float((place.sum(0) * (np.arange(w) + 0.5)).sum() / total / w)
    return _PLACES[min(2, int(3 * y))][min(2, int(3 * x))]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def is_candidate(effect: Effect, signs: Sequence[Sign], harm: float) -> bool:
    """Whether a tested group is a shortcut candidate.

    It moves the score, some prediction changes with it, and it is set apart from the rest of the class, always at one
    place, or of one source. Evidence beside the object alone makes none: it is told, but water behind a ship may be how
    the class is known.
    """
    return effect.moves and harm > 0 and bool({sign.name for sign in signs if sign.speaks} & {APART, PLACE, SOURCES})


def harm_of(group: Group, signs: Sequence[Sign]) -> float:
    """Share of the images of the class that have the evidence, times the larger of two shares of predictions.

    One is of those that change without it, more than elsewhere; the other is of the images of other classes that it
    takes along, more than what is elsewhere does.
    """
    values = [sign.value for sign in signs if sign.name in (CARRIES, NEEDED) and math.isfinite(sign.value)]
    return group.share_of_images * max([0.0, *values])


@dataclass(frozen=True, eq=False)
class Audit:
    """All findings of an audit.

    Args:
        findings: shortcut candidates first, then by harm.
        provenance: what was audited, and how.
    """

    findings: tuple[Finding, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Any:
        return iter(self.findings)

    @property
    def candidates(self) -> tuple[Finding, ...]:
        """The shortcut candidates."""
        return tuple(f for f in self.findings if f.candidate)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"provenance": dict(self.provenance), "findings": [f.to_json() for f in self.findings]}

    def frame(self) -> Any:
        """A row a finding, as a data frame of pandas for notebooks."""
        import pyarrow as pa

        rows = []
        for f in self.findings:
            row = {
                "rank": f.rank, "id": f.id, "class": f.group.class_name, "kind": f.group.kind, "level": f.level,
                "candidate": f.candidate, "harm": f.harm, "images": len(f.group.members),
                "share_of_images": f.group.share_of_images, "share_of_score": f.group.share_of_score,
                "n": f.effect.n, "difference": f.effect.difference, "gain": f.effect.gain, "draw": f.effect.draw,
                "low": f.effect.low, "high": f.effect.high, "p": f.effect.adjusted, "flips": f.effect.flips,
                "flips_elsewhere": f.effect.flips_elsewhere, "where": f.where,
            }  # fmt: skip
            rows.append({**row, **{s.name: s.value for s in f.signs}, "sentence": f.sentence})
        return pa.Table.from_pylist(rows).to_pandas(use_threads=False)


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """Candidates first, then what lies beside the object, then what else moves the score; each by harm."""
    return sorted(
        findings,
        key=lambda f: (
            not f.candidate,
            not f.background,
            not f.effect.moves,
            -f.harm if math.isfinite(f.harm) else math.inf,
            f.id,
        ),
    )
