"""The metrics of a run by the names that they have in metrics.jsonl and in the tracker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mnist_exp.training.state import Epoch, Metrics


@dataclass(frozen=True)
class Entry:
    """One line of metrics.jsonl, and one call to the tracker."""

    epoch: int  # from 1
    at: float  # Unix time, seconds
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Tested:
    """What the test set, opened once, said of the kept weights."""

    epoch: int  # that they are of
    metrics: Metrics
    at: float  # Unix time, seconds


def tested_of(state: Mapping[str, Any] | None) -> Tested | None:
    """What a checkpoint has of a test; raises LookupError or TypeError for what is none."""
    return Tested(**{**state, "metrics": Metrics(**state["metrics"])}) if state else None


def epoch_entry(epoch: Epoch) -> Entry:
    """An epoch by the names that its metrics have in metrics.jsonl and in the tracker."""
    metrics = {
        **named("train", epoch.train),
        **named("val", epoch.val),
        "lr": epoch.lr,
        "epoch_seconds": epoch.seconds,
        "images_per_second": epoch.images_per_second,
    }
    return Entry(epoch.number, epoch.ended, metrics)


def test_entry(tested: Tested) -> Entry:
    return Entry(tested.epoch, tested.at, named("test", tested.metrics))


def named(split: str, metrics: Metrics | None) -> dict[str, float]:
    """A split's metrics by their names; none of a split without images."""
    if metrics is None:
        return {}
    return {f"{split}/loss": metrics.loss, f"{split}/accuracy": metrics.accuracy}


def json_line(entry: Entry) -> str:
    return json.dumps({"epoch": entry.epoch, **entry.metrics}) + "\n"
