"""A sweep as one thing: a parent run, jobs nested below it, a leaderboard at the end.

It knows neither what chooses the jobs (Hydra's sweeper) nor where they run (its launcher): a job
finds the sweep in the folder above its own, and writes its outcome into its own.
"""

from __future__ import annotations

import logging
import math
import time
from bdb import BdbQuit
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from multiprocessing import parent_process
from pathlib import Path
from traceback import walk_tb
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mnist_exp.errors import Failure
from mnist_exp.experiment import environment, screen
from mnist_exp.experiment.bugs import describe_error
from mnist_exp.experiment.build import load_dataset
from mnist_exp.experiment.environment import code_digest
from mnist_exp.experiment.init import normalize_as_imagenet
from mnist_exp.experiment.load import TrainedModel, load_model
from mnist_exp.experiment.record import cut_name, describe, shorten
from mnist_exp.experiment.run import Run, Stopped, load_run
from mnist_exp.experiment.shell import quote_path, show_path, train_command
from mnist_exp.experiment.signals import Interrupted, raise_on_ctrl_c
from mnist_exp.files import TEMPORARY, Occupied, lock_folder
from mnist_exp.inference.hooks import HOOKS
from mnist_exp.paths import LAST, SWEEP, shorten_path
from mnist_exp.sweeps import leaderboard, records
from mnist_exp.sweeps.plan import SweepPlan
from mnist_exp.sweeps.records import ENDED, Outcome, Sweep
from mnist_exp.sweeps.repeat import repeat
from mnist_exp.tracking import DatasetRecord, RunRecord, Status
from mnist_exp.tracking.worker import Trackers
from mnist_exp.training.loop import name_metrics
from mnist_exp.training.metrics import Epoch

log = logging.getLogger(__name__)

RENEW_SECONDS = 5  # between two looks at which jobs have ended


# --- the sweep ---


def run_sweep(plan: SweepPlan, launch: Callable[[], None]) -> int:
    """Start the parent run, let `launch` run the jobs, finish; return the exit code.

    However it ends, there is a leaderboard of the jobs so far, and the parent run has ended.

    Raises Occupied if another process runs the sweep, TrackerError before a job starts,
    Interrupted, and what `launch` raises.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    if plan.config.sweep.join is not None:
        from mnist_exp.sweeps.join import SharedStudy  # imports optuna

        shared = SharedStudy(plan.folder, plan.record)
        plan = replace(plan, record=shared.share(plan.record))
        return run_jobs(plan, launch, shared.lock)
    own_files = f".*{TEMPORARY}*"  # a job in a queue may still write to its own folder
    with lock_folder(plan.folder, own_files):
        return run_jobs(plan, launch, nullcontext)


def run_jobs(
    plan: SweepPlan,
    launch: Callable[[], None],
    lock: Callable[[], AbstractContextManager[None]],
) -> int:
    """What `run_sweep` does. Several processes do it together: they start and finish in turn."""
    sweep, folder = plan.record, plan.folder
    status: Status = "FAILED"
    screen.log_to(folder / "sweep.log")
    with lock():
        tracker = start_parent(plan)
        if (folder / SWEEP).exists():  # by now: another process may have ended the sweep
            sweep = replace(sweep, tested=records.read_sweep(folder).tested)
        sweep.write(folder)
    try:
        jobs = f"{plan.job_count} job{'s' * (plan.job_count != 1)}"
        log.info("a sweep of %s in %s", jobs, show_path(folder))
        if sweep.test == "all":
            log.warning("sweep.test=all: a choice among jobs that saw the test set is biased")
        with renew_description(folder, sweep, tracker):
            launch()
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        raise
    finally:
        screen.log_to(folder / "sweep.log")  # Hydra has set up logging for the jobs
        with lock():
            code = finish(folder, records.read_sweep(folder), tracker, status)
    return code


def start_parent(plan: SweepPlan) -> Trackers:
    """The parent run's trackers. Raises TrackerError."""
    sweep = plan.record
    options: Any = OmegaConf.to_container(plan.config.tracking, resolve=True)
    tracker = Trackers(options)
    names = shorten(sweep.swept).values() or ["one job"]
    where = {"sweep": plan.folder.name, "output_folder": shorten_path(plan.folder)}
    record = RunRecord(
        key=sweep.key,
        name=options.get("run_name") or cut_name(f"sweep of {' × '.join(names)}"),
        params=dict(plan.axes),
        tags={**environment.tags(), **where, "command": train_command("-m", *sweep.typed)},
        dataset=describe_dataset(plan),
        started=sweep.begun,
    )
    tracker.start(record)
    tracker.get_viewers()  # waits for the start
    return tracker


