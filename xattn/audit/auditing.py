"""`audit()`: from a network and a data set to findings."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xattn import __version__
from xattn.audit.effect import Effect, Measured, Pictures, Probe, effect_of, moves
from xattn.audit.evidence import Evidence, EvidenceStore, Overview
from xattn.audit.finding import Audit, Finding, harm_of, is_candidate, ranked
from xattn.audit.gather import Progress, evidence_key, gather, labels_for, outputs_of
from xattn.audit.group import Group, Prototype, distinct, find_prototypes, halves, members_of
from xattn.audit.settings import AuditSettings
from xattn.audit.sign import SOURCES, WRONG, Sign, apart, carries, decided, needed, off_object, same_place, set_apart
from xattn.data.dataset import Dataset
from xattn.errors import DataError, ShapeError, SpecError
from xattn.functional.statistics import holm
from xattn.models.checkpoint import digest_of
from xattn.running import unwrap
from xattn.spec import ModelSpec

LEAST = 4
"""A class is audited from so many times the smallest group: two halves, each twice as large as a group."""

_OTHERS = 64  # images without the evidence whose mean stands in for it
_FEW = 8  # below which images of other classes help out
_FOREIGN = 64  # images of other classes into which evidence is put
_REDUCED = 1024  # reduced images, of which those of other classes tell what a class has for itself
_AT_ONCE = 2**27  # bytes of evidence that are read at a time


@dataclasses.dataclass(frozen=True, eq=False)
class _Tested:
    """A group with what was measured of it."""

    group: Group
    effect: Effect
    signs: tuple[Sign, ...]
    tested: tuple[int, ...]
    others: tuple[int, ...]
    foreign: tuple[int, ...]


def audit(
    model: nn.Module,
    dataset: Dataset,
    *,
    spec: ModelSpec | None = None,
    classes: Sequence[str | int] | None = None,
    settings: AuditSettings | None = None,
    folder: str | Path | None = None,
    sources: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Find what a network relies on over a whole data set, and test it.

    Images are grouped by the class that is predicted. Groups of evidence are found on one half of the images of a class
    and tested on the other.

    Args:
        model: any network with a feature map and a class score.
        dataset: the images; labels, masks and boxes count where it has them.
        spec: facts about the model; None takes `model.spec`.
        classes: names or numbers of the classes that are audited; None: all with enough images.
        settings: what is asked for.
        folder: where the evidence is kept; a second call resumes there. None: nowhere.
        sources: where each image is from, such as `"train"` and `"test"`; an empty text is not known.
        progress: called with how much is done, of how much, and what is being done.

    Raises:
        SpecError: if the feature layer of the model is not known.
        ShapeError: if `sources` are not one for each image.
        DataError: if no class has enough images.
    """
    model = unwrap(model)
    settings = AuditSettings() if settings is None else settings
    facts = facts_of(model, spec)
    check_sources(sources, dataset)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else Path(folder)
        digest = digest_of(model)
        store = EvidenceStore(place, evidence_key(digest, dataset, facts, settings, sources))
        labels, how = labels_for(dataset, facts, outputs_of(model, dataset, facts))
        gather(model, dataset, facts, store, settings, labels=labels, sources=sources, progress=progress)
        overview = store.overview()
        chosen = _chosen(overview, facts, classes, settings)
        probe = Probe(model, dataset, facts, settings)
        drawn = np.sort(np.random.default_rng(settings.seed).permutation(len(overview.index))[:_REDUCED])
        small, targets = store.reduced(overview.index[drawn]), overview.target[drawn]
        tested: list[_Tested] = []
        for k, evidence in enumerate(_by_class(store, chosen, overview)):
            if progress is not None:
                progress(k, len(chosen), "testing groups")
            others = small[targets != chosen[k]]
            tested += list(_audit_class(probe, evidence, overview, others, settings))
        if progress is not None:
            progress(len(chosen), len(chosen), "testing groups")
    provenance = {
        "xattn": __version__,
        "model": facts.name or type(model).__name__,
        "weights": digest,
        "data": repr(dataset),
        "images": len(overview.image),
        "unreadable": overview.failed,
        "labels": how,
        "classes": [facts.class_name(k) for k in chosen],
        "left_out": _left_out(overview, facts, chosen),
        "settings": dataclasses.asdict(settings),
        "groups": len(tested),
        "correction": "Holm",
        "device": str(probe.device),
    }
    return Audit(tuple(_findings(tested, settings)), provenance)


