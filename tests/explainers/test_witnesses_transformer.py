"""timm, torchvision, torch-cam and pytorch-grad-cam as second witnesses on vision transformers.

No installed library has AGCAM, rollout, attention x gradient or transformer attribution; these rest on the oracles.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests import tiny_models as tiny
from tests.explainers.test_transformers import built, from_timm, seeded, taps, torchvision_vit
from xattn.explaining import explain
from xattn.inspection import infer_spec
from xattn.trace import record

pytestmark = pytest.mark.filterwarnings("ignore")


def test_probabilities_of_timm() -> None:
    """timm shows them once its fused kernel is switched off for good; until then its hooks never fire."""
    timm = pytest.importorskip("timm")
    model, spec, x = built("registers")
    trace = record(model, x, spec=spec, layers=taps(spec))
    slow = seeded(from_timm("vit_small_patch14_reg4_dinov2"))
    extract = timm.utils.AttentionExtract(slow, method="hook")
    with torch.no_grad():
        assert not extract(x)
        for block in slow.blocks:
            block.attn.fused_attn = False
        expected = extract(x)
    for layer, maps in zip(taps(spec), expected.values(), strict=True):
        torch.testing.assert_close(trace.activation(layer), maps)


def test_probabilities_of_torchvision() -> None:
    model, spec, x = built("torchvision")
    trace = record(model, x, spec=spec, layers=taps(spec))
    seen: list[Tensor] = []
    for block in model.encoder.layers:
        block.self_attention.register_forward_pre_hook(
            lambda module, args, kwargs: (
                seen.append(module(*args, need_weights=True, average_attn_weights=False)[1])
                if not kwargs.get("need_weights", True)
                else None
            ),
            with_kwargs=True,
        )
    with torch.no_grad():
        model(x)
    for layer, maps in zip(taps(spec), seen, strict=True):
        torch.testing.assert_close(trace.activation(layer), maps)


def test_legrad_of_torchcam() -> None:
    """Right for torchvision's ViT, the one it serves; its map is normalized unless asked."""
    methods = pytest.importorskip("torchcam.methods")
    model, spec, x = seeded(torchvision_vit), infer_spec(seeded(torchvision_vit)), tiny.images(2, seed=4)
    with methods.LeGrad(model, list(model.encoder.layers)) as witness:
        scores = model(x)
        (expected,) = witness([2, 1], scores, normalized=False)
    found = explain(model, x, "legrad", [2, 1], spec=spec).maps
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["vit", "registers"])
def test_grad_cam_of_pytorch_grad_cam(name: str) -> None:
    """Once it is told how the tokens lie; its own reshape function takes one prefix token and 14x14 patches."""
    cams = pytest.importorskip("pytorch_grad_cam")
    model, spec, x = built(name)
    prefix = spec.tokens.prefix

    def reshape(tokens: Tensor) -> Tensor:
        return tokens[:, prefix:].transpose(1, 2).unflatten(2, (4, 4))

    witness = cams.GradCAM(model, [model.get_submodule(spec.feature_layer)], reshape_transform=reshape)
    targets = [cams.utils.model_targets.ClassifierOutputTarget(1)] * 2
    grids = witness.activations_and_grads
    witness(x, targets)
    features, gradient = (torch.as_tensor(found[0]) for found in (grids.activations, grids.gradients))
    raw = witness.get_cam_image(x, None, targets, features.numpy(), gradient.numpy())
    found = explain(model, x, "gradcam", 1, spec=spec).maps
    torch.testing.assert_close(found[:, 0], torch.as_tensor(raw).clamp(min=0), rtol=1e-4, atol=1e-6)