def describe_dataset(plan: SweepPlan) -> DatasetRecord | None:
    """The data set of all jobs; None if they differ in it, or this machine does not have it."""
    swept = {key.partition(".")[0] for key in plan.axes if key not in records.REPEATS}
    if swept & {"data", "experiment"}:
        return None
    try:
        dataset = load_dataset(OmegaConf.to_yaml(plan.config.data, resolve=True))
    except (Failure, OSError):  # the jobs say what is wrong, if they run here
        return None
    return DatasetRecord(dataset.kind.name, dataset.kind.digest, dataset.sizes)


@contextmanager
def renew_description(folder: Path, sweep: Sweep, tracker: Trackers) -> Iterator[None]:
    """Keep the parent's description up to date while jobs run, in whichever processes."""
    shown, next_at = "", 0.0

    def renew() -> None:
        nonlocal shown, next_at
        if (started := time.monotonic()) < next_at:
            return
        if (text := describe_sweep(sweep, records.read_outcomes(folder, sweep.swept))) != shown:
            tracker.describe(text)
            shown = text
        ended = time.monotonic()
        next_at = ended + 9 * (ended - started)  # to read thousands of outcomes takes seconds

    with repeat(RENEW_SECONDS, renew):
        yield


def describe_sweep(sweep: Sweep, outcomes: Sequence[Outcome]) -> str:
    """The leaderboard, the command of the winner so far, and that of the sweep; Markdown."""
    rows = leaderboard.rank(outcomes)
    table = leaderboard.format_markdown(rows, shorten(sweep.swept)) if rows else "no job yet"
    command = winner_command(find_winner(rows))
    return describe(table, Winner=command, Command=train_command("-m", *sweep.typed))


def find_winner(rows: Sequence[leaderboard.Row]) -> leaderboard.Row | None:
    """The best row; None if no job has finished, or nothing says which of several is best."""
    best = rows[0] if rows else None
    is_winner = best and best.finished and (best.score is not None or len(rows) == 1)
    return best if is_winner else None


def winner_command(winner: leaderboard.Row | None) -> str:
    """Its command; empty without a winner, or if the jobs are repeats, none of which wins."""
    return train_command(*winner.finished[0].overrides) if winner and winner.chosen else ""


def finish(folder: Path, sweep: Sweep, tracker: Trackers, status: Status) -> int:
    """Leaderboard, picture, the winner's test, and the parent's end; return the exit code.

    Raises Interrupted, after the parent's end.
    """
    outcomes = records.read_outcomes(folder, sweep.swept)
    if status == "FINISHED" and any(job.status not in ENDED for job in outcomes):
        status = "FAILED"
    try:
        report(folder, sweep, outcomes, tracker, with_test=status != "KILLED")
    except Interrupted:
        status = "KILLED"
        raise
    except Exception as error:
        log.exception("the winner has not been tested: %s", describe_error(error))
        status = "FAILED"
    finally:
        status = end_parent(folder, tracker, status)
    return 0 if status == "FINISHED" else 1


def report(
    folder: Path, sweep: Sweep, outcomes: Sequence[Outcome], tracker: Trackers, with_test: bool
) -> None:
    """Write the leaderboard and its picture, and test the winner. Raises what a test can raise."""
    warn_of_mixed_code(outcomes)
    rows = leaderboard.rank(outcomes)
    if rows:
        names = shorten(sweep.swept)
        screen.show_table("Leaderboard", *leaderboard.format_table(rows, names))
        leaderboard.write_csv(folder / "leaderboard.csv", rows)
        leaderboard.draw(folder / "leaderboard.png", rows, names)
    tracker.describe(describe_sweep(sweep, outcomes))
    if winner := find_winner(rows):
        if command := winner_command(winner):
            log.info("winner   %s", command)
        if with_test and sweep.database and not (winner.finished[0].folder / LAST).exists():
            advice = "if that has died, run sweep.resume=FOLDER there, with its folder"
            log.info("test     left to the process that trained the winner; %s", advice)
        elif with_test:
            ended = sum(job.status in ENDED for job in outcomes)
            test_winner(folder, sweep, winner, tracker, ended)
    elif rows and rows[0].finished:
        log.warning("data.val_fraction=0: without validation there is no winner")


