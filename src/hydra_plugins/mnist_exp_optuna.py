"""hydra/sweeper=optuna. Hydra imports this module on every start: nothing heavy at its top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Asks a study for jobs, `n_jobs` at a time, until it has `n_trials`, and tells it the results.

    A study that is there already goes on, with the trials first that were killed.
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
        from optuna.trial import TrialState

        from mnist_exp.search import distribution, open_study, running

        presets = [f"{key}={value}" for key, value in self.params.items()]
        both = self.parser.parse_overrides([*presets, *arguments])
        overrides = {o.get_key_element(): o for o in both}.values()  # what is typed wins
        space = {o.get_key_element(): distribution(o) for o in overrides if o.is_sweep_override()}
        fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
        study = open_study(self.folder, self.seed)
        killed = running(study)
        while killed or len(study.get_trials()) < self.n_trials:
            left = self.n_trials - len(study.get_trials())
            batch = [killed.pop(0)] if killed else []
            batch = batch or [study.ask(space) for _ in range(min(self.n_jobs, left))]
            jobs = [[*fixed, *(f"{k}={v}" for k, v in trial.params.items())] for trial in batch]
            returned = self.launcher.launch(jobs, initial_job_idx=batch[0].number)
            for trial, job in zip(batch, returned, strict=True):
                outcome = job.return_value if job.status is JobStatus.COMPLETED else None
                if outcome is None or outcome.status == "FAILED":
                    study.tell(trial, state=TrialState.FAIL)
                elif outcome.status == "PRUNED":
                    study.tell(trial, state=TrialState.PRUNED)
                else:
                    study.tell(trial, outcome.accuracy)