def facts_of(model: nn.Module, spec: ModelSpec | None) -> ModelSpec:
    """The facts that an audit needs: those that are given, or the model's own.

    Raises:
        SpecError: if the feature layer is not known.
    """
    facts = getattr(model, "spec", None) if spec is None else spec
    if not isinstance(facts, ModelSpec) or not facts.feature_layer:
        raise SpecError("audit: the network's feature layer is not known; pass spec=xattn.infer_spec(model).")
    return facts


def check_sources(sources: Sequence[str] | None, dataset: Dataset) -> None:
    """Refuse sources that are not one for each image.

    Raises:
        ShapeError: if they are not.
    """
    if sources is not None and len(sources) != len(dataset):
        raise ShapeError(f"audit: {len(sources)} sources do not fit {len(dataset)} images; pass one for each.")


def _chosen(
    overview: Overview, spec: ModelSpec, classes: Sequence[str | int] | None, settings: AuditSettings
) -> list[int]:
    """Numbers of the classes that are audited."""
    numbers, counts = np.unique(overview.target, return_counts=True)
    enough = [int(k) for k, n in zip(numbers, counts, strict=True) if n >= LEAST * settings.smallest]
    if classes is not None:
        wanted = dict.fromkeys(k if isinstance(k, int) else spec.class_index(k) for k in classes)
        enough = [k for k in wanted if k in enough]
    if not enough:
        raise DataError(
            f"audit: no class is predicted in {LEAST * settings.smallest} images or more; pass more images, or a "
            "smaller group (AuditSettings.smallest, --smallest)."
        )
    return enough


def _left_out(overview: Overview, spec: ModelSpec, chosen: Sequence[int]) -> dict[str, int]:
    """Classes that were not audited, with the number of their images."""
    numbers, counts = np.unique(overview.target, return_counts=True)
    return {
        spec.class_name(int(k)): int(n) for k, n in zip(numbers, counts, strict=True) if int(k) not in chosen and k >= 0
    }


def _by_class(store: EvidenceStore, chosen: Sequence[int], overview: Overview) -> Iterator[Evidence]:
    """The evidence of each class, read for as many classes at a time as memory allows."""
    layout = store.layout
    assert layout is not None  # noqa: S101 (an image was read)
    width = 4 * sum(layout.width(name) for name in ("vectors", "maps", "whole"))
    batch: list[int] = []
    for place, k in enumerate(chosen):
        batch.append(k)
        count = int(np.isin(overview.target, batch).sum())
        if count * width >= _AT_ONCE or place == len(chosen) - 1:
            whole = store.read(batch)
            for one in batch:
                yield picked(whole, np.flatnonzero(whole.target == one))
            batch = []


def picked(evidence: Evidence, rows: NDArray[np.int64]) -> Evidence:
    """Some of the images."""
    values: dict[str, Any] = {}
    for f in dataclasses.fields(evidence):
        value = getattr(evidence, f.name)
        if f.name == "layout":
            values[f.name] = value
        else:
            values[f.name] = tuple(value[i] for i in rows) if isinstance(value, tuple) else value[rows]
    return Evidence(**values)


