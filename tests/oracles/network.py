"""A tiny network run by hand, forwards and backwards, as plain loops in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import nn

Array = np.ndarray


# --- a network by hand -------------------------------------------------------------------------------------------


def conv(x: Array, module: nn.Conv2d) -> Array:
    """Convolution with zero padding."""
    weight, (s, _), (p, _) = module.weight.detach().double().numpy(), module.stride, module.padding
    k = weight.shape[2]
    h, w = ((n + 2 * p - k) // s + 1 for n in x.shape[1:])
    out = np.zeros((len(weight), h, w))
    for o in range(len(weight)):
        for i in range(h):
            for j in range(w):
                total = 0.0 if module.bias is None else float(module.bias.detach()[o])
                for a in range(k):
                    for b in range(k):
                        y, z = i * s + a - p, j * s + b - p
                        if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                            total += float(weight[o, :, a, b] @ x[:, y, z])
                out[o, i, j] = total
    return out


def conv_back(r: Array, module: nn.Conv2d, shape: tuple[int, ...]) -> Array:
    """What reaches the input (C, H, W) of a convolution when `r` arrives at its output."""
    weight, (s, _), (p, _) = module.weight.detach().double().numpy(), module.stride, module.padding
    back = np.zeros(shape)
    for o, i, j in np.ndindex(*r.shape):
        for a in range(weight.shape[2]):
            for b in range(weight.shape[3]):
                y, z = i * s + a - p, j * s + b - p
                if 0 <= y < shape[1] and 0 <= z < shape[2]:
                    back[:, y, z] += r[o, i, j] * weight[o, :, a, b]
    return back


def norm_scale(module: nn.BatchNorm2d) -> tuple[Array, Array]:
    """Factor and offset (C,) of a batch norm in evaluation mode."""
    scale = module.weight.detach().double() / (module.running_var.double() + module.eps).sqrt()
    offset = module.bias.detach().double() - module.running_mean.double() * scale
    return scale.numpy(), offset.numpy()


def norm(x: Array, module: nn.BatchNorm2d) -> Array:
    scale, offset = norm_scale(module)
    return np.stack([a * channel + b for a, channel, b in zip(scale, x, offset, strict=True)])


def norm_back(r: Array, module: nn.BatchNorm2d) -> Array:
    return np.stack([a * channel for a, channel in zip(norm_scale(module)[0], r, strict=True)])


def relu(x: Array) -> Array:
    out = x.copy()
    for cell in np.ndindex(*x.shape):
        out[cell] = max(x[cell], 0.0)
    return out


def relu_back(r: Array, x: Array, guided: bool) -> Array:
    """Gradient of a ReLU with input x; guided lets positive values pass only."""
    out = np.zeros_like(r)
    for cell in np.ndindex(*x.shape):
        if x[cell] > 0 and (r[cell] > 0 or not guided):
            out[cell] = r[cell]
    return out


@dataclass
class Case:
    """One image in a tiny network, run by hand.

    Attributes:
        model: `tiny_models.TinyCNN`, or a `Classifier` on a backbone of two convolutions.
        x: image (3, H, W).
        target: class.
        layer: layer of the methods that read one, "trunk" or "conv3" of the TinyCNN.
        seed: of the image.
    """

    model: nn.Module
    x: Array
    target: int
    layer: str | None = None
    seed: int = 0
    values: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        m, v = self.model, self.values
        if hasattr(getattr(m, "backbone", None), "blocks"):
            return  # a transformer, which `naive_transformer` runs
        if hasattr(m, "backbone"):
            first, bn, _, second, _ = m.backbone
            self.values["features"] = relu(conv(relu(norm(conv(self.x, first), bn)), second))
            return
        v["bn1"] = norm(conv(self.x, m.conv1), m.bn1)
        v["bn2"] = norm(conv(relu(v["bn1"]), m.conv2), m.bn2)
        v["conv3"] = conv(relu(v["bn2"]), m.conv3)
        v["sum"] = norm(v["conv3"], m.bn3) + relu(v["bn2"])
        v["trunk"] = relu(v["sum"])
        v["features"] = v["conv3"] if self.layer == "conv3" else v["trunk"]
        v["features_gradient"], v["gradient"] = self.backward(guided=False)
        v["guided"] = self.backward(guided=True)[1]

    def backward(self, guided: bool) -> tuple[Array, Array]:
        """What arrives at the features and at the image."""
        m, v = self.model, self.values
        row = m.fc.weight[self.target].detach().double().numpy()
        at_trunk = np.zeros_like(v["trunk"])
        for k, i, j in np.ndindex(*at_trunk.shape):
            at_trunk[k, i, j] = row[k] / at_trunk[0].size
        at_sum = relu_back(at_trunk, v["sum"], guided)
        at_conv3 = norm_back(at_sum, m.bn3)
        at_second = at_sum + conv_back(at_conv3, m.conv3, v["bn2"].shape)
        at_first = conv_back(norm_back(relu_back(at_second, v["bn2"], guided), m.bn2), m.conv2, v["bn1"].shape)
        at_image = conv_back(norm_back(relu_back(at_first, v["bn1"], guided), m.bn1), m.conv1, self.x.shape)
        return (at_conv3 if self.layer == "conv3" else at_trunk), at_image

    @property
    def features(self) -> Array:
        return self.values["features"]

    @property
    def gradient(self) -> Array:
        return self.values["features_gradient"]
