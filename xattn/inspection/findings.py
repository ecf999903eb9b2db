"""What the experiments on one model showed, for those who draw conclusions from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xattn.inspection.layouts import ALONG, CONVOLUTIONS, RECURRENT, Layout, layout_of
from xattn.inspection.probing import Call, DroppedError, Probe
from xattn.spec import Evidence


def _keeps_places(call: Call) -> bool:
    """Whether a module is too small to move anything: an activation or normalization of a map (N, C, h, w)."""
    channels, *grid = call.output.shape[1:]
    leaf = not any(True for _ in call.module.children())
    return leaf and channels not in grid and all(p.numel() <= channels for p in call.module.parameters())


def _joins(output: Tensor, part: Tensor) -> bool:
    """Whether an output (C, h, w) has the places of a map (1, c, h, w) and more channels, not to be taken for these."""
    if output.ndim != 3 or part.ndim != 4 or output.shape[1:] != part.shape[2:]:
        return False
    return output.shape[0] > part.shape[1] and output.shape[0] not in output.shape[1:]


@dataclass
class Findings:
    """What the experiments on one model showed.

    Args:
        first: the pass over one image, with autograd's graph where there is one.
        second: the pass over that image and the lit one, of which the calls that are likely to matter were recorded.
        evidence: how each fact was found.
        warnings: what a person should know before reading a map.
        whole: the first pass once more, with all that a lean one leaves out.
        everything: the second pass once more, with all calls.
    """

    first: Probe
    classifier: Call | None
    second: Probe
    evidence: dict[str, Evidence]
    warnings: list[str]
    whole: Callable[[], Probe]
    everything: Callable[[], Probe]
    _whole: Probe | None = None
    _everything: Probe | None = None
    _steps: set[torch.Size] = field(default_factory=set)
    _layouts: dict[tuple[str, int], Layout | None] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the probes."""
        return self.first.x.shape[-2], self.first.x.shape[-1]

    def answered(self, call: Call) -> Call | None:
        """What the second pass gave for a call of the first one; None if it did not run again."""
        again = self.second.call(call.name, call.index)
        if again is None and self.first.call(call.name, call.index) is not None:
            self._everything = self._everything or self.everything()
            again = self._everything.call(call.name, call.index)
        return again

    def gradients(
        self, score: Callable[[Tensor], Tensor], calls: Sequence[Call], *, values: bool = False
    ) -> list[tuple[Call, Tensor | None]]:
        """The gradient of a score by what calls of the first pass gave, and each call, with its output if asked for.

        Where a lean pass dropped what is needed, the pass is taken again, once, and without those that do not run then.
        """
        probe, own = self._whole or self.first, list(calls)
        if self._whole is None and values and any(call.output.is_meta for call in calls):
            probe = self._whole = self.whole()
        while True:
            if probe is not self.first:
                own = [again for call in calls if (again := probe.call(call.name, call.index)) is not None]
            edges = [torch.autograd.graph.GradientEdge(call.node, 0) for call in own]
            try:
                with torch.enable_grad():
                    goal = score(probe.raw)
                found = torch.autograd.grad(goal, edges, retain_graph=True, allow_unused=True) if edges else ()
            except DroppedError:
                probe = self._whole = self.whole()
                continue
            return list(zip(own, found, strict=True))

    def layout(self, call: Call) -> Layout | None:
        """How the output of a call lies on the image, from its answers to the lit place; None if it is no map."""
        key = call.name, call.index
        if key not in self._layouts:
            self._layouts[key] = self._read(call)
        return self._layouts[key]

    def change(self, wanted: Call) -> Tensor | None:
        """Squared change of the output of a call for the lit image, (C, h, w) or (T, C); None if it is no map."""
        again = self.answered(wanted)
        if again is None or wanted.passes_on or isinstance(wanted.module, RECURRENT):
            return None
        output = again.output
        if len(output) != 2 or output.ndim not in (3, 4) or not output.is_floating_point():
            return None
        return (output[1] - output[0]).float().square()

    def _read(self, wanted: Call) -> Layout | None:
        change = self.change(wanted)
        if change is None:
            return None
        last: Call | None = None
        along: Call | None = None
        seen: dict[tuple[int, int], None] = {}
        for call in self.first.calls:
            if isinstance(call.module, CONVOLUTIONS):
                last = call
                if call.output.ndim == 4:
                    seen[call.output.shape[2], call.output.shape[3]] = None
            if isinstance(call.module, ALONG) and call.output.ndim == 3:
                along = call
            if (call.name, call.index) == (wanted.name, wanted.index):
                break
        # A block ends in the layout of the last convolution in it, if it ends in its shape, with more channels where
        # branches are joined.
        typed = (
            last is not None
            and (last.output.shape[1:] == change.shape or _joins(change, last.output))
            and (last.ended > wanted.started or _keeps_places(wanted))
        )
        if (
            along is not None
            and along.output.shape[1:] == change.shape
            and (along.ended >= wanted.started or _keeps_places(wanted))
        ):
            return None
        if change.shape in self._steps:
            return None
        # The shape of a cube does not tell where its channels are, unless it comes from a convolution itself.
        cube = len(set(change.shape)) == 1 and not isinstance(wanted.module, CONVOLUTIONS)
        layout = layout_of(change, self.size, typed, seen, cube=cube)
        # What mixes such steps, as attention does, gives others of that shape, which may answer as a grid by luck.
        if layout is None and change.ndim == 2 and len(change) in {side for grid in seen for side in grid}:
            self._steps.add(change.shape)
        return layout

    def sees(self, call: Call) -> bool:
        """Whether the output of a call changes with the image."""
        again = self.answered(call)
        return again is None or len(again.output) != 2 or not torch.equal(again.output[0], again.output[1])

    def proved(self, call: Call) -> Layout | None:
        """The layout of a call, if it is proved."""
        layout = self.layout(call)
        return layout if layout is not None and layout.proved else None
