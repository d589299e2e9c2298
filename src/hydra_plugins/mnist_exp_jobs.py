"""hydra/sweeper=jobs and hydra/launcher=local.

Hydra imports this module on every start: nothing heavy at its top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class JobsSweeper(Sweeper):
    """Launches the jobs in the sweep's record, `max_batch_size` at a time.

    params: what a preset sweeps over, which the record has already.
    """

    def __init__(self, max_batch_size: int | None, params: Mapping[str, str] | None) -> None:
        self.max_batch_size = max_batch_size
        self.launcher: Launcher
        self.folder: Path

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.folder = Path(config.hydra.sweep.dir)

    def sweep(self, arguments: Sequence[str]) -> None:
        from mnist_exp.sweeps.plan import complete_job
        from mnist_exp.sweeps.records import read_sweep

        jobs = [complete_job(job, arguments) for job in read_sweep(self.folder).jobs]
        size = self.max_batch_size or len(jobs)
        for first in range(0, len(jobs), size):
            for job in self.launcher.launch(jobs[first : first + size], initial_job_idx=first):
                _ = job.return_value  # raises what the job raised


class LocalLauncher(Launcher):
    """Runs the jobs side by side on this machine, at most `n_jobs` at a time."""

    def __init__(self, n_jobs: int | str) -> None:
        self.n_jobs = n_jobs
        self.context: HydraContext
        self.function: TaskFunction
        self.config: DictConfig

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.function, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from mnist_exp.sweeps.local import Jobs  # imports torch

        jobs = Jobs(self.context, self.function, self.config, self.n_jobs)
        return jobs.run(dict(enumerate(job_overrides, start=initial_job_idx)))
