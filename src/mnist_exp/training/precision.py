"""The floating-point format that a training computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


class Precision:
    """float64, float32, bfloat16 or float16, as a training step takes it.

    `dtype` is that of weights and images; of the formats of 16 bits it is float32. With those,
    forward and loss run under `autocast`, which casts for the operations that bear it, and
    float16's gradients are scaled by `scaler` so that small ones do not vanish. Otherwise both do
    nothing.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        of_16_bits = name in ("bfloat16", "float16")
        self.dtype: torch.dtype = torch.float32 if of_16_bits else getattr(torch, name)
        self.autocast: AbstractContextManager[object] = nullcontext()
        if of_16_bits:  # disabled it would cost two microseconds a step
            self.autocast = torch.autocast(device.type, getattr(torch, name))
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")


FLOAT32 = Precision("float32", torch.device("cpu"))  # as it does nothing, on any device
