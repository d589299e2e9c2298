"""A small residual network."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class ResNet(nn.Module):
    """A 3×3 convolution, `blocks` blocks per entry of `channels`, mean over pixels, linear layer.

    The network for 32×32 images of He et al. 2016 (Deep Residual Learning, section 4.2), with
    pre-activation blocks (He et al. 2016, Identity Mappings). Every entry of `channels` but the
    first halves the image. Without pooling, the image may have any size.

    pool: 2×2 max pooling after the first convolution. With twice as many channels, the number of
    operations is about the same, and the time is less, because fewer pixels go through memory.
    Raises ValueError for empty channels.

    Convolutions are initialized as in He et al. 2015 (Delving Deep into Rectifiers), and the last
    one of each block with zeros, so a block starts as its shortcut (Zhang et al. 2019, Fixup).
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        channels: Sequence[int] = (16, 32, 64),
        blocks: int = 2,
        pool: bool = False,
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("channels=[]: a residual network needs at least one stage")
        stem = convolution(input_shape[0], channels[0], 3)
        self.stem = nn.Sequential(stem, nn.MaxPool2d(2)) if pool else stem
        layers = [Block(channels[0], channels[0]) for _ in range(blocks)]
        for inputs, outputs in pairwise(channels):
            layers += [Block(inputs, outputs, stride=2)]
            layers += [Block(outputs, outputs) for _ in range(blocks - 1)]
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels[-1])
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [n, channels, height, width]; returns logits [n, classes]."""
        features = F.relu(self.norm(self.blocks(self.stem(images))))
        return self.head(features.mean((2, 3)))


class Block(nn.Module):
    """The input plus its result after two times batch norm, ReLU, and 3×3 convolution.

    If their shapes differ, a 1×1 convolution of the first ReLU's output replaces the input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs, 3)
        nn.init.zeros_(self.conv2.weight)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else convolution(inputs, outputs, 1, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        first = F.relu(self.norm1(inputs))
        second = F.relu(self.norm2(self.conv1(first)))
        return self.conv2(second) + (self.shortcut(first) if self.shortcut else inputs)


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Without a bias, which the following batch norm would remove."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
