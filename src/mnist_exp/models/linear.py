"""Multinomial logistic regression."""

import math

from torch import Tensor, nn


class Linear(nn.Module):
    """logits = W · pixels + b."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(input_shape), classes)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [n, channels, height, width]; returns logits [n, classes]."""
        return self.layer(images.flatten(1))
