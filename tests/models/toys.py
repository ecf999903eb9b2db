"""Small networks as a user would write them, for `package.module:factory`."""

from __future__ import annotations

import torch
from torch import nn


class Toy(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, classes=4):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU()
        )
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


def toy(num_classes=4):
    torch.manual_seed(0)
    return Toy(num_classes)


def fixed():
    return toy()


def nothing():
    return "a network"


NUMBER = 3
