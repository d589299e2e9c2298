"""A small convolutional network."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


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
