"""The laws of places, images, layers and repetitions on a sample of the architectures of the audit, of all families.

`XATTN_AUDITED=all pytest tests/inspection/test_audited_laws.py` tries them on every architecture: a minute or two of
one core for each.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.cheap import cheap
from tests.inspection.test_laws import explained, moved, pair
from xattn.errors import NotApplicableError
from xattn.explainer import LayerExplainer
from xattn.explainers import explainers

SAMPLE = (
    "timm/test_mambaout", "timm/convnext_zepto_rms", "timm/lcnetv2_small", "hf/dinov2", "hf/swin",
)  # fmt: skip


def _catalogue() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "models" / "catalogue.py"
    spec = importlib.util.spec_from_file_location("audited", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["audited"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _names() -> list[str]:
    return [a.name for a in _catalogue().architectures()] if os.environ.get("XATTN_AUDITED") == "all" else list(SAMPLE)


@pytest.mark.parametrize("name", _names())
def test_laws_on_an_audited_network(name: str) -> None:
    pytest.importorskip({"timm": "timm", "hf": "transformers"}.get(name.partition("/")[0], "torchvision"))
    catalogue = _catalogue()
    known = {a.name: a for a in catalogue.architectures()}
    assert name in known, sorted(known)
    torch.manual_seed(0)
    model, size = known[name].build(list(catalogue.SIDES))
    model = catalogue.prepared(model)
    x = pair(model, size)
    catalogue.settle(model, x)
    assert moved(explained(model, x, "activation").maps), "the map changes most where the pixels did"
    first = explained(model, x, "hirescam").maps
    assert not torch.allclose(first[0], first[1]), "two images, two maps"
    assert torch.equal(explained(model, x, "hirescam").maps, first), "the same again"
    kept: list[Tensor] = []
    thread = threading.Thread(target=lambda: kept.append(explained(model, x, "hirescam").maps))
    thread.start()
    thread.join()
    assert torch.equal(kept[0], first), "the same in a thread"
    for method in (m for m in explainers.names() if issubclass(explainers.get(m), LayerExplainer)):
        refusal = ""
        try:
            explained(model, x, cheap(method))
        except NotApplicableError as reason:
            refusal = str(reason)
        # It may be refused for the classifier or the activations, never for the layer itself.
        assert not refusal or re.search(
            r"no linear layer gives|classifier reads|linear function|all activations", refusal
        )
