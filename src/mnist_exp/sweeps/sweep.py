"""A sweep as one thing: a parent run, its jobs nested under it, a leaderboard at the end.

It knows neither what chooses the jobs (Hydra's sweeper) nor where they run (its launcher): a job
finds the sweep in the folder above its own, and leaves its outcome in its own.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any
from uuid import uuid4

from omegaconf import DictConfig, OmegaConf

from mnist_exp.errors import BadInput, Failure, one_line
from mnist_exp.experiment import screen
from mnist_exp.experiment.environment import code_digest
from mnist_exp.experiment.load import Trained, load
from mnist_exp.experiment.run import Experiment, Stopped, resumed
from mnist_exp.experiment.shell import command, shown, typed_as
from mnist_exp.experiment.signals import Interrupted
from mnist_exp.files import TEMPORARY, Occupied, alone, replacing
from mnist_exp.paths import LAST, REPOSITORY
from mnist_exp.sweeps import leaderboard
from mnist_exp.sweeps.leaderboard import (
    OUTCOME,
    UNKNOWN,
    Damaged,
    Outcome,
    Row,
    read_outcome,
    read_record,
)
from mnist_exp.sweeps.plan import Plan
from mnist_exp.tracking import RunRecord, Status
from mnist_exp.tracking.worker import Trackers
from mnist_exp.training.state import Epoch

log = logging.getLogger(__name__)

SWEEP = "sweep.json"  # in the sweep's folder
NOT_THE_JOBS = ("hydra.", "hydra/launcher=", "sweep.", "tracking")
ENDED = ("FINISHED", "PRUNED")


@dataclass(frozen=True)
class Sweep:
    """What a job has to know of its sweep, and a resumed sweep of its beginning."""

    typed: Sequence[str]  # arguments
    swept: Sequence[str]  # keys, in the order typed
    test: str  # "winner" or "all"
    search: bool  # by Optuna, which may prune jobs
    begun: float = field(default_factory=time.time)  # Unix time, seconds
    key: str = field(default_factory=lambda: uuid4().hex)  # of the parent's record
    tested: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # by job number

    def write(self, folder: Path) -> None:
        with replacing(folder / SWEEP) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")


def read(folder: Path) -> Sweep:
    """Raises Damaged."""
    try:
        return read_record(Sweep, folder / SWEEP)
    except Damaged as error:
        lost = "the sweep cannot be resumed, start it again"
        kept = f"resume={typed_as(folder)}/0 resumes its first job, and so on"
        raise Damaged(f"{error}; {lost}; {kept}") from error


# --- the sweep, top to bottom ---


def run_sweep(plan: Plan, typed: Sequence[str], launch: Callable[[Path], None]) -> int:
    """Open the parent run, let `launch` run the jobs in a folder, close; returns the exit code.

    Raises BadInput and Damaged before anything is made, Occupied where another process runs the
    sweep, TrackerError before a job starts, Interrupted, and what `launch` raises.
    """
    folder, sweep = begin(plan, typed)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, f".*{TEMPORARY}*"):  # a job in a queue may still write to its own folder
        return run_jobs(folder, sweep, plan, launch)


def run_jobs(folder: Path, sweep: Sweep, plan: Plan, launch: Callable[[Path], None]) -> int:
    """What `run_sweep` does in the folder, which is this process's.

    However it ends, there is a leaderboard of what is there, and the parent run is ended.
    """
    options: Any = OmegaConf.to_container(plan.config.tracking, resolve=True)
    tracker = Trackers(options)
    record = RunRecord(
        key=sweep.key,
        name="sweep of " + " × ".join(leaderboard.short(sweep.swept).values() or ["one job"]),
        params=dict(plan.axes),
        tags={"sweep": folder.name, "output_folder": str(folder)},
    )
    tracker.start(record)
    tracker.check(wait=True)
    status: Status = "FAILED"
    try:
        sweep.write(folder)
        screen.log_to(folder / "sweep.log")
        log.info("a sweep of %d jobs in %s", plan.jobs, shown(folder))
        if sweep.test == "all":
            text = "sweep.test=all: each job opens the test set; a choice that saw it is biased"
            log.warning(text)
        launch(folder)
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        raise
    finally:
        screen.log_to(folder / "sweep.log")  # Hydra has set up logging for the jobs
        code = close(folder, sweep, tracker, status)
    return code


def begin(plan: Plan, typed: Sequence[str]) -> tuple[Path, Sweep]:
    """The folder, and the sweep to resume there or a new one. Raises BadInput and Damaged."""
    config = plan.config.sweep
    if plan.jobs > config.max_jobs:
        raise BadInput(f"{plan.jobs:,} jobs; if they are meant, write sweep.max_jobs={plan.jobs}")
    if plan.search and plan.config.data.val_fraction == 0:
        raise BadInput("data.val_fraction=0: a search needs validation to go by")
    typed = [argument for argument in typed if not argument.startswith("sweep.resume=")]
    sweep = Sweep(typed, list(plan.axes), config.test, plan.search)
    if config.resume is None:
        check_new(plan.folder)
        return plan.folder, sweep
    folder = find_sweep(config.resume)
    begun = read(folder)
    if list(begun.swept) != list(plan.axes) and job_makers(begun.typed) == job_makers(typed):
        raise Damaged(f"{folder / SWEEP}: damaged (swept); start the sweep again")
    if job_makers(begun.typed) != job_makers(typed):
        right = command("-m", *begun.typed, f"sweep.resume={typed_as(folder)}")
        reason = "that sweep is another, or has its arguments in another order"
        raise BadInput(f"sweep.resume={config.resume}: {reason}; type {right}")
    if begun.search:
        from mnist_exp.sweeps.search import check_study  # imports optuna

        check_study(folder, leaderboard.read(folder))
    return folder, begun


def check_new(folder: Path) -> None:
    """Raises BadInput where a sweep or a run has left something in the folder."""
    if (folder / LAST).exists():
        raise BadInput(
            f"hydra.sweep.dir={typed_as(folder)}: holds a run already; another folder takes a sweep"
        )
    marks = (SWEEP, f"*/{OUTCOME}", f"*/{LAST}")
    if any(any(folder.glob(mark)) for mark in marks):
        advice = f"sweep.resume={typed_as(folder)} resumes it, another folder takes a new sweep"
        raise BadInput(f"hydra.sweep.dir={typed_as(folder)}: holds a sweep already; {advice}")


def job_makers(typed: Sequence[str]) -> list[str]:
    """The arguments that say what the jobs are, rather than where and how they run.

    Their order numbers the jobs.
    """
    return [argument for argument in typed if not argument.startswith(NOT_THE_JOBS)]


def find_sweep(word: str) -> Path:
    """The folder that "latest" or a folder's path stands for. Raises BadInput."""
    if word == "latest":
        begun = (REPOSITORY / "outputs").glob(f"*/*/{SWEEP}")
        found = max(begun, key=lambda path: path.stat().st_mtime, default=None)
        if found is None:
            raise BadInput("sweep.resume=latest: there is no sweep in outputs/")
        return found.parent
    for folder in (Path(word).absolute(), REPOSITORY / word):
        if (folder / SWEEP).is_file():
            return folder
    raise BadInput(f"sweep.resume={word}: neither a sweep's folder nor latest")


