"""What a model is made of and what it costs, on one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ROWS = 25  # at most: a screen
COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Row(NamedTuple):
    """A layer, or a part of the model whose layers would not fit on the screen."""

    name: str
    kind: str
    output: tuple[int, ...] | None  # for one image; None where it gives no tensor, or is not called
    parameters: int
    flops: int

    def cells(self) -> tuple[str, ...]:
        output = "" if self.output is None else "×".join(map(str, self.output))
        return self.name, self.kind, output, f"{self.parameters:,}", f"{self.flops:,}"


@dataclass(frozen=True)
class Summary:
    """The rows of a model and its totals; flops are floating-point operations for one image."""

    rows: list[Row]
    total: Row

    @property
    def flops(self) -> int:
        return self.total.flops

    @property
    def parameters(self) -> int:
        return self.total.parameters

    def __str__(self) -> str:
        """As in: 109,386 parameters, 0.2 MFLOP an image."""
        if self.flops >= 1e8:
            flops = f"{self.flops / 1e9:,.1f} GFLOP"
        else:
            flops = (
                f"{self.flops / 1e6:,.1f} MFLOP" if self.flops >= 1e5 else f"{self.flops:,} FLOP"
            )
        return f"{self.parameters:,} parameters, {flops} an image"

    def table(self) -> str:
        """A line for each row, in columns, and the totals."""
        head = ("layer", "kind", "output", "parameters", "FLOP an image")
        lines = [head, *(row.cells() for row in [*self.rows, self.total])]
        a, b, c, d, e = (max(map(len, column)) for column in zip(*lines, strict=True))
        form = f"{{:{a}}}  {{:{b}}}  {{:{c}}}  {{:>{d}}}  {{:>{e}}}\n"
        return "".join(form.format(*line) for line in lines)


@torch.no_grad()
def summarize(model: nn.Module, image_shape: tuple[int, ...]) -> Summary:
    """From a forward pass of one image in evaluation, which leaves the model as it was.

    image_shape: channels, height, width. A multiplication and an addition are two operations; those
    of linear layers and convolutions are counted, which are nearly all but in attention. A training
    step costs about three passes. Raises what the model does for images that it cannot take.
    """
    flops: Counter[nn.Module] = Counter()
    outputs: dict[nn.Module, tuple[int, ...]] = {}

    def note(layer: Any, inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            return
        outputs[layer] = tuple(output.shape[1:])
        if isinstance(layer, COUNTED):
            positions = output.numel() // layer.weight.shape[0]  # 1, or a convolution's pixels
            flops[layer] += 2 * layer.weight.numel() * positions

    def row(name: str, part: nn.Module, whole: bool = True) -> Row:
        parameters = sum(parameter.numel() for parameter in part.parameters(recurse=whole))
        below = sum(flops[layer] for layer in part.modules()) if whole else 0
        return Row(name, type(part).__name__, outputs.get(part), parameters, below)

    hooks = [layer.register_forward_hook(note) for layer in model.modules()]
    training, like = model.training, next(model.parameters(), torch.zeros(()))
    try:
        model.eval()(like.new_zeros(1, *image_shape))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    depth = next((d for d in range(9, 1, -1) if len(list(parts(model, d))) <= ROWS), 1)
    rows = [row(*part) for part in parts(model, depth)]
    if len(rows) > ROWS:
        left = rows[ROWS - 1 :]
        sums = sum(r.parameters for r in left), sum(r.flops for r in left)
        rows[ROWS - 1 :] = [Row(f"{len(left)} more", "", left[-1].output, *sums)]
    return Summary(rows, row("total", model))


def parts(model: nn.Module, depth: int, name: str = "") -> Iterator[tuple[str, nn.Module, bool]]:
    """Name and module of what lies so deep, or higher up and has nothing below it.

    What lies above it and has parameters of its own comes, too, with False: without what is below.
    """
    children = list(model.named_children())
    if depth == 0 or not children:
        yield name or "(all)", model, True
        return
    if any(True for _ in model.parameters(recurse=False)):
        yield name or "(own)", model, False
    for below, child in children:
        yield from parts(child, depth - 1, f"{name}.{below}" if name else below)
