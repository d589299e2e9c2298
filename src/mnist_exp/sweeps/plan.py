"""What a sweep will run."""

from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig


class Plan(NamedTuple):
    """A sweep, as its command line and its preset have it."""

    config: DictConfig  # of what all jobs share
    folder: Path
    axes: dict[str, str]  # swept key → its values, as typed
    jobs: int
    search: bool  # by Optuna
