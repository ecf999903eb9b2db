"""Networks as people bring them: wrapped, tied, gated, cropped, turned, run on pieces, or on some images alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.inspection.networks import trunk


class Plain(nn.Module):
    """Two convolutions, mean, linear."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.features, self.out = trunk(), nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x).mean((2, 3)))


class Nested(nn.Module):
    """Scores deep in a structure, beside features and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Plain()

    def forward(self, x: Tensor) -> Any:
        maps = self.net.features(x)
        return maps, ({"aux": (maps.mean((2, 3)), self.net.out(maps.mean((2, 3))))}, torch.zeros(()))


class Tied(nn.Module):
    """Class scores by the transposed weights of the layer that embeds the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classes = trunk(), nn.Embedding(5, 12)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.features(x).mean((2, 3)), self.classes.weight)


class Excited(nn.Module):
    """Squeeze and excitation between the features and the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.out = trunk(), nn.Linear(12, 5)
        self.excite = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 3, 1), nn.ReLU(), nn.Conv2d(3, 12, 1))
        self.gate, self.pool = nn.Sigmoid(), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.out(self.pool(y * self.gate(self.excite(y))).flatten(1))


class Normalizes(nn.Module):
    """Takes pixels from 0 to 255, of integers too, and normalizes them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Plain()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x.to(self.mean.dtype) / 255 - self.mean) / 0.25)


class Averaged(nn.Module):
    """A network and the moving average of its weights, which alone predicts in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Plain()
        self.average = copy.deepcopy(self.net)
        for parameter in self.average.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if self.training else self.average(x)


class Flips(nn.Module):
    """Mean of the scores of the image and of its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Plain()

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x) + self.net(x.flip(3))) / 2


class Joint(nn.Module):
    """The image and its mirror image as one batch of twice as many."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Plain()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.net(torch.cat([x, x.flip(3)])).chunk(2)
        return (a + b) / 2


class Pyramid(nn.Module):
    """Maps of three sizes, as `features_only` gives them; a head that reads all."""

    def __init__(self, head: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.out = nn.Linear(20, 5) if head else None

    def forward(self, x: Tensor) -> Any:
        a = self.one(x).relu()
        b = self.two(a).relu()
        if self.out is None:
            return [a, b]
        return self.out(torch.cat([a.mean((2, 3)), b.mean((2, 3))], 1))


class Shifted(nn.Module):
    """Windowed attention with a cyclic shift, as Swin has it, without anything of its names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.n, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.last, self.out = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).permute(0, 2, 3, 1)
        n, h, w, c = y.shape
        z = torch.roll(self.n(y), (-2, -2), (1, 2)).unflatten(2, (-1, 4)).unflatten(1, (-1, 4)).transpose(2, 3)
        q, k, v = self.qkv(z.reshape(-1, 16, c)).chunk(3, dim=-1)
        z = self.proj(F.scaled_dot_product_attention(q, k, v)).reshape(n, h // 4, w // 4, 4, 4, c).transpose(2, 3)
        y = y + torch.roll(z.reshape(n, h, w, c), (2, 2), (1, 2))
        return self.out(self.last(y).mean((1, 2)))


class Wrapper(nn.Module):
    """A wrapper that counts and hands on, by keyword, to what it keeps under a name of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.add_module("inner", inner)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.seen += 1
        return self.get_submodule("inner")(*args, **kwargs)


class Before(nn.Module):
    """Something that is done to the image before a network sees it."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.change = Plain(), change

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.change(x))


class Warps(nn.Module):
    """A spatial transformer: an affine map that a layer reads off the image."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.place = Plain(), nn.Linear(3, 6)
        nn.init.zeros_(self.place.weight)
        self.place.bias.data = torch.tensor([0.5, 0, 0.3, 0, 0.5, 0.3])

    def forward(self, x: Tensor) -> Tensor:
        how = self.place(x.mean((2, 3))).unflatten(1, (2, 3))
        return self.net(F.grid_sample(x, F.affine_grid(how, list(x.shape), False), align_corners=False))


class Pooled(nn.Module):
    """Attention over places that pools the features, as in learning from bags."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.weights, self.out = trunk(), nn.Conv2d(12, 1, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.out((y * self.weights(y).flatten(2).softmax(2).view(len(x), 1, *y.shape[2:])).sum((2, 3)))


class Routed(nn.Module):
    """One of two experts for each image, chosen by how bright it is."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([Plain(), Plain()])

    def forward(self, x: Tensor) -> Tensor:
        bright, out = x.mean((1, 2, 3)) > 0, x.new_zeros(len(x), 5)
        for chosen, expert in ((bright, self.experts[1]), (~bright, self.experts[0])):
            if bool(chosen.any()):
                out = out.index_put((chosen,), expert(x[chosen]))
        return out


class Named(nn.Module):
    """Images by name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Plain()

    def forward(self, *, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(pixel_values)}


class Spoken(nn.Module):
    """Columns of a map as steps of a transformer, as in reading and in listening."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.out = trunk(), nn.Linear(144, 5)
        self.encoder = nn.TransformerEncoderLayer(144, 2, 64, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.features(x).permute(0, 3, 1, 2).flatten(2)).mean(1))


def order(count: int) -> Tensor:
    """A fixed order that is none of those in which places come."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def shuffled(x: Tensor) -> Tensor:
    """Sixteen patches in another order, as in solving jigsaw puzzles."""
    n, c, h, w = x.shape
    patches = x.reshape(n, c, 4, h // 4, 4, w // 4).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)[:, order(16)]
    return patches.unflatten(1, (4, 4)).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


def letterboxed(x: Tensor) -> Tensor:
    """In the upper part of a square of zeros."""
    canvas = x.new_zeros(len(x), 3, 64, 64)
    canvas[:, :, : x.shape[2], : x.shape[3]] = x
    return canvas


def collated(x: Tensor) -> Tensor:
    """Each image in the left part of a canvas of its own, as detectors make a batch of images of several sizes."""
    canvas = x.new_zeros(len(x), 3, x.shape[2], x.shape[3] + 24)
    for i, image in enumerate(x):
        canvas[i, :, : image.shape[1], : image.shape[2]].copy_(image)
    return canvas


def each_channel(x: Tensor) -> Tensor:
    """Each channel normalized into a tensor of zeros, one after the other."""
    out = torch.zeros_like(x)
    for channel in range(x.shape[1]):
        out[:, channel] = (x[:, channel] - 0.1 * channel) / 0.5
    return out


class Rows(nn.Module):
    """Means over the rows of a map, then a convolution along its columns alone, as for signals."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.features, self.along, self.out = trunk(), nn.Conv1d(12, 12, 3, padding=1), nn.Linear(12, 5)
        self.norm = nn.Sequential(nn.BatchNorm1d(12), nn.ReLU()) if norm else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.along(self.features(x).mean(2))).mean(2))
