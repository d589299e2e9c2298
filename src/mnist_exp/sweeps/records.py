"""A sweep: its plan, its records on disk, and how it is opened: new, or to resume it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from omegaconf import DictConfig

from mnist_exp.errors import BadInput, Failure, one_line
from mnist_exp.experiment.shell import quote_path, train_command
from mnist_exp.files import replace_file
from mnist_exp.paths import LAST, REPOSITORY, SWEEP

Record = TypeVar("Record")

OUTCOME = "outcome.json"  # in each job's folder
UNKNOWN = "unknown"  # the code of an outcome from before it was recorded
DAMAGED = f"{OUTCOME} is damaged"
ENDED = ("FINISHED", "PRUNED")
FINITE = {"allow_inf_nan": False}  # for pydantic: NaN and Infinity cannot be ranked
NOT_THE_JOBS = ("hydra.", "hydra/launcher=", "sweep.", "tracking")


class Damaged(Failure):
    """A file that a sweep wrote has changed since, or is incomplete."""


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, as its command line and its preset describe it."""

    config: DictConfig  # what all jobs share
    folder: Path  # of the sweep to resume, or of a new one
    typed: list[str]
    overrides: list[str]  # for Hydra: what was typed, and the folder
    axes: dict[str, str]  # swept key → its values, as typed
    choices: dict[str, list[str]]  # key → an override for each of its values; empty for a search
    search: bool  # by Optuna

    @property
    def job_count(self) -> int:
        """How many jobs there are; for a search, the most."""
        if self.search:
            return int(self.config.hydra.sweeper.n_trials)
        return math.prod(map(len, self.choices.values()))

    def jobs(self) -> Iterator[list[str]]:
        """The overrides of each job, in the order in which Hydra numbers them."""
        return map(list, product(*self.choices.values()))


@dataclass(frozen=True)
class Sweep:
    """What a job and a resumed sweep need to know of the sweep."""

    __pydantic_config__ = FINITE

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

    __pydantic_config__ = FINITE

    job: int
    chosen: Mapping[str, str]  # swept key → this job's value
    overrides: Sequence[str]  # all that define this job
    folder: Path = Path()  # not in its file: it can be moved
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
        del values["folder"]
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
    return replace(read_record(Outcome, folder / OUTCOME), folder=folder)


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


def read_record(kind: type[Record], path: Path) -> Record:
    """A dataclass from the values in this JSON file. Raises Damaged."""
    from pydantic import TypeAdapter, ValidationError  # a tenth of a second to import

    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join([*map(str, first["loc"]), first["msg"]])
    except OSError as error:
        reason = one_line(error)
    raise Damaged(f"{path}: damaged ({reason})")


def open_sweep(plan: SweepPlan) -> Sweep:
    """The sweep in the plan's folder if it is to be resumed, or a new one.

    Raises BadInput and Damaged.
    """
    config, folder = plan.config.sweep, plan.folder
    typed = [argument for argument in plan.typed if not argument.startswith("sweep.resume=")]
    if config.resume is None:
        check_new(folder)
        return Sweep(typed, list(plan.axes), config.test, plan.search)
    sweep = read_sweep(folder)
    if select_job_arguments(sweep.typed) != select_job_arguments(typed):
        right = train_command("-m", *sweep.typed, f"sweep.resume={quote_path(folder)}")
        reason = "that sweep has other arguments, or has them in another order"
        raise BadInput(f"sweep.resume={config.resume}: {reason}; type {right}")
    if list(sweep.swept) != list(plan.axes):
        raise Damaged(f"{folder / SWEEP}: damaged (swept); start the sweep again")
    if sweep.search:
        from mnist_exp.sweeps.search import check_study  # imports optuna

        check_study(folder, read_outcomes(folder))
    return sweep


def check_new(folder: Path) -> None:
    """Raises BadInput if the folder contains files of a sweep or a run."""
    files = (SWEEP, str(LAST), f"*/{OUTCOME}", f"*/{LAST}")
    if any(any(folder.glob(file)) for file in files):
        value = quote_path(folder)
        advice = f"sweep.resume={value} resumes a sweep, or choose another folder"
        raise BadInput(f"hydra.sweep.dir={value}: contains a sweep or a run already; {advice}")


def select_job_arguments(typed: Sequence[str]) -> list[str]:
    """The arguments that define the jobs, rather than where and how they run.

    Their order determines the numbers of the jobs.
    """
    return [argument for argument in typed if not argument.startswith(NOT_THE_JOBS)]


def find_sweep(word: str) -> Path:
    """The sweep's folder that "latest" or a path means. Raises BadInput."""
    if word == "latest":
        sweeps = (REPOSITORY / "outputs").glob(f"*/*/{SWEEP}")
        latest = max(sweeps, key=lambda path: path.stat().st_mtime, default=None)
        if latest is None:
            raise BadInput("sweep.resume=latest: there is no sweep in outputs/")
        return latest.parent
    for folder in (Path(word).absolute(), REPOSITORY / word):
        if (folder / SWEEP).is_file():
            return folder
    raise BadInput(f"sweep.resume={word}: neither a sweep's folder nor latest")
