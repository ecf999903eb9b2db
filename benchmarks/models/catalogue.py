"""What the audit builds: small members of all families of timm and torchvision, small Hugging Face configurations,
and home-made kinds. Weights are random; what starts as zero is made nonzero, so that deep layers answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 7
SIDES = (128, 96, 112, 192, 224)  # pixels, tried in this order: the first at which the network runs
LARGER = (256, 224, 288, 240, 192)  # likewise, where the cells of a small image see all of it

# One to three small members of each module of timm; what follows a colon shrinks the network, and
# what follows @ is the side of its image.
TIMM = """
beit_base_patch16_224:depth=4 beitv2_base_patch16_224:depth=3
botnet26t_256 halonet26t lambda_resnet26t eca_botnext26ts_256 sehalonet33ts
gernet_s mobileone_s0 repvgg_a0 regnetz_b16 gcresnext26ts resnet50_clip_gap bat_resnext26ts
cait_xxs24_224:depth=6 coat_lite_tiny coat_tiny convit_tiny:depth=6 convmixer_768_32
convnext_atto convnextv2_atto convnext_zepto_rms convnext_tiny_hnf:depths=[1,1,2,1]
cpubone_nano cpubone_b0_bfrobust crossvit_tiny_240 crossvit_9_dagger_240 csatv2
cs3darknet_focus_s cspresnet50 darknet17 cspnext_tiny davit_tiny deepseek_vit_412m:depth=3
deit_tiny_patch16_224:depth=6 deit_tiny_distilled_patch16_224:depth=6 deit3_small_patch16_224:depth=4
densenet121 densenetblur121d dla46_c dla34 dpn48b edgenext_xx_small efficientformer_l1
efficientformerv2_s0 efficientnet_b0 mobilenetv2_050 mnasnet_small mixnet_s fbnetc_100 spnasnet_100
efficientnet_cc_b0_4e tinynet_e efficientvim_m1@224 efficientvit_b0 efficientvit_l1@256 efficientvit_m0@224
eva02_tiny_patch14_224:depth=4 vit_small_patch16_rope_224:depth=4 vit_small_patch16_dinov3:depth=4
vit_medium_patch16_rope_reg1_gap_256:depth=3 fasternet_t0 fastvit_t8 fastvit_sa12 fastvit_mci0 focalnet_tiny_srf
gcvit_xxtiny gemma4_vit_167m:depth=3 ghostnet_050 ghostnetv2_100 ghostnetv3_050 hardcorenas_a hgnet_tiny hgnetv2_b0
hiera_tiny_224 hiera_small_abswin_256 hieradet_small sam2_hiera_tiny hrnet_w18_small iformer_t
inception_next_atto inception_resnet_v2 inception_v3@256 inception_v4@256 lcnetv2_small
levit_128s levit_conv_128s lowformer_b0 lowformer_e1 mambaout_femto test_mambaout
coatnet_pico_rw_224 coatnet_bn_0_rw_224 maxvit_rmlp_pico_rw_256 maxxvit_rmlp_nano_rw_256 test_coatnet test_maxvit
poolformer_s12 poolformerv2_s12 convformer_s18 caformer_s18 mixer_s32_224 gmlp_ti16_224
resmlp_12_224 gmixer_12_224
lcnet_050 mobilenetv3_small_050 fbnetv3_b mobilenetv4_conv_small_050 mobilenetv4_hybrid_medium_075 mobilenetv5_300m
mobilevit_xxs mobilevitv2_050 mvitv2_tiny mvitv2_small_cls naflexvit_base_patch16_gap:depth=3
naflexvit_base_patch16_map:depth=3 nasnetalarge nest_tiny_jx nextvit_small nf_regnet_b0 eca_nfnet_l0 test_nfnet
nf_resnet26 pit_ti_224 pit_ti_distilled_224 pnasnet5large pvt_v2_b0 pvt_v2_b2_li qwen3_vit_88m:depth=4 rdnet_tiny
regnetx_002 regnety_002 regnetz_005 repghostnet_050 repvit_m0_9 repvit_m1_5 res2net50_48w_2s resnest14d
resnet10t resnet18 ecaresnet26t resnetblur18 seresnet18 resnext26ts resnetv2_18 resnetv2_50x1_bit resnetv2_50d_gn
rexnet_100 rexnetr_100 selecsls42 legacy_seresnet18 legacy_seresnext26_32x4d sequencer2d_s:layers=[1,1,2,1]
shvit_s1 skresnet18 starnet_s050 starnet_s1 swiftformer_xs swin_tiny_patch4_window7_224 swin_s3_tiny_224
swinv2_tiny_window8_256 swinv2_cr_tiny_224 swinv2_cr_tiny_ns_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224:depth=4
tnt_s_patch16_224:depth=4 tresnet_m twins_pcpvt_small twins_svt_small vgg11 vgg11_bn visformer_tiny
test_vit test_vit2 test_vit3 test_vit4 vit_tiny_patch16_224:depth=6 flexivit_small:depth=4
vit_small_patch14_reg4_dinov2:depth=4 vit_medium_patch16_gap_240:depth=3 vit_wee_patch16_reg1_gap_256:depth=6
vit_dwee_patch16_reg1_gap_256:depth=4 vit_pwee_patch16_reg1_gap_256:depth=4 vit_small_patch16_36x1_224:depth=4
aimv2_large_patch14_224:depth=2 vit_small_r26_s32_224:depth=3 vit_tiny_r_s16_p8_224:depth=4
vit_small_resnet26d_224:depth=3 test_vit_relpos vit_relpos_small_patch16_224:depth=4
vit_srelpos_small_patch16_224:depth=4 samvit_base_patch16_224:depth=3
vitamin_small_224 volo_d1_224 vovnet39a ese_vovnet19b_slim
legacy_xception xception41 xcit_nano_12_p16_224 xcit_tiny_12_p8_224:depth=4
"""

TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
mobilenet_v2 mobilenet_v3_small mobilenet_v3_large regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d
wide_resnet50_2 shufflenet_v2_x0_5 squeezenet1_0 squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_16 vit_b_32
"""

_VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
_IMAGE = {"image_size": 64, "patch_size": 16}
_TOWER = {"vision_config": {**_VIT, **_IMAGE}}
_FOUR = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}
_SWIN = {"embed_dim": 16, "depths": [2, 2, 2], "num_heads": [2, 4, 8], "window_size": 4, "image_size": 64,
         "patch_size": 4}  # fmt: skip

# Configuration class of transformers, its small arguments, and the tokens before the grid where it has tokens. Without
# ImageGPT and SigLIP 2, which take colours by number and patches instead of images, and DiNAT, which needs a library of
# compiled kernels.
HUGGING_FACE: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "beit": ("BeitConfig", {**_VIT, **_IMAGE, "use_mean_pooling": True}, 1),
    "beit-class-token": ("BeitConfig", {**_VIT, **_IMAGE, "use_mean_pooling": False}, 1),
    "bit": ("BitConfig", {**_FOUR, "embedding_size": 16, "num_groups": 8}, None),
    "clip": ("CLIPConfig", _TOWER, 1),
    "convnext": ("ConvNextConfig", _FOUR, None),
    "convnextv2": ("ConvNextV2Config", _FOUR, None),
    "cvt": (
        "CvtConfig", {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}, None,
    ),
    "data2vec-vision": ("Data2VecVisionConfig", {**_VIT, **_IMAGE}, 1),
    "deit": ("DeiTConfig", {**_VIT, **_IMAGE}, 2),
    "dinov2": ("Dinov2Config", {**_VIT, "image_size": 70, "patch_size": 14}, 1),
    "dinov2-registers": (
        "Dinov2WithRegistersConfig", {**_VIT, "image_size": 70, "patch_size": 14, "num_register_tokens": 4}, 5,
    ),
    "donut-swin": ("DonutSwinConfig", _SWIN, None),
    "efficientnet": (
        "EfficientNetConfig", {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}, None,
    ),
    "focalnet": ("FocalNetConfig", {"embed_dim": 16, "image_size": 128, "depths": [1, 1, 2, 1]}, None),
    "hgnet-v2": ("HGNetV2Config", {}, None),
    "hiera": (
        "HieraConfig",
        {"embed_dim": 16, "image_size": [128, 128], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}, None,
    ),
    "ijepa": ("IJepaConfig", {**_VIT, **_IMAGE}, 0),
    "levit": (
        "LevitConfig",
        {"image_size": 224, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "key_dim": [8, 8, 8],
         "depths": [1, 1, 1]}, None,
    ),
    "metaclip-2": ("MetaClip2Config", _TOWER, 1),
    "mobilenet-v1": ("MobileNetV1Config", {"depth_multiplier": 0.25}, None),
    "mobilenet-v2": ("MobileNetV2Config", {"depth_multiplier": 0.35}, None),
    "mobilevit": (
        "MobileViTConfig", {"image_size": 128, "initializer_range": 0.2, "hidden_sizes": [16, 24, 32],
                            "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 48]}, None,
    ),
    "mobilevitv2": ("MobileViTV2Config", {"image_size": 128, "width_multiplier": 0.25, "initializer_range": 0.2}, None),
    "perceiver": ("PerceiverConfig", {"num_latents": 8, "d_latents": 32, "image_size": 64}, None),
    "poolformer": ("PoolFormerConfig", _FOUR, None),
    "pp-lcnet": ("PPLCNetConfig", {"scale": 0.25}, None),
    "pvt": ("PvtConfig", {**_FOUR, "image_size": 128, "num_attention_heads": [1, 2, 4, 8]}, None),
    "pvt-v2": ("PvtV2Config", {**_FOUR, "image_size": 128, "num_attention_heads": [1, 2, 4, 8]}, None),
    "regnet": ("RegNetConfig", {**_FOUR, "embedding_size": 16, "groups_width": 8}, None),
    "resnet": ("ResNetConfig", {**_FOUR, "embedding_size": 16}, None),
    "resnet-basic": ("ResNetConfig", {**_FOUR, "embedding_size": 16, "layer_type": "basic"}, None),
    "segformer": ("SegformerConfig", {**_FOUR, "num_attention_heads": [1, 2, 4, 8]}, None),
    "siglip": ("SiglipConfig", _TOWER, 0),
    "swiftformer": ("SwiftFormerConfig", {"embed_dims": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}, None),
    "swin": ("SwinConfig", _SWIN, None),
    "swinv2": ("Swinv2Config", _SWIN, None),
    "textnet": ("TextNetConfig", {}, None),
    "timm-wrapper": ("TimmWrapperConfig", {"architecture": "resnet18", "model_args": {}}, None),
    "vit": ("ViTConfig", {**_VIT, **_IMAGE}, 1),
    "vit-msn": ("ViTMSNConfig", {**_VIT, **_IMAGE}, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """One network to audit.

    Args:
        name: in the table, `timm/resnet18`.
        build: makes it, in evaluation mode, and the image size at which it runs, of several sides the first.
        prefix: tokens before the grid, by the family's own description; None where there are none or it is unknown.
        channels: of its images.
    """

    name: str
    build: Callable[[Sequence[int]], tuple[nn.Module, tuple[int, int]]]
    prefix: int | None = None
    channels: int = 3


def architectures() -> Iterator[Architecture]:
    """All networks of the audit."""
    for text in TIMM.split():
        text, _, side = text.partition("@")
        name, _, options = text.partition(":")
        build = lambda sides, name=name, options=options, side=side: _timm(name, options, side, sides)  # noqa: E731
        yield Architecture(f"timm/{name}", build)
    for name in TORCHVISION.split():
        yield Architecture(
            f"torchvision/{name}", lambda sides, name=name: _torchvision(name, sides), 1 if "vit_" in name else None
        )
    for name, (config, arguments, prefix) in HUGGING_FACE.items():
        build = lambda sides, config=config, arguments=arguments: _hugging_face(config, arguments, sides)  # noqa: E731
        yield Architecture(f"hf/{name}", build, prefix)
    yield from _home_made()


# ------------------------------------------------------------------------------------------------------- builders


def _timm(name: str, options: str, given: str, sides: Sequence[int]) -> tuple[nn.Module, tuple[int, int]]:
    import timm

    arguments: dict[str, Any] = {"num_classes": CLASSES}
    if options:
        key, _, value = options.partition("=")
        arguments[key] = [int(v) for v in value[1:-1].split(",")] if value.startswith("[") else int(value)
    config = timm.get_pretrained_cfg(name)
    own = config.input_size[-1] if config is not None else 224
    sides = (int(given), *sides) if given else sides
    failure: Exception | None = None
    if config is not None and config.fixed_input_size:
        patch = 14 if "patch14" in name else 16
        for side in dict.fromkeys((*(s for s in sides if s % patch == 0), own)):
            if side <= own:
                try:
                    return _runs(prepared(timm.create_model(name, img_size=side, **arguments)), [side])
                except (TypeError, ValueError, RuntimeError, AssertionError) as error:
                    failure = error
    try:
        return _runs(prepared(timm.create_model(name, **arguments)), [*(s for s in sides if s <= max(own, 256)), own])
    except Exception as error:
        raise error from failure


def _torchvision(name: str, sides: Sequence[int]) -> tuple[nn.Module, tuple[int, int]]:
    from torchvision import models

    arguments: dict[str, Any] = {"weights": None, "num_classes": CLASSES}
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = True
    if name == "vit_b_16":
        arguments["image_size"] = 96
    if name == "vit_b_32":
        arguments["image_size"] = 192
    model = models.get_model(name, **arguments)
    fixed = getattr(model, "image_size", None)
    return _runs(prepared(model), [*sides] if fixed is None else [fixed])


def _hugging_face(config: str, arguments: dict[str, Any], sides: Sequence[int]) -> tuple[nn.Module, tuple[int, int]]:
    import transformers

    settings = getattr(transformers, config)(num_labels=CLASSES, **arguments)
    torch.manual_seed(0)
    kind = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(settings)]
    model = (kind[0] if isinstance(kind, tuple) else kind)(settings)
    fixed = arguments.get("image_size") or arguments.get("vision_config", {}).get("image_size")
    fixed = fixed[0] if isinstance(fixed, list) else fixed
    return _runs(prepared(model), [fixed] if fixed else [*sides])


def _runs(model: nn.Module, sides: list[int]) -> tuple[nn.Module, tuple[int, int]]:
    """The model with its statistics filled, and the first size at which it runs."""
    failure: Exception | None = None
    for side in dict.fromkeys(sides):
        try:
            settle(model, images((side, side), count=3))
        except Exception as error:  # whatever a foreign forward pass raises
            failure = failure or error
            continue
        return model, (side, side)
    raise RuntimeError(str(failure)) from failure


def images(size: tuple[int, int], count: int = 2, channels: int = 3) -> Tensor:
    """Seeded images (N, C, H, W): patches of an eighth of the side, and some grain."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.randn(count, channels, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False)
    return smooth + 0.3 * torch.randn(count, channels, *size, generator=generator)


def prepared(model: nn.Module) -> nn.Module:
    """The model in evaluation mode; what was made zero or tiny at the start of a training is made nonzero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        p = parameter.data
        if not p.is_floating_point() or not p.numel() or float(p.max() - p.min()) > 0 or float(p.abs().max()) > 0.2:
            continue
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("bias"):
            p.copy_(0.1 * noise)
        elif p.ndim >= 2 and p.shape[0] > 1 and p[0].numel() > 1:
            p.copy_(noise / p[0].numel() ** 0.5)
        elif float(p.abs().max()) > 0:  # a scale of a residual branch, which stays below one in training
            p.copy_(0.2 + 0.02 * noise)
        else:
            p.copy_(1 + 0.1 * noise)
    return model.eval()


def settle(model: nn.Module, x: Tensor) -> None:
    """Fill the statistics of batch normalization, without which deep random networks fade or explode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    kept = [m.momentum for m in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        with torch.no_grad():
            model(x)
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.eval()
            norm.momentum = momentum


# ------------------------------------------------------------------------------------------------------ home-made


def _home_made() -> Iterator[Architecture]:
    sys.path.append(str(Path(__file__).parents[2]))
    from tests.inspection import networks as nets

    kinds: list[tuple[Any, tuple[Any, ...], tuple[int, int]]] = [
        (nets.SharedNorm, (), (32, 32)),
        (nets.Windows, (), (64, 64)),
        (nets.ClassTokenLast, (), (48, 80)),
        (nets.ChannelsLast, (8,), (64, 96)),
        (nets.ChannelsLast, (20,), (64, 96)),
        (nets.Reconstructs, (), (32, 32)),
        (nets.TwoWays, (), (32, 32)),
        (nets.Blind, (), (32, 32)),
        (nets.Columns, (), (24, 72)),
        (nets.Angles, (), (32, 32)),
        (nets.Reduced, (), (32, 32)),
        (nets.Latents, (), (32, 32)),
        (nets.Several, (), (32, 32)),
        (nets.Steps, (), (16, 96)),
        (nets.Noisy, (), (32, 32)),
        (nets.Coupled, (), (32, 32)),
        (nets.Ends, (5, torch.sigmoid), (32, 32)),
        (nets.Ends, (5, lambda z: (z.softmax(1), z)), (32, 32)),
    ]
    for number, (kind, arguments, size) in enumerate(kinds, start=1):
        build = lambda sides, kind=kind, arguments=arguments, size=size: (nets.made(kind, *arguments), size)  # noqa: E731
        channels = 1 if kind is nets.Columns else 3
        yield Architecture(f"home-made/{number:02d}-{kind.__name__}", build, channels=channels)
