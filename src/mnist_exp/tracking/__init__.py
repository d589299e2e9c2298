"""Where a run's record goes besides its output folder: the Tracker protocol, and no tracker."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from mnist_exp.errors import Failure

log = logging.getLogger(__name__)

PATIENCE = 10  # times as long as a try has failed, until the next: costs at most a tenth of a run

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

    name: str
    params: Mapping[str, object]  # every config leaf by its dotted key
    tags: Mapping[str, str]
    dataset: DatasetRecord | None = None  # none for the parent run of a sweep


class Tracker(Protocol):
    """Is told what happens in one run, in this order: start, log and upload, end.

    Being told the same thing twice changes nothing.
    """

    def start(self, record: RunRecord, run_id: str | None) -> str | None:
        """Open a new run, or the one with this id again; returns the run's id.

        Raises TrackerError.
        """

    def log(self, metrics: Mapping[str, float], step: int, at: float) -> None:
        """Metrics of one epoch; `step` is its number, from 1, `at` its Unix time in seconds."""

    def upload(self, paths: Sequence[Path], folder: str = "") -> None:
        """Keep these files with the run, in this folder of its artifacts."""

    def end(self, status: Status) -> None: ...

    def where(self) -> str | None:
        """What a person types or opens to look at the run, if there is something."""


class NoTracker:
    """Tracks nothing."""

    def start(self, record: RunRecord, run_id: str | None) -> None: ...

    def log(self, metrics: Mapping[str, float], step: int, at: float) -> None: ...

    def upload(self, paths: Sequence[Path], folder: str = "") -> None: ...

    def end(self, status: Status) -> None: ...

    def where(self) -> None: ...


class Patient:
    """A tracker that may go away once the run has started: the training does not wait for it.

    What it could not be told is told again, in order, with a later thing, at the latest with the
    end. `behind` says whether something is still missing.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.start, self.where = tracker.start, tracker.where
        self.untold: list[Callable[[], None]] = []
        self.warned = False
        self.next_try = 0.0  # on the clock of time.monotonic

    @property
    def behind(self) -> bool:
        return bool(self.untold)

    def log(self, metrics: Mapping[str, float], step: int, at: float) -> None:
        self._tell(lambda: self.tracker.log(metrics, step, at))

    def upload(self, paths: Sequence[Path], folder: str = "") -> None:
        self._tell(lambda: self.tracker.upload(paths, folder))

    def end(self, status: Status) -> None:
        self.next_try = 0.0
        self._tell(lambda: self.tracker.end(status))

    def _tell(self, call: Callable[[], None]) -> None:
        self.untold.append(call)
        started = time.monotonic()
        if started < self.next_try:
            return
        try:
            while self.untold:
                self.untold[0]()
                del self.untold[0]
        except Exception as error:  # whatever a database or a network can think of
            ended = time.monotonic()
            self.next_try = ended + PATIENCE * (ended - started)
            if not self.warned:
                log.warning("the tracker does not answer (%s); the run goes on", root_cause(error))
                self.warned = True


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def root_cause(error: BaseException) -> str:
    """What began it, in a line: clients wrap a refused connection in four messages of theirs."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return " ".join(str(error).split()) or type(error).__name__
