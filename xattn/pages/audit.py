"""The page of an audit: findings as cards in order of harm, with the images that show them, everything in one file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn.audit.finding import Audit, Finding
from xattn.audit.group import KINDS, Member
from xattn.data.dataset import Dataset
from xattn.data.preprocessing import view_of
from xattn.errors import DataError, printable
from xattn.labels import first_name
from xattn.pages.html import picture_uri, write
from xattn.schema import finite
from xattn.spec import ModelSpec

PICTURES = 12
"""Images that are shown of a finding."""

_SHOWN = 40  # findings with pictures; what follows is told in a table
_SIDE = 160  # longer side of a picture
_LEVELS = {
    "shortcut candidate": "bad",
    "beside the object": "warn",
    "evidence": "accent",
    "not shown": "",
}


def audit_page(
    result: Audit,
    dataset: Dataset,
    spec: ModelSpec,
    path: str | Path,
    *,
    others: Sequence[dict[str, Any]] = (),
    only: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write the page of an audit.

    Args:
        result: the findings.
        dataset: what was audited, for the pictures.
        spec: of the network, for what it sees of an image.
        path: of the page.
        others: what another network does with a finding, `id` and `text`; empty without one.
        only: findings that only the other network has, `level`, `sentence` and `text`.

    Raises:
        DataError: if there is no finding, or the file cannot be written.
    """
    if not result.findings:
        raise DataError("audit: there is no group of evidence to show; audit more images.")
    facts = result.provenance
    told = [f for f in result.findings if f.effect.moves][:_SHOWN]
    rest = [f for f in result.findings if f not in told]
    cards = [_card(f, dataset, spec) for f in told]
    for card in cards:
        card["other"] = next((o for o in others if o["id"] == card["id"]), None)
    digest = hashlib.sha256(json.dumps(finite(result.to_json()), sort_keys=True).encode()).hexdigest()
    count = len(result.candidates)
    return write(
        path,
        "audit.html.j2",
        heading=f"What {facts['model']} relies on",
        facts=[
            f"{facts['images']:,} images", f"{len(facts['classes'])} classes", f"{facts['groups']} groups tested",
            f"labels {'compared ' if facts['labels'].startswith('by') else ''}{facts['labels'].split(':')[0]}",
        ],
        verdict=_verdict(count, sum(f.effect.moves for f in result.findings), facts["groups"]),
        cards=cards,
        rest=[_row(f) for f in rest],
        levels=[level for level in _LEVELS if any(c["level"] == level for c in cards)],
        classes=sorted({c["class"] for c in cards}),
        kinds=KINDS,
        only=[*only],
        notes=_notes(facts),
        data=finite({"provenance": dict(facts), "findings": [f.to_json() for f in told]}),
        digest=digest,
    )  # fmt: skip


def _verdict(candidates: int, moving: int, groups: int) -> str:
    """What somebody who has to decide reads first.

    >>> _verdict(0, 1, 12).partition("not found. ")[2]
    'One group moves the score; look at it once.'
    """
    if candidates:
        what = "1 shortcut candidate" if candidates == 1 else f"{candidates} shortcut candidates"
        return f"{what}: look at {'it' if candidates == 1 else 'them'} before the network is used."
    after = {0: "No group moves the score.", 1: "One group moves the score; look at it once."}
    return (
        f"No shortcut candidate among {groups} groups of evidence. That does not prove there is none: what few images "
        f"show is not found. {after.get(moving, f'{moving} groups move the score; look through them once.')}"
    )


def _notes(facts: Any) -> list[str]:
    """What stands at the end."""
    notes = [
        "Groups were found on one half of the images of each class and tested on the other. A score falls in place if "
        "the cells with the evidence are replaced, and elsewhere if as many cells at another place of the same image "
        "are. Given to others: the cells are put into images of the class without the evidence, against the same cells "
        f"of another image without it. P values are corrected by {facts['correction']}'s method over all "
        f"{facts['groups']} groups."
    ]
    left_out = facts["left_out"]
    if left_out:
        names = ", ".join(f"{name} ({n})" for name, n in list(left_out.items())[:12])
        more = f" and {len(left_out) - 12} more" if len(left_out) > 12 else ""
        notes.append(f"Not audited, for too few images or by choice: {names}{more}.")
    notes += [f"Not read: {printable(name)}: {reason}" for name, reason in list(facts["unreadable"].items())[:20]]
    return notes


