"""Callbacks: what happens besides training, at its start, each step, each epoch, and at its end.

A callback of one's own is a class with any of these methods, and a YAML file in conf/callbacks/:

    on_start(state)              before the first step of a training, and of a resumed one
    on_step(state, loss)         after each step, when the gradients are still there; loss: the mean
                                 over the batch, a scalar tensor
    on_epoch(state, metrics)     may add to the metrics, name → value, that are logged; a list of
                                 (step, value) pairs is logged at steps of its own
    on_end(state)                after the last epoch

`state` is the TrainState, whose `progress` knows how far the training is. A callback that
remembers anything from one step to the next has `state_dict()` and `load_state_dict(state)`, with
numbers, strings and tensors, so that a resumed training continues it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mnist_exp.training.state import TrainState


HOOKS = ("on_start", "on_step", "on_epoch", "on_end")


def run_callbacks(callbacks: Mapping[str, object], hook: str, *arguments: Any) -> None:
    """Call this method of each callback that has it."""
    for callback in callbacks.values():
        if method := getattr(callback, hook, None):
            method(*arguments)


def read_added(added: Mapping[str, Any]) -> dict[str, Any]:
    """What callbacks added to the metrics, as Python's numbers.

    Raises TypeError if they are not, and ValueError for a name that MLflow would refuse.
    """
    numbers: dict[str, Any] = {}
    for name, value in added.items():
        if not re.fullmatch(r"[\w\-. :/]+", name):
            raise ValueError(f"a callback added {name!r}: names have letters, digits and -_.:/")
        try:
            if isinstance(value, list):
                numbers[name] = [(int(step), read_number(number)) for step, number in value]
            else:
                numbers[name] = read_number(value)
        except (TypeError, ValueError, RuntimeError):  # the last from a tensor of several
            text = f"a callback added {name}={value!r} to the metrics"
            raise TypeError(f"{text}; they are numbers, or lists of (step, number)") from None
    return numbers


def read_number(value: Any) -> float:
    """Raises TypeError or ValueError if it is not a number."""
    if isinstance(value, str):
        raise TypeError
    return value if type(value) in (int, float) else float(value)


class GradientNorm:
    """Adds train/gradient_norm: the mean 2-norm of the gradients of each step, after clipping."""

    def __init__(self) -> None:
        self.total, self.steps = torch.zeros(()), 0

    def on_step(self, state: TrainState, loss: Tensor) -> None:
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        self.total, self.steps = self.total + nn.utils.get_total_norm(gradients), self.steps + 1

    def on_epoch(self, state: TrainState, metrics: dict[str, Any]) -> None:
        metrics["train/gradient_norm"] = self.total.item() / self.steps
        self.total, self.steps = torch.zeros(()), 0

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total.cpu(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.steps = state["total"], state["steps"]


class StepLoss:
    """Adds train/step_loss: the mean loss of every N-th batch, at the number of its step."""

    def __init__(self, every: int) -> None:
        self.every, self.steps = every, 0
        self.losses: list[tuple[int, Tensor]] = []

    def on_step(self, state: TrainState, loss: Tensor) -> None:
        self.steps += 1
        if self.steps % self.every == 0:
            self.losses.append((self.steps, loss))

    def on_epoch(self, state: TrainState, metrics: dict[str, Any]) -> None:
        metrics["train/step_loss"] = [(step, loss.item()) for step, loss in self.losses]
        self.losses = []

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "losses": [(step, loss.cpu()) for step, loss in self.losses]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.losses = state["steps"], list(state["losses"])
