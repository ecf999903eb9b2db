"""Findings of one network asked of another: does it rely on the same evidence in the same images?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from xattn.audit.auditing import audit
from xattn.audit.effect import Effect, Probe, effect_of, moves
from xattn.audit.finding import Audit, Finding
from xattn.audit.gather import outputs_of
from xattn.audit.group import Group, Member
from xattn.audit.settings import AuditSettings
from xattn.data.dataset import Dataset
from xattn.data.preprocessing import Placement, place
from xattn.errors import DataError, UnknownNameError
from xattn.functional.statistics import holm
from xattn.spec import ModelSpec

_NEAR = 0.02  # of a side, by which two views may differ as one, for sizes are whole pixels


@dataclass(frozen=True)
class Shared:
    """What another network does with the evidence of a finding.

    Args:
        id: of the finding.
        effect: of the same replacement on the same images, corrected over the findings that were asked.
        text: the same in a sentence.
    """

    id: str
    effect: Effect
    text: str


def ask_other(
    findings: Sequence[Finding],
    model: nn.Module,
    dataset: Dataset,
    *,
    spec: ModelSpec,
    settings: AuditSettings,
    own: ModelSpec | None = None,
) -> tuple[Shared, ...]:
    """Replace the evidence of findings in front of another network, in the images that tested them, by the same.

    A finding of a class that the other network does not have is left out.

    Args:
        findings: those that move the score of the network that they were found with.
        model: the other network.
        dataset: what was audited.
        spec: facts about the other network; classes are found by their names, or by their numbers if it has none.
        settings: those of the audit.
        own: facts about the network that the findings are of; None if both see the same part of an image.
    """
    probe = Probe(model, dataset, spec, settings)
    effects: list[tuple[Finding, Effect]] = []
    outputs = outputs_of(model, dataset, spec) if findings else 0
    for finding in findings:
        group, tested = finding.group, {*finding.tested}
        goal = _goal(group, spec, outputs)
        members = [m for m in group.members if m.index in tested]
        if own is not None and group.kind != "tone":
            members = [m for m in (seen_by(m, dataset, own, spec) for m in members) if m is not None]
        if goal is None or not members:
            continue
        others = probe.pictures(finding.others)[0]
        foreign = probe.pictures(finding.foreign)[0] if finding.foreign else others[:0]
        measured = probe.measure(group, members, others, foreign, goal)
        effects.append((finding, effect_of(measured, settings.seed)))
    adjusted = holm([effect.p for _, effect in effects]).tolist()
    found = []
    for (finding, effect), p in zip(effects, adjusted, strict=True):
        shared = replace(effect, adjusted=float(p))
        shared = replace(shared, moves=moves(shared, settings.alpha))
        found.append(Shared(finding.id, shared, _told(shared, spec.name)))
    return tuple(found)


def only_other(
    other: nn.Module,
    model: nn.Module,
    dataset: Dataset,
    *,
    spec: ModelSpec,
    own: ModelSpec,
    settings: AuditSettings,
    classes: Sequence[str] | None = None,
    **more: Any,
) -> tuple[tuple[Finding, Shared], ...]:
    """The findings of another network that the network which was audited is not shown to share.

    Args:
        other: the other network, which is audited here.
        model: the network that was audited before.
        dataset: the images.
        spec: facts about the other network.
        own: facts about the network that was audited.
        settings: those of its audit.
        classes: names of the classes that were audited; those that the other network does not have are left out.
        **more: what else `xattn.audit.audit` takes.

    Returns:
        Its findings that move its score, with what the network answers to each. None where it has too few images of
        every class.
    """
    if classes is not None and spec.classes:
        classes = [name for name in classes if name.strip().isdigit() or name in spec.classes]
    try:
        theirs = audit(other, dataset, spec=spec, settings=settings, classes=classes, **more)
    except DataError:
        return ()
    wanted = asked(theirs)
    answers = {s.id: s for s in ask_other(wanted, model, dataset, spec=own, settings=settings, own=spec)}
    return tuple((f, answers[f.id]) for f in wanted if f.id in answers and not answers[f.id].effect.moves)


def _goal(group: Group, spec: ModelSpec, outputs: int) -> int | None:
    """Number of the class of a group in another network; None where it has no such class."""
    if not spec.classes:
        return group.class_index if group.class_index < outputs else None
    if group.class_name in spec.classes:
        return spec.classes.index(group.class_name)
    if group.class_name.strip().isdigit():  # a name, and no number of a class
        return None
    try:
        return spec.class_index(group.class_name)
    except UnknownNameError:
        return None


def seen_by(member: Member, dataset: Dataset, own: ModelSpec, other: ModelSpec) -> Member | None:
    """A member with its cells where another network sees them; None if it sees none of them, or the image is gone.

    Args:
        member: its cells lie in what the network sees that they were found with.
        dataset: where the image is.
        own: facts about that network.
        other: facts about the other one.
    """
    if (own.fit, own.crop, own.input_size) == (other.fit, other.crop, other.input_size):
        return member
    try:
        image = dataset[member.index].image
    except (DataError, OSError):
        return None
    size = (image.shape[1], image.shape[0])
    mine, theirs = place(size, own), place(size, other)
    if np.allclose(_window(mine), _window(theirs), atol=_NEAR):
        return member
    at = []
    for axis, count in ((1, member.cells.shape[0]), (0, member.cells.shape[1])):
        pixels = (np.arange(theirs.size[axis]) + 0.5 + theirs.offset[axis]) / theirs.full[axis]  # of the image's side
        at.append(np.floor((pixels * mine.full[axis] - mine.offset[axis]) / mine.size[axis] * count).astype(np.int64))
    inside = [(k >= 0) & (k < n) for k, n in zip(at, member.cells.shape, strict=True)]
    rows, columns = (k.clip(0, n - 1) for k, n in zip(at, member.cells.shape, strict=True))
    cells = member.cells[np.ix_(rows, columns)] & inside[0][:, None] & inside[1][None, :]
    return replace(member, cells=cells, size=(theirs.size[1], theirs.size[0])) if cells.any() else None


def _window(placed: Placement) -> list[float]:
    """The part of an image that is seen: left, top, right and bottom in shares of its sides."""
    ends = [(o / f, (o + s) / f) for o, s, f in zip(placed.offset, placed.size, placed.full, strict=True)]
    return [ends[0][0], ends[1][0], ends[0][1], ends[1][1]]


def asked(result: Audit) -> tuple[Finding, ...]:
    """The findings worth asking another network about."""
    return tuple(f for f in result.findings if f.effect.moves)


def _told(effect: Effect, name: str) -> str:
    what = "relies on it too" if effect.moves else "is not shown to rely on it"
    drawn = (
        ""
        if math.isnan(effect.draw)
        else f", images of other classes {effect.draw:.2f} ({effect.draw_low:.2f} to {effect.draw_high:.2f})"
    )
    return (
        f"{name or 'The other network'} {what}: without it its score falls by {effect.fall:.2f}, by "
        f"{effect.elsewhere:.2f} elsewhere (difference {effect.difference:.2f}, 95 % interval {effect.low:.2f} to "
        f"{effect.high:.2f}), and images that are given it gain {effect.gain:.2f} (95 % interval "
        f"{effect.gain_low:.2f} to {effect.gain_high:.2f}){drawn}, on {effect.n} images."
    )