def _card(finding: Finding, dataset: Dataset, spec: ModelSpec) -> dict[str, Any]:
    """What the page shows of a finding."""
    group, effect = finding.group, finding.effect
    most = max(effect.fall, effect.elsewhere, effect.high, 1e-9)
    return {
        "id": finding.id,
        "rank": finding.rank,
        "level": finding.level,
        "tone": _LEVELS[finding.level],
        "class": group.class_name,
        "short": first_name(group.class_name),
        "kind": group.kind,
        "sentence": finding.sentence,
        "why": finding.why,
        "sure": finding.sure,
        "next": finding.next,
        "harm": _percent(finding.harm),
        "members": len(group.members),
        "images": group.images,
        "share": _percent(group.share_of_images),
        "score": _percent(group.share_of_score),
        "bars": [
            {"name": "in place", "value": f"{effect.fall:.2f}", "width": _width(effect.fall, most), "main": True},
            {"name": "elsewhere", "value": f"{effect.elsewhere:.2f}", "width": _width(effect.elsewhere, most),
             "main": False},
        ],
        "gain": f"{effect.gain:+.2f}",
        "draw": "" if math.isnan(effect.draw) else f"{effect.draw:+.2f}",
        "flips": _percent(effect.flips),
        "flips_elsewhere": _percent(effect.flips_elsewhere),
        "signs": [{"name": s.name, "text": s.text, "speaks": s.speaks} for s in finding.signs if s.text],
        "place": _place(group.place),
        "pictures": [p for m in _shown(finding) if (p := _picture(m, dataset, spec)) is not None],
    }  # fmt: skip


def _shown(finding: Finding) -> list[Member]:
    """Members that are shown: of those that tested the group and those that found it, the most typical ones."""
    half = PICTURES // 2
    tested, found = finding.group.of_half("test"), finding.group.of_half("find")
    first = [*tested[:half], *found[: PICTURES - min(half, len(tested))]]
    return [*first, *tested[half : half + PICTURES - len(first)]]


def _picture(member: Member, dataset: Dataset, spec: ModelSpec) -> dict[str, Any] | None:
    """An image as the network sees it, with the outline of the evidence; None if it cannot be read any more."""
    try:
        pixels = dataset[member.index].image
    except (DataError, OSError):
        return None
    seen = view_of(Image.fromarray(pixels), spec).convert("RGB")
    seen.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    if max(seen.size) < _SIDE:
        factor = _SIDE / max(seen.size)
        seen = seen.resize((round(seen.width * factor), round(seen.height * factor)), Image.Resampling.NEAREST)
    return {
        "src": picture_uri(seen, quality=78),
        "w": seen.width,
        "h": seen.height,
        "name": printable(member.image),
        "right": {True: "right", False: "wrong", None: ""}[member.right],
        "half": member.half,
        "share": _percent(member.share),
        "outline": "" if member.cells.all() else outline(member.cells),
        "view": f"0 0 {member.cells.shape[1]} {member.cells.shape[0]}",
    }


def outline(cells: NDArray[np.bool_]) -> str:
    """The edge of cells as a path of SVG, one unit a cell.

    >>> outline(np.array([[True, False]]))
    'M0 0h1M0 1h1M0 0v1M1 0v1'
    """
    h, w = cells.shape
    wide = np.zeros((h + 2, w + 2), np.bool_)
    wide[1:-1, 1:-1] = cells
    lying = [(x, y) for y in range(h + 1) for x in range(w) if wide[y, x + 1] != wide[y + 1, x + 1]]
    standing = [(x, y) for y in range(h) for x in range(w + 1) if wide[y + 1, x] != wide[y + 1, x + 1]]
    return "".join([*(f"M{x} {y}h1" for x, y in lying), *(f"M{x} {y}v1" for x, y in standing)])


def _place(place: NDArray[np.float64]) -> dict[str, Any]:
    """The mean map of a group as squares of some opacity."""
    most = float(place.max()) or 1.0
    return {
        "view": f"0 0 {place.shape[1]} {place.shape[0]}",
        "cells": [
            {"x": x, "y": y, "o": round(float(place[y, x]) / most, 2)}
            for y in range(place.shape[0])
            for x in range(place.shape[1])
            if place[y, x] / most >= 0.02
        ],
    }


def _row(finding: Finding) -> dict[str, Any]:
    """A finding that is told in a line."""
    group, effect = finding.group, finding.effect
    return {
        "id": finding.id, "class": first_name(group.class_name), "kind": group.kind, "members": len(group.members),
        "n": effect.n, "difference": _number(effect.difference), "low": _number(effect.low),
        "high": _number(effect.high), "p": _number(effect.adjusted, 3), "level": finding.level,
    }  # fmt: skip


def _width(value: float, most: float) -> float:
    return round(100 * min(max(value / most, 0.0), 1.0), 1)


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else ""


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if math.isfinite(value) else ""
