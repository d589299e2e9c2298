"""The results of a run, and the names that its metrics have in metrics.jsonl and in the tracker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_exp.training.loop import name_metrics
from mnist_exp.training.metrics import Epoch, Metrics


@dataclass(frozen=True)
class TestResult:
    """The metrics of the kept weights on the test set, which is opened once."""

    epoch: int  # of the weights
    metrics: Metrics
    at: float  # Unix time, seconds


@dataclass(frozen=True)
class Result:
    """The metrics of the kept weights of a run."""

    epoch: Epoch
    test: Metrics | None  # None with trainer.test=false
    seconds: float  # of all epochs, training and validation
    folder: Path  # with everything that the run leaves


@dataclass(frozen=True)
class Entry:
    """A line of metrics.jsonl, and a call to the tracker."""

    epoch: int  # from 1
    at: float  # Unix time, seconds
    metrics: Mapping[str, float]
    step: int | None = None  # of a metric that has steps of its own

    def to_json(self) -> str:
        step = {} if self.step is None else {"step": self.step}
        return json.dumps({"epoch": self.epoch, **step, **self.metrics}) + "\n"


def load_test_result(state: Mapping[str, Any] | None) -> TestResult | None:
    """The test result in a checkpoint. Raises LookupError or TypeError for anything else."""
    return TestResult(**state) if state else None


def epoch_entries(epoch: Epoch) -> list[Entry]:
    """The metrics of an epoch, after those that callbacks logged at steps of their own."""
    steps = [
        Entry(epoch.number, epoch.ended, {name: value}, step)
        for name, pairs in epoch.added.items()
        if isinstance(pairs, list)
        for step, value in pairs
    ]
    metrics = {
        **name_metrics("train", epoch.train),
        **name_metrics("val", epoch.val),
        "lr": epoch.lr,
        "speed/epoch_seconds": epoch.seconds,
        "speed/images_per_second": epoch.images_per_second,
        **{name: value for name, value in epoch.added.items() if not isinstance(value, list)},
    }
    return [*steps, Entry(epoch.number, epoch.ended, metrics)]


def test_entry(result: TestResult) -> Entry:
    """The metrics of the test."""
    return Entry(result.epoch, result.at, name_metrics("test", result.metrics))