def warn_of_mixed_code(outcomes: Iterable[Outcome]) -> None:
    """Name the jobs that were trained by other code than the rest."""
    jobs: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.status in ENDED:
            jobs.setdefault(outcome.code, []).append(str(outcome.job))
    if len(jobs) > 1:
        groups = "; ".join(f"{' '.join(numbers)} by {code}" for code, numbers in jobs.items())
        text = "src/ or conf/ changed between jobs, which are averaged separately: jobs %s"
        log.warning(text, groups)


def test_winner(
    folder: Path, sweep: Sweep, winner: leaderboard.Row, tracker: Trackers, ended: int
) -> None:
    """Open the test set for the winner, chosen on validation: once for each of its seeds.

    Logs the metrics with the number of jobs that have ended as the step, so that MLflow shows the
    newest after more jobs. Of the values of one step it shows the largest.
    """
    tested = dict(sweep.tested)
    for job in winner.finished:
        if str(job.job) not in tested:
            tested[str(job.job)] = load_winner(job).test()
            replace(sweep, tested=tested).write(folder)
    metrics: dict[str, float | None] = {}
    texts = []
    for name in sorted(tested[str(winner.finished[0].job)], key="loss".__eq__):
        values = [tested[str(job.job)][name] for job in winner.finished]
        mean, spread = leaderboard.mean(values), leaderboard.spread(values)
        metrics[f"test/{name}"] = mean
        texts.append(f"{name} {mean:.4f}")
        if len(values) > 1:
            metrics[f"test/{name}_sd"] = spread
            texts[-1] += f" ± {spread:.4f} (n={len(values)})"
    log.info("test     %s", "  ".join(texts))
    for name in leaderboard.list_metrics([winner]):
        if name.startswith("val/"):
            metrics[name] = winner.mean(name)
    known = {name: value for name, value in metrics.items() if value is not None}
    tracker.log(known, step=ended, at=sweep.begun)  # the same time when it is logged again


def finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def load_winner(job: Outcome) -> TrainedModel:
    """The model of a finished job. Raises Failure if its run has been trained further since."""
    trained = load_model(job.folder / LAST)
    best, monitor = trained.progress.best, trained.progress.monitor
    found = best and (best.number, finite(monitor.score(monitor.value(best))))
    if found != (job.epoch, job.score):
        raise Failure(f"{show_path(job.folder)}: its checkpoint is not the one in the leaderboard")
    return trained


def end_parent(folder: Path, tracker: Trackers, status: Status) -> Status:
    """Upload the files, end the parent run, and say how to look at it and how to resume.

    Returns the status, which is FAILED if the parent run was deleted meanwhile.
    """
    files = [folder / name for name in ("leaderboard.csv", "leaderboard.png", "sweep.log")]
    tracker.upload([path for path in files if path.exists()])
    text = "to run what has not finished:\n%s"
    command = train_command("-m", f"sweep.resume={quote_path(folder)}")
    try:
        with raise_on_ctrl_c():
            complete = tracker.end(status) is None
    except Interrupted:
        log.info(text, command)
        raise
    if not complete and (deletion := tracker.explain_deletion()):
        log.error("error: %s", deletion)
        status = "FAILED"
    log.info("outputs  %s", show_path(folder))
    for viewer in tracker.get_viewers():
        log.info("compare  %s", viewer)
    if status != "FINISHED" or not complete:
        log.info(text, command)
    return status


# --- one job ---


def run_job(config: DictConfig, folder: Path, number: int, overrides: Sequence[str]) -> Outcome:
    """Run one job of a sweep, or resume it; a job that has ended stays as it is.

    A job that fails leaves the reason in its outcome and its log, and the other jobs run. Raises
    Interrupted, and Failure if the sweep or the folder is not the job's.
    """
    normalize_as_imagenet(config, overrides)
    sweep = records.read_sweep(folder.parent)
    outcome = begin_outcome(sweep, folder, number, overrides)
    if previous := read_previous(folder, outcome.chosen):
        log.info("job %d has already ended", number)
        return previous
    outcome.write()
    try:
        outcome = train_job(outcome, sweep, config)
    except Interrupted:
        replace(outcome, status="KILLED").write()
        raise
    except Occupied as error:  # the other process writes the outcome
        log.error("job %d: %s", number, error)
        return outcome
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # a user's own code can raise any
        if isinstance(error, SystemExit):
            if not quits_debugger(error):
                raise
            error = BdbQuit().with_traceback(error.__traceback__)
        reason = describe_error(error)
        if isinstance(error, BdbQuit) and parent_process():
            reason += "; only hydra/launcher=basic leaves the terminal to a debugger"
        log.exception("job %d failed: %s", number, reason)
        outcome = replace(outcome, status="FAILED", reason=reason)
    outcome.write()
    return outcome


