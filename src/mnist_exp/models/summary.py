"""A model's layers, parameters, floating-point operations (FLOP), and memory format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Row(NamedTuple):
    """A layer, or the whole model."""

    name: str
    kind: str  # the module's class
    output: tuple[int, ...] | None  # shape for one image; None: no tensor, or never called
    parameters: int
    flops: int


@dataclass(frozen=True)
class Summary:
    """A row for each layer and one for the model; all FLOP are for one image."""

    rows: list[Row]
    total: Row

    def __str__(self) -> str:
        """For example: 109,386 parameters, 0.2 MFLOP an image."""
        flops = f"{self.total.flops:,} FLOP"
        if self.total.flops >= 1e8:
            flops = f"{self.total.flops / 1e9:,.1f} GFLOP"
        elif self.total.flops >= 1e5:
            flops = f"{self.total.flops / 1e6:,.1f} MFLOP"
        return f"{self.total.parameters:,} parameters, {flops} an image"

    def table(self) -> str:
        """One line per row, in columns."""
        lines = [("layer", "kind", "output", "parameters", "FLOP an image")]
        for name, kind, output, parameters, flops in [*self.rows, self.total]:
            shape = "×".join(map(str, output or ()))
            lines.append((name, kind, shape, f"{parameters:,}", f"{flops:,}"))
        a, b, c, d, e = (max(map(len, column)) for column in zip(*lines, strict=True))
        form = f"{{:{a}}}  {{:{b}}}  {{:{c}}}  {{:>{d}}}  {{:>{e}}}\n"
        return "".join(form.format(*line) for line in lines)


@torch.no_grad()
def summarize(model: nn.Module, image_shape: tuple[int, ...]) -> Summary:
    """Run one image through the model in evaluation mode; the model stays as it was.

    image_shape: channels, height, width. A multiplication and an addition are two operations. Only
    those of linear layers and convolutions count, which are nearly all except in attention. A
    training step costs about three forward passes. Raises what the model raises for such images.

    torch's FlopCounterMode gives the same numbers, but imports sympy and triton: over a second.
    """
    flops: Counter[nn.Module] = Counter()
    outputs: dict[nn.Module, tuple[int, ...]] = {}

    def record(layer: Any, inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            return
        outputs[layer] = tuple(output.shape[1:])
        if isinstance(layer, COUNTED):
            positions = output.numel() // layer.weight.shape[0]  # 1, or a convolution's pixels
            flops[layer] += 2 * layer.weight.numel() * positions

    hooks = [layer.register_forward_hook(record) for layer in model.modules()]
    training, like = model.training, next(model.parameters(), torch.zeros(()))
    try:
        model.eval()(like.new_zeros(1, *image_shape))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()

    rows = []
    for name, layer in model.named_modules():
        own = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        if own or not any(layer.children()):
            kind, output = type(layer).__name__, outputs.get(layer)
            rows.append(Row(name or "(model)", kind, output, own, flops[layer]))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    kind, output = type(model).__name__, outputs.get(model)
    return Summary(rows, Row("total", kind, output, parameters, sum(flops.values())))


def memory_format(channels_last: bool | str, model: nn.Module) -> torch.memory_format:
    """The format of the weights and images; "auto" is channels last for a model with Conv2d.

    Channels last takes a quarter off a step of the CNN on a CPU, because the kernels read the
    channels of a pixel together. The last bits of the results depend on the format.
    """
    if channels_last == "auto":
        channels_last = any(isinstance(layer, nn.Conv2d) for layer in model.modules())
    return torch.channels_last if channels_last else torch.contiguous_format
