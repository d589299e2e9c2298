"""Where a run is recorded besides its output folder: the Tracker protocol and its records."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from mnist_exp.errors import Failure, one_line

EXPERIMENT = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mnist_exp")  # as in conf/tracking
DIGEST_LETTERS = 12  # of a data set's digest, which MLflow shows behind the name
DESCRIPTION = "### Outcome"  # how our part of a run's description begins

Status = Literal["FINISHED", "FAILED", "KILLED"]


class TrackerError(Failure):
    """The tracker cannot be reached, or does not know the run."""


@dataclass(frozen=True)
class DatasetRecord:
    """The data set of a run: shows whether two runs used the same images."""

    name: str
    digest: str  # SHA-256
    sizes: Mapping[str, int]  # images in each split


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run before it starts."""

    key: str  # identifies the run across all of its resumes
    name: str
    params: Mapping[str, object]  # every config leaf by its dotted key, and the model's size
    tags: Mapping[str, str]
    dataset: DatasetRecord | None = None  # None for a sweep over several data sets
    parent: str | None = None  # key of the sweep that this run is a job of
    started: float = field(default_factory=time.time)  # the training, Unix time, seconds


class Score(NamedTuple):
    """The value by which a run or a model is compared with others."""

    monitor: str  # the metric, such as val/accuracy
    value: float
    higher_is_better: bool

    @property
    def rank(self) -> float:
        """Lower is better."""
        return -self.value if self.higher_is_better else self.value

    def __str__(self) -> str:
        return f"{self.monitor} {self.value:.4f}"


class FinishedRun(NamedTuple):
    """A finished run, to be ranked among others."""

    reference: str  # what --run takes: the MLflow run id or the output folder
    name: str
    data: str  # the data set's name
    digest: str  # the first DIGEST_LETTERS of the data set's digest
    start_time: float  # Unix time, seconds
    score: Score | None  # of the kept weights; None without validation


@dataclass(frozen=True)
class ModelRecord:
    """A trained model for others to use."""

    file: Path  # the exported model, which takes raw images
    example: Any  # raw images as nested lists of numbers, in the shape that the model takes
    class_names: tuple[str, ...]
    epoch: int  # of the weights
    score: Score | None  # of the weights; None without validation
    digest: str  # SHA-256 of the data set


class Tracker(Protocol):
    """Records one run. Methods are called in this order: start, log and upload, log_model, end.

    Calling a method again with the same arguments changes nothing. `describe` may be called at any
    time between start and end.
    """

    def start(self, record: RunRecord) -> str | None:
        """Create a run, or reopen the one with the record's key. Raises TrackerError.

        Returns the command or the address that shows the run, if there is one.
        """

    def log(self, metrics: Mapping[str, float], step: int, at: float) -> None:
        """Log metrics of one epoch: `step` is its number, from 1, `at` its Unix time in seconds."""

    def describe(self, text: str) -> None:
        """Show this Markdown, which begins with DESCRIPTION, in place of what was shown before."""

    def upload(self, paths: Sequence[Path], folder: str = "") -> None:
        """Keep these files with the run, in this folder of its artifacts."""

    def log_model(self, record: ModelRecord) -> str | None:
        """Keep this model with the run, so that it can be loaded and served from there.

        Returns the result of registering it, in one line, if it was registered.
        """

    def end(self, status: Status) -> None: ...

    def explain_deletion(self) -> str | None:
        """If somebody deleted the run since its start: what is deleted, and how to restore it."""


def get_user() -> str:
    """The name of the user of this process; in a container there may be only a number."""
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def is_refusal(error: Exception) -> bool:
    """Whether a server has refused a request for good: for a deleted run, or a file too large."""
    status = getattr(getattr(error, "response", None), "status_code", 0)  # of requests
    if get_status := getattr(error, "get_http_status_code", None):  # of MLflow
        status = get_status()
    return 400 <= status < 500 and status not in (408, 429)


def root_cause(error: BaseException) -> str:
    """The first error of a chain, in one line: clients wrap a refused connection four times."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return one_line(error)
