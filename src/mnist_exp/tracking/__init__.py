"""Where a run's record goes besides its output folder: the Tracker protocol, and no tracker."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from mnist_exp.errors import Failure, one_line

EXPERIMENT = "mnist_exp"  # in MLflow, as in conf/tracking/mlflow.yaml
DIGEST_LETTERS = 36  # of a data set's; MLflow admits no more
PATIENCE = 10  # times as long as a try has failed, until the next; else what waits piles up

Status = Literal["FINISHED", "FAILED", "KILLED"]


class TrackerError(Failure):
    """The tracker cannot be reached, or does not know the run."""


@dataclass(frozen=True)
class DatasetRecord:
    """The data set of a run, so that two runs can be seen to have used the same."""

    name: str
    digest: str  # SHA-256
    sizes: Mapping[str, int]  # images in each split


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run before it starts."""

    key: str  # its own, for as long as it can be gone on with
    name: str
    params: Mapping[str, object]  # every config leaf by its dotted key, and the model's size
    tags: Mapping[str, str]
    dataset: DatasetRecord | None = None  # none for the parent run of a sweep
    parent: str | None = None  # key of the sweep that it is a job of


class FinishedRun(NamedTuple):
    """A finished run, to be ranked among others."""

    word: str  # what --run takes: its MLflow run id or its output folder
    name: str
    data: str  # the data set's name
    digest: str  # the first DIGEST_LETTERS of the data set's
    began: float  # Unix time, seconds
    accuracy: float | None  # 0..1, on validation, of the weights that it kept


@dataclass(frozen=True)
class ModelRecord:
    """A trained model for others to use."""

    file: Path  # exported, of raw images
    example: Any  # raw images, numbers in nested lists, as the model is to be asked
    class_names: tuple[str, ...]
    epoch: int  # whose weights it has
    accuracy: float | None  # of these in validation, if there was one
    digest: str  # SHA-256 of the data set


class Tracker(Protocol):
    """Is told what happens in one run, in this order: start, log and upload, log_model, end.

    Being told the same thing twice changes nothing.
    """

    def start(self, record: RunRecord) -> None:
        """Open a new run, or the one with the record's key again. Raises TrackerError."""

    def log(self, metrics: Mapping[str, float], step: int, at: float) -> None:
        """Metrics of one epoch; `step` is its number, from 1, `at` its Unix time in seconds."""

    def upload(self, paths: Sequence[Path], folder: str = "") -> None:
        """Keep these files with the run, in this folder of its artifacts."""

    def log_model(self, record: ModelRecord) -> None:
        """Keep this model with the run, to be loaded and served from there."""

    def end(self, status: Status) -> None: ...

    def where(self) -> str | None:
        """What a person types or opens to look at the run, if there is something."""

    def explain_deletion(self) -> str | None:
        """That a person has deleted the run since its start, if so, and how to restore it."""

    def registered(self) -> str | None:
        """What has become of the model's registration, if there was one, in a line."""


class NoTracker:
    """Tracks nothing."""

    def start(self, record: RunRecord) -> None: ...

    def log(self, metrics: Mapping[str, float], step: int, at: float) -> None: ...

    def upload(self, paths: Sequence[Path], folder: str = "") -> None: ...

    def log_model(self, record: ModelRecord) -> None: ...

    def end(self, status: Status) -> None: ...

    def where(self) -> None: ...

    def explain_deletion(self) -> None: ...

    def registered(self) -> None: ...


class Patient:
    """A tracker that may go away once the run has started.

    What it could not be told is told again, in order, with a later thing, at the latest with the
    end.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.untold: list[tuple[str, tuple[object, ...]]] = []
        self.reason: str | None = None  # why something is untold
        self.next_try = 0.0  # on the clock of time.monotonic

    def tell(self, what: str, *arguments: object) -> str | None:
        """Call the tracker's method of that name, after all that is untold.

        Returns why something is untold now, or None.
        """
        self.untold.append((what, arguments))
        started = time.monotonic()
        if started < self.next_try and what != "end":
            return self.reason
        try:
            while self.untold:
                name, values = self.untold[0]
                getattr(self.tracker, name)(*values)
                del self.untold[0]
            self.reason = None
        except Exception as error:  # whatever a database or a network can think of
            ended = time.monotonic()
            self.next_try = ended + PATIENCE * (ended - started)
            self.reason = root_cause(error)
        return self.reason


def root_cause(error: BaseException) -> str:
    """What began it, in a line: clients wrap a refused connection in four messages of theirs."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return one_line(error)
