"""Optuna behind a sweep: Hydra's ranges as its distributions, one study in the sweep's folder.

A job has the number of its trial: so each worker finds its own trial in the study's file, and a
trial that was killed finds its folder again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import optuna
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution as Distribution
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from mnist_exp.errors import one_line
from mnist_exp.sweeps.records import DAMAGED, Damaged, Outcome

STATES = {
    "FINISHED": TrialState.COMPLETE,
    "PRUNED": TrialState.PRUNED,
    "FAILED": TrialState.FAIL,
}
STUDY = "study.journal"  # in the sweep's folder

AnyTrial = Trial | FrozenTrial  # new, or of a study that is resumed

log = logging.getLogger(__name__)


def open_study(folder: Path, seed: int = 0) -> optuna.Study:
    """The sweep's study, created if there is none.

    It maximizes the score (see `Monitor`) with TPE (Bergstra et al. 2011). From the second epoch on
    it prunes a trial whose best score is below the median of the others at the same epoch (Golovin
    et al. 2017).
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(folder / STUDY))),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
        direction="maximize",
        load_if_exists=True,
    )
    seed += len(study.get_trials())  # else a resumed study repeats its first draws
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return study


def check_study(folder: Path, outcomes: Iterable[Outcome]) -> None:
    """Raises Damaged if the study cannot be read or does not have the sweep's jobs."""
    path = folder / STUDY
    try:
        # Optuna would append to an incomplete line.
        if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
            raise ValueError("its last line is incomplete")
        trials = open_study(folder).get_trials(deepcopy=False)
        values = [{key: str(value) for key, value in t.params.items()} for t in trials]
        for outcome in outcomes:
            known = outcome.job < len(trials)
            if not known or (outcome.reason != DAMAGED and values[outcome.job] != outcome.chosen):
                raise ValueError(f"it does not have the trial of job {outcome.job}")
    except Exception as error:  # Optuna can raise anything
        advice = (
            "the search cannot be resumed, start it again; "
            "its jobs' folders, checkpoints and leaderboard are still there"
        )
        raise Damaged(f"{path}: damaged ({one_line(error)}); {advice}") from error


def list_unfinished(study: optuna.Study, outcomes: Iterable[Outcome]) -> list[AnyTrial]:
    """The trials of a resumed study that have no result, or whose job's outcome is damaged."""
    lost = {outcome.job for outcome in outcomes if outcome.reason == DAMAGED}
    return [
        trial
        for trial in study.get_trials()
        if trial.state is TrialState.RUNNING or trial.number in lost
    ]


def next_batch(
    study: optuna.Study,
    space: dict[str, Distribution],
    waiting: list[AnyTrial],
    n_trials: int,
    n_jobs: int,
) -> list[AnyTrial]:
    """The next trials to train, at most `n_jobs`, with consecutive numbers; none at the end.

    A trial with the values of an earlier one gets the result of that one instead. waiting: trials
    without a result; those returned are removed. n_trials: at most so many are in the study.
    """
    batch: list[AnyTrial] = []
    while len(batch) < n_jobs:
        if not waiting:
            if len(study.get_trials(deepcopy=False)) >= n_trials:
                break
            if is_exhausted(study, space):
                log.info("every combination has been tried; the search ends")
                break
            waiting.append(study.ask(space))
        trial = waiting[0]
        twin = any(trial.params == other.params for other in batch)
        if batch and (twin or trial.number != batch[-1].number + 1):
            break  # leave it to the next batch, after the results of this one
        del waiting[0]
        if trial.params.keys() != space.keys():  # the search was killed while it asked
            study.tell(trial.number, state=TrialState.FAIL)
        elif same := find_same_trial(study, trial):
            log.info("trial %d repeats %d, whose result it gets", trial.number, same.number)
            value = same.value if same.state is TrialState.COMPLETE else None
            study.tell(trial.number, value, same.state, skip_if_finished=True)
        else:
            batch.append(trial)
    return batch


def find_same_trial(study: optuna.Study, trial: AnyTrial) -> FrozenTrial | None:
    """The first earlier trial with the same values that has ended, or None."""
    before = (other for other in list_ended(study) if other.number < trial.number)
    return next((other for other in before if other.params == trial.params), None)


def list_ended(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=tuple(STATES.values()))


def is_exhausted(study: optuna.Study, space: Mapping[str, Distribution]) -> bool:
    """Whether each combination of values has been tried."""
    complete = (trial.params for trial in list_ended(study) if trial.params.keys() == space.keys())
    combinations = {tuple(params[key] for key in space) for params in complete}
    return len(combinations) >= math.prod(map(count, space.values()))


def count(values: Distribution) -> float:
    """The number of values; infinite for an interval of floats."""
    if isinstance(values, CategoricalDistribution):
        return len(values.choices)
    if isinstance(values, IntDistribution):
        return (values.high - values.low) // values.step + 1
    return 1 if values.single() else math.inf


def to_distribution(override: Override) -> Distribution:
    """Optuna's distribution for a sweep in Hydra's syntax; tag(log, ...) makes it logarithmic.

    Both ends of interval(a,b) are included, the end of range(a,b) is not. int(interval(a,b)) and a
    range between integers give integers.
    """
    space = override.value()
    log = "log" in getattr(space, "tags", ())
    if isinstance(space, IntervalSweep):
        assert space.start is not None, "Hydra's grammar asks for both ends"
        assert space.end is not None
        if isinstance(space.start, int) and isinstance(space.end, int):
            return IntDistribution(space.start, space.end, log=log)
        return FloatDistribution(space.start, space.end, log=log)
    if isinstance(space, RangeSweep):
        values = list(space.range())
        if all(isinstance(value, int) for value in values):
            step = 1 if log else abs(int(space.step))
            return IntDistribution(int(min(values)), int(max(values)), log=log, step=step)
        return CategoricalDistribution(values)
    assert isinstance(space, ChoiceSweep), "the command line has been checked"
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def get_pruner(folder: Path, number: int) -> Callable[[int, float], bool]:
    """For the job of this number: a function of (epoch, score) that says whether to stop."""
    study = open_study(folder)
    frozen = study.get_trials(deepcopy=False)[number]
    if frozen.state.is_finished():  # its job's outcome is damaged
        return lambda epoch, score: frozen.state is TrialState.PRUNED
    trial = Trial(study, frozen._trial_id)

    def should_prune(epoch: int, score: float) -> bool:
        trial.report(score, epoch)
        return bool(trial.should_prune())

    return should_prune