def close(folder: Path, sweep: Sweep, tracker: Trackers, status: Status) -> int:
    """Leaderboard, picture, the winner's test, and the parent's end; returns the exit code.

    Raises Interrupted, after the parent's end.
    """
    outcomes = leaderboard.read(folder, sweep.swept)
    if status == "FINISHED" and any(job.status not in ENDED for job in outcomes):
        status = "FAILED"
    try:
        report(folder, sweep, outcomes, tracker, test_winner=status != "KILLED")
    except Interrupted:
        status = "KILLED"
        raise
    except Exception as error:
        log.exception("the winner has not been tested: %s", reason(error))
        status = "FAILED"
    finally:
        status = end(folder, sweep, tracker, status)
    return 0 if status == "FINISHED" else 1


def report(
    folder: Path, sweep: Sweep, outcomes: Sequence[Outcome], tracker: Trackers, test_winner: bool
) -> None:
    """Leaderboard, picture and the winner's test. Raises what a test can raise."""
    warn_of_other_code(outcomes)
    rows = leaderboard.ranked(outcomes)
    if rows:
        names = leaderboard.short(sweep.swept)
        screen.show_table("Leaderboard", *leaderboard.screen_table(rows, names))
        leaderboard.write_csv(folder / "leaderboard.csv", rows)
        draw(folder / "leaderboard.png", rows, names)
    if rows and rows[0].finished and rows[0].accuracy is None and len(rows) > 1:
        log.warning("data.val_fraction=0: without validation there is no winner")
    elif rows and rows[0].finished:
        winner = rows[0]
        log.info("winner   %s", command(*winner.finished[0].overrides))
        if test_winner:
            test(folder, sweep, winner, tracker)


