"""The classifiers that `model=` chooses from."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_exp.errors import did_you_mean, first_line
from mnist_exp.models.weights import load_fitting

log = logging.getLogger(__name__)

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
# These two have auxiliary heads for training, and would return more than logits.
ONE_HEAD = {"aux_logits": False, "init_weights": True}
OPTIONS = {"googlenet": ONE_HEAD, "inception_v3": ONE_HEAD}


class Linear(nn.Module):
    """logits = W · pixels + b."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(input_shape), classes)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [n, channels, height, width]; returns logits [n, classes]."""
        return self.layer(images.flatten(1))


class MLP(nn.Module):
    """A linear layer, activation, and dropout per entry of `hidden_sizes`; then linear to classes.

    activation: one of ACTIVATIONS. Raises ValueError for any other.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        hidden_sizes: Sequence[int] = (128, 64),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            allowed = " | ".join(ACTIVATIONS) + did_you_mean(activation, ACTIVATIONS, cutoff=0)
            raise ValueError(f"activation={activation}: must be {allowed}")
        sizes = [math.prod(input_shape), *hidden_sizes]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], classes))

    def forward(self, images: Tensor) -> Tensor:
        """images: float [n, channels, height, width]; returns logits [n, classes]."""
        return self.layers(images.flatten(1))


class CNN(nn.Module):
    """Per entry of `channels`: 3×3 convolution, ReLU, 2×2 max pooling; then two linear layers.

    Each pooling halves the image, so its sides need at least 2 ** len(channels) pixels. Raises
    ValueError for a smaller image.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        channels: Sequence[int] = (16, 32),
        hidden_size: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        depth, height, width = input_shape
        planes = [depth, *channels]
        least = 2 ** len(channels)
        if min(height, width) < least:
            raise ValueError(
                f"an image of {height}×{width} is too small to be halved {len(channels)} times; "
                f"at least {least}×{least} is needed"
            )
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(planes):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        features = planes[-1] * (height // least) * (width // least)
        layers += [nn.Flatten(), nn.Linear(features, hidden_size), nn.ReLU()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_size, classes))

    def forward(self, images: Tensor) -> Tensor:
        """images: float [n, channels, height, width]; returns logits [n, classes]."""
        return self.layers(images)


class StridedCNN(nn.Module):
    """Strided convolution, max pooling, batch norm, ReLU; linear layer, batch norm, ReLU; linear.

    On a CPU, large activations cost more time than operations. The stride and early pooling leave
    a fortieth of the activations of a 5×5 convolution with as many channels. Batch norm (Ioffe and
    Szegedy, 2015) allows a learning rate so high that one epoch is enough.

    crop: pixels removed at each side. Raises ValueError for an image that is too small.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        channels: int = 32,
        kernel_size: int = 6,
        stride: int = 2,
        crop: int = 2,
        hidden_size: int = 256,
    ) -> None:
        super().__init__()
        depth, *sides = input_shape
        pooled = [((side - 2 * crop - kernel_size) // stride + 1) // 2 for side in sides]
        least = kernel_size + stride + 2 * crop
        if min(sides) < least:
            size = f"{sides[0]}×{sides[1]}"
            raise ValueError(f"an image of {size} is too small; {least}×{least} is needed")
        self.crop = crop
        self.features = nn.Sequential(
            nn.Conv2d(depth, channels, kernel_size, stride, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Sequential(
            nn.Linear(channels * pooled[0] * pooled[1], hidden_size),
            nn.BatchNorm1d(hidden_size),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_size, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """images: float [n, channels, height, width]; returns logits [n, classes]."""
        *_, height, width = images.shape
        crop = self.crop
        features = self.features(images[..., crop : height - crop, crop : width - crop])
        # Channels last is the order in memory, so flattening makes no copy.
        return self.head(features.permute(0, 2, 3, 1).flatten(1))


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
    """The input plus its result after batch norm, ReLU, and 3×3 convolution, twice.

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


def torchvision_model(
    input_shape: tuple[int, int, int], classes: int, name: str, pretrained: bool = False
) -> nn.Module:
    """A classifier of torchvision.models by its name.

    If the images do not have three channels, the first convolution is initialized again for their
    number. pretrained: whether to start from torchvision's weights, as far as `load_fitting` takes
    them; they were trained on images with the mean and deviation of ImageNet.

    Raises ValueError for an unknown name, and for weights that are neither in the cache of
    torch.hub nor can be downloaded.
    """
    from torchvision import models  # a second to import

    names = models.list_models(module=models)
    if name not in names:
        near = did_you_mean(name, names, cutoff=0)
        raise ValueError(f"torchvision has no such classifier{near}")
    options = OPTIONS.get(name, {})
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    if input_shape[0] != 3:
        first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
        weight = first.weight.new_empty(first.out_channels, input_shape[0], *first.kernel_size)
        first.in_channels, first.weight = input_shape[0], nn.Parameter(weight)
        first.reset_parameters()
    if pretrained:
        log.info("model.pretrained: %s", load_fitting(model, torchvision_weights(name)))
    return model


def torchvision_weights(name: str) -> Mapping[str, Tensor]:
    """torchvision's default weights, from the cache of torch.hub or by download."""
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    try:
        return weights.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, weights_only=True, map_location="cpu"
        )
    except Exception as error:  # of urllib, or for a damaged file whatever torch.load raises
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise ValueError(
            f"no weights of torchvision ({first_line(error)}); put {weights.url} into {folder}"
        ) from error
