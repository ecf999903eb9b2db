"""The same numbers on a GPU as on the CPU."""

from __future__ import annotations

import pytest
import torch

from tests import tiny_models as tiny
from xattn.data.sample import Batch
from xattn.explainers import resolve
from xattn.metrics import metrics
from xattn.trace import record

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

FAMILIES = ("localization", "complexity", "robustness", "sanity")


@pytest.mark.parametrize("name", [n for n in metrics.names() if metrics.create(n).family in FAMILIES])
def test_device(name: str) -> None:
    metric = metrics.create(name)
    x = tiny.images(4)
    masks = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.3
    boxes = tuple(torch.tensor([[3.0, 4.0, 20.0, 18.0]]) for _ in range(4))
    methods = resolve(["gradcam", "brnpa", "random"])
    found = {}
    for device in ("cpu", "cuda"):
        model = tiny.tiny_cnn().to(device)
        batch = Batch(x, torch.zeros(4, dtype=torch.int64), tuple("abcd"), masks, boxes).to(device)
        layers = [layer for m in methods for layer in m.layers(model.spec)]
        trace = record(model, batch.x, batch.target, spec=model.spec, layers=layers, seeds=[1, 2, 3, 4])
        found[device] = metric.measure_many([m.explanation(trace) for m in methods], trace, batch)
    for cpu, gpu in zip(found["cpu"], found["cuda"], strict=True):
        for column in metric.columns:
            assert gpu[column].device.type == "cuda"
            torch.testing.assert_close(gpu[column].cpu(), cpu[column], rtol=1e-3, atol=1e-3, equal_nan=True)
