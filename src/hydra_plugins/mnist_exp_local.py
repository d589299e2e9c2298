"""hydra/launcher=local. Hydra imports this module on every start: nothing heavy at its top."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


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
