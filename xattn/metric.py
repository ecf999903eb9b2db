"""The contract of a metric: one value per image and column."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar

from torch import Tensor

from xattn.explanation import Explanation
from xattn.schema import check_fields
from xattn.trace import Trace


class Direction(Enum):
    """Which way a value is better."""

    HIGHER = "higher"
    LOWER = "lower"
    NEITHER = "neither"


HIGHER, LOWER, NEITHER = Direction.HIGHER, Direction.LOWER, Direction.NEITHER


class Metric(ABC):
    """A score of explanations; subclasses are frozen dataclasses whose fields are its parameters.

    Parameters are checked by their annotations: `Annotated[int, Range(1, 1000)]`, `Literal["sum", "mean"]`.

    A value is float64 (N,), one per image, from that image alone. Undefined is NaN, never zero. Networks round
    otherwise in batches of another size, so with other batches or limits a float32 value moves by up to 1e-5 of itself.

    Attributes:
        name: how tables and the command line call it; registering sets it.
        family: `"perturbation"`, `"localization"`, `"complexity"`, `"robustness"`, `"sanity"` or `"ground_truth"`.
        columns: name of each value and which way it is better.
        needs: what the data must have, of `"masks"` (boxes do too), `"boxes"`, `"mosaic"` and `"scenes"`.
        pooled: name of each value of the whole data set that `pool` makes of the columns, and which way it is better.
        paper: where it comes from; registering takes it from the docstring.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    columns: ClassVar[Mapping[str, Direction]]
    needs: ClassVar[frozenset[str]] = frozenset()
    pooled: ClassVar[Mapping[str, Direction]] = {}
    paper: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_fields(self, self.name)

    @abstractmethod
    def measure(self, explanation: Explanation, trace: Trace, batch: Any) -> dict[str, Tensor]:
        """Score the maps of one batch.

        Args:
            explanation: the maps, raw and on their own grid.
            trace: the pass that they come from; `trace.score` runs the model on other images.
            batch: what the data set knows of the images: masks (N, 1, H, W), boxes, labels.

        Returns:
            A float64 tensor (N,) for each name in `columns`.
        """

    def measure_many(self, explanations: Sequence[Explanation], trace: Trace, batch: Any) -> list[dict[str, Tensor]]:
        """`measure` for several methods on the same images; metrics that run the model pack them into full batches."""
        return [self.measure(explanation, trace, batch) for explanation in explanations]

    def pool(self, columns: Mapping[str, Tensor]) -> dict[str, float]:
        """Values of a whole data set that are no mean over images, such as those with one threshold for all of it.

        Args:
            columns: all rows (N,) of one method, by the names in `columns`.

        Returns:
            A number for each name in `pooled`, perhaps with others beside them; nothing for most metrics.
        """
        return {}
