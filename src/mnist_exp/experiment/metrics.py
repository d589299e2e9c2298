"""The results of a run, and the names that its metrics have in metrics.jsonl and in the tracker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_exp.training.state import Epoch, Metrics


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

    def to_json(self) -> str:
        return json.dumps({"epoch": self.epoch, **self.metrics}) + "\n"


def load_test_result(state: Mapping[str, Any] | None) -> TestResult | None:
    """The test result in a checkpoint. Raises LookupError or TypeError for anything else."""
    return TestResult(**{**state, "metrics": Metrics(**state["metrics"])}) if state else None


def epoch_entry(epoch: Epoch) -> Entry:
    """The metrics of an epoch."""
    metrics = {
        **name_metrics("train", epoch.train),
        **name_metrics("val", epoch.val),
        "lr": epoch.lr,
        "speed/epoch_seconds": epoch.seconds,
        "speed/images_per_second": epoch.images_per_second,
    }
    return Entry(epoch.number, epoch.ended, metrics)


def test_entry(result: TestResult) -> Entry:
    """The metrics of the test."""
    return Entry(result.epoch, result.at, name_metrics("test", result.metrics))


def name_metrics(split: str, metrics: Metrics | None) -> dict[str, float]:
    """The metrics of a split by their names; empty for a split without images."""
    if metrics is None:
        return {}
    return {f"{split}/loss": metrics.loss, f"{split}/accuracy": metrics.accuracy}
