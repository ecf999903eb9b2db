"""Deletion and insertion: how fast the score falls (rises) as the most important part is taken away (put back)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from torch import Tensor

from xattn.errors import ParameterError
from xattn.explanation import Explanation
from xattn.functional.baselines import Baseline, Black, BoxBlur, Mean, RISEBlur
from xattn.functional.curves import area_over, curve_correlation, trapezoid_auc
from xattn.functional.grid import Grid
from xattn.functional.perturb import Order
from xattn.labels import TOLD
from xattn.metric import HIGHER, LOWER, NEITHER, Direction
from xattn.metrics import metrics
from xattn.metrics.perturbation import Curve, PerturbationMetric, draw_curves, find_baseline
from xattn.metrics.single_step import shown_and_hidden, single_step_values
from xattn.schema import Range
from xattn.trace import Trace


@dataclass(frozen=True)
class CurveMetric(PerturbationMetric):
    """A metric read off perturbation curves.

    Args:
        baseline: what replaces removed cells: `"blur"`, `"mean"`, `"black"`, `"noise"`, `"linear"` or `"telea"`.
        steps: number of steps; fewer if there are fewer cells.
        grid: cells that are ranked and replaced. `"common"` is one grid for all methods, cells of 16 pixels and at
            least eight on the shorter side (14 at 224 pixels, 8 at 64); a number is so many on the shorter side;
            `"map"` is the method's own grid and `"pixels"` the finest one, by which methods whose maps differ in grid
            cannot be compared. Finer maps are averaged by area, with their signs; coarser ones are interpolated
            (bilinear).
    """

    baseline: Annotated[str, find_baseline] = "blur"
    steps: Annotated[int, Range(1, 100_000)] = 196
    grid: Annotated[Grid, Range(1, 4096)] = field(default="common", metadata=TOLD)

    def curves(self, explanations: Sequence[Explanation], trace: Trace, order: Order) -> list[Curve]:
        """The curves that the values are read off, one for each method."""
        return draw_curves(
            explanations,
            trace,
            baseline=find_baseline(self.baseline),
            steps=self.steps,
            grid=self.grid,
            order=order,
            score=self.score,
            chunk=self.images_per_batch(trace),
        )


@metrics.register("deletion")
@dataclass(frozen=True)
class Deletion(CurveMetric):
    """Deletion: area under the score as the most important part is replaced (Petsiuk et al. 2018, arXiv:1806.07421).

    One curve gives `deletion`, its area; `dc`, the correlation of the removed saliency with the drop of the score
    (Gomez et al. 2022, arXiv:2201.13291); `pixel_flipping`, the mean drop (AOPC; Samek et al. 2017, arXiv:1509.06321);
    and `tie_share`, the share of cells whose place in the order is random.

    Differs from the papers: all maps are ranked on one grid, as a finer one moves the score whatever the map; the
    baseline is a blur, against which a random map does not win as it can against black; counts are by rank and ties in
    random order. The presets are those of the papers.
    """

    columns: ClassVar[Mapping[str, Direction]] = {
        "deletion": LOWER,
        "dc": HIGHER,
        "pixel_flipping": HIGHER,
        "tie_share": NEITHER,
    }

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        return [
            {
                "deletion": c.defined(trapezoid_auc(c.scores, c.share)),
                "dc": c.defined(curve_correlation(c.saliency, c.scores)),
                "pixel_flipping": c.defined(area_over(c.scores)),
                "tie_share": c.ties,
            }
            for c in self.curves(explanations, trace, "morf")
        ]


@metrics.register("insertion")
@dataclass(frozen=True)
class Insertion(CurveMetric):
    """Insertion: area under the score as the most important part comes back (Petsiuk et al. 2018, arXiv:1806.07421).

    `insertion` is the area, `ic` the correlation of the inserted saliency with the rise of the score (Gomez et al.
    2022, arXiv:2201.13291). Read backwards it is the curve of deletion with the least important first.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"insertion": HIGHER, "ic": HIGHER}

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        return [
            {
                "insertion": c.defined(trapezoid_auc(c.scores, c.share)),
                "ic": c.defined(curve_correlation(c.saliency, c.scores, insertion=True)),
            }
            for c in self.curves(explanations, trace, "insertion")
        ]


