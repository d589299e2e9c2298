"""A convolutional network for training in a second."""

from __future__ import annotations

from torch import Tensor, nn


class StridedCNN(nn.Module):
    """One strided convolution, pooled, normalised, ReLU; a dense layer likewise; dense → classes.

    What costs time on a CPU are large activations rather than operations: the stride, and pooling
    before all else, leave the first layer's at a fortieth of those of a 5×5 convolution of as many
    channels. Batch normalisation (Ioffe and Szegedy, 2015) bears a learning rate that one epoch is
    enough with.

    crop: pixels left away at each side. Raises ValueError where too few are left.
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
        # With the channels last, as they lie in memory: flattened without a copy.
        return self.head(features.permute(0, 2, 3, 1).flatten(1))
