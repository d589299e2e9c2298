"""Optuna behind a sweep: Hydra's ranges as its distributions, one study in the sweep's folder.

A job has the number of its trial: so each worker finds its own trial in the study's file, and a
trial that was killed finds its folder again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from warnings import catch_warnings, simplefilter

import optuna
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from optuna import pruners, samplers
from optuna.distributions import BaseDistribution as Distribution
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import NullPool

from mnist_exp.errors import first_line, one_line
from mnist_exp.sweeps.records import DAMAGED, Damaged, Outcome

STATES = {
    "FINISHED": TrialState.COMPLETE,
    "PRUNED": TrialState.PRUNED,
    "FAILED": TrialState.FAIL,
}
STUDY = "study.journal"  # in the sweep's folder
OUTCOME = "outcome"  # an attribute of a trial, for processes that do not see this one's files
# By name, in hydra.sweeper.sampler and hydra.sweeper.pruner. The check of the command line has
# these names, too: it does not import optuna.
SAMPLERS: Mapping[str, Callable[..., BaseSampler]] = {
    "tpe": partial(samplers.TPESampler, constant_liar=True),
    "gp": samplers.GPSampler,
    "cmaes": samplers.CmaEsSampler,
    "qmc": samplers.QMCSampler,
    "nsgaii": samplers.NSGAIISampler,
    "random": samplers.RandomSampler,
    "brute_force": samplers.BruteForceSampler,
}
PRUNERS: Mapping[str, Callable[[], BasePruner]] = {
    "median": partial(pruners.MedianPruner, n_startup_trials=4, n_warmup_steps=2),
    "percentile": partial(pruners.PercentilePruner, 25.0, n_startup_trials=4, n_warmup_steps=2),
    "successive_halving": pruners.SuccessiveHalvingPruner,
    "hyperband": pruners.HyperbandPruner,
    "none": pruners.NopPruner,
}

AnyTrial = Trial | FrozenTrial  # new, or of a study that is resumed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """What a search tries."""

    space: Mapping[str, Distribution]  # by swept key
    n_trials: int  # of the whole search
    n_jobs: int = 1  # trials started together
    sampler: str = "tpe"  # one of SAMPLERS
    seed: int = 0  # of the sampler


def open_study(
    folder: Path, database: str | None = None, name: str = "sweep", pruner: str = "median"
) -> optuna.Study:
    """The study of this name, created if there is none. It maximizes the score (see `Monitor`).

    It is in the database, an address, or else in a file in the sweep's folder. pruner: one of
    PRUNERS, which looks at the scores of each epoch. The median pruner stops a trial whose best
    score is below the median of the others at the same epoch (Golovin et al. 2017).
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage: BaseStorage
    if database:
        is_file = database.startswith("sqlite")  # opened fast, so not held open between uses
        options = {"connect_args": {"timeout": 60}, "poolclass": NullPool} if is_file else {}
        storage = RDBStorage(database, engine_kwargs=options)
    else:
        storage = JournalStorage(JournalFileBackend(str(folder / STUDY)))
    return optuna.create_study(
        study_name=name,
        storage=storage,
        pruner=PRUNERS[pruner](),
        direction="maximize",
        load_if_exists=True,
    )


def ask(study: optuna.Study, search: Search) -> Trial:
    """A new trial, its values chosen by a sampler, such as TPE (Bergstra et al. 2011).

    The seed depends on the trial's number, so that a study that is resumed, or that several
    processes share, does not repeat a draw.
    """
    seed = search.seed + len(study.get_trials(deepcopy=False))
    with catch_warnings():
        simplefilter("ignore", ExperimentalWarning)
        study.sampler = SAMPLERS[search.sampler](seed=seed)
    return study.ask(dict(search.space))


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
            "the search cannot be resumed, so start it again; "
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
    search: Search,
    waiting: list[AnyTrial],
    running: Sequence[AnyTrial] = (),
) -> list[AnyTrial]:
    """The next trials to train, at most `n_jobs`, with consecutive numbers; none at the end.

    A trial with the values of an earlier one gets the result of that one instead. waiting: trials
    without a result; those returned are removed. running: trials that other processes train.
    """
    batch: list[AnyTrial] = []
    while len(batch) < search.n_jobs:
        if not waiting:
            count = len(study.get_trials(deepcopy=False))
            if count >= search.n_trials or is_exhausted(study, search.space):
                break
            waiting.append(ask(study, search))
        trial = waiting[0]
        twin = any(trial.params == other.params for other in [*batch, *running])
        if twin or (batch and trial.number != batch[-1].number + 1):
            break  # leave it to the next batch, after the results of these
        del waiting[0]
        if trial.params.keys() != search.space.keys():  # the search was killed while it asked
            study.tell(trial.number, state=TrialState.FAIL)
        elif same := find_same_trial(study, trial):
            log.info("trial %d repeats trial %d and gets its result", trial.number, same.number)
            value = same.value if same.state is TrialState.COMPLETE else None
            study.tell(trial.number, value, same.state, skip_if_finished=True)
        else:
            batch.append(trial)
    return batch


def tell(study: optuna.Study, trial: AnyTrial, outcome: Outcome) -> None:
    """Give the study the result of a trial, unless its job has not ended, or it has a result."""
    if state := STATES.get(outcome.status):  # otherwise another process runs it
        with suppress(UpdateFinishedTrialError):
            set_attribute(study, trial, OUTCOME, outcome.to_json())
        value = outcome.score if outcome.status == "FINISHED" else None
        study.tell(trial.number, value, state, skip_if_finished=True)


def set_attribute(study: optuna.Study, trial: AnyTrial, name: str, value: object) -> None:
    """Raises UpdateFinishedTrialError."""
    study._storage.set_trial_user_attr(trial._trial_id, name, value)


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


def get_pruner(study: optuna.Study, number: int) -> Callable[[int, float], bool]:
    """For the job of this number: a function of (epoch, score) that says whether to stop."""
    frozen = study.get_trials(deepcopy=False)[number]
    if frozen.state.is_finished():  # its job's outcome is damaged
        return lambda epoch, score: frozen.state is TrialState.PRUNED
    trial = Trial(study, frozen._trial_id)

    def should_prune(epoch: int, score: float) -> bool:
        try:
            trial.report(score, epoch)
            return bool(trial.should_prune())
        except StorageInternalError as error:  # a database's failure does not end a training
            log.warning("not pruned: %s", first_line(error))
            return False

    return should_prune
