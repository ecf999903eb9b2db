"""What the table says of the models that a method serves: it runs on those and refuses the others in one clear line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import pytest
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from tests import tiny_models as tiny
from tests.cheap import cheap
from xattn.errors import NotApplicableError
from xattn.explainers import explainers
from xattn.explaining import explain
from xattn.inspection import infer_spec


def layer_normed() -> nn.Module:
    """A CNN with layer norm and GELU, and a norm between pooling and the linear layer."""
    stages = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    model = tiny.seeded(partial(ConvNeXt, stages, num_classes=5))
    model.spec = infer_spec(model, input_size=(tiny.SIZE, tiny.SIZE))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": tiny.tiny_cnn,
    "GELU": tiny.tiny_gelu,
    "layer norm": layer_normed,
    "B-CNN": tiny.tiny_bcnn,
    "BR-NPA": tiny.tiny_brnpa,
    "transformer": tiny.tiny_vit,
}
SERVED = {
    "all": set(MODELS),
    "ReLU networks": {"ReLU", "B-CNN", "BR-NPA"},
    "ReLU networks without attention": {"ReLU"},
    "CNNs without layer norm": {"ReLU", "GELU", "B-CNN", "BR-NPA"},
    "pooling and a linear layer at the end": {"ReLU", "GELU"},
    "B-CNN heads": {"B-CNN"},
    "B-CNN and BR-NPA heads": {"B-CNN", "BR-NPA"},
    "vision transformers": {"transformer"},
    "transformers and CNNs": set(MODELS),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", explainers.names())
def test_runs_where_its_row_says_and_refuses_elsewhere(method: str, kind: str) -> None:
    model, x = MODELS[kind](), tiny.images(2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, message=".*Explanation.status")
        if kind in SERVED[explainers.get(method).serves]:
            found = explain(model, x, cheap(method), spec=model.spec)
            # Behind a layer norm every token has the same norm: a map of norms is flat there, and says so.
            flat = kind == "transformer" and method == "activation"
            assert not {"nan", "constant"} - ({"constant"} if flat else set()) & set(found.status)
        else:
            with pytest.raises(NotApplicableError, match=rf"^{method.replace('+', '.')}: [^\n]+$"):
                explain(model, x, cheap(method), spec=model.spec)
