"""The floating-point format of a training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


class Precision:
    """float64, float32, bfloat16 or float16.

    `dtype` is the format of weights and images, which is float32 for the 16-bit formats. For these,
    forward and loss run under `autocast`, which casts where an operation allows it. `scaler` scales
    the gradients of float16 so that small ones do not vanish. Otherwise both do nothing.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        of_16_bits = name in ("bfloat16", "float16")
        self.dtype: torch.dtype = torch.float32 if of_16_bits else getattr(torch, name)
        self.autocast: AbstractContextManager[object] = nullcontext()
        if of_16_bits:  # a disabled autocast costs two microseconds per step
            self.autocast = torch.autocast(device.type, getattr(torch, name))
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")


FLOAT32 = Precision("float32", torch.device("cpu"))  # does nothing, so it fits any device
