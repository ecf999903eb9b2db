"""What the experiments on one model showed, for those who draw conclusions from it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from xattn.inspection.layouts import CONVOLUTIONS, RECURRENT, Layout, layout_of
from xattn.inspection.probing import Call, Probe
from xattn.spec import Evidence


def _keeps_places(call: Call) -> bool:
    """Whether a module is too small to move anything: an activation or normalization of a map (N, C, h, w)."""
    channels, *grid = call.output.shape[1:]
    leaf = not any(True for _ in call.module.children())
    return leaf and channels not in grid and all(p.numel() <= channels for p in call.module.parameters())


@dataclass
class Findings:
    """What the experiments on one model showed.

    Args:
        first: the pass over one image, with autograd's graph where there is one.
        second: the pass over that image and the lit one.
        evidence: how each fact was found.
        warnings: what a person should know before reading a map.
    """

    first: Probe
    classifier: Call | None
    second: Probe
    evidence: dict[str, Evidence]
    warnings: list[str]
    _layouts: dict[tuple[str, int], Layout | None] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the probes."""
        return self.first.x.shape[-2], self.first.x.shape[-1]

    def layout(self, call: Call) -> Layout | None:
        """How the output of a call lies on the image, from its answers to the lit place; None if it is no map."""
        key = call.name, call.index
        if key not in self._layouts:
            self._layouts[key] = self._read(key)
        return self._layouts[key]

    def _read(self, key: tuple[str, int]) -> Layout | None:
        last: Call | None = None
        seen: dict[tuple[int, int], None] = {}
        for call in self.second.calls:
            output = call.output
            if isinstance(call.module, CONVOLUTIONS):
                last = call
                if output.ndim == 4:
                    seen[output.shape[2], output.shape[3]] = None
            if (call.name, call.index) != key:
                continue
            no_map = call.passes_on or isinstance(call.module, RECURRENT)
            if len(output) != 2 or output.ndim not in (3, 4) or not output.is_floating_point() or no_map:
                return None
            # A block ends in the layout of the last convolution in it, if it ends in its shape.
            typed = (
                last is not None
                and last.output.shape == output.shape
                and (last.ended > call.started or _keeps_places(call))
            )
            return layout_of((output[1] - output[0]).float().square(), self.size, typed, seen)
        return None

    def sees(self, call: Call) -> bool:
        """Whether the output of a call changes with the image."""
        again = self.second.call(call.name, call.index)
        return again is None or len(again.output) != 2 or not torch.equal(again.output[0], again.output[1])

    def proved(self, call: Call) -> Layout | None:
        """The layout of a call, if it is proved."""
        layout = self.layout(call)
        return layout if layout is not None and layout.proved else None
