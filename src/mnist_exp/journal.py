"""The figures of a run by the names that they have in metrics.jsonl and in the tracker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mnist_exp.training import Epoch, Figures


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
    figures: Figures
    at: float  # Unix time, seconds


def tested_of(state: Mapping[str, Any] | None) -> Tested | None:
    """What a checkpoint has of a test; raises LookupError or TypeError for what is none."""
    return Tested(**{**state, "figures": Figures(**state["figures"])}) if state else None


def epoch_entry(epoch: Epoch) -> Entry:
    """An epoch by the names that its figures have in metrics.jsonl and in the tracker."""
    metrics = {
        **named("train", epoch.train),
        **named("val", epoch.val),
        "lr": epoch.lr,
        "epoch_seconds": epoch.seconds,
        "images_per_second": epoch.images_per_second,
    }
    return Entry(epoch.number, epoch.ended, metrics)


def test_entry(tested: Tested) -> Entry:
    return Entry(tested.epoch, tested.at, named("test", tested.figures))


def named(split: str, figures: Figures | None) -> dict[str, float]:
    """A split's figures by their names; none of a split without images."""
    if figures is None:
        return {}
    return {f"{split}/loss": figures.loss, f"{split}/accuracy": figures.accuracy}


def json_line(entry: Entry) -> str:
    return json.dumps({"epoch": entry.epoch, **entry.metrics}) + "\n"
