"""Optuna behind a sweep: Hydra's ranges as its distributions, one study in the sweep's folder.

A job has the number of its trial, so that each worker finds its own in the study's file, and a
trial that was killed finds its old folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import Trial, TrialState

STUDY = "study.journal"  # in the sweep's folder
NAME = "sweep"


def open_study(folder: Path, seed: int = 0) -> optuna.Study:
    """The sweep's study, made where there is none.

    It maximises validation accuracy with TPE (Bergstra et al. 2011), and prunes a trial whose best
    is below the median of the others at the same epoch, from the second on (Golovin et al. 2017).
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=NAME,
        storage=JournalStorage(JournalFileBackend(str(folder / STUDY))),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
        direction="maximize",
        load_if_exists=True,
    )
    seed += len(study.get_trials())  # or a study that goes on would repeat its first draws
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return study


def running(study: optuna.Study) -> list[Trial]:
    """The trials that have been asked for and not ended: in a study gone on with, the killed."""
    return [
        Trial(study, trial._trial_id) for trial in study.get_trials(states=[TrialState.RUNNING])
    ]


def distribution(override: Override) -> BaseDistribution:
    """What a sweep over a key in Hydra's syntax is to Optuna; tag(log, ...) makes it logarithmic.

    Both ends of interval(a,b) belong to it, the end of range(a,b) does not. int(interval(a,b)) and
    a range between integers have integers.
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
    return CategoricalDistribution([line.partition("=")[2] for line in typed(override)])


def typed(override: Override) -> list[str]:
    """Each value of a choice as Hydra writes it, so that it can be typed again."""
    return [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]


def pruning(folder: Path, number: int) -> Callable[[int, float], bool]:
    """For the job of this number: what is told (epoch, accuracy), and says whether to stop."""
    study = open_study(folder)
    (trial,) = (trial for trial in running(study) if trial.number == number)

    def told(epoch: int, accuracy: float) -> bool:
        trial.report(accuracy, epoch)
        return bool(trial.should_prune())

    return told