def warn_of_other_code(outcomes: Iterable[Outcome]) -> None:
    """Name the jobs that were trained by other code than the rest."""
    jobs: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.status in ENDED:
            jobs.setdefault(outcome.code, []).append(str(outcome.job))
    if len(jobs) > 1:
        said = "; ".join(f"{' '.join(numbers)} by {code}" for code, numbers in jobs.items())
        text = "src/ or conf/ changed between jobs, which share no mean across that: jobs %s"
        log.warning(text, said)


def end(folder: Path, sweep: Sweep, tracker: Trackers, status: Status) -> Status:
    """Hand the files to the tracker, end the parent run, and say how to look and to resume.

    Returns the status, which is FAILED where the parent run was deleted meanwhile.
    """
    files = [folder / name for name in ("leaderboard.csv", "leaderboard.png", "sweep.log")]
    tracker.upload([path for path in files if path.exists()])
    whole = tracker.end(status)
    if not whole and (deletion := tracker.explain_deletion()):
        log.error("error: %s", deletion)
        status = "FAILED"
    log.info("outputs  %s", shown(folder))
    for viewer in tracker.get_viewers():
        log.info("compare  %s", viewer)
    if status != "FINISHED" or not whole:
        text = "to run what has not finished:\n%s"
        log.info(text, command("-m", *sweep.typed, f"sweep.resume={typed_as(folder)}"))
    return status


def test(folder: Path, sweep: Sweep, winner: Row, tracker: Trackers) -> None:
    """Open the test set for the winner, chosen on validation: once for each of its seeds."""
    tested = dict(sweep.tested)
    for job in winner.finished:
        if str(job.job) not in tested:
            tested[str(job.job)] = asdict(load_job_model(job).test())
            replace(sweep, tested=tested).write(folder)
    metrics, said = {}, []
    for name in ("accuracy", "loss"):
        values = [tested[str(job.job)][name] for job in winner.finished]
        metrics[f"test/{name}"] = fmean(values)
        said.append(f"{name} {fmean(values):.4f}")
        if len(values) > 1:
            metrics[f"test/{name}_sd"] = leaderboard.spread(values)
            said[-1] += f" ± {leaderboard.spread(values):.4f} (n={len(values)})"
    log.info("test     %s", "  ".join(said))
    if winner.accuracy is not None and winner.loss is not None:
        metrics |= {"val/accuracy": winner.accuracy, "val/loss": winner.loss}
    tracker.log(metrics, step=0, at=sweep.begun)  # at the same time when it is told again


def load_job_model(job: Outcome) -> Trained:
    """The model of a finished job. Raises Failure where its run was trained further since."""
    found = load(job.folder / LAST)
    best = found.progress.best
    if best is None or (best.number, best.val and best.val.accuracy) != (job.epoch, job.accuracy):
        raise Failure(f"{shown(job.folder)}: its checkpoint is not the one in the leaderboard")
    return found


def draw(path: Path, rows: Sequence[Row], names: Mapping[str, str]) -> None:
    """Over two swept numbers a heat map, or dots; over one a curve; for anything else nothing."""
    finished = [row for row in rows if row.accuracy is not None]
    try:
        points = [[float(value) for value in row.chosen.values()] for row in finished]
    except ValueError:  # a word
        return
    if len(points) < 2 or len(points[0]) not in (1, 2):
        return
    from mnist_exp import figures  # imports matplotlib

    labels = [names[key] for key in finished[0].chosen]
    means = [row.accuracy for row in finished if row.accuracy is not None]
    spreads = [row.accuracy_sd for row in finished if row.accuracy_sd is not None]
    if len(labels) == 2:
        cells = math.prod(len(set(axis)) for axis in zip(*points, strict=True))
        picture = figures.heat_map if len(points) > cells / 2 else figures.scatter
        picture(path, labels, points, means)
    else:
        figures.curve(path, labels[0], [x for (x,) in points], means, spreads)


