"""A method that refuses a network and names others to use instead: each of them explains that network."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests import tiny_models as tiny
from tests.cheap import cheap
from tests.inspection import networks as nets
from xattn.errors import NotApplicableError, XattnWarning
from xattn.explainers import explainers
from xattn.spec import ModelSpec


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


class Vectors(nn.Module):
    """No layer of it gives a map."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(3 * 16 * 16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x.flatten(1)).relu())


class Several(nn.Module):
    """An image and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.out = nets.trunk(), nn.Linear(12, 5)

    def forward(self, x: Tensor, age: Tensor) -> Tensor:
        return self.out(self.features(x).mean((2, 3))) + age


class Slices(nn.Module):
    """Volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.out = nn.Conv3d(1, 6, 3, 2, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x).relu().mean((2, 3, 4)))


class Unusual(nn.Module):
    """Operations for which few rules exist."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.out = nets.trunk(), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.out(torch.fft.fft2(y).abs().mean((2, 3)) + y.cumsum(2).sort(3).values.mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], Any], Any, dict[str, Any]]] = {
    "function": (lambda: nets.made(Vectors).forward, images(2, 3, 16, 16), {}),
    "vectors": (lambda: nets.made(Vectors), images(2, 3, 16, 16), {}),
    "vectors of which little is known": (
        lambda: nets.made(Vectors), images(2, 3, 16, 16), {"spec": ModelSpec(input_size=(16, 16))},
    ),
    "angles": (lambda: nets.made(nets.Angles), images(2, 3, 32, 32), {}),
    "transformer": (lambda: nets.made(nets.ClassTokenLast), images(2, 3, 48, 80), {}),
    "windows": (lambda: nets.made(nets.Windows), images(2, 3, 64, 64), {}),
    "several inputs": (lambda: nets.made(Several), (images(2, 3, 32, 32), torch.ones(2, 1)), {}),
    "volumes": (lambda: nets.made(Slices), images(2, 1, 8, 16, 16), {}),
    "no gradient": (
        lambda: nets.made(nets.Ends, 5, lambda z: torch.from_numpy(z.detach().numpy())), images(2, 3, 32, 32), {},
    ),
    "rounded": (lambda: nets.made(nets.Ends, 5, lambda z: (8 * z).round()), images(2, 3, 32, 32), {}),
    "unusual operations": (lambda: nets.made(Unusual), images(2, 3, 32, 32), {}),
    "small": (lambda: nets.made(tiny.TinyCNN), images(2, 3, 32, 32), {}),
}  # fmt: skip


def refusal(model: Any, x: Any, method: str, given: dict[str, Any]) -> str | None:
    """Why a method does not explain a network; None where it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)
        try:
            xattn.explain(model, x, method, 1, **given)
        except NotApplicableError as reason:
            return str(reason)
    return None


def advised(message: str) -> list[str]:
    """The methods that a message says to use."""
    told = re.search(r"\buse (?:a method[a-z ]*(?:: |, such as ))?([a-z0-9+, -]+)[.;(]", message.lower())
    words = re.split(r", | or | and |\s", told[1]) if told else []
    return [word for word in words if word in explainers.names()]


def test_what_is_advised_is_read_off_messages() -> None:
    assert advised("x: no linear layer; use cam or hirescam.") == ["cam", "hirescam"]
    assert advised("x: none. Use a method that needs scores alone: occlusion, rise, lime or kernel-shap.") == [
        "occlusion", "rise", "lime", "kernel-shap",
    ]  # fmt: skip
    assert advised("x: no rule; use input-x-gradient; of relevance, attnlrp has more.") == ["input-x-gradient"]
    assert advised("x: is not defined for volumes.") == []


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_advised_explains_the_network(name: str) -> None:
    make, x, given = NETWORKS[name]
    model = make()
    told: dict[str, list[str]] = {}
    for method in explainers.names():
        if (why := refusal(model, x, cheap(method), given)) is not None:
            for other in advised(why):
                told.setdefault(other, []).append(f"{method}: {why}")
    assert told
    failed = {other: (why, advisers[:2]) for other, advisers in told.items()
              if (why := refusal(model, x, cheap(other), given)) is not None}  # fmt: skip
    assert failed == {}