def quits_debugger(error: SystemExit) -> bool:
    """Whether pdb has raised it, as it does from Python 3.14 on in place of BdbQuit."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__") == "pdb"


def begin_outcome(sweep: Sweep, folder: Path, number: int, overrides: Sequence[str]) -> Outcome:
    """What is known of a job before it starts."""
    values = dict(override.split("=", 1) for override in overrides)
    chosen = {key: values[key] for key in sweep.swept}
    own = [override for override in overrides if not override.startswith("sweep")]
    return Outcome(number, chosen, own, folder, code_digest())


def end_job(folder: Path, number: int, overrides: Sequence[str], reason: str) -> Outcome:
    """The outcome of a job whose process has ended; FAILED if the job has not written its own."""
    outcome = begin_outcome(records.read_sweep(folder.parent), folder, number, overrides)
    with suppress(records.Damaged):  # it was killed before it began
        outcome = records.read_outcome(folder)
    if outcome.status == "UNFINISHED":
        folder.mkdir(exist_ok=True)
        outcome = replace(outcome, status="FAILED", reason=reason)
        outcome.write()
    return outcome


def read_previous(folder: Path, chosen: Mapping[str, str]) -> Outcome | None:
    """The outcome of the job in this folder if it has ended. Raises Failure for another job's."""
    if not (folder / records.OUTCOME).exists():
        return None
    try:
        outcome = records.read_outcome(folder)
    except records.Damaged as error:
        log.warning("%s; the job runs again, from its last checkpoint if it has one", error)
        return None
    if outcome.chosen != chosen:
        theirs, ours = map(leaderboard.name_job, (outcome.chosen, chosen))
        raise Failure(f"{show_path(folder)}: belongs to the job {theirs}, not to {ours}")
    return outcome if outcome.status in ENDED else None


def train_job(outcome: Outcome, sweep: Sweep, config: DictConfig) -> Outcome:
    """Train the job to its end; return its outcome. Raises what a run raises."""
    run = build_run(outcome, sweep, config)
    status = "FINISHED"
    try:
        result = run.result() if run.ended else run.train(show=False)
    except Stopped:
        status, result = "PRUNED", run.result()
    epoch, monitor = result.epoch, run.state.progress.monitor
    metrics = name_metrics("train", epoch.train) | name_metrics("val", epoch.val)
    metrics |= name_metrics("test", result.test or {})
    return replace(
        outcome,
        code=run.tags["code"],
        status=status,
        epoch=epoch.number,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        monitor=monitor.name,
        score=finite(monitor.score(monitor.value(epoch))),
        seconds=result.seconds,
    )


def build_run(outcome: Outcome, sweep: Sweep, config: DictConfig) -> Run:
    """The job's run, new or from its last checkpoint.

    Raises BadInput if the checkpoint has other values, and what `load_run` raises.
    """
    folder = outcome.folder
    config.trainer.test = sweep.test == "all"
    if (folder / LAST).exists():
        config.trainer.threads = "auto"  # as many as it had, for the sake of the last bits
        run = load_run(config, folder, list(config), HOOKS)
        before = run.tags.get("code", records.UNKNOWN).split("+")
        codes = before if run.ended else dict.fromkeys([*before, outcome.code])
        run.tags = {**run.tags, "code": "+".join(codes)}
    else:
        tags = {"sweep": folder.parent.name, "job": str(outcome.job), "code": outcome.code}
        tags["command"] = train_command(*outcome.overrides)
        name = cut_name(leaderboard.name_job(outcome.chosen) or f"job {outcome.job}")
        run = Run(config, folder, name, tags, sweep.key, HOOKS)
    if sweep.search:
        from mnist_exp.sweeps.search import get_pruner, open_study  # imports optuna

        pruner = HydraConfig.get().sweeper.pruner
        study = open_study(folder.parent, sweep.database, sweep.study, pruner)
        should_prune = get_pruner(study, outcome.job)

        def on_epoch(epoch: Epoch) -> None:
            monitor = run.state.progress.monitor
            if should_prune(epoch.number, monitor.score(monitor.value(epoch))):
                raise Stopped

        run.on_epoch = on_epoch
    return run
