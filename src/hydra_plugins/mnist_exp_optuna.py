"""hydra/sweeper=optuna. Hydra imports this module on every start: nothing heavy at its top."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Asks a study for jobs, `n_jobs` at a time, until it has `n_trials`, and tells it the results.

    A trial with the values of an earlier one gets the result of that one, and no job. An existing
    study is resumed, starting with the trials that have no result.
    """

    def __init__(
        self, n_trials: int, n_jobs: int, seed: int, params: Mapping[str, str] | None
    ) -> None:
        self.n_trials, self.n_jobs, self.seed, self.params = n_trials, n_jobs, seed, params or {}
        self.launcher: Launcher
        self.folder: Path
        self.parser: OverridesParser

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.folder = Path(config.hydra.sweep.dir)
        self.parser = OverridesParser.create(hydra_context.config_loader)

    def sweep(self, arguments: Sequence[str]) -> None:
        from mnist_exp.sweeps.records import read_outcomes
        from mnist_exp.sweeps.search import (
            STATES,
            format_params,
            list_unfinished,
            open_study,
            to_distribution,
        )

        presets = [f"{key}={value}" for key, value in self.params.items()]
        both = self.parser.parse_overrides([*presets, *arguments])
        overrides = {o.get_key_element(): o for o in both}.values()  # typed ones win
        space = {
            o.get_key_element(): to_distribution(o) for o in overrides if o.is_sweep_override()
        }
        fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
        study = open_study(self.folder, self.seed)
        waiting = list_unfinished(study, read_outcomes(self.folder))
        while batch := self.next_batch(study, space, waiting):
            jobs = [[*fixed, *(f"{k}={v}" for k, v in format_params(t).items())] for t in batch]
            returned = self.launcher.launch(jobs, initial_job_idx=batch[0].number)
            for trial, job in zip(batch, returned, strict=True):
                outcome = job.return_value  # raises what the job raised
                if state := STATES.get(outcome.status):  # otherwise another process runs it
                    value = outcome.accuracy if outcome.status == "FINISHED" else None
                    study.tell(trial.number, value, state, skip_if_finished=True)

    def next_batch(
        self,
        study: Study,
        space: dict[str, BaseDistribution],
        waiting: list[Trial | FrozenTrial],
    ) -> list[Trial | FrozenTrial]:
        """The next trials to train, at most `n_jobs`, with consecutive numbers; none at the end.

        waiting: trials without a result; those returned are removed.
        """
        from optuna.trial import TrialState

        from mnist_exp.sweeps.search import find_same_trial, is_exhausted

        batch: list[Trial | FrozenTrial] = []
        while len(batch) < self.n_jobs:
            if not waiting:
                if len(study.get_trials(deepcopy=False)) >= self.n_trials:
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
