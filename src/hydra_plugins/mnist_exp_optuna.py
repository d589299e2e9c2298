"""hydra/sweeper=optuna. Hydra imports this module on every start: nothing heavy at its top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Asks a study for jobs, `n_jobs` at a time, until it has `n_trials`, and tells it the results.

    An existing study is resumed, starting with the trials that have no result.
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
        from mnist_exp.sweeps import search  # imports optuna
        from mnist_exp.sweeps.records import read_outcomes

        presets = [f"{key}={value}" for key, value in self.params.items()]
        both = self.parser.parse_overrides([*presets, *arguments])
        overrides = {o.get_key_element(): o for o in both}.values()  # typed ones win
        swept = {o.get_key_element(): o for o in overrides if o.is_sweep_override()}
        space = {key: search.to_distribution(override) for key, override in swept.items()}
        fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
        study = search.open_study(self.folder, self.seed)
        waiting = search.list_unfinished(study, read_outcomes(self.folder))
        while batch := search.next_batch(study, space, waiting, self.n_trials, self.n_jobs):
            jobs = [[*fixed, *(f"{k}={v}" for k, v in t.params.items())] for t in batch]
            returned = self.launcher.launch(jobs, initial_job_idx=batch[0].number)
            for trial, job in zip(batch, returned, strict=True):
                outcome = job.return_value  # raises what the job raised
                if state := search.STATES.get(outcome.status):  # otherwise another process runs it
                    value = outcome.score if outcome.status == "FINISHED" else None
                    study.tell(trial.number, value, state, skip_if_finished=True)
