"""Learning rate schedules. Each multiplies the optimizer's learning rate by a factor for each step.

optimizer.lr is the highest learning rate that a schedule reaches, so that a sweep over it means the
same with every schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau


def constant(optimizer: Optimizer, *, epochs: int, epoch_steps: int) -> LambdaLR:
    """The learning rate stays the same. epochs, epoch_steps: the length of the training."""
    return LambdaLR(optimizer, lambda step: 1.0)


def step(
    optimizer: Optimizer, *, epochs: int, epoch_steps: int, every_epochs: float, gamma: float
) -> LambdaLR:
    """Multiply by gamma every `every_epochs` epochs."""
    every = max(count_steps(every_epochs, epochs, epoch_steps, "every_epochs"), 1)
    return LambdaLR(optimizer, lambda step: gamma ** (step // every))


def cosine(
    optimizer: Optimizer,
    *,
    epochs: int,
    epoch_steps: int,
    warmup_epochs: float,
    final_factor: float,
) -> LambdaLR:
    """Warm up, then follow half a cosine to final_factor (Loshchilov and Hutter, 2017)."""
    warmup = count_steps(warmup_epochs, epochs, epoch_steps, "warmup_epochs")
    rest = max(epochs * epoch_steps - warmup, 1)

    def factor(step: int) -> float:
        height = (1 + math.cos(math.pi * (step - warmup) / rest)) / 2
        return final_factor + (1 - final_factor) * height

    return LambdaLR(optimizer, warm_up(factor, warmup))


def trapezoid(
    optimizer: Optimizer,
    *,
    epochs: int,
    epoch_steps: int,
    warmup_epochs: float,
    cooldown_epochs: float,
) -> LambdaLR:
    """Warm up, stay level, and decrease linearly to zero at the end (Zhai et al., 2022)."""
    warmup = count_steps(warmup_epochs, epochs, epoch_steps, "warmup_epochs")
    cooldown = count_steps(cooldown_epochs, epochs, epoch_steps, "cooldown_epochs")
    both = warmup_epochs + cooldown_epochs
    total = epochs * epoch_steps
    count_steps(both, epochs, epoch_steps, "warmup_epochs + cooldown_epochs")
    level = warm_up(lambda step: min(1.0, (total - step) / max(cooldown, 1)), warmup)
    return LambdaLR(optimizer, level)


def onecycle(
    optimizer: Optimizer,
    *,
    epochs: int,
    epoch_steps: int,
    **options: Any,
) -> OneCycleLR:
    """torch's OneCycleLR: up and down by cosines (Smith and Topin, 2018), momentum inversely."""
    highest = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, highest, total_steps=epochs * epoch_steps, **options)


def warm_up(factor: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    """The factor, after a linear increase from zero over `warmup` steps (Goyal et al., 2017)."""
    return lambda step: (step + 1) / warmup if step < warmup else factor(step)


def plateau(
    optimizer: Optimizer, *, epochs: int, epoch_steps: int, factor: float, patience: int
) -> ReduceLROnPlateau:
    """Multiply by `factor` when the monitor has not improved for `patience` epochs.

    It is given a score of which larger is better.
    """
    return ReduceLROnPlateau(
        optimizer, "max", factor, patience, threshold=0, threshold_mode="abs", eps=0
    )


def count_steps(part: float, epochs: int, epoch_steps: int, name: str) -> int:
    """The number of steps in `part` epochs. Raises ValueError if the training is shorter."""
    if part > epochs:
        length = f"{epochs} epoch{'s' * (epochs != 1)}"
        raise ValueError(f"{name}={part:g} is longer than the training of {length}")
    return round(part * epoch_steps)
