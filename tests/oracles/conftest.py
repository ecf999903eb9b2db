"""A tiny network and its trace, for the metrics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests import tiny_models as tiny
from tests.oracles.naive_perturbation import SEEDS, SIZE, N
from xattn.trace import Trace, record


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A tiny network whose probabilities are well inside (0, 1)."""
    torch.manual_seed(0)
    network = tiny.TinyCNN().double().eval()
    with torch.no_grad():
        network.fc.weight.mul_(4)
    return network


@pytest.fixture(scope="module")
def trace(model: nn.Module) -> Trace:
    return record(model, tiny.images(N, *SIZE, seed=3).double(), [1, 2], spec=model.spec, seeds=SEEDS)
