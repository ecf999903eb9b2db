"""Networks that are easy to read wrongly, and Grad-CAM in float64 by plain autograd, which reads them as it is told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def trunk(width: int = 12, channels: int = 3) -> nn.Sequential:
    """Two convolutions: a map of a quarter of the side."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, width, 3, 2, 1), nn.ReLU()
    )  # fmt: skip


class SharedNorm(nn.Module):
    """One normalization module behind every convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(F.gelu(self.second(self.norm(F.gelu(self.first(x)))))).mean((2, 3)))


class Windows(nn.Module):
    """Tokens that come window by window, as hierarchical transformers keep them."""

    def __init__(self, window: int = 4) -> None:
        super().__init__()
        self.window = window
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.mix = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU())
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps, s = self.stem(x), self.window
        tokens = maps.unfold(2, s, s).unfold(3, s, s).permute(0, 2, 3, 4, 5, 1).flatten(1, 4)
        return self.out(self.mix(tokens).mean(1))


class ClassTokenLast(nn.Module):
    """Tokens on a grid that is not square, with the class token behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.norm1 = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens, self.token.expand(len(x), -1, -1)], 1)
        y = self.norm1(tokens)
        tokens = tokens + self.attention(y, y, y, need_weights=False)[0]
        return self.out(tokens[:, -1])


class ChannelsLast(nn.Module):
    """A block that keeps (N, h, w, C), behind it a hidden layer as wide as the map is high."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 8, 8)
        self.block = nn.Sequential(nn.LayerNorm(20), nn.Linear(20, 20), nn.GELU())
        self.head = nn.Sequential(nn.Linear(20, hidden), nn.ReLU(), nn.Linear(hidden, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))


class LooksAround(nn.Module):
    """A convolution of a map (N, h, w, C), between two turns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Cube(nn.Module):
    """Maps (N, h, w, C) with as many channels as rows and columns, at 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.out = nn.Conv2d(3, 8, 8, 8), LooksAround(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))


class Reconstructs(nn.Module):
    """A decoder that runs between the features and the classifier, and does not matter to it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = trunk()
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(12, 3, 3, 1, 1), nn.Tanh())
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.encoder(x)
        image = self.decoder(features)
        return {"image": image, "label": self.out(features.mean((2, 3)))}


class TwoWays(nn.Module):
    """Two branches of the same kind, added."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = trunk(), trunk(), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.left(x).mean((2, 3)) + self.right(x).amax((2, 3)))


class Blind(nn.Module):
    """A branch that runs last and sees a constant instead of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.seeing, self.blind, self.out = trunk(), trunk(), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.seeing(x)
        return self.out(seen.mean((2, 3)) * self.blind(torch.ones_like(x)).mean((2, 3)))


class Columns(nn.Module):
    """Convolutions, then a recurrent layer over the columns of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.features = trunk(channels=1)
        self.gru = nn.GRU(12 * 6, 10, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.gru(self.features(x).permute(0, 3, 1, 2).flatten(2))
        return self.out(steps.mean(1))


class Steps(nn.Module):
    """Convolutions, then a layer of one's own that mixes the columns of the map as steps in time, forwards and back."""

    def __init__(self) -> None:
        super().__init__()
        self.features = trunk()
        self.mix = Running(12 * 4)
        self.out = nn.Linear(2 * 12 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(self.features(x).permute(0, 3, 1, 2).flatten(2)).mean(1))


