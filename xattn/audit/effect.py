"""What the score does when evidence is replaced in place, and when the same area is replaced elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xattn.audit.gather import read_some
from xattn.audit.group import Group, Member
from xattn.audit.replace import regraded, replaced, tone_of, turned
from xattn.audit.settings import AuditSettings
from xattn.benchmark.statistics import intervals, wilcoxon
from xattn.data.dataset import Dataset
from xattn.errors import DataError
from xattn.functional.baselines import Blur
from xattn.functional.relevance_parts import shifted_elsewhere
from xattn.score import apply_score, find_score
from xattn.spec import ModelSpec
from xattn.trace import place_of, record

Array = NDArray[np.float64]
Pictures = tuple[Tensor, list[int]]
"""Images (M, C, H, W) as a model sees them, and their places in the data set."""

_PLACES = 2  # elsewhere, of which the mean is taken
_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Measured:
    """What the model answered, image by image; each (n,) float64.

    Args:
        score: of the predicted class in the image as it is.
        in_place: score without the evidence.
        elsewhere: score without the same area elsewhere.
        without: score of what stands in for evidence where that replaces the whole image.
        flips: whether the prediction changes without the evidence, 0 or 1.
        flips_elsewhere: share of the places elsewhere at which it changes.
        carried: whether an image of another class is taken for this one once the evidence is in it; NaN without others.
        carried_elsewhere: likewise with the same area from elsewhere in the same image.
        given: score of an image of the class without the evidence, once it is in it.
        given_other: score of that image with the same cells of another image without the evidence; of a tone, as it is.
        drawn: score of an image of another class once the evidence is in it; NaN without others.
        drawn_elsewhere: likewise with the same area from elsewhere in the same image.
    """

    score: Array
    in_place: Array
    elsewhere: Array
    without: Array
    flips: Array
    flips_elsewhere: Array
    carried: Array
    carried_elsewhere: Array
    given: Array
    given_other: Array
    drawn: Array
    drawn_elsewhere: Array


@dataclass(frozen=True)
class Effect:
    """How much of the score goes with the evidence of a group, on the images that did not find it.

    Args:
        n: images.
        fall: mean fall of the score when the evidence is replaced in place.
        elsewhere: mean fall when the same area is replaced elsewhere in the same image.
        difference: of the two, mean over images.
        low: end of its 95 % interval (bootstrap, bias-corrected).
        high: the other end.
        gain: by how much the score of images of the class without the evidence is higher once they have it than with
            the same cells of another image without it, mean over images.
        gain_low: end of its 95 % interval, likewise.
        gain_high: the other end.
        draw: by how much the score of the class is higher in images of other classes once they have it than with as
            much from elsewhere in the same image, mean over images; NaN without images of other classes.
        draw_low: end of its 95 % interval, likewise.
        draw_high: the other end.
        p: that evidence takes no more along than what is elsewhere, and gives no more than what is in other images or
            elsewhere: the smallest of three p values of Wilcoxon's signed-rank test, one-sided, times their number.
        adjusted: after Holm's correction over all groups of the audit; NaN until it was made.
        flips: share of the predictions that change without the evidence.
        flips_elsewhere: likewise elsewhere.
        share_of_score: fall over the mean fall without anything.
        moves: whether the score moves: `adjusted` is below alpha, and `low`, `gain_low` or `draw_low` above zero.
    """

    n: int
    fall: float
    elsewhere: float
    difference: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    draw: float
    draw_low: float
    draw_high: float
    p: float
    adjusted: float
    flips: float
    flips_elsewhere: float
    share_of_score: float
    moves: bool


_NAN = float("nan")
NOTHING = Effect(n=0, moves=False, **{f.name: _NAN for f in fields(Effect) if f.name not in ("n", "moves")})
"""Of a group of which no image is left to test it on."""


def moves(effect: Effect, alpha: float) -> bool:
    """Whether the score goes with the evidence, once `adjusted` is known."""
    return bool(effect.adjusted < alpha and any(low > 0 for low in (effect.low, effect.gain_low, effect.draw_low)))


def effect_of(measured: Measured, seed: int = 0) -> Effect:
    """The effect of what was measured, before any correction."""
    fall, elsewhere = measured.score - measured.in_place, measured.score - measured.elsewhere
    n = len(fall)
    if n == 0:
        return NOTHING
    differences = {"difference": fall - elsewhere, "gain": measured.given - measured.given_other}
    drawn = measured.drawn - measured.drawn_elsewhere
    if not np.isnan(drawn).any():
        differences["draw"] = drawn
    means = {"draw": _NAN, "draw_low": _NAN, "draw_high": _NAN}
    for name, values in differences.items():
        spread = intervals(values, resamples=_RESAMPLES, seed=seed)
        prefix = "" if name == "difference" else f"{name}_"
        means |= {
            name: float(values.mean()), f"{prefix}low": float(spread.low[0]), f"{prefix}high": float(spread.high[0]),
        }  # fmt: skip
    everything = float((measured.score - measured.without).mean())
    return Effect(
        n=n,
        fall=float(fall.mean()),
        elsewhere=float(elsewhere.mean()),
        **means,
        p=min(1.0, len(differences) * min(map(one_sided, differences.values()))),
        adjusted=_NAN,
        flips=float(measured.flips.mean()),
        flips_elsewhere=float(measured.flips_elsewhere.mean()),
        share_of_score=float(fall.mean()) / everything if everything > 0 else _NAN,
        moves=False,
    )


def one_sided(differences: Array) -> float:
    """P value of Wilcoxon's signed-rank test that differences are not above zero; zeros as Pratt (1959) has them.

    >>> one_sided(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    0.03125
    """
    both = float(wilcoxon(differences[:, None])[0])
    size = np.abs(differences)
    rank = (size[None] < size[:, None]).sum(1) + ((size[None] == size[:, None]).sum(1) + 1) / 2
    up, down = rank[differences > 0].sum(), rank[differences < 0].sum()
    return both / 2 if up > down else 1 - both / 2 if up < down else 0.5


class Probe:
    """A network that is asked about changed images of a data set.

    Args:
        model: the network.
        dataset: where the images are.
        spec: facts about the model.
        settings: how evidence is replaced.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, spec: ModelSpec, settings: AuditSettings) -> None:
        self.model, self.dataset, self.spec, self.settings = model, dataset, spec, settings
        self.device = place_of(model)[0]

    def ask(self, x: Tensor, target: int) -> tuple[Array, NDArray[np.int64]]:
        """Score (M,) of a class in images (M, C, H, W), and the classes (M,) that are predicted in them."""
        score = find_score(self.settings.score, self.spec.values)
        scores, classes = [], []
        for some in x.split(self.settings.batch_size):
            trace = record(self.model, some.to(self.device), spec=self.spec, grad=False)
            goal = torch.full((len(some),), target, device=trace.logits.device)
            scores.append(apply_score(score, trace.logits, goal).double().cpu().numpy())
            classes.append(trace.probabilities.argmax(1).cpu().numpy())
        return np.concatenate(scores), np.concatenate(classes)

    def measure(
        self, group: Group, members: Sequence[Member], others: Tensor, foreign: Tensor, goal: int | None = None
    ) -> Measured:
        """Replace the evidence of a group in some of its members, and put it into images of other classes.

        Args:
            group: whose evidence it is.
            members: the images on which it is tested.
            others: images (M, C, H, W) without this evidence, whose mean stands in for it, and which are given it.
            foreign: images (F, C, H, W) in which another class is predicted; may be none.
            goal: the class, in the numbers of this model; None is that of the group.
        """
        goal, step = group.class_index if goal is None else goal, self.settings.batch_size
        stand_in = others.mean(0, keepdim=True)
        nothing = float(self.ask(stand_in, goal)[0][0])
        found: list[Measured] = []
        for start in range(0, len(members), step):
            x, some = self.images(members[start : start + step])
            guests = foreign[torch.arange(start, start + len(x)) % len(foreign)] if len(foreign) else foreign
            hosts = torch.arange(start, start + len(x)) % len(others)
            donors = (hosts + 1 + len(others) // 2) % len(others)
            variants = self.variants(group, some, x, others, guests)
            variants |= self.given(group, some, x, others, (others[hosts], others[donors]))
            answers = {name: self.ask(images, goal) for name, images in variants.items()}
            before = answers["as it is"][1]
            away = [a for name, a in answers.items() if name.startswith("elsewhere")]
            none = np.full(len(x), _NAN)
            drawn, drawn_elsewhere = (
                (answers[name][0], (answers[name][1] == goal).astype(np.float64)) if name in answers else (none, none)
                for name in ("carried", "carried elsewhere")
            )
            found.append(
                Measured(
                    score=answers["as it is"][0],
                    in_place=answers["in place"][0],
                    elsewhere=np.mean([a[0] for a in away], axis=0),
                    without=np.full(len(x), nothing),
                    flips=(answers["in place"][1] != before).astype(np.float64),
                    flips_elsewhere=np.mean([a[1] != before for a in away], axis=0),
                    carried=drawn[1],
                    carried_elsewhere=drawn_elsewhere[1],
                    given=answers["given"][0],
                    given_other=answers["given other"][0],
                    drawn=drawn[0],
                    drawn_elsewhere=drawn_elsewhere[0],
                )
            )
        return Measured(**{f.name: np.concatenate([getattr(m, f.name) for m in found]) for f in fields(Measured)})

    def variants(
        self, group: Group, members: Sequence[Member], x: Tensor, others: Tensor, guests: Tensor
    ) -> dict[str, Tensor]:
        """What is made of images (B, C, H, W) of a group: as they are, without evidence, and others with it."""
        generators = [self._generator(group, m) for m in members]
        if group.kind == "tone":
            goal, own = self._tones(group, others)
            sides = [goal + turned(goal - own, generators) for _ in range(_PLACES)]
            made = {"as it is": x, "in place": regraded(x, own, goal)}
            made |= {f"elsewhere {k}": regraded(x, goal, side) for k, side in enumerate(sides)}
            if len(guests):
                made |= {"carried": regraded(guests, goal, own), "carried elsewhere": regraded(guests, sides[0], goal)}
            return made
        cells = torch.stack([torch.from_numpy(m.cells) for m in members])
        away = [
            torch.stack([shifted_elsewhere(c, g) for c, g in zip(cells, generators, strict=True)])
            for _ in range(_PLACES)
        ]
        stand_in = others.mean(0, keepdim=True)
        if self.settings.replace == "blur":
            blurred = Blur().prepare(x, self.spec.mean, self.spec.std, lambda i: generators[i]).image
            stand_in = stand_in if blurred is None else blurred
        made = {"as it is": x, "in place": replaced(x, stand_in, cells)}
        made |= {f"elsewhere {k}": replaced(x, stand_in, there) for k, there in enumerate(away)}
        if len(guests):
            made |= {"carried": replaced(guests, x, cells), "carried elsewhere": replaced(guests, x, away[0])}
        return made

    def given(
        self, group: Group, members: Sequence[Member], x: Tensor, others: Tensor, pair: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """Images without the evidence of a group once they have it, and with the same cells of others without it.

        Args:
            group: whose evidence it is.
            members: that give it.
            x: the same images (B, C, H, W).
            others: images (M, C, H, W) without the evidence.
            pair: of these, those that are given it, and those whose cells are given in its place, each (B, C, H, W).
        """
        hosts, donors = pair
        if group.kind == "tone":
            usual, own = self._tones(group, others)
            return {"given": regraded(hosts, usual, own), "given other": hosts}
        cells = torch.stack([torch.from_numpy(m.cells) for m in members])
        return {"given": replaced(hosts, x, cells), "given other": replaced(hosts, donors, cells)}

    def _tones(self, group: Group, others: Tensor) -> tuple[Tensor, Tensor]:
        """Means and deviations (2 C,) of images without the tone of a group, and of its members."""
        usual = tone_of(others)[:, : 2 * others.shape[1]].mean(0)
        return usual, usual if group.tone is None else torch.from_numpy(group.tone).to(others)

    def images(self, members: Sequence[Member]) -> tuple[Tensor, list[Member]]:
        """Images (M, C, H, W) as the model sees them, of the members that can be read, and these.

        Raises:
            DataError: if none can.
        """
        x, kept = self.pictures([m.index for m in members])
        by_index = {m.index: m for m in members}
        return x, [by_index[i] for i in kept]

    def pictures(self, indices: Sequence[int]) -> Pictures:
        """The images (M, C, H, W) at some places of the data set, and the places of those that can be read.

        Raises:
            DataError: if none can.
        """
        batch, kept, failed = read_some(self.dataset, indices, self.spec)
        if batch is None:
            reason = next(iter(failed.values()), "there is none")
            raise DataError(f"audit: images that were read before cannot be read any more ({reason}).")
        return batch.x, kept

    def _generator(self, group: Group, member: Member) -> torch.Generator:
        """Random numbers that depend on the image, the kind of evidence and the seed alone."""
        text = f"{self.settings.seed}/{group.kind}/{group.class_index}/{member.image}"
        number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
        return torch.Generator().manual_seed(number)
