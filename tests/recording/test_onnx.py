"""ONNX Runtime sessions by the adapter of docs/explain.md: the scores and maps of the network that was exported."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xattn
from xattn.errors import NotApplicableError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "explain.md"


class _Session:
    """What the adapter needs of a session: it takes and gives arrays by name, and no tensors."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def get_inputs(self) -> list[Any]:
        return [type("Argument", (), {"name": "images"})]

    def run(self, outputs: list[str] | None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert outputs is None
        assert type(given["images"]) is np.ndarray
        with torch.no_grad():
            return [self.model(torch.from_numpy(given["images"])).numpy()]


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()


def _adapted(session: Any) -> Any:
    """The adapter as the page writes it."""
    text = DOCS.read_text(encoding="utf-8")
    code = re.search(r"^def scores\(x\):.*\n    .*$", text, re.MULTILINE)
    assert code is not None
    names: dict[str, Any] = {"session": session}
    exec(code[0], names)
    return names["scores"]


METHODS = ["occlusion:window=0.5", "rise:samples=20", "lime:samples=20,segments=grid", "kernel-shap:segments=grid"]


def _same_maps(session: Any, network: nn.Module) -> None:
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    got = xattn.explain(_adapted(session), x, METHODS, 1)
    for wanted, explanation in zip(xattn.explain(network, x, METHODS, 1), got, strict=True):
        torch.testing.assert_close(explanation.maps, wanted.maps, rtol=1e-3, atol=1e-5)
    with pytest.raises(NotApplicableError, match=r"gradcam: reads layers, but scores is a function"):
        xattn.explain(_adapted(session), x, "gradcam")


@pytest.mark.filterwarnings("ignore::xattn.errors.XattnWarning")
def test_the_adapter_passes_arrays_and_gives_the_maps_of_the_network() -> None:
    network = _network()
    _same_maps(_Session(network), network)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_a_session_of_onnx_runtime() -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    network, file = _network(), io.BytesIO()
    example: tuple[Tensor, ...] = (torch.randn(2, 3, 24, 24),)
    torch.onnx.export(network, example, file, input_names=["images"], dynamic_axes={"images": {0: "n"}}, dynamo=False)
    _same_maps(runtime.InferenceSession(file.getvalue()), network)
