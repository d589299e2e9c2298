"""A convolutional network that trains in a second."""

from __future__ import annotations

from torch import Tensor, nn


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
