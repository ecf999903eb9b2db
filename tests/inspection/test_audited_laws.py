"""The laws of places, images, layers and repetitions on a sample of the architectures of the audit, of all families.

`python benchmarks/models/laws.py` tries them on all of them, and `tests/test_audit.py` looks at what it found.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

SAMPLE = (
    "timm/test_mambaout", "timm/convnext_zepto_rms", "timm/lcnetv2_small", "hf/dinov2", "hf/swin", "hf/poolformer",
)  # fmt: skip


@pytest.fixture
def laws(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which is no part of a package."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks" / "models"))
    return importlib.import_module("laws")


@pytest.mark.parametrize("name", SAMPLE)
def test_laws_on_an_audited_network(laws: ModuleType, name: str) -> None:
    pytest.importorskip({"timm": "timm", "hf": "transformers"}[name.partition("/")[0]])
    known = {architecture.name: architecture for architecture in laws.architectures()}
    row = laws.obeyed(known[name])
    assert row["status"] == ["ok"], row
    assert laws.broken(row) == [], row


def test_statistics_that_are_held_are_those_of_the_first_image(laws: ModuleType) -> None:
    norm = nn.Sequential(nn.GroupNorm(2, 4))
    nn.init.normal_(norm[0].weight)
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm.double()
    plain = norm(x)
    with laws.held(norm) as count:
        held = norm(x)
    assert count == 1
    torch.testing.assert_close(held[:1], plain[:1])
    for image in range(3):
        for channel in range(4):
            group = x[0, 2 * (channel // 2) : 2 * (channel // 2) + 2]
            scale = (group.var(unbiased=False) + norm[0].eps).sqrt()
            expected = (x[image, channel] - group.mean()) / scale * norm[0].weight[channel] + norm[0].bias[channel]
            torch.testing.assert_close(held[image, channel], expected)
    torch.testing.assert_close(norm(x), plain)


def test_a_method_that_refuses_the_layer_would_be_told(laws: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from xattn.errors import NotApplicableError
    from xattn.explainers import explainers

    def refuse(self: object, spec: object) -> None:
        raise NotApplicableError("gradcam: this layer has another shape; use hirescam.")

    monkeypatch.setattr(explainers.get("gradcam"), "check", refuse)
    known = {architecture.name: architecture for architecture in laws.architectures()}
    row = laws.obeyed(known["home-made/01-SharedNorm"])
    assert row["refusals"] == ["gradcam: gradcam: this layer has another shape; use hirescam."]
    assert laws.broken(row) == ["layer"]
