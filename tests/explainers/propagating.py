"""What the tests of propagation share: running a method, sums, networks without biases."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import tiny_models as tiny
from xattn.explaining import explain
from xattn.explanation import Explanation
from xattn.spec import ModelSpec

SPEC = ModelSpec(feature_layer="conv1", classifier="fc", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def run(
    model: nn.Module, x: Tensor, method: Any, target: Any = 1, spec: ModelSpec = SPEC, **options: Any
) -> Explanation:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Explanation.status")
        return explain(model, x, method, target, spec=spec, **options)


def total(found: Explanation) -> Tensor:
    return found.maps.double().sum((1, 2, 3))


def without_biases(model: nn.Module) -> nn.Module:
    """Nothing but the stabilizer can absorb relevance."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith(("bias", "running_mean")):
            tensor.data.zero_()
    return model


def build(*args: Any, **kwargs: Any) -> nn.Module:
    return tiny.seeded(lambda: Net(*args, **kwargs))


class Net(nn.Module):
    """Two convolutions with a sum between them, and a linear layer."""

    def __init__(
        self,
        act: Callable[[Tensor], Tensor] = F.relu,
        join: Callable[[Tensor, Tensor], Tensor] = torch.add,
        pool: Callable[[Tensor], Tensor] = lambda x: x.mean((2, 3)),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)
        self.act, self.join, self.pool = act, join, pool

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv1(x))
        return self.fc(self.pool(self.act(self.join(self.bn(self.conv2(y)), y))))
