"""Opens the sweep of a command line: a new one, or one to resume, if it is the same sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mnist_exp.errors import BadInput
from mnist_exp.experiment.shell import quote_path, train_command
from mnist_exp.paths import LAST, REPOSITORY
from mnist_exp.sweeps.plan import SweepPlan
from mnist_exp.sweeps.records import (
    OUTCOME,
    SWEEP,
    Damaged,
    Sweep,
    read_outcomes,
    read_sweep,
)

NOT_THE_JOBS = ("hydra.", "hydra/launcher=", "sweep.", "tracking")


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
    if (folder / LAST).exists():
        raise BadInput(
            f"hydra.sweep.dir={quote_path(folder)}: contains a run already; choose another folder"
        )
    files = (SWEEP, f"*/{OUTCOME}", f"*/{LAST}")
    if any(any(folder.glob(file)) for file in files):
        advice = f"sweep.resume={quote_path(folder)} resumes it, or choose another folder"
        raise BadInput(f"hydra.sweep.dir={quote_path(folder)}: contains a sweep already; {advice}")


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