_TENTHS = tuple(range(0, 101, 10))


@metrics.register("curves")
@dataclass(frozen=True)
class Curves(CurveMetric):
    """The curves of deletion and insertion themselves, at every tenth of the image, to be drawn: no score.

    They are those of the metrics `deletion` and `insertion` with the same parameters, and cost nothing beside them.
    """

    paper: ClassVar[str] = "Petsiuk et al. 2018, arXiv:1806.07421"
    columns: ClassVar[Mapping[str, Direction]] = {
        f"{kind}_at_{tenth:03d}": NEITHER for kind in ("deletion", "insertion") for tenth in _TENTHS
    }

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        both = (self.curves(explanations, trace, order) for order in ("morf", "insertion"))
        results = []
        for deleted, inserted in zip(*both, strict=True):
            points = [c.defined(c.at(tenth / 100)) for c in (deleted, inserted) for tenth in _TENTHS]
            results.append(dict(zip(self.columns, points, strict=True)))
        return results


@metrics.register("abpc")
@dataclass(frozen=True)
class ABPC(CurveMetric):
    """Area between the perturbation curves (AGCAM; Leem and Seo 2024, AAAI): mean over p of LeRF - MoRF.

    The share p of the cells that is replaced by the mean colour goes from 0 to 1 in steps of 0.1. Differs from the
    paper: the class is the one explained rather than the label, so that it needs none; cells are those of one grid.
    """

    paper: ClassVar[str] = "Leem and Seo 2024, AAAI"
    columns: ClassVar[Mapping[str, Direction]] = {"abpc": HIGHER, "morf": LOWER, "lerf": HIGHER}

    baseline: Annotated[str, find_baseline] = "mean"
    steps: Annotated[int, Range(1, 100_000)] = 10

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        results = []
        morf, lerf = self.curves(explanations, trace, "morf"), self.curves(explanations, trace, "lerf")
        for most, least in zip(morf, lerf, strict=True):
            down, up = most.scores.mean(dim=1), least.scores.mean(dim=1)
            results.append({"abpc": most.defined(up - down), "morf": most.defined(down), "lerf": most.defined(up)})
        return results


@dataclass(frozen=True)
class _Preset(PerturbationMetric):
    """Deletion and insertion exactly as one paper has them; nothing can be set but the grid, which labels then tell.

    Args:
        grid: cells that are ranked: those of the paper, or another grid as for `deletion`.
    """

    grid: Annotated[Grid, Range(1, 4096)] = "map"
    steps: ClassVar[int] = 196
    removed: ClassVar[Baseline] = Mean()
    start: ClassVar[Baseline]

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, usual in (("score", "prob"), ("scorer", "model")):
            if getattr(self, key) != usual:
                raise ParameterError(
                    f"{self.name}: a preset cannot be changed; set {key} on 'deletion' or 'insertion'."
                )

    def _curves(self, explanations: Sequence[Explanation], trace: Trace, order: Order) -> list[Curve]:
        return draw_curves(
            explanations,
            trace,
            baseline=self.start if order == "insertion" else self.removed,
            steps=self.steps,
            grid=self.grid,
            order=order,
            score=self.score,
            chunk=self.images_per_batch(trace),
        )

    def _pairs(self, explanations: Sequence[Explanation], trace: Trace) -> list[tuple[Curve, Curve]]:
        both = (self._curves(explanations, trace, order) for order in ("morf", "insertion"))
        return list(zip(*both, strict=True))


