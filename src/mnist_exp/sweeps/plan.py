"""The plan of a sweep: from its arguments and presets, and from its record if it is resumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain, product
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mnist_exp.errors import BadInput, print_line, sanitize
from mnist_exp.experiment.find import check_writable, find_sweep
from mnist_exp.experiment.shell import quote, quote_path, show_path, train_command
from mnist_exp.paths import LAST, SWEEP, expand
from mnist_exp.sweeps.records import (
    OUTCOME,
    REPEATS,
    Chosen,
    Damaged,
    Sweep,
    read_outcomes,
    read_sweep,
)

# Beginnings of arguments that say where and how the jobs run.
NOT_THE_JOBS = (
    *("hydra.", "hydra/launcher=", "tracking"),
    *("sweep.test=", "sweep.resume=", "sweep.join=", "sweep.max_jobs="),
)


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, new or to resume."""

    config: DictConfig  # of one of its jobs, with what all of them share
    folder: Path
    record: Sweep
    words: Sequence[str]  # arguments, typed and from a preset
    axes: Mapping[str, str]  # swept key → its values, as typed
    job_count: int  # for a search, the most

    @property
    def for_hydra(self) -> list[str]:
        """The arguments and the folder."""
        return [*self.words, f"hydra.sweep.dir={quote(str(self.folder))}", "hydra.mode=MULTIRUN"]


def add_recorded(typed: list[str]) -> list[str]:
    """What was typed for the sweep to resume, then what is typed now, unless that names the jobs.

    Raises BadInput and Damaged.
    """
    resume = [word for word in typed if word.startswith("sweep.resume=")]
    if not resume or select_job_arguments(typed):
        return typed
    value = OverridesParser.create().parse_override(resume[-1]).value()
    if value is None:
        return typed
    recorded = read_sweep(find_sweep(str(value))).typed
    recorded = [word for word in recorded if word != "hydra/launcher=joblib"]  # which 0.3 had
    if any(word.startswith("hydra/launcher=") for word in typed):  # which has other keys
        recorded = [word for word in recorded if not word.startswith("hydra.launcher.")]
    return [*recorded, *typed]


def plan_sweep(
    config: DictConfig,
    overrides: Mapping[str, Override],
    rows: Sequence[Chosen],
    words: Sequence[str],
    typed: Sequence[str],
) -> SweepPlan:
    """A new sweep, or one to resume.

    config: what all jobs share. overrides: of each key, those of a preset before those typed.
    rows: the combinations of sweep.jobs. words: arguments, those of a preset before those typed.

    Raises BadInput for more jobs than sweep.max_jobs, and what the functions below raise.
    """
    params = config.hydra.sweeper.params or {}
    in_order = {key: overrides[key] for key in dict.fromkeys([*params, *overrides])}
    swept = {key: override for key, override in in_order.items() if override.is_sweep_override()}
    axes = {key: str(override.input_line).partition("=")[2] for key, override in swept.items()}
    file = config.sweep.jobs if rows else None  # that was read: not if only the record has its rows
    combinations: Iterable[tuple[str, ...]] = ()
    if search := "n_trials" in config.hydra.sweeper:
        check_search(config, swept, rows)
        job_count = int(config.hydra.sweeper.n_trials)
    else:
        job_count, combinations = combine(swept, config.sweep.combine)
        rows = rows or [{}]
        job_count *= len(rows)
    if job_count > config.sweep.max_jobs:
        raise BadInput(f"{job_count:,} jobs; if this is intended, set sweep.max_jobs={job_count}")
    both = product(rows, combinations)
    jobs = [{**row, **dict(zip(swept, values, strict=True))} for row, values in both]
    folder, keys = Path(config.hydra.sweep.dir), [*dict.fromkeys(chain(*rows)), *axes]
    record = Sweep(typed, keys, config.sweep.test, search, jobs)
    if join := config.sweep.join:
        folder, record = join_study(join, folder, record)
    if config.sweep.resume is not None:
        folder = find_sweep(config.sweep.resume)
        record = resume_sweep(folder, record, file)
        if search and not join:  # else others may be writing to the study
            from mnist_exp.sweeps.search import check_study  # imports optuna

            check_study(folder, read_outcomes(folder))
    elif join and (folder / SWEEP).exists():
        record = resume_sweep(folder, record, None, "sweep.join")
    else:
        check_new(folder)
    if is_local(config) and "trainer.threads" not in overrides and config.trainer.threads == "auto":
        words = [*words, "trainer.threads=1"]  # several jobs share the cores
    for key in record.swept:  # those of sweep.jobs
        axes.setdefault(key, ",".join(dict.fromkeys(job[key] for job in record.jobs)))
    return SweepPlan(config, folder, record, words, axes, len(record.jobs) or job_count)


def is_local(config: DictConfig) -> bool:
    """Whether the jobs run side by side on this machine."""
    return str(config.hydra.launcher._target_).endswith(".LocalLauncher")


def check_search(config: DictConfig, swept: Mapping[str, Override], rows: Sequence[Chosen]) -> None:
    """Raises BadInput for what a search cannot do."""
    for key, override in swept.items():
        if key in REPEATS:
            reason = "a search trains each configuration once; give one value"
            raise BadInput(f"{override.input_line}: {reason}, then sweep the winner over several")
        if config.hydra.sweeper.sampler == "brute_force" and not override.is_discrete_sweep():
            raise BadInput(f"{override.input_line}: an interval, which brute_force cannot exhaust")
    if config.data.val_fraction == 0 and config.data.folds is None:
        raise BadInput("data.val_fraction=0: a search needs validation")
    if rows or config.sweep.combine != "product":
        raise BadInput("hydra/sweeper=optuna: chooses the combinations itself, without sweep.jobs")


