"""Seeded networks of a few channels for tests; each carries its `spec` and takes images of any size from 16 pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn.models.heads import Classifier, create_head
from xattn.models.vit import Pool, TokenClassifier, TokenHead, VisionTransformer
from xattn.spec import ModelSpec

SIZE = 32
CLASSES = 5
_FACTS = {"input_size": (SIZE, SIZE), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


def images(n: int = 3, height: int = SIZE, width: int = SIZE, seed: int = 0) -> Tensor:
    """Normalized images (n, 3, height, width)."""
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


class TinyCNN(nn.Module):
    """Three convolutions with batch norm and an activation, the mean over the cells, a linear layer.

    Args:
        act: the activation, a function or a module; a module is used three times.
        classes: number of logits.
    """

    def __init__(self, act: Callable[[Tensor], Tensor] | None = None, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, 2, 1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, 2, 1)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, 1, 1)
        self.bn3 = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True) if act is None else act
        self.trunk = nn.Identity()
        self.fc = nn.Linear(8, classes)
        self.spec = ModelSpec(feature_layer="trunk", classifier="fc", name="tiny", **_FACTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(x)))
        y = self.act(self.bn3(self.conv3(y)) + y)
        return self.fc(self.trunk(y).mean((2, 3)))


class PooledScores(nn.Module):
    """As SqueezeNet: a 1x1 convolution gives a map per class, then ReLU and the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(inplace=True))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(8, CLASSES, 1), nn.ReLU(inplace=True))
        self.spec = ModelSpec(feature_layer="features", classifier="classifier.1", name="pooled", **_FACTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).mean((2, 3))


class ReluThenPool(nn.Module):
    """As DenseNet: the features are signed and pass a functional, in-place ReLU before the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8))
        self.classifier = nn.Linear(8, CLASSES)
        self.spec = ModelSpec(feature_layer="features", classifier="classifier", name="dense", **_FACTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.relu(self.features(x), inplace=True).mean((2, 3)))


class NormedPool(nn.Module):
    """As ConvNeXt: a layer norm between the mean and the classifier, so that CAM does not hold; GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.GELU())
        self.norm = nn.LayerNorm(8)
        self.classifier = nn.Linear(8, CLASSES)
        self.spec = ModelSpec(feature_layer="features", classifier="classifier", name="normed", **_FACTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.norm(self.features(x).mean((2, 3))))


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The model with seeded weights and with batch norms that have seen data, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
                nn.init.normal_(module.running_mean, 0, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2)
            elif isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(module.weight, 0, 1.5 / module.weight[0].numel() ** 0.5)
                if module.bias is not None:
                    nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


def _backbone() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU()
    )


def tiny_cnn() -> TinyCNN:
    """One in-place ReLU module, used three times."""
    return seeded(TinyCNN)


def tiny_functional() -> TinyCNN:
    """The same network with a functional ReLU."""
    return seeded(lambda: TinyCNN(F.relu))


def tiny_binary() -> TinyCNN:
    """One logit."""
    return seeded(lambda: TinyCNN(classes=1))


def tiny_gelu() -> TinyCNN:
    """No ReLU."""
    return seeded(lambda: TinyCNN(F.gelu))


def tiny_pooled_scores() -> PooledScores:
    """SqueezeNet's classifier."""
    return seeded(PooledScores)


def tiny_relu_then_pool() -> ReluThenPool:
    """DenseNet's end."""
    return seeded(ReluThenPool)


def tiny_normed_pool() -> NormedPool:
    """ConvNeXt's end."""
    return seeded(NormedPool)


def tiny_bcnn() -> Classifier:
    """A B-CNN head with two parts."""
    spec = ModelSpec(feature_layer="", name="tiny-bcnn", **_FACTS)
    return seeded(lambda: Classifier(_backbone(), create_head("bcnn", 8, CLASSES, parts=2), spec))


def tiny_brnpa() -> Classifier:
    """A BR-NPA head with three parts."""
    spec = ModelSpec(feature_layer="", name="tiny-brnpa", **_FACTS)
    return seeded(lambda: Classifier(_backbone(), create_head("brnpa", 8, CLASSES, parts=3), spec))


class TinyViT(TokenClassifier):
    """Two blocks of two heads, patches of 4 px."""

    def __init__(self, pool: Pool = "class") -> None:
        backbone = VisionTransformer(16, depth=2, heads=2, ratio=2, stem=(6, 8), image_size=SIZE, pool=pool)
        spec = ModelSpec(feature_layer="", name="tiny-vit", **_FACTS)
        super().__init__(backbone, TokenHead(16, CLASSES, pool=pool), spec)
        for parameter in (backbone.class_token, backbone.positions):
            if parameter is not None:
                nn.init.normal_(parameter, 0, 0.5)

    @property
    def conv3(self) -> nn.Module:
        """What ends the convolutions, as in `TinyCNN`."""
        return self.backbone.stem[-1]


def tiny_vit() -> TinyViT:
    """A class token."""
    return seeded(TinyViT)


def tiny_vit_mean() -> TinyViT:
    """No class token."""
    return seeded(lambda: TinyViT("mean"))


ATTENTION_METHODS = ("agcam", "attention-x-gradient", "legrad", "raw-attention", "rollout", "transformer-attribution")


def model_for(method: str) -> nn.Module:
    """A network for which the method is defined."""
    if method in (*ATTENTION_METHODS, "attnlrp", "cp-lrp", "libragrad"):
        return tiny_vit()
    return {"bcnn": tiny_bcnn, "part-cam": tiny_brnpa}.get(method, tiny_cnn)()