@metrics.register("brnpa2021")
@dataclass(frozen=True)
class BRNPA2021(_Preset):
    """DAUC and IAUC as in the BR-NPA paper (Gomez et al. 2022, arXiv:2106.02566).

    Cells of the map's own grid, 196 steps or one a cell; deletion to the mean colour; insertion from a box blur of 121
    pixels at 448 (27 % of the height), zero padded; the untouched (fully blurred) image is not part of the curve,
    whose points are stretched to [0, 1]. Differs from the released code where 196 does not divide the cells: the code
    overruns, here the steps are as even as they can be.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"dauc_brnpa2021": LOWER, "iauc_brnpa2021": HIGHER}
    start: ClassVar[Baseline] = BoxBlur()

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        return [
            {
                "dauc_brnpa2021": deleted.defined(trapezoid_auc(deleted.scores[:, 1:])),
                "iauc_brnpa2021": inserted.defined(trapezoid_auc(inserted.scores[:, 1:])),
            }
            for deleted, inserted in self._pairs(explanations, trace)
        ]


@metrics.register("gomez2023")
@dataclass(frozen=True)
class Gomez2023(_Preset):
    """The protocol of the BR-NPA authors' later metrics library (Gomez et al. 2022, arXiv:2201.13291).

    DAUC, DC, IAUC and IC: cells of the map's own grid, at most 196 steps, the start is part of the curve; deletion to
    the mean colour; insertion from a zero-padded box blur of a fifth of the height, at least 9 pixels. IIC, AD and
    ADD: masks scaled to [0, 1] and then interpolated (bicubic, so they overshoot) over the mean colour. Differs from
    the library: masks are scaled image by image, not over the batch; steps are even where 196 does not divide the
    cells.
    """

    columns: ClassVar[Mapping[str, Direction]] = {
        "dauc_gomez2023": LOWER,
        "dc_gomez2023": HIGHER,
        "iauc_gomez2023": HIGHER,
        "ic_gomez2023": HIGHER,
        "iic_gomez2023": HIGHER,
        "ad_gomez2023": LOWER,
        "add_gomez2023": HIGHER,
    }
    start: ClassVar[Baseline] = BoxBlur(share=1 / 5, smallest=9, floor=True)

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        results = []
        masked = shown_and_hidden(
            explanations,
            trace,
            baseline=self.removed,
            score=self.score,
            mode="bicubic",
            chunk=self.images_per_batch(trace),
        )
        for (deleted, inserted), step in zip(self._pairs(explanations, trace), masked, strict=True):
            values = single_step_values(*step)
            results.append(
                {
                    "dauc_gomez2023": deleted.defined(trapezoid_auc(deleted.scores)),
                    "dc_gomez2023": deleted.defined(curve_correlation(deleted.saliency, deleted.scores)),
                    "iauc_gomez2023": inserted.defined(trapezoid_auc(inserted.scores)),
                    "ic_gomez2023": inserted.defined(
                        curve_correlation(inserted.saliency, inserted.scores, insertion=True)
                    ),
                    "iic_gomez2023": values["increase_in_confidence"],
                    "ad_gomez2023": values["average_drop"],
                    "add_gomez2023": values["average_drop_in_deletion"],
                }
            )
        return results


@metrics.register("rise2018")
@dataclass(frozen=True)
class RISE2018(_Preset):
    """Deletion and insertion as in RISE (Petsiuk et al. 2018, arXiv:1806.07421).

    Pixels in 224 steps (one image row each at 224 pixels); deletion to black; insertion from a Gaussian blur of 11
    pixels and deviation 5; both ends are part of the curve. Ties are in random order rather than what a sort leaves.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"dauc_rise2018": LOWER, "iauc_rise2018": HIGHER}
    grid: Annotated[Grid, Range(1, 4096)] = "pixels"
    steps: ClassVar[int] = 224
    removed: ClassVar[Baseline] = Black()
    start: ClassVar[Baseline] = RISEBlur()

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        return [
            {
                "dauc_rise2018": deleted.defined(trapezoid_auc(deleted.scores)),
                "iauc_rise2018": inserted.defined(trapezoid_auc(inserted.scores)),
            }
            for deleted, inserted in self._pairs(explanations, trace)
        ]
