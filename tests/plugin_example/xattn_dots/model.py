"""A model: a function that returns a module; the facts about it are its attribute `spec`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xattn.spec import ModelSpec


class DotNet(nn.Module):
    """Brightness, pooled over the left and the right half: right on all of `Dots`, and looking at nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(4, 2)
        with torch.no_grad():
            self.features[0].weight.copy_(torch.tensor([1.0, -1.0])[:, None, None, None].expand(2, 3, 1, 1))
            self.features[0].bias.zero_()
            # of two channels, bright and dark, each left and right
            self.fc.weight.copy_(torch.tensor([[1.0, -1.0, 0.0, 0.0], [-1.0, 1.0, 0.0, 0.0]]))
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        halves = nn.functional.adaptive_avg_pool2d(self.features(x), (1, 2))
        return self.fc(halves.flatten(1))


def dot_net() -> nn.Module:
    """Network for two classes with weights set by hand (an example, 2026)."""
    model = DotNet()
    model.spec = ModelSpec(  # type: ignore[assignment]
        feature_layer="features", classifier="fc", input_size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3,
        classes=("left", "right"), crop=1.0, name="dot-net",
    )  # fmt: skip
    return model
