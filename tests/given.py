"""Explanations of given maps, for tests of what is done with maps rather than of how they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tests import tiny_models as tiny
from xattn.explainer import Explainer, Family
from xattn.explanation import Explanation
from xattn.trace import Trace, record


@dataclass(frozen=True)
class Given(Explainer):
    """Stands for any method."""

    name: ClassVar[str] = "given"
    family: ClassVar[Family] = Family.CONTROL

    def attribute(self, trace: Trace) -> Tensor:
        raise NotImplementedError


def explained(maps: Tensor, trace: Trace) -> Explanation:
    return Explanation(maps=maps, target=trace.target, method=Given(), input_size=trace.input_size)


def random_maps(n: int, h: int, w: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, h, w, generator=torch.Generator().manual_seed(seed))


def traced(x: Tensor, target: object = None, **options: object) -> Trace:
    torch.manual_seed(0)
    model = tiny.TinyCNN().to(x.dtype).eval()
    return record(model, x, target, spec=model.spec, grad=False, **options)
