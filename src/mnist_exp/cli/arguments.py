"""What a sweep will run, as its command line and its preset have it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

import mnist_exp.experiment.rules  # noqa: F401  registers the resolvers that the YAML files use
from mnist_exp.errors import BadInput
from mnist_exp.experiment.targets import initialize_hydra
from mnist_exp.sweeps.records import Plan


def plan_sweep(arguments: Sequence[str]) -> Plan:
    """Of arguments that have no problems, those of a preset among them.

    Raises BadInput for an interval without a search, and for seeds in one.
    """
    with initialize_hydra() as loader:
        parser = OverridesParser.create(loader)
        overrides = parser.parse_overrides(list(arguments))
        shared = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
        config = compose("config", shared, return_hydra_config=True)
    swept = [override for override in overrides if override.is_sweep_override()]
    axes = {o.key_or_group: str(o.input_line).partition("=")[2] for o in swept}
    search = "n_trials" in config.hydra.sweeper
    if search and "seed" in axes:
        reason = "a search trains each configuration once; give one seed"
        raise BadInput(f"seed={axes['seed']}: {reason}, then sweep the winner over several")
    if search:
        jobs = config.hydra.sweeper.n_trials
    elif intervals := [str(o.input_line) for o in swept if not o.is_discrete_sweep()]:
        raise BadInput(f"{intervals[0]}: an interval, which needs hydra/sweeper=optuna")
    else:
        jobs = math.prod(sum(1 for _ in o.sweep_string_iterator()) for o in swept)
    return Plan(config, Path(config.hydra.sweep.dir), axes, jobs, search)


def plan_folder(arguments: Sequence[str]) -> Path:
    """Where a run with these arguments, which have no problems, is to write."""
    with initialize_hydra():
        config = compose("config", list(arguments), return_hydra_config=True)
        HydraConfig.instance().set_config(config)  # for ${hydra:...} in the path
        return Path(config.hydra.run.dir)


def preset_axes(arguments: Sequence[str]) -> list[str]:
    """What the YAML files sweep over, but for the keys that are typed; none if in doubt."""
    try:
        with initialize_hydra():
            overrides = OverridesParser.create().parse_overrides(list(arguments))
            shared = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
            sweeper = compose("config", shared, return_hydra_config=True).hydra.sweeper
    except Exception:  # `problems` says which
        return []
    typed = {override.key_or_group for override in overrides}
    return [f"{key}={axis}" for key, axis in (sweeper.params or {}).items() if key not in typed]
