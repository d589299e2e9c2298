"""What a model costs: floating-point operations, counted from its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def flops_per_image(model: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Of one forward pass, in the linear layers and convolutions, which are nearly all of it.

    image_shape: channels, height, width. A multiplication and an addition are two operations; a
    training step costs about three passes.
    """
    total = 0

    def count(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        positions = output[0].numel() // layer.weight.shape[0]  # 1, or a convolution's pixels
        total += 2 * layer.weight.numel() * positions

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = [layer for layer in model.modules() if isinstance(layer, kinds)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    training = model.training
    model.eval()(next(model.parameters()).new_zeros(1, *image_shape))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return total
