"""What a sweep records: the sweep itself, in its folder, and the outcome of each job."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar
from uuid import uuid4

from mnist_exp.errors import Failure, one_line
from mnist_exp.experiment.shell import quote_path
from mnist_exp.files import replace_file

Record = TypeVar("Record")

SWEEP = "sweep.json"  # in the sweep's folder
OUTCOME = "outcome.json"  # in each job's folder
UNKNOWN = "unknown"  # the code of an outcome from before it was recorded
DAMAGED = f"{OUTCOME} is damaged"
ENDED = ("FINISHED", "PRUNED")


class Damaged(Failure):
    """A file that a sweep wrote has changed since, or is incomplete."""


@dataclass(frozen=True)
class Sweep:
    """What a job and a resumed sweep need to know of the sweep."""

    typed: Sequence[str]  # arguments
    swept: Sequence[str]  # keys, in the order typed
    test: str  # "winner" or "all"
    search: bool  # by Optuna, which may prune jobs
    begun: float = field(default_factory=time.time)  # Unix time, seconds
    key: str = field(default_factory=lambda: uuid4().hex)  # of the parent's record
    tested: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # by job number

    def write(self, folder: Path) -> None:
        write_record(folder / SWEEP, asdict(self))


@dataclass(frozen=True)
class Outcome:
    """The result of a job, or the fact that it has started."""

    job: int
    chosen: Mapping[str, str]  # swept key → this job's value
    overrides: Sequence[str]  # all that define this job
    folder: Path
    code: str = UNKNOWN  # digest of the code that trained it; of several, joined by +
    status: str = "UNFINISHED"  # then FINISHED, PRUNED, FAILED or KILLED
    reason: str = ""  # of a failure, one line
    epoch: int = 0  # of the kept weights, from 1
    accuracy: float | None = None  # on validation, 0..1; None without validation
    loss: float | None = None  # on validation, nats per image
    seconds: float = 0.0  # of all epochs, training and validation

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED"

    def write(self) -> None:
        values = asdict(self)
        del values["folder"]  # which can be moved
        write_record(self.folder / OUTCOME, values)


def read_sweep(folder: Path) -> Sweep:
    """Raises Damaged."""
    try:
        return read_record(Sweep, folder / SWEEP)
    except Damaged as error:
        advice = (
            "the sweep cannot be resumed, start it again; "
            f"resume={quote_path(folder)}/0 resumes its first job, and so on"
        )
        raise Damaged(f"{error}; {advice}") from error


def read_outcome(folder: Path) -> Outcome:
    """The outcome of the job in this folder. Raises Damaged."""
    return read_record(Outcome, folder / OUTCOME, folder=folder)


def read_outcomes(sweep: Path, swept: Sequence[str] = ()) -> list[Outcome]:
    """The outcomes of all jobs that have started in a sweep over these keys, by number.

    If an outcome is damaged, only the job's number is known, from the name of its folder.
    """
    outcomes = []
    for path in sweep.glob(f"*/{OUTCOME}"):
        folder = path.parent
        try:
            outcomes.append(read_outcome(folder))
        except Damaged:
            number = int(folder.name) if folder.name.isdecimal() else -1
            unknown = dict.fromkeys(swept, "?")
            outcomes.append(Outcome(number, unknown, [], folder, reason=DAMAGED))
    return sorted(outcomes, key=lambda outcome: outcome.job)


def write_record(path: Path, values: Mapping[str, object]) -> None:
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def read_record(kind: type[Record], path: Path, **more: object) -> Record:
    """A dataclass from the values in this JSON file and from `more`. Raises Damaged."""
    from pydantic import TypeAdapter, ValidationError  # a tenth of a second to import

    try:
        record = json.loads(path.read_text("utf-8"), parse_constant=refuse_constant)
        return TypeAdapter(kind).validate_python({**record, **more})
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (OSError, RecursionError, TypeError, ValueError) as error:
        reason = one_line(error)
    raise Damaged(f"{path}: damaged ({reason})")


def refuse_constant(name: str) -> NoReturn:
    """Raises ValueError for NaN and Infinity, which cannot be ranked."""
    raise ValueError(f"contains {name}")
