"""What an audit is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from xattn.schema import Range, check

Replacement = Literal["mean", "blur"]
"""What stands in for evidence: the mean of images without it, pixel by pixel, or the image itself, blurred."""


@dataclass(frozen=True)
class AuditSettings:
    """What an audit is asked for.

    Args:
        parts: parts of the evidence in an image; a trained attention head keeps its own number.
        mass: share of a part's relevance that the cells which are replaced hold together.
        area: share of the frame that they take at most.
        replace: what stands in for evidence.
        find: share of the images of a class on which groups are found; the others test them.
        smallest: images in which a group has to be found, at least.
        per_group: images on which a group is tested, at most.
        batch_size: images that go through the model together.
        score: whose fall is measured, of the predicted class; the margin over the next class is what decides.
        alpha: probability of any false finding that the tests allow over all groups.
        seed: of the halves, the places elsewhere and the resamples.
    """

    parts: Annotated[int, Range(1, 64)] = 4
    mass: Annotated[float, Range(0, 1, open_low=True)] = 0.7
    area: Annotated[float, Range(0, 1, open_low=True)] = 0.25
    replace: Replacement = "mean"
    find: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.5
    smallest: Annotated[int, Range(3)] = 5
    per_group: Annotated[int, Range(5, 10_000)] = 64
    batch_size: Annotated[int, Range(1, 4096)] = 64
    score: str = "margin"
    alpha: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        from typing import get_type_hints

        hints: dict[str, Any] = get_type_hints(type(self), include_extras=True)
        for name, hint in hints.items():
            check(getattr(self, name), hint, f"AuditSettings: {name}")
