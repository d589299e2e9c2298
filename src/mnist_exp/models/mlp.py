"""A fully connected network."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


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
            (near,) = get_close_matches(activation.lower(), ACTIVATIONS, 1, cutoff=0)
            allowed = " | ".join(ACTIVATIONS)
            raise ValueError(f"activation={activation}: must be {allowed}; did you mean {near}?")
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
