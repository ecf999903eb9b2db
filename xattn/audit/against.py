"""Findings of one network asked of another: does it rely on the same evidence in the same images?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from xattn.audit.effect import Effect, Probe, effect_of
from xattn.audit.finding import Audit, Finding
from xattn.audit.settings import AuditSettings
from xattn.data.dataset import Dataset
from xattn.errors import UnknownNameError
from xattn.functional.statistics import holm
from xattn.spec import ModelSpec

_OTHERS = 64  # images without the evidence whose mean stands in for it


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
    findings: Sequence[Finding], model: nn.Module, dataset: Dataset, *, spec: ModelSpec, settings: AuditSettings
) -> tuple[Shared, ...]:
    """Replace the evidence of findings in front of another network, in the images that tested them.

    Args:
        findings: those that move the score of the network that they were found with.
        model: the other network.
        dataset: what was audited.
        spec: facts about the other network; classes are found by their names.
        settings: those of the audit.
    """
    probe = Probe(model, dataset, spec, settings)
    rng = np.random.default_rng(settings.seed)
    effects: list[tuple[Finding, Effect]] = []
    for finding in findings:
        group = finding.group
        members = group.of_half("test")[: settings.per_group]
        inside = {m.index for m in group.members}
        rest = np.array([i for i in range(len(dataset)) if i not in inside], np.int64)
        try:
            goal = spec.class_index(group.class_name) if spec.classes else group.class_index
        except UnknownNameError:
            continue
        if not members or not len(rest):
            continue
        others = probe.pictures(np.sort(rng.permutation(rest)[:_OTHERS]).tolist())[0]
        measured = probe.measure(replace(group, class_index=goal), members, others, others[:0])
        effects.append((finding, effect_of(measured, settings.seed)))
    adjusted = holm([effect.p for _, effect in effects]).tolist()
    found = []
    for (finding, effect), p in zip(effects, adjusted, strict=True):
        moves = bool(p < settings.alpha and effect.low > 0)
        own = replace(effect, adjusted=float(p), moves=moves)
        found.append(Shared(finding.id, own, _told(own, spec.name)))
    return tuple(found)


def asked(result: Audit) -> tuple[Finding, ...]:
    """The findings worth asking another network about."""
    return tuple(f for f in result.findings if f.effect.moves)


def _told(effect: Effect, name: str) -> str:
    what = "relies on it too" if effect.moves else "is not shown to rely on it"
    return (
        f"{name or 'The other network'} {what}: without it its score falls by {effect.fall:.2f}, by "
        f"{effect.elsewhere:.2f} elsewhere (difference {effect.difference:.2f}, 95 % interval {effect.low:.2f} to "
        f"{effect.high:.2f}, on {effect.n} images)."
    )
