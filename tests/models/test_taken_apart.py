"""What a classifier is taken apart into holds for other images, and other numbers of them, than it was checked on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn.errors import NotApplicableError
from xattn.models.converting import convert, everywhere
from xattn.spec import ModelSpec

Forward = Callable[["Net", Tensor, Tensor], Tensor]


class Net(nn.Module):
    """Features, and a forward that is given from there on."""

    def __init__(self, forward: Forward, channels: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, channels, 3, 2, 1))
        self.fc, self.cells, self.capped = nn.Linear(channels, 5), nn.Conv2d(channels, 5, 1), nn.ReLU6(inplace=True)
        self.scale, self.shift = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.rand(channels))
        self.rest = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self, x, self.body(x))


def made(forward: Forward, **options: int) -> Net:
    torch.manual_seed(0)
    return Net(forward, **options).eval().double().requires_grad_(False)


def images(count: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count), dtype=torch.float64)


def altered(net: Net, x: Tensor, maps: Tensor) -> Tensor:
    net.capped(maps)  # in place, the result is not taken
    return net.fc(maps.mean((2, 3)))


def spec_of(kind: str) -> ModelSpec:
    return ModelSpec(feature_layer="body", classifier="cells" if "cells" in kind else "fc", input_size=(16, 16))


def mean(maps: Tensor) -> Tensor:
    return maps.mean((2, 3))


HOLD: dict[str, Forward] = {
    "size": lambda net, x, f: net.fc(mean(f).view(x.size(0), -1)),
    "shape": lambda net, x, f: net.fc(mean(f).relu().view(x.shape[0], -1)),
    "groups": lambda net, x, f: net.fc(F.normalize(mean(f).view(x.size(0) * 4, -1), dim=1).view(x.size(0), -1)),
    "rectified": lambda net, x, f: net.fc(mean(f.relu()).relu()),
    "wide bounds": lambda net, x, f: net.fc(mean(f).clamp(-50, 50)),
    "in place": altered,
    "parameters": lambda net, x, f: net.fc(mean(f) * net.scale.exp() + net.shift),
    "view of scores": lambda net, x, f: net.fc(mean(f)).view(x.size(0), -1),
    "cells, rectified": lambda net, x, f: mean(net.cells(f).relu()),
    "dropout": lambda net, x, f: net.fc(F.dropout(mean(f), training=net.training)),
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", HOLD)
def test_it_holds_for_other_images(kind, count):
    model = made(HOLD[kind])
    converted = everywhere(convert(model, parts=2, spec=spec_of(kind), x=images(count)))
    for other in (1, 2, 5):
        for scale in (1.0, -30.0, 1000.0):
            x = images(other, scale)
            torch.testing.assert_close(converted(x), model(x))


@pytest.mark.parametrize("channels", [1, 2])
def test_what_few_channels_pass_by_chance_is_kept(channels):
    for seed in range(8):
        torch.manual_seed(seed)
        model = Net(lambda net, x, f: net.fc(mean(f).relu()), channels=channels).eval().double()
        x = images(1)
        assert convert(model, parts=1, x=x).head.neck is not None


REFUSED: dict[str, tuple[Forward, int, str]] = {
    "rows as many as images": (lambda net, x, f: net.fc(mean(f) * f.shape[2]), 4, "leads around its pooling"),
    "colours as many as images": (lambda net, x, f: net.fc(mean(f) * x.shape[1]), 3, "leads around its pooling"),
    "width of the image": (lambda net, x, f: net.fc(mean(f) * x.shape[3]), 2, "leads around its pooling"),
    "counted": (lambda net, x, f: net.fc(mean(f) * (x > 0).sum()), 2, "several ways meet"),
    "positive scores": (
        lambda net, x, f: (net.fc(mean(f)) + 100).relu() - 100,
        2,
        "not what its classifier 'fc' gives",
    ),
    "capped scores": (lambda net, x, f: net.fc(mean(f)).clamp(max=1e3), 2, "not what its classifier 'fc' gives"),
    "capped cells": (lambda net, x, f: mean(F.relu6(net.cells(f))), 2, "for each cell is not pooled by the mean"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_holds_for_some_images_alone_is_refused(kind):
    forward, count, why = REFUSED[kind]
    with pytest.raises(NotApplicableError, match=why):
        convert(made(forward), parts=2, spec=spec_of(kind), x=images(count))