class Running(nn.Module):
    """Each step with all that came before it, and with all that comes behind: (N, T, C) to (N, T, 2 * C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, steps: Tensor) -> Tensor:
        y = torch.tanh(self.inner(steps))
        return torch.cat([y.cumsum(1), y.flip(1).cumsum(1).flip(1)], 2).tanh()


class Reduced(nn.Module):
    """Blocks whose keys are fewer than their queries, then one with all; a class token; norms of unusual names."""

    def __init__(self, first: str = "before") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.Sequential(Attends(16, first, reduce=4), Attends(16, "before", reduce=1))
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.out(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))[:, 0])


class Attends(nn.Module):
    """Tokens and what they take from every `reduce`-th token by attention."""

    def __init__(self, width: int, norm: str, reduce: int) -> None:
        super().__init__()
        self.norm, self.reduce = norm, reduce
        self.add_module(norm, nn.LayerNorm(width))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.behind = nn.LayerNorm(width)
        self.mlp = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        y = self.get_submodule(self.norm)(tokens)
        few = y[:, :: self.reduce]
        q, k, v = (f(t).unflatten(2, (2, -1)).transpose(1, 2) for f, t in
                   ((self.query, y), (self.key, few), (self.value, few)))  # fmt: skip
        tokens = tokens + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return tokens + self.mlp(self.behind(tokens))


class Latents(nn.Module):
    """A few learned vectors that read the normed tokens of the image, as keys and values of one layer or of two."""

    def __init__(self, one: bool = False) -> None:
        super().__init__()
        self.both = nn.Linear(16, 32) if one else None
        self.stem, self.inputs = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.latents = nn.Parameter(torch.randn(1, 4, 16))
        self.key, self.value, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.inputs(self.stem(x).flatten(2).transpose(1, 2))
        k, v = (self.key(tokens), self.value(tokens)) if self.both is None else self.both(tokens).chunk(2, dim=-1)
        return self.out(F.scaled_dot_product_attention(self.latents.expand(len(x), -1, -1), k, v).mean(1))


class Joined(nn.Module):
    """Branches that see all of the image, joined and activated, as the cells of NASNet are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = trunk()
        self.branches = nn.ModuleList(nn.Conv2d(12, 6, 15, 1, 7) for _ in range(3))
        self.act, self.out = nn.ReLU(), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.out(self.act(torch.cat([branch(y) for branch in self.branches], 1)).mean((2, 3)))


class Mixes(nn.Module):
    """Blocks that mix all tokens so strongly that no cell stands out in the last ones."""

    def __init__(self, depth: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.Sequential(*(MixesTokens(64, 16) for _ in range(depth)))
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.blocks(self.stem(x).flatten(2).transpose(1, 2))).mean(1))


class MixesTokens(nn.Module):
    """Each token with a weighted sum of all."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.mix = nn.LayerNorm(width), nn.Linear(tokens, tokens)
        nn.init.normal_(self.mix.weight, std=0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)


class Several(nn.Module):
    """A trunk that returns its map and what it pooled from it; only that goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Pools()
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x)["pooled"])


class Pools(nn.Module):
    """A map and its mean, from a layer that returns more than its map."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Scaled()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps, _ = self.layers(x)
        return {"maps": maps, "pooled": maps.mean((2, 3))}


class Scaled(nn.Module):
    """A scaled map, and a tuple of nothing beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk()
        self.scale = nn.Parameter(torch.rand(12, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[()]]:
        return self.trunk(x) * self.scale, ()


class Angles(nn.Module):
    """A classifier by angles, behind a linear layer that has as many outputs as there are classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.embedding = trunk(), nn.Linear(12, 5)
        self.directions = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.embedding(self.features(x).mean((2, 3))).relu()
        return 9 * F.linear(F.normalize(embedded), F.normalize(self.directions))


class Noisy(nn.Module):
    """Dropout by function, which evaluation mode does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.out = trunk(), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.dropout(self.features(x).mean((2, 3)), 0.5, training=True))


class Coupled(nn.Module):
    """Statistics of the batch at hand: the images of a batch see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.out = trunk(), nn.Linear(12, 5)
        self.norm = nn.BatchNorm2d(12, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.features(x)).relu().mean((2, 3)))


class Ends(nn.Module):
    """A plain network whose class scores go through a function."""

    def __init__(self, classes: int, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.features, self.out, self.end = trunk(), nn.Linear(12, classes), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.out(self.features(x).mean((2, 3))))


def made(kind: Callable[..., nn.Module], *args: Any) -> nn.Module:
    """A seeded network in evaluation mode."""
    torch.manual_seed(0)
    return kind(*args).eval()


def grad_cam(
    model: nn.Module, x: Tensor, layer: str, target: int, *, call: int = -1,
    fold: Callable[[Tensor], Tensor] = lambda t: t, scores: Callable[[Any], Tensor] = lambda o: o,
) -> Tensor:  # fmt: skip
    """Grad-CAM (N, 1, h, w) of one call of a layer in float64, by plain autograd."""
    twin = copy.deepcopy(model).double().eval()
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
        kept.append(output if isinstance(output, Tensor) else output[0])
        return output.clone() if isinstance(output, Tensor) else None

    hook = twin.get_submodule(layer).register_forward_hook(keep)
    score = scores(twin(x.double().requires_grad_()))[:, target].sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(score, kept[call])
    features, gradient = fold(kept[call].detach()), fold(gradient)
    return (features * gradient.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
