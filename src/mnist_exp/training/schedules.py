"""Learning rates over a training: each a factor of the optimizer's own, by the step's number.

That one, optimizer.lr, is the highest a schedule reaches, so that a sweep over it means the same
with all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR


def constant(optimizer: Optimizer, *, epochs: int, epoch_steps: int) -> LambdaLR:
    """The learning rate stays. epochs, epoch_steps: the training's, here as below."""
    return LambdaLR(optimizer, lambda step: 1.0)


def step(
    optimizer: Optimizer, *, epochs: int, epoch_steps: int, every_epochs: float, gamma: float
) -> LambdaLR:
    """Times gamma after so many epochs, again and again."""
    every = max(steps(every_epochs, epochs, epoch_steps, "every_epochs"), 1)
    return LambdaLR(optimizer, lambda step: gamma ** (step // every))


def cosine(
    optimizer: Optimizer,
    *,
    epochs: int,
    epoch_steps: int,
    warmup_epochs: float,
    final_factor: float,
) -> LambdaLR:
    """Half a cosine down to final_factor (Loshchilov and Hutter, 2017), after a warm-up."""
    warmup = steps(warmup_epochs, epochs, epoch_steps, "warmup_epochs")
    rest = max(epochs * epoch_steps - warmup, 1)

    def factor(step: int) -> float:
        height = (1 + math.cos(math.pi * (step - warmup) / rest)) / 2
        return final_factor + (1 - final_factor) * height

    return LambdaLR(optimizer, warmed_up(factor, warmup))


def trapezoid(
    optimizer: Optimizer,
    *,
    epochs: int,
    epoch_steps: int,
    warmup_epochs: float,
    cooldown_epochs: float,
) -> LambdaLR:
    """Up, level, and in a line down to nothing (Zhai et al., 2022), which may be late."""
    warmup = steps(warmup_epochs, epochs, epoch_steps, "warmup_epochs")
    cooldown = steps(cooldown_epochs, epochs, epoch_steps, "cooldown_epochs")
    steps(warmup_epochs + cooldown_epochs, epochs, epoch_steps, "warmup_epochs + cooldown_epochs")
    total = epochs * epoch_steps
    level = warmed_up(lambda step: min(1.0, (total - step) / max(cooldown, 1)), warmup)
    return LambdaLR(optimizer, level)


def onecycle(
    optimizer: Optimizer,
    *,
    epochs: int,
    epoch_steps: int,
    pct_start: float,
    div_factor: float,
    final_div_factor: float,
    cycle_momentum: bool,
) -> OneCycleLR:
    """Up and down by cosines (Smith and Topin, 2018), momentum the other way round: torch's."""
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=epochs * epoch_steps,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        cycle_momentum=cycle_momentum,
    )


def warmed_up(factor: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    """The factor after a line up to it through so many steps (Goyal et al., 2017)."""
    return lambda step: (step + 1) / warmup if step < warmup else factor(step)


def steps(part: float, epochs: int, epoch_steps: int, name: str) -> int:
    """So many epochs in steps. Raises ValueError where the training has fewer."""
    if part > epochs:
        raise ValueError(f"{name}={part:g} is longer than the training of {epochs} epochs")
    return round(part * epoch_steps)
