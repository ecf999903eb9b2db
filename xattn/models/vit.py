"""A small vision transformer in plain torch (Dosovitskiy et al. 2021, arXiv:2010.11929) with a convolutional stem."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn.errors import ParameterError, ShapeError
from xattn.models.heads import Classifier, Head
from xattn.spec import ModelSpec, TokenGrid

Pool = Literal["class", "mean"]


class Attention(nn.Module):
    """Self-attention of several heads (Vaswani et al. 2017, arXiv:1706.03762, section 3.2).

    Args:
        width: channels C.
        heads: number of heads; divides C.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        # A module, so that the probabilities can be read; on a CPU it is also faster to train than a fused kernel.
        self.softmax = nn.Softmax(dim=-1)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T, C) mixed by attention probabilities (N, heads, T, T)."""
        channels = x.shape[2] // self.heads
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, channels)).permute(2, 0, 3, 1, 4)
        probabilities = self.softmax((query * channels**-0.5) @ key.transpose(2, 3))
        mixed: Tensor = self.proj((probabilities @ value).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Pre-norm transformer block: attention, then two linear layers around a GELU, each with a residual sum.

    Args:
        width: channels C.
        heads: number of heads.
        ratio: hidden channels of the second part per channel.
    """

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T, C)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """Images to tokens (N, T, C), the class token first (Dosovitskiy et al. 2021, arXiv:2010.11929).

    The patches are embedded by overlapping 3x3 convolutions of stride 2, with which small transformers learn faster
    (Xiao et al. 2021, arXiv:2106.14881). The defaults are the network for 64 px that is embedded in xattn: 1.9 M
    parameters, grid 8x8.

    >>> import torch
    >>> VisionTransformer(width=8, depth=1, heads=2, stem=(4, 8))(torch.zeros(1, 3, 24, 40)).shape
    torch.Size([1, 61, 8])

    Args:
        width: channels C of a token.
        depth: number of blocks.
        heads: heads of each attention.
        ratio: hidden channels of a block's second part per channel.
        stem: channels of its convolutions; the patch is 2 to the power of their number.
        image_size: pixels that the learned positions are made for; they are interpolated for other sizes.
        pool: what a classifier reads, the class token or, without one, the mean of all tokens.
    """

    def __init__(
        self,
        width: int = 160,
        depth: int = 7,
        heads: int = 5,
        ratio: int = 3,
        stem: tuple[int, ...] = (32, 64, 128),
        image_size: int = 64,
        pool: Pool = "class",
    ) -> None:
        super().__init__()
        if width % heads:
            raise ParameterError(f"VisionTransformer: {width} channels cannot be shared out over {heads} heads.")
        if pool not in ("class", "mean"):
            raise ParameterError(f"VisionTransformer: pool must be 'class' or 'mean' but is '{pool}'.")
        self.channels = width
        self.patch = 2 ** len(stem)
        self.pool: Pool = pool
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *stem), stem, strict=False):
            layers += [
                nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
        self.stem = nn.Sequential(*layers, nn.Conv2d(stem[-1], width, 1))
        self.class_token = nn.Parameter(torch.zeros(width)) if pool == "class" else None
        side = image_size // self.patch
        self.positions = nn.Parameter(torch.zeros(1, width, side, side))
        self.blocks = nn.Sequential(*(Block(width, heads, ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 1 + h w, C), or (N, h w, C) without a class token.

        Raises:
            ShapeError: if the image is no whole number of patches.
        """
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ShapeError(
                f"VisionTransformer: expected a height and width that {self.patch} divides but got images of "
                f"{x.shape[2]}x{x.shape[3]} pixels; resize or pad them."
            )
        cells = self.stem(x)
        positions: Tensor = self.positions
        if positions.shape[2:] != cells.shape[2:]:
            positions = F.interpolate(positions, cells.shape[2:], mode="bicubic", align_corners=False)
        tokens = (cells + positions).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(x), 1, -1), tokens], dim=1)
        out: Tensor = self.norm(self.blocks(tokens))
        return out


class TokenHead(Head):
    """A linear layer on the class token, or on the mean of all tokens.

    Args:
        channels: channels C of a token.
        classes: number K of logits.
        dropout: probability before the classifier.
        pool: what is read.
    """

    name = "linear"

    def __init__(self, channels: int, classes: int, dropout: float = 0.0, pool: Pool = "class") -> None:
        super().__init__(channels, classes, 1, dropout, bias=True)
        self.pool = pool

    def embed(self, features: Tensor) -> Tensor:
        """One vector (N, C) of tokens (N, T, C)."""
        return features[:, 0] if self.pool == "class" else features.mean(dim=1)


class TokenClassifier(Classifier):
    """A vision transformer and its head, with the facts about its tokens filled in.

    The feature layer is the first norm of the last block: behind its attention only the class token matters.

    Args:
        backbone: images (N, 3, H, W) to tokens (N, T, C).
        head: tokens to logits (N, K).
        spec: facts about the input.
    """

    backbone: VisionTransformer
    head: TokenHead

    def __init__(self, backbone: VisionTransformer, head: TokenHead, spec: ModelSpec | None = None) -> None:
        super().__init__(backbone, head, spec)
        depth = len(backbone.blocks)
        self.spec = dataclasses.replace(
            self.spec,
            feature_layer=f"backbone.blocks.{depth - 1}.norm1",
            probability_layers=tuple(f"backbone.blocks.{i}.attn" for i in range(depth)),
            tokens=TokenGrid(patch=(backbone.patch, backbone.patch), prefix=int(backbone.class_token is not None)),
        )