def _audit_class(
    probe: Probe, evidence: Evidence, overview: Overview, elsewhere: NDArray[np.float32], settings: AuditSettings
) -> Iterator[_Tested]:
    """Find the groups of a class and test them; `elsewhere` are reduced images of other classes."""
    finding = halves(evidence.image, settings.find, settings.seed)
    half = picked(evidence, np.flatnonzero(finding))
    prototypes = distinct(find_prototypes(half, settings, elsewhere), half, settings)
    if not prototypes:
        return
    goal = int(evidence.target[0])
    name = probe.spec.class_name(goal)
    rng = np.random.default_rng([settings.seed, goal])
    foreign = of_other_classes(probe, overview, goal, rng)
    counts: dict[str, int] = {}
    for prototype in prototypes:
        group = members_of(prototype, evidence, finding, settings)
        counts[group.kind] = counts.get(group.kind, 0) + 1
        group = dataclasses.replace(group, class_name=name, key=f"c{goal}-{group.kind}-{counts[group.kind]}")
        members = group.of_half("test")
        if not members:
            continue
        order = rng.permutation(len(members))[: settings.per_group]
        tested = [members[i] for i in sorted(order.tolist())]
        others, places = lacking(probe, group, evidence, foreign, rng)
        measured = probe.measure(group, tested, others, foreign[0])
        effect = effect_of(measured, settings.seed)
        group = dataclasses.replace(group, share_of_score=effect.share_of_score)
        signs = _signs(group, prototype, evidence, finding, measured, settings.seed)
        yield _Tested(group, effect, signs, tuple(m.index for m in tested), tuple(places), tuple(foreign[1]))


def of_other_classes(probe: Probe, overview: Overview, goal: int, rng: np.random.Generator) -> Pictures:
    """Some images (M, C, H, W) in which another class is predicted, with their places; empty where there is none."""
    drawn = rng.permutation(overview.index[overview.target != goal])[:_FOREIGN]
    return probe.pictures(drawn.tolist()) if len(drawn) else (torch.zeros(0), [])


def lacking(probe: Probe, group: Group, evidence: Evidence, foreign: Pictures, rng: np.random.Generator) -> Pictures:
    """Images (M, C, H, W) of the class without the evidence; where they are few, images of other classes with them."""
    inside = {m.index for m in group.members}
    rest = np.array([i for i in evidence.index.tolist() if i not in inside], np.int64)
    drawn = np.sort(rng.permutation(rest)[:_OTHERS]).tolist()
    own: Pictures = probe.pictures(drawn) if drawn else (foreign[0][:0], [])
    if len(own[1]) >= _FEW or not foreign[1]:
        return own if own[1] else probe.pictures([m.index for m in group.members[:_OTHERS]])
    return (torch.cat([own[0], foreign[0]]), own[1] + foreign[1]) if own[1] else foreign


def _signs(
    group: Group,
    prototype: Prototype,
    evidence: Evidence,
    finding: NDArray[np.bool_],
    measured: Measured,
    seed: int,
) -> tuple[Sign, ...]:
    place = {int(i): k for k, i in enumerate(evidence.index)}
    chosen = np.array([place[m.index] for m in group.members], np.int64)
    member = np.zeros(len(evidence), np.bool_)
    member[chosen] = True
    right = ["" if np.isnan(r) else "right predictions" if r else "wrong predictions" for r in evidence.right]
    text = "{1} of {0} have it, {3} of {2}"
    return (
        set_apart(evidence, prototype, finding, seed),
        off_object(evidence, prototype, chosen, seed),
        same_place(evidence, prototype, chosen, finding, seed),
        carries(measured, seed),
        needed(measured, seed),
        apart(SOURCES, member, evidence.source, text),
        apart(WRONG, member, right, text),
    )


def _findings(tested: Sequence[_Tested], settings: AuditSettings) -> list[Finding]:
    """Correct over all groups, decide and rank."""
    adjusted = holm([t.effect.p for t in tested])
    by_sign = {name: holm([s.p for t in tested for s in t.signs if s.name == name]) for name in (SOURCES, WRONG)}
    found = []
    for i, t in enumerate(tested):
        effect = dataclasses.replace(t.effect, adjusted=float(adjusted[i]))
        effect = dataclasses.replace(effect, moves=moves(effect, settings.alpha))
        signs = tuple(
            decided(s, float(by_sign[s.name][i]), settings.alpha) if s.name in by_sign else s for s in t.signs
        )
        harm = harm_of(t.group, signs)
        candidate = is_candidate(effect, signs, harm)
        found.append(
            Finding(
                0, t.group, effect, signs, candidate, harm, len(tested), settings.alpha, t.tested, t.others, t.foreign
            )
        )
    return [dataclasses.replace(f, rank=k) for k, f in enumerate(ranked(found), 1)]
