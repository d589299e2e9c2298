"""hydra/sweeper=optuna. Hydra imports this module on every start: nothing heavy at its top."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Asks a study for jobs, `n_jobs` at a time, until it has `n_trials`, and tells it the results.

    An existing study is resumed, starting with the trials that have no result. With sweep.join
    other processes do the same with the same study.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        sampler: str,
        pruner: str,
        seed: int,
        params: Mapping[str, str] | None,
    ) -> None:
        self.n_trials, self.n_jobs, self.seed, self.params = n_trials, n_jobs, seed, params or {}
        self.sampler = sampler  # each job reads the name of the pruner itself
        self.launcher: Launcher
        self.folder: Path
        self.is_shared: bool
        self.parser: OverridesParser

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.folder = Path(config.hydra.sweep.dir)
        self.is_shared = config.sweep.join is not None
        self.parser = OverridesParser.create(hydra_context.config_loader)

    def sweep(self, arguments: Sequence[str]) -> None:
        from mnist_exp.sweeps import search  # imports optuna
        from mnist_exp.sweeps.join import SharedStudy
        from mnist_exp.sweeps.records import read_outcomes, read_sweep

        presets = [f"{key}={value}" for key, value in self.params.items()]
        both = self.parser.parse_overrides([*presets, *arguments])
        overrides = {o.get_key_element(): o for o in both}.values()  # typed ones win
        swept = {o.get_key_element(): o for o in overrides if o.is_sweep_override()}
        space = {key: search.to_distribution(override) for key, override in swept.items()}
        fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
        tries = search.Search(space, self.n_trials, self.n_jobs, self.sampler, self.seed)
        shared = SharedStudy(self.folder, read_sweep(self.folder)) if self.is_shared else None
        study = shared.study if shared else search.open_study(self.folder)
        waiting = search.list_unfinished(study, read_outcomes(self.folder))
        while batch := (
            shared.next_batch(tries) if shared else search.next_batch(study, tries, waiting)
        ):
            jobs = [[*fixed, *(f"{k}={v}" for k, v in t.params.items())] for t in batch]
            with shared.keep(batch) if shared else nullcontext():
                returned = self.launcher.launch(jobs, initial_job_idx=batch[0].number)
            for trial, job in zip(batch, returned, strict=True):
                search.tell(study, trial, job.return_value)  # raises what the job raised
        if len(study.get_trials(deepcopy=False)) < self.n_trials:
            log.info("every combination has been tried; the search ends")
