"""A sweep: its plan, its records on disk, and how it is opened: new, or to resume it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict

from mnist_exp.errors import BadInput, Failure, one_line, print_line, sanitize
from mnist_exp.experiment.shell import quote, quote_path, show_path, train_command
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
    metrics: Mapping[str, float] = field(default_factory=dict)  # of the kept weights: val/loss, ...
    monitor: str = "val/accuracy"
    score: float | None = None  # the monitored value, so that higher is better; None: no validation
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
    return replace(read_record(Outcome, folder / OUTCOME, upgrade_outcome), folder=folder)


def upgrade_outcome(values: dict[str, Any]) -> dict[str, Any]:
    """The values of an outcome from before 0.3, which had two metrics, with today's names."""
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
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def read_record(
    kind: type[Record],
    path: Path,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values,
) -> Record:
    """A dataclass from the values in this JSON file. Raises Damaged."""
    from pydantic import TypeAdapter, ValidationError  # a tenth of a second to import

    try:
        values = TypeAdapter(dict[str, Any]).validate_json(path.read_bytes())
        return TypeAdapter(kind).validate_python(upgrade(values))
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join([*map(str, first["loc"]), first["msg"]])
    except OSError as error:
        reason = one_line(error)
    raise Damaged(f"{path}: damaged ({reason})")


# --- the plan ---


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, as its command line and its preset describe it."""

    config: DictConfig  # what all jobs share
    folder: Path  # of the sweep to resume, or of a new one
    typed: Sequence[str]
    for_hydra: list[str]  # what was typed, and the folder
    axes: Mapping[str, str]  # swept key → its values, as typed
    jobs: Sequence[list[str]]  # the overrides of each; empty for a search
    job_count: int  # for a search, the most
    search: bool  # by Optuna


def plan_sweep(
    config: DictConfig, overrides: Mapping[str, Override], typed: Sequence[str]
) -> SweepPlan:
    """A new sweep, or one to resume.

    config: what all jobs share. overrides: of each key, those of a preset before those typed.

    Raises BadInput for an interval without a search, seeds in a search, a search without
    validation, more jobs than sweep.max_jobs, and where `sweep.resume` finds no sweep.
    """
    swept = {key: override for key, override in overrides.items() if override.is_sweep_override()}
    axes = {key: str(override.input_line).partition("=")[2] for key, override in swept.items()}
    search = "n_trials" in config.hydra.sweeper
    if search and "seed" in axes:
        reason = "a search trains each configuration once; give one seed"
        raise BadInput(f"seed={axes['seed']}: {reason}, then sweep the winner over several")
    if search and config.data.val_fraction == 0:
        raise BadInput("data.val_fraction=0: a search needs validation")
    for key, override in swept.items():
        if not search and not override.is_discrete_sweep():
            raise BadInput(f"{key}={axes[key]}: an interval, which needs hydra/sweeper=optuna")
    folder = Path(config.hydra.sweep.dir)
    if config.sweep.resume is not None:
        folder = find_sweep(config.sweep.resume)
    order = dict.fromkeys([*(config.hydra.sweeper.params or ()), *overrides])
    choices = {} if search else list_choices({key: overrides[key] for key in order})
    count = config.hydra.sweeper.n_trials if search else math.prod(map(len, choices.values()))
    if count > config.sweep.max_jobs:
        raise BadInput(f"{count:,} jobs; if this is intended: sweep.max_jobs={count}")
    jobs = [] if search else [*map(list, product(*choices.values()))]
    for_hydra = [*typed, f"hydra.sweep.dir={quote(str(folder))}", "hydra.mode=MULTIRUN"]
    return SweepPlan(config, folder, typed, for_hydra, axes, jobs, count, search)


def list_choices(overrides: Mapping[str, Override]) -> dict[str, list[str]]:
    """Key → an override for each of its values, as Hydra's sweeper writes them."""
    choices = {}
    for key, override in overrides.items():
        if override.is_hydra_override():
            continue
        if override.is_sweep_override():
            values = list(override.sweep_string_iterator())
        else:
            values = [override.get_value_element_as_str()]
        choices[key] = [f"{key}={value}" for value in values]
    return choices


def show_jobs(plan: SweepPlan, loader: ConfigLoader) -> None:
    """Print each job's number, folder and overrides, or the space of a search."""
    if plan.search:
        where = show_path(plan.folder)
        print_line(f"at most {plan.job_count} jobs in {where}, chosen as the search runs from")
        for key, values in plan.axes.items():
            print_line(f"{key}={values}")
    for number, overrides in enumerate(plan.jobs):
        config = loader.load_sweep_config(plan.config, overrides)  # as a launcher does
        with open_dict(config):
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        folder = plan.folder / str(config.hydra.sweep.subdir)
        print_line(f"{number}  {sanitize(show_path(folder))}  {' '.join(overrides)}")


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
