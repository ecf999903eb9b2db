"""What must hold on any network: places, images and repetitions, over a dozen of kinds and over the registry."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import xattn
from benchmarks.models.quarter import moved, pair
from tests import tiny_models as tiny
from tests.cheap import cheap
from tests.inspection import networks as nets
from xattn.errors import NotApplicableError, XattnWarning
from xattn.explainer import LayerExplainer
from xattn.explainers import explainers
from xattn.explanation import Explanation


def of_timm(name: str, **options: int) -> nn.Module:
    """A small network of timm with random weights that let all of its blocks answer."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **options)
    for parameter in model.parameters():  # gammas that start as zero, or nearly so
        if parameter.ndim == 1 and float(parameter.detach().abs().max()) < 0.1:
            nn.init.normal_(parameter, 0.5, 0.1)
    return model.eval()


def of_hugging_face(config: str, **options: object) -> nn.Module:
    """A small network of transformers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = getattr(transformers, config)(num_labels=5, **options)
    return transformers.AutoModelForImageClassification.from_config(settings).eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "norm used twice": (lambda: nets.made(nets.SharedNorm), (48, 64)),
    "windows": (lambda: nets.made(nets.Windows), (64, 64)),
    "class token last": (lambda: nets.made(nets.ClassTokenLast), (64, 96)),
    "channels last": (lambda: nets.made(nets.ChannelsLast, 8), (64, 96)),
    "decoder": (lambda: nets.made(nets.Reconstructs), (48, 64)),
    "columns": (lambda: nets.made(nets.Columns), (24, 72)),
    "angles": (lambda: nets.made(nets.Angles), (48, 64)),
    "vision transformer": (lambda: of_timm("test_vit", img_size=96), (96, 96)),
    "byobnet": (lambda: of_timm("test_byobnet"), (128, 128)),
    "convnext": (lambda: of_timm("test_convnext"), (128, 128)),
    "mambaout": (lambda: of_timm("test_mambaout"), (128, 128)),
    "swin of transformers": (
        lambda: of_hugging_face(
            "SwinConfig", embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=2, image_size=32, patch_size=4
        ),
        (32, 32),
    ),
    "dinov2 of transformers": (
        lambda: of_hugging_face(
            "Dinov2WithRegistersConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=70,
            patch_size=14, num_register_tokens=3,
        ),
        (70, 70),
    ),
}  # fmt: skip


def explained(model: nn.Module, x: Tensor, method: str = "gradcam", target: int | None = 0) -> Explanation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)
        return xattn.explain(model, x, method, target, seeds=list(range(len(x))))


def images(model: nn.Module, size: tuple[int, int]) -> Tensor:
    """Two images of as many channels as it takes that are the same but for the lower left quarter."""
    return pair(size, next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3))


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network(name: str) -> None:
    make, size = NETWORKS[name]
    model = make()
    x = images(model, size)
    assert moved(explained(model, x, "activation").maps), "the map changes most where the pixels did"
    first = explained(model, x, "hirescam").maps
    assert not torch.allclose(first[0], first[1]), "two images, two maps"
    assert torch.equal(explained(model, x, "hirescam").maps, first), "the same again"
    kept: list[Tensor] = []
    thread = threading.Thread(target=lambda: kept.append(explained(model, x, "hirescam").maps))
    thread.start()
    thread.join()
    assert torch.equal(kept[0], first), "the same in a thread"
    readers = [m for m in explainers.names() if issubclass(explainers.get(m), LayerExplainer)]
    for method in readers:
        refusal = ""
        try:
            explained(model, x, cheap(method))
        except NotApplicableError as reason:
            refusal = str(reason)
        # It may be refused for the classifier or the activations, never for the layer itself.
        assert not refusal or re.search(
            r"no linear layer gives|classifier reads|linear function|all activations", refusal
        )


# The middle and noise know nothing of the image; without a pooling layer that has a place to remember, neither does
# what deconvolution gives back.
NOWHERE = {"center", "random", "deconvolution"}


@pytest.mark.parametrize("method", [m for m in explainers.names() if m not in NOWHERE])
def test_any_method(method: str) -> None:
    model = tiny.model_for(method)
    x = images(model, (32, 32))
    maps = explained(model, x, cheap(method)).maps
    assert not torch.allclose(maps[0], maps[1])
    assert moved(maps)
    kept: list[Tensor] = []
    thread = threading.Thread(target=lambda: kept.append(explained(model, x, cheap(method)).maps))
    thread.start()
    thread.join()
    assert torch.equal(kept[0], maps)
