"""How a changed copy of a network answers beside the network itself: same class, its probability, logits, cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from xattn.errors import DataError
from xattn.outputs import take
from xattn.running import evaluating
from xattn.score import probabilities
from xattn.spec import ModelSpec
from xattn.trace import promote


@dataclass(frozen=True)
class Agreement:
    """Answers of a network and of a changed copy on the same images.

    Args:
        images: number of images.
        same: of these, those whose most probable class is the same.
        before: mean probability of that class of the network, by the network.
        after: by the copy.
        change: root mean square difference of the logits as a share of their standard deviation over the classes,
            mean over the images.
        labelled: images whose class is known.
        right_before: of these, those that the network has right.
        right_after: those that the copy has right.
    """

    images: int
    same: int
    before: float
    after: float
    change: float
    labelled: int = 0
    right_before: int = 0
    right_after: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"agrees on {self.same} of {self.images} images (probability of the class: {self.before:.2f} → "
            f"{self.after:.2f}, logits changed by {self.change:.0%})"
        )


@torch.no_grad()
def agreement(
    model: nn.Module,
    changed: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    *,
    spec: ModelSpec,
    changed_spec: ModelSpec | None = None,
) -> Agreement:
    """Compare the answers of a network and of a changed copy.

    Args:
        model: the network.
        changed: the copy.
        batches: images (N, C, H, W) in the normalized space of the model, and classes (N,) where they are known, -1
            where not.
        spec: facts about the network; `output` and `values` are read.
        changed_spec: about the copy; None takes the same.

    Raises:
        DataError: if there is no image.
    """
    changed_spec = spec if changed_spec is None else changed_spec
    columns: list[Tensor] = []
    labels: list[Tensor] = []
    with evaluating(model), evaluating(changed):
        for x, known in batches:
            old = promote(take(model(x), spec.output or None))
            new = promote(take(changed(x), changed_spec.output or None))
            p, q = probabilities(old, spec.values), probabilities(new, changed_spec.values)
            best, other = p.argmax(1), q.argmax(1)
            spread = old.std(1).clamp(min=1e-12) if old.shape[1] > 1 else old.abs()[:, 0].clamp(min=1e-12)
            shares = [p, q]
            columns.append(
                torch.stack(
                    [
                        best.double(),
                        other.double(),
                        *(share.gather(1, best[:, None])[:, 0].double() for share in shares),
                        ((new - old).square().mean(1).sqrt() / spread).double(),
                    ]
                ).cpu()
            )
            labels.append(torch.full((len(x),), -1) if known is None else known.cpu())
    if not columns:
        raise DataError("agreement: there is no image to compare on.")
    best, other, before, after, change = torch.cat(columns, dim=1)
    wanted = torch.cat(labels)
    given = wanted >= 0
    return Agreement(
        images=len(best),
        same=int((best == other).sum()),
        before=float(before.mean()),
        after=float(after.mean()),
        change=float(change.mean()),
        labelled=int(given.sum()),
        right_before=int(((best == wanted) & given).sum()),
        right_after=int(((other == wanted) & given).sum()),
    )


@torch.no_grad()
def relative_cost(model: nn.Module, changed: nn.Module, x: Tensor) -> float:
    """Multiplications of a pass of the copy, in passes of the network.

    Args:
        model: the network.
        changed: the copy.
        x: images (N, C, H, W).
    """
    counts = []
    for one in (model, changed):
        with evaluating(one), FlopCounterMode(display=False) as counter:
            one(x)
        counts.append(counter.get_total_flops())
    return counts[1] / max(counts[0], 1)
