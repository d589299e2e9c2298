"""What a sweep will run, and where."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from omegaconf import DictConfig


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, as its command line and its preset describe it."""

    config: DictConfig  # what all jobs share
    folder: Path  # of the sweep to resume, or of a new one
    typed: list[str]
    overrides: list[str]  # for Hydra: what was typed, and the folder
    axes: dict[str, str]  # swept key → its values, as typed
    choices: dict[str, list[str]]  # key → an override for each of its values; empty for a search
    search: bool  # by Optuna

    @property
    def job_count(self) -> int:
        """How many jobs there are; for a search, the most."""
        if self.search:
            return int(self.config.hydra.sweeper.n_trials)
        return math.prod(map(len, self.choices.values()))

    def jobs(self) -> Iterator[list[str]]:
        """The overrides of each job, in the order in which Hydra numbers them."""
        return map(list, product(*self.choices.values()))
