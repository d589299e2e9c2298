"""What a command line will run, and in which folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hydra import compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict

import mnist_exp.experiment.rules  # noqa: F401  registers the resolvers that the YAML files use
from mnist_exp.cli.arguments import Arguments, parse
from mnist_exp.errors import BadInput, print_line, sanitize
from mnist_exp.experiment.find import check_new, find_run
from mnist_exp.experiment.shell import quote, show_path
from mnist_exp.sweeps.records import SweepPlan, find_sweep
from mnist_exp.tracking.addresses import tracking_uri
from mnist_exp.training.torchrun import restarts


class RunPlan(NamedTuple):
    """A run: a new one, one to resume, or one to reproduce."""

    folder: Path
    overrides: list[str]  # for Hydra: what was typed, and the folder


def plan_run(arguments: Arguments, needs_new_folder: bool = True) -> RunPlan:
    """A new run, or one to resume.

    needs_new_folder: whether to raise BadInput for a new run in the folder of another one. Also
    raises it if `resume` finds no run.
    """
    config = compose_with_hydra(arguments.words)
    if config.resume is None:
        folder = Path(config.hydra.run.dir)
        if needs_new_folder and not restarts():
            check_new(folder)
    elif config.reproduce is not None:
        raise BadInput("resume continues a run, reproduce trains one again; leave out one of them")
    else:
        uri = config.tracking.uri if "uri" in config.tracking else tracking_uri()
        folder = find_run(str(config.resume), uri)
    return RunPlan(folder, [*arguments.words, f"hydra.run.dir={quote(str(folder))}"])


def plan_sweep(arguments: Arguments) -> SweepPlan:
    """A new sweep, or one to resume.

    arguments: with those of a preset, as `add_preset` returns them.

    Raises BadInput for an interval without a search, seeds in a search, a search without
    validation, more jobs than sweep.max_jobs, and where `sweep.resume` finds no sweep.
    """
    config = compose_with_hydra(arguments.drop_sweeps())
    overrides = {a.override.get_key_element(): a.override for a in arguments.parsed}
    swept = {key: override for key, override in overrides.items() if override.is_sweep_override()}
    axes = {key: str(override.input_line).partition("=")[2] for key, override in swept.items()}
    search = "n_trials" in config.hydra.sweeper
    if search and "seed" in axes:
        reason = "a search trains each configuration once; give one seed"
        raise BadInput(f"seed={axes['seed']}: {reason}, then sweep the winner over several")
    if search and config.data.val_fraction == 0:
        raise BadInput("data.val_fraction=0: a search needs validation")
    for key, override in swept.items():
        if not search and not override.is_discrete_sweep():
            raise BadInput(f"{key}={axes[key]}: an interval, which needs hydra/sweeper=optuna")
    folder = Path(config.hydra.sweep.dir)
    if config.sweep.resume is not None:
        folder = find_sweep(config.sweep.resume)
    for_hydra = [*arguments.words, f"hydra.sweep.dir={quote(str(folder))}", "hydra.mode=MULTIRUN"]
    order = dict.fromkeys([*(config.hydra.sweeper.params or ()), *overrides])
    choices = {} if search else list_choices({key: overrides[key] for key in order})
    plan = SweepPlan(config, folder, arguments.words, for_hydra, axes, choices, search)
    if plan.job_count > config.sweep.max_jobs:
        advice = f"if this is intended: sweep.max_jobs={plan.job_count}"
        raise BadInput(f"{plan.job_count:,} jobs; {advice}")
    return plan


def add_preset(arguments: Arguments, loader: ConfigLoader) -> Arguments:
    """The sweeps of a preset, except over keys that are typed, and then the arguments."""
    try:
        params = compose_with_hydra(arguments.drop_sweeps()).hydra.sweeper.params or {}
    except Exception:  # the check says what is wrong
        return arguments
    typed = {a.override.key_or_group for a in arguments.parsed}
    words = [f"{key}={values}" for key, values in params.items() if key not in typed]
    preset = parse(words, loader)
    return Arguments(
        arguments.words, preset.parsed + arguments.parsed, preset.errors + arguments.errors
    )


def compose_with_hydra(words: list[str]) -> DictConfig:
    """The config with Hydra's part, which ${hydra:...} in a path can then refer to."""
    config = compose("config", words, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


def list_choices(overrides: Mapping[str, Override]) -> dict[str, list[str]]:
    """Key → an override for each of its values, as Hydra's sweeper writes them."""
    choices = {}
    for key, override in overrides.items():
        if override.is_hydra_override():
            continue
        if override.is_sweep_override():
            values = list(override.sweep_string_iterator())
        else:
            values = [override.get_value_element_as_str()]
        choices[key] = [f"{key}={value}" for value in values]
    return choices


def show_jobs(plan: SweepPlan, loader: ConfigLoader) -> None:
    """Print each job's number, folder and overrides, or the space of a search."""
    if plan.search:
        where = show_path(plan.folder)
        print_line(f"at most {plan.job_count} jobs in {where}, chosen as the search runs from")
        for key, values in plan.axes.items():
            print_line(f"{key}={values}")
        return
    for number, overrides in enumerate(plan.jobs()):
        config = loader.load_sweep_config(plan.config, overrides)  # as a launcher does
        with open_dict(config):
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        folder = plan.folder / str(config.hydra.sweep.subdir)
        print_line(f"{number}  {sanitize(show_path(folder))}  {' '.join(overrides)}")