def join_study(join: str, folder: Path, record: Sweep) -> tuple[Path, Sweep]:
    """The folder and the record of a search that shares its study with other processes.

    join: the folder of all of them, or the address of a database, in which the same arguments name
    the same study; there each process has a folder of its own. Raises BadInput.
    """
    if not record.search:
        raise BadInput(f"sweep.join={join}: is only for a search; add hydra/sweeper=optuna")
    if "://" not in join:
        return expand(join), record
    address, _, file = join.partition("sqlite:///")
    if file and not address:
        join = f"sqlite:///{expand(file)}"
    digest = sha256(repr(select_job_arguments(record.typed)).encode()).hexdigest()
    return folder, replace(record, database=join, study=f"mnist_exp {digest[:12]}")


def combine(swept: Mapping[str, Override], how: str) -> tuple[int, Iterable[tuple[str, ...]]]:
    """The number of combinations of the keys' values, and the combinations.

    how: product, or zip for pairs. Raises BadInput for an interval, and for pairs of unequal
    length.
    """
    for override in swept.values():
        if not override.is_discrete_sweep():
            raise BadInput(f"{override.input_line}: an interval, which needs hydra/sweeper=optuna")
    values = [list(override.sweep_string_iterator()) for override in swept.values()]
    lengths = [*map(len, values)]
    if how == "product" or not swept:
        return prod(lengths), product(*values)
    if len(set(lengths)) > 1:
        each = ", ".join(f"{n} of {key}" for key, n in zip(swept, lengths, strict=True))
        raise BadInput(f"sweep.combine=zip: each key needs the same number of values, not {each}")
    return lengths[0], zip(*values, strict=True)


def resume_sweep(
    folder: Path, planned: Sweep, file: str | None, option: str = "sweep.resume"
) -> Sweep:
    """The record of the sweep in the folder.

    planned: what the arguments say of it. file: whose rows are planned, or None. option: that named
    the folder.

    Raises BadInput if they say something other than its record, and Damaged.
    """
    record, name = read_sweep(folder), f"{option}={quote_path(folder)}"
    if select_job_arguments(record.typed) != select_job_arguments(planned.typed):
        reason = "that sweep has other arguments, or the same in another order"
        resume = train_command("-m", f"sweep.resume={quote_path(folder)}")
        raise BadInput(f"{name}: {reason}; type {resume}")
    if file is not None and planned.jobs != record.jobs:
        raise BadInput(f"{name}: sweep.jobs={file} has changed; start a new sweep")
    jobs = record.jobs or [dict.fromkeys(planned.swept, "")]
    if any(job.keys() != set(record.swept) for job in jobs):
        raise Damaged(f"{folder / SWEEP}: damaged (swept); start the sweep again")
    return record if record.jobs else replace(record, jobs=planned.jobs)


def complete_job(job: Chosen, words: Iterable[str]) -> list[str]:
    """The overrides of a job: what it chooses, then what all jobs share. words: arguments."""
    for_hydra = ("hydra.", "hydra/")
    shared = [word for word in words if not word.lstrip("+~").startswith(for_hydra)]
    own = [f"{key}={value}" for key, value in job.items()]
    return own + [word for word in shared if word.partition("=")[0] not in job]


def show_jobs(plan: SweepPlan, loader: ConfigLoader) -> None:
    """Print each job's number, folder and overrides; for a search, those so far and its space."""
    jobs = [complete_job(job, plan.words) for job in plan.record.jobs]
    if plan.record.search:
        jobs = [list(outcome.overrides) for outcome in read_outcomes(plan.folder)]
    sweep: Any = OmegaConf.to_container(plan.config.hydra.sweep, resolve=False)
    for number, overrides in enumerate(jobs):
        name = str(number)
        if sweep["subdir"] != "${hydra.job.num}":
            config = loader.load_sweep_config(plan.config, overrides)  # as a launcher does
            with read_write(config.hydra.job), open_dict(config.hydra.job):
                config.hydra.job.num = number
            HydraConfig.instance().set_config(config)
            name = str(config.hydra.sweep.subdir)
        folder = plan.folder / name
        print_line(f"{number}  {sanitize(show_path(folder))}  {' '.join(overrides)}")
    if plan.record.search:
        where = show_path(plan.folder)
        print_line(f"at most {plan.job_count} jobs in {where}, chosen during the search from")
        for key, values in plan.axes.items():
            print_line(f"{key}={values}")


def check_new(folder: Path) -> None:
    """Raises BadInput if the folder contains files of a sweep or a run, or cannot be written."""
    check_writable(folder)
    files = (SWEEP, str(LAST), f"*/{OUTCOME}", f"*/{LAST}")
    if any(any(folder.glob(file)) for file in files):
        value = quote_path(folder)
        advice = f"sweep.resume={value} resumes a sweep, or choose another folder"
        raise BadInput(f"hydra.sweep.dir={value}: already contains a sweep or a run; {advice}")


def select_job_arguments(typed: Sequence[str]) -> list[str]:
    """The arguments that define the jobs, rather than where and how they run.

    Their order determines the numbers of the jobs.
    """
    return [argument for argument in typed if not argument.startswith(NOT_THE_JOBS)]
