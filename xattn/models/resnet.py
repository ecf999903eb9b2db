"""ResNet in plain torch (He et al. 2016, arXiv:1512.03385), with torchvision's names and adjustable strides."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from xattn.errors import ParameterError


def _conv(inputs: int, outputs: int, kernel: int, stride: int, circular: bool) -> nn.Conv2d:
    """A convolution without bias that keeps the grid at stride 1; `circular` wraps 3x3 and larger kernels around."""
    mode: Literal["circular", "zeros"] = "circular" if circular and kernel > 1 else "zeros"
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, padding_mode=mode)


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions (He et al. 2016, arXiv:1512.03385, fig. 5 left).

    Args:
        inputs: channels of the input (N, inputs, H, W).
        width: channels of the output (N, width, H / stride, W / stride).
        stride: stride of the first convolution and of the shortcut.
        circular: circular padding in the 3x3 convolutions.
        project: a 1x1 convolution in the shortcut even where the shapes need none.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1, circular: bool = False, project: bool = False) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride, circular)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)  # one module per use: a reused one cannot be hooked
        self.conv2 = _conv(width, width, 3, 1, circular)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if project or stride != 1 or inputs != width:
            self.downsample = nn.Sequential(_conv(inputs, width, 1, stride, circular), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """Residual block 1x1, 3x3, 1x1 (He et al. 2016, arXiv:1512.03385, fig. 5 right).

    The stride is on the 3x3 convolution, as in torchvision, not on the first 1x1 as in the paper.

    Args:
        inputs: channels of the input (N, inputs, H, W).
        width: channels of the 3x3 convolution; the output has four times as many.
        stride: stride of the 3x3 convolution and of the shortcut.
        circular: circular padding in the 3x3 convolution.
        project: a 1x1 convolution in the shortcut even where the shapes need none.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1, circular: bool = False, project: bool = False) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = _conv(inputs, width, 1, 1, circular)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3, stride, circular)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = _conv(width, outputs, 1, 1, circular)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if project or stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride, circular), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, 4 width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.relu3(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Sequential):
    """The convolutional part of a ResNet (He et al. 2016, arXiv:1512.03385): images to features (N, C, h, w).

    Children are called as in torchvision (conv1, bn1, relu, maxpool, layer1 to layer4), so its weights load unchanged.
    The defaults are the small network for 64 px that is embedded in xattn: 2.0 M parameters, grid 4x4.

    >>> import torch
    >>> ResNet(widths=(4, 4, 8, 8), blocks=(1, 1, 1, 1))(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 8, 4, 4])
    >>> ResNet(widths=(4, 4, 8, 8), blocks=(1, 1, 1, 1), strides=(1, 2, 1, 1))(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 8, 16, 16])

    Args:
        widths: width of the blocks of each stage.
        blocks: number of blocks of each stage.
        strides: stride of each stage; lower the last ones to 1 for high-resolution maps, the weights stay the same.
        stem: `"small"` is a 3x3 convolution of stride 2, `"imagenet"` a 7x7 of stride 2 and a max pool of stride 2.
        bottleneck: blocks of three convolutions instead of two.
        circular: circular padding in all convolutions larger than 1x1 (BR-NPA's released code, arXiv:2106.02566).
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 160, 256),
        blocks: Sequence[int] = (2, 2, 2, 1),
        strides: Sequence[int] = (1, 2, 2, 2),
        stem: str = "small",
        bottleneck: bool = False,
        circular: bool = False,
    ) -> None:
        if not len(widths) == len(blocks) == len(strides):
            raise ParameterError(
                f"ResNet: widths, blocks and strides need one value per stage but have {len(widths)}, {len(blocks)} "
                f"and {len(strides)}."
            )
        if stem not in ("small", "imagenet"):
            raise ParameterError(f"ResNet: stem must be 'small' or 'imagenet' but is '{stem}'.")
        block: type[BasicBlock] | type[Bottleneck] = Bottleneck if bottleneck else BasicBlock
        first = 64 if stem == "imagenet" else widths[0]
        children: OrderedDict[str, nn.Module] = OrderedDict()
        children["conv1"] = _conv(3, first, 7 if stem == "imagenet" else 3, 2, circular)
        children["bn1"] = nn.BatchNorm2d(first)
        children["relu"] = nn.ReLU(inplace=True)
        if stem == "imagenet":
            children["maxpool"] = nn.MaxPool2d(3, 2, 1)
        channels = first
        for index, (width, number, stride) in enumerate(zip(widths, blocks, strides, strict=True), start=1):
            stage = []
            for position in range(number):
                # The shortcut of a later stage is always projected, so that the weights do not depend on the strides.
                first_of_later = position == 0 and index > 1
                stage.append(block(channels, width, stride if position == 0 else 1, circular, first_of_later))
                channels = width * block.expansion
            children[f"layer{index}"] = nn.Sequential(*stage)
        super().__init__(children)
        self.channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
