"""What a sweep and its jobs leave on disk."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

from mnist_exp.errors import Failure, one_line
from mnist_exp.experiment.shell import quote_path
from mnist_exp.files import replace_file
from mnist_exp.paths import SWEEP, replace_home, restore_home

Record = TypeVar("Record")
Chosen = Mapping[str, str]  # swept key → its value in one job

# Keys that repeat a job with other draws; they are not hyperparameters.
REPEATS = ("seed", "data.split_seed", "data.fold")
OUTCOME = "outcome.json"  # in each job's folder
UNKNOWN = "unknown"  # the code of an outcome from before it was recorded
DAMAGED = f"{OUTCOME} is damaged"
ENDED = ("FINISHED", "PRUNED")
FINITE = {"allow_inf_nan": False}  # for pydantic: NaN and Infinity cannot be ranked


class Damaged(Failure):
    """A file that a sweep wrote has changed since, or is incomplete."""


@dataclass(frozen=True)
class Sweep:
    """What a job and a resumed sweep need to know about the sweep."""

    __pydantic_config__ = FINITE

    typed: Sequence[str]  # arguments
    swept: Sequence[str]  # keys, in the order typed
    test: str  # "winner" or "all"
    search: bool  # by Optuna, which may prune jobs
    jobs: Sequence[Chosen] = ()  # by number; none for a search, or from before they were recorded
    begun: float = field(default_factory=time.time)  # Unix time, seconds
    key: str = field(default_factory=lambda: uuid4().hex)  # of the parent's record
    tested: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # by job number
    database: str | None = None  # of a search: the address, if its study is not in the folder
    study: str = "sweep"  # its name

    def write(self, folder: Path) -> None:
        write_record(folder / SWEEP, asdict(self))


@dataclass(frozen=True)
class Outcome:
    """The result of a job, or the fact that it has started."""

    __pydantic_config__ = FINITE

    job: int
    chosen: Chosen
    overrides: Sequence[str]  # all that define this job
    folder: Path = Path()  # not in its file: it can be moved
    code: str = UNKNOWN  # digest of the code that trained it; of several, joined by +
    status: str = "UNFINISHED"  # then FINISHED, PRUNED, FAILED or KILLED
    reason: str = ""  # of a failure, one line
    epoch: int = 0  # of the kept weights, from 1
    metrics: Mapping[str, float] = field(default_factory=dict)  # of the kept weights: val/loss, ...
    monitor: str = "val/accuracy"
    score: float | None = None  # the monitored value, so that higher is better; None: no validation
    seconds: float = 0.0  # of all epochs, training and validation

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED"

    @property
    def repeat(self) -> tuple[str | None, ...]:
        """Seed, split and fold: what jobs of the same hyperparameters differ in."""
        return tuple(self.chosen.get(key) for key in REPEATS)

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        del values["folder"]
        return values

    def write(self) -> None:
        write_record(self.folder / OUTCOME, self.to_json())


def read_sweep(folder: Path) -> Sweep:
    """Raises Damaged."""
    try:
        return read_record(Sweep, folder / SWEEP)
    except Damaged as error:
        advice = (
            "the sweep cannot be resumed, so start it again; "
            f"resume={quote_path(folder)}/0 resumes its first job, and so on"
        )
        raise Damaged(f"{error}; {advice}") from error


def read_outcome(folder: Path) -> Outcome:
    """The outcome of the job in this folder. Raises Damaged."""
    return replace(read_record(Outcome, folder / OUTCOME), folder=folder)


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a record; those of an outcome from before 0.3 with today's metrics."""
    if "accuracy" not in values:
        return values
    accuracy, loss = values.pop("accuracy"), values.pop("loss", None)
    metrics = {} if loss is None else {"val/loss": loss, "val/accuracy": accuracy}
    return {**values, "metrics": metrics, "score": accuracy}


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
        temporary.write_text(json.dumps(replace_home(values), indent=2) + "\n")


def read_record(kind: type[Record], path: Path) -> Record:
    """A dataclass from the values in this JSON file. Raises Damaged."""
    from pydantic import ValidationError  # a tenth of a second to import

    try:
        values = make_adapter(dict[str, Any]).validate_json(path.read_bytes())
        adapter = make_adapter(cast(Any, kind))
        return cast(Record, adapter.validate_python(upgrade(restore_home(values))))
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join([*map(str, first["loc"]), first["msg"]])
    except OSError as error:
        reason = one_line(error)
    raise Damaged(f"{path}: damaged ({reason})")


@functools.cache  # making one takes longer than using it
def make_adapter(kind: Any) -> Any:
    """What checks and builds objects of this kind."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
