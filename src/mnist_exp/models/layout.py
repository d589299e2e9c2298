"""How a model and its images lie in memory."""

from __future__ import annotations

import torch
from torch import nn


def memory_format(channels_last: bool | str, model: nn.Module) -> torch.memory_format:
    """The format for this model's weights and images; "auto" is channels last for 2d convolutions.

    Their kernels read the channels of a pixel side by side: a quarter off a step of the CNN on a
    CPU. The last bits of the results depend on it.
    """
    if channels_last == "auto":
        channels_last = any(isinstance(layer, nn.Conv2d) for layer in model.modules())
    return torch.channels_last if channels_last else torch.contiguous_format
