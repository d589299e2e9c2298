"""This process among those that torchrun started, without an import of torch."""

from __future__ import annotations

import os


def world_size() -> int:
    """How many processes train one model together; 1 without torchrun."""
    launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def is_distributed() -> bool:
    return world_size() > 1


def is_torchrun() -> bool:
    """Whether torchrun started this process, maybe as the only one, and may restart it."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "MASTER_ADDR" in os.environ


def rank() -> int:
    """The number of this process; 0 writes, logs and calls the tracker."""
    return int(os.environ["RANK"]) if is_distributed() else 0


def restarts() -> int:
    """How often torchrun has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if is_torchrun() else 0