# --- one job ---


def run_job(config: DictConfig, folder: Path, number: int, overrides: Sequence[str]) -> Outcome:
    """Run one job of a sweep, or resume it; a job that has ended is left alone.

    A job that fails leaves the reason in its outcome and its log, and the other jobs run. Raises
    Interrupted, and Failure where the sweep or the folder is not the job's.
    """
    sweep = read(folder.parent)
    values = dict(override.split("=", 1) for override in overrides)
    chosen = {key: values[key] for key in sweep.swept}
    before = outcome_before(folder)
    if before and before.chosen != chosen:
        theirs, ours = (" ".join(f"{k}={v}" for k, v in c.items()) for c in (before.chosen, chosen))
        raise Failure(f"{shown(folder)}: belongs to the job {theirs}, which is not {ours}")
    if before and before.status in ENDED:
        log.info("job %d has already ended", number)
        return before
    made_by = [o for o in overrides if not o.startswith("sweep")]
    outcome = Outcome(number, chosen, made_by, folder, code_digest())
    outcome.write()
    try:
        outcome = ended(outcome, sweep, config)
    except Interrupted:
        replace(outcome, status="KILLED").write()
        raise
    except Occupied as error:  # its outcome is the other process's to write
        log.error("job %d: %s", number, error)
        return outcome
    except Exception as error:
        log.exception("job %d failed: %s", number, error)
        outcome = replace(outcome, status="FAILED", reason=reason(error))
    outcome.write()
    return outcome


def outcome_before(folder: Path) -> Outcome | None:
    """How the job in this folder last ended; None for a new one or a damaged file."""
    if not (folder / OUTCOME).exists():
        return None
    try:
        return read_outcome(folder)
    except Damaged as error:
        log.warning("%s; the job runs again, from its last checkpoint if it has one", error)
        return None


def ended(outcome: Outcome, sweep: Sweep, config: DictConfig) -> Outcome:
    """The outcome of the job after it has trained to its end. Raises what a run raises."""
    experiment = experiment_of(outcome, sweep, config)
    status = "FINISHED"
    try:
        result = experiment.result() if experiment.ended else experiment.run(show=False)
    except Stopped:
        status, result = "PRUNED", experiment.result()
    epoch = result.epoch
    return replace(
        outcome,
        code=experiment.tags["code"],
        status=status,
        epoch=epoch.number,
        accuracy=epoch.val.accuracy if epoch.val else None,
        loss=epoch.val.loss if epoch.val else None,
        seconds=result.seconds,
    )


def experiment_of(outcome: Outcome, sweep: Sweep, config: DictConfig) -> Experiment:
    """The job's experiment, new or from its last checkpoint.

    Raises BadInput where the checkpoint is of other values, and what `resumed` raises.
    """
    folder = outcome.folder
    config.trainer.test = sweep.test == "all"
    if (folder / LAST).exists():
        experiment = resumed(config, folder, list(config))
        before = experiment.tags.get("code", UNKNOWN).split("+")
        codes = before if experiment.ended else dict.fromkeys([*before, outcome.code])
        experiment.tags = {**experiment.tags, "code": "+".join(codes)}
    else:
        tags = {"sweep": folder.parent.name, "job": str(outcome.job), "code": outcome.code}
        name = leaderboard.name(outcome.chosen) or f"job {outcome.job}"
        experiment = Experiment(config, folder, name, tags, parent=sweep.key)
    if sweep.search:
        from mnist_exp.sweeps.search import pruning  # imports optuna

        told = pruning(folder.parent, outcome.job)

        def on_epoch(epoch: Epoch) -> None:
            assert epoch.val is not None, "begin has looked for validation"
            if told(epoch.number, epoch.val.accuracy):
                raise Stopped

        experiment.on_epoch = on_epoch
    return experiment


def reason(error: Exception) -> str:
    """What went wrong, in one line; of an error that is not ours, with its kind."""
    ours = isinstance(error, (Failure, OSError))
    return one_line(error) if ours else f"{type(error).__name__}: {one_line(error)}"
