"""Metrics, their values in a finished epoch, and the one that decides which epoch is the best.

A metric of one's own is a class with the members of `Metric`, and a YAML file in conf/metrics/.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Metrics = dict[str, float]  # name → value on a split; "loss", nats per image, is the first


class Metric(Protocol):
    """A number computed from sums over images, so that batches and processes only add theirs."""

    higher_is_better: bool

    def update(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sums over a batch, on its device, of a shape that all batches share.

        logits: [n, classes]; labels: int64 [n]. Must not read from the device, as `item()` does.
        """
        ...

    def compute(self, sums: Tensor) -> float:
        """The metric, from the sums over all images, on the CPU."""
        ...


class Accuracy:
    """The fraction of images whose label is among the k classes of the highest logits."""

    higher_is_better = True

    def __init__(self, k: int = 1) -> None:
        self.k = k

    def update(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Right and wrong predictions, int64 [2]."""
        if self.k == 1:
            right = logits.argmax(1) == labels
        else:
            top = logits.topk(min(self.k, logits.shape[1]), dim=1).indices
            right = (top == labels[:, None]).any(1)
        return torch.stack((right.sum(), (~right).sum()))

    def compute(self, sums: Tensor) -> float:
        return (sums[0].double() / sums.sum()).item()


class MacroF1:
    """The mean of F1 = 2 TP / (2 TP + FP + FN) over the classes that occur or are predicted."""

    higher_is_better = True

    def update(self, logits: Tensor, labels: Tensor) -> Tensor:
        """True positives, predictions and labels of each class, int64 [3, classes]."""
        classes = logits.shape[1]
        predicted, actual = F.one_hot(logits.argmax(1), classes), F.one_hot(labels, classes)
        return torch.stack(((predicted * actual).sum(0), predicted.sum(0), actual.sum(0)))

    def compute(self, sums: Tensor) -> float:
        true_positives, predicted, actual = sums.double()
        return (2 * true_positives / (predicted + actual)).nanmean().item()


DEFAULT_METRICS: Mapping[str, Metric] = {"accuracy": Accuracy()}


@dataclass(frozen=True)
class Epoch:
    """A finished epoch. Its training metrics are of the weights as they were at each step."""

    number: int  # from 1
    train: Metrics
    val: Metrics | None  # None if there are no validation images
    lr: float  # of its first step
    seconds: float  # training and validation
    images_per_second: float  # in training
    ended: float  # Unix time, seconds
    # What callbacks added: a value, or (step, value) pairs for a metric with steps of its own.
    added: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Monitor:
    """The metric that decides which epoch and which run is the best."""

    name: str = "val/accuracy"  # split/metric
    higher_is_better: bool = True

    def value(self, epoch: Epoch) -> float | None:
        """None for a validation metric if there is no validation."""
        split, _, metric = self.name.partition("/")
        metrics: Metrics | None = getattr(epoch, split)
        return None if metrics is None else metrics[metric]

    def score(self, value: float | None) -> float:
        """The value, signed so that larger is better; infinitely bad for None and nan."""
        if value is None or math.isnan(value):
            return -math.inf
        return value if self.higher_is_better else -value

    def find_best(self, epochs: Sequence[Epoch], first_of_equals: bool = False) -> Epoch:
        """The best epoch; among ties, the one with the lowest validation loss.

        Without a value, the last one. first_of_equals: take the first among ties, as before 0.3.
        """

        def key(epoch: Epoch) -> tuple[float, float]:
            loss = 0.0 if first_of_equals else (epoch.val or epoch.train)["loss"]
            return self.score(self.value(epoch)), -loss

        return max(epochs, key=key) if self.value(epochs[-1]) is not None else epochs[-1]


def find_monitor(name: str, metrics: Mapping[str, Metric]) -> Monitor:
    """The monitor of this name. Raises KeyError for a metric that is not computed."""
    metric = name.partition("/")[2]
    return Monitor(name, metric != "loss" and metrics[metric].higher_is_better)
