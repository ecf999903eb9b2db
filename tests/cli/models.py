"""Tiny seeded networks for `--model tests.cli.models:NAME`, good ones and ones with a fault."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from xattn.spec import ModelSpec

CLASSES = ("tabby, tabby cat", "tiger cat", "goldfish, Carassius auratus", "daisy", "teapot")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def _spec(name: str, **facts: object) -> ModelSpec:
    known: dict[str, object] = {"feature_layer": "features", "classifier": "classifier", "input_size": (32, 32)}
    known |= {"mean": MEAN, "std": STD, "classes": CLASSES, "name": name}
    return ModelSpec(**(known | facts))  # type: ignore[arg-type]


class TinyCNN(nn.Module):
    """Three convolutions, global average pooling, a linear layer: 32 px give a grid of 8x8."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            activation(),
            nn.Conv2d(8, 8, 3, 2, 1),
            activation(),
            nn.Conv2d(8, 12, 3, 1, 1),
            activation(),
        )
        self.classifier = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Cells(TinyCNN):
    """The classifier reads each cell before the mean is taken, as in SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(12, len(CLASSES), 1)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).relu().mean((2, 3))


class WithAge(TinyCNN):
    """An image and an age."""

    def forward(self, image: Tensor, age: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(image) + age


class AtForty(nn.Module):
    """The same at one age."""

    def __init__(self) -> None:
        super().__init__()
        self.net = WithAge()

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image, image.new_full((len(image), 1), 40.0))


class Flat(nn.Module):
    """A network without a spatial layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * 32 * 32, 16)
        self.classifier = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.hidden(x.flatten(1)).relu())


class Probabilities(TinyCNN):
    """A network that ends in softmax."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(dim=1)


class NotANumber(TinyCNN):
    """A network whose features and logits are NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x * torch.nan).mean((2, 3)))


class Coupled(TinyCNN):
    """A network whose images see each other."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=0, keepdim=True))


class Failing(TinyCNN):
    """A network that cannot be run."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("the forward pass is broken")


class Dead(TinyCNN):
    """A network whose logits do not depend on its features."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.0


def seeded(kind: type[nn.Module], *args: object, **facts: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(*args)
    if facts.pop("known", True):
        model.spec = _spec(kind.__name__.lower(), **facts)  # type: ignore[assignment]
    return model.eval()


def cnn() -> nn.Module:
    return seeded(TinyCNN)


def cells() -> nn.Module:
    return seeded(Cells)


def unknown() -> nn.Module:
    """Without a spec: it has to be inferred, at 32 px since batch norm and convolutions take any size."""
    return seeded(TinyCNN, known=False)


def gelu() -> nn.Module:
    return seeded(TinyCNN, nn.GELU)


def flat() -> nn.Module:
    return seeded(Flat, known=False)


def probabilities() -> nn.Module:
    return seeded(Probabilities)


def nan() -> nn.Module:
    return seeded(NotANumber)


def coupled() -> nn.Module:
    return seeded(Coupled)


def failing() -> nn.Module:
    return seeded(Failing)


def dead() -> nn.Module:
    return seeded(Dead)


def brnpa() -> nn.Module:
    """With a BR-NPA head of two parts."""
    from xattn.models import BRNPAHead, Classifier

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier(TinyCNN().features, BRNPAHead(12, len(CLASSES), parts=2))
    model.spec = _spec(  # type: ignore[assignment]
        "brnpa",
        feature_layer="backbone",
        classifier="head.classifier",
        attention_layer="head.attention",
        attention="brnpa",
    )
    return model.eval()


def raising() -> nn.Module:
    raise ValueError("no such file: config.yaml")


def number() -> int:
    return 3


def scores_alone() -> Callable[[Tensor], np.ndarray]:
    """A function from images to arrays, whose layers and gradients cannot be seen."""
    model = cnn()
    return lambda x: model(x).detach().numpy()


def with_age() -> nn.Module:
    return seeded(WithAge)


def at_forty() -> nn.Module:
    return seeded(AtForty, feature_layer="net.features", classifier=None)
