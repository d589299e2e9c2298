"""From the command line to an experiment.

`train` checks all that was typed before anything exists, then hands over to Hydra. Only hydra,
omegaconf and the standard library are imported here, so that --help and a typo are answered at
once; torch comes with the experiment.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from mnist_exp.cli.arguments import plan_folder, plan_sweep, preset_axes
from mnist_exp.cli.check import problems
from mnist_exp.cli.help import help_text
from mnist_exp.cli.process import exit_code, leave
from mnist_exp.errors import BadInput, Failure, sanitize
from mnist_exp.experiment.resume import check_new, find_run
from mnist_exp.experiment.shell import quoted
from mnist_exp.experiment.signals import raise_on_signal, reset_signals
from mnist_exp.experiment.versions import MAIN
from mnist_exp.paths import CONF, add_config_dir
from mnist_exp.tracking.addresses import tracking_uri
from mnist_exp.tracking.worker import start_worker
from mnist_exp.training.torchrun import is_distributed, rank, restarts

log = logging.getLogger(__name__)

# Flags of Hydra's that the check of the command line does not see, or that unpickle a file.
UNSUPPORTED = {
    "config_path": "--config-dir FOLDER adds options of your own to those of conf/",
    "config_name": "resume= and reproduce= take the config of a run; conf/experiment/ has presets",
    "experimental_rerun": "reproduce= trains a run again",
}
FIRST = rank() == 0  # it alone checks, writes and logs


def train() -> None:
    """What `python train.py` does.

    Exits with 2 for bad input, 1 for a failure, 130 for Ctrl-C and 143 for SIGTERM.
    """
    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    arguments = parser.parse_args()
    for flag, instead in UNSUPPORTED.items():
        if getattr(arguments, flag) is not None:
            name = flag.replace("_", "-")
            leave(f"error: --{name} is not supported; {instead}", BadInput.exit_code)
    if arguments.config_dir is not None:
        try:
            add_config_dir(arguments.config_dir)
        except BadInput as error:
            leave(f"error: {error}", error.exit_code)
    if arguments.help:
        print(help_text())
        return
    if arguments.hydra_help or arguments.shell_completion:
        run_with_hydra()
        return
    if arguments.multirun and (arguments.cfg or arguments.info):
        leave("error: -m runs a sweep, --cfg and --info only show; choose one", BadInput.exit_code)
    if arguments.multirun and is_distributed() and FIRST:
        leave("error: -m starts its jobs itself; leave out torchrun", BadInput.exit_code)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises what goes wrong
    try:
        folder = None
        if FIRST:
            with raise_on_signal():
                preset = preset_axes(arguments.overrides) if arguments.multirun else []
                if found := problems([*preset, *arguments.overrides], arguments.multirun):
                    leave("\n".join(found), code=BadInput.exit_code)
                if arguments.multirun:
                    leave("", code=sweep(preset, arguments.overrides))
                shows = bool(arguments.cfg or arguments.info)
                folder = folder_of_run(arguments.overrides, shows)
        if is_distributed():
            sys.argv += met(folder)
        elif folder:
            sys.argv.append(run_dir(folder))
        with raise_on_signal():
            run_with_hydra()
    except KeyboardInterrupt as interrupt:
        leave("", code=getattr(interrupt, "exit_code", 130))
    except (Failure, OSError) as error:
        leave(f"error: {error}", code=exit_code(error))
    except HydraException as error:  # about its own flags; its keys have been checked
        leave(f"error: {error}", code=BadInput.exit_code)
    leave("", code=0)


def refuse(message: str) -> NoReturn:
    """Report an unknown flag in one line; argparse would repeat what was typed unescaped."""
    advice = "--help shows the options"
    if message.startswith("unrecognized arguments") and ": -" not in message:
        advice = "write flags such as -m before the first key=value"
    leave(sanitize(f"error: {message}; {advice}"), BadInput.exit_code)


def met(folder: Path | None) -> list[str]:
    """The overrides with which all ranks do the same. See `distributed.rendezvous`."""
    reset_signals()  # a signal does not reach Python while torch waits for another rank
    from mnist_exp.training.distributed import rendezvous

    agreed, going_on = rendezvous(folder)
    overrides = [run_dir(agreed)]
    if going_on:
        overrides.append(f"resume={quoted(str(agreed))}")
    if not FIRST:
        overrides.append("hydra/job_logging=rank")
    return overrides


def run_dir(folder: Path) -> str:
    """The override that makes Hydra work in this folder."""
    return f"hydra.run.dir={quoted(str(folder))}"


def sweep(preset: list[str], typed: list[str]) -> int:
    """All jobs of a sweep; returns the exit code."""
    plan = plan_sweep([*preset, *typed])
    start_worker(plan.config.tracking)  # imports MLflow while this one imports torch
    from mnist_exp.sweeps.sweep import run_sweep

    def launch(folder: Path) -> None:
        sys.argv.append(f"hydra.sweep.dir={quoted(str(folder))}")
        try:
            run_with_hydra()
        finally:
            if "joblib" in sys.modules:  # whose workers wait minutes for more, a gigabyte each
                from joblib.externals.loky import get_reusable_executor

                get_reusable_executor(reuse=True).shutdown(kill_workers=True)

    return run_sweep(plan, typed, launch)


@hydra.main(config_path=str(CONF), config_name="config", **MAIN)
def run_with_hydra(config: DictConfig) -> object:
    """What Hydra calls, with the output folder made: a run, or a job of a sweep.

    Returns a job's outcome, for the sweeper.
    """
    hydras = HydraConfig.get()
    for source in hydras.runtime.config_sources:  # a job can be in a process of its own
        if source.provider == "--config-dir":
            add_config_dir(source.path)
    folder, overrides = Path(hydras.runtime.output_dir), list(hydras.overrides.task)
    with open_dict(config):
        del config["sweep"]  # how a run came about is no part of it
    if FIRST:
        start_worker(config.tracking)  # imports MLflow while this one imports torch
    if hydras.mode is RunMode.MULTIRUN:
        from mnist_exp.sweeps.sweep import run_job

        return run_job(config, folder, hydras.job.num, overrides)
    run_alone(config, folder, overrides)
    return None


def run_alone(config: DictConfig, folder: Path, overrides: list[str]) -> None:
    """A run that is new, resumed, or done again; ends the process where it fails."""
    try:
        if config.reproduce:
            from mnist_exp.experiment.reproduce import reproduce  # imports MLflow

            reproduce(config, folder, overrides)
            return
        from mnist_exp.experiment.run import resume, run

        (resume if config.resume else run)(config, folder, overrides)
    except (Failure, OSError) as error:
        log.error("error: %s", error)  # so that it reaches the run's log file
        leave("", exit_code(error))


def folder_of_run(arguments: list[str], shows: bool) -> Path | None:
    """That of the run to resume, or of a new one where all ranks have to know it.

    shows: whether Hydra only shows the config. Raises BadInput for a new run in an old folder.
    """
    overrides = OverridesParser.create().parse_overrides(arguments)
    typed: dict[str, Any] = {o.key_or_group: o.value() for o in overrides}
    if typed.get("resume") is None:
        if not is_distributed() and not any(key.startswith("hydra.") for key in typed):
            return None
        folder = plan_folder(arguments)
        if not (shows or restarts()):
            check_new(folder)
        return folder if is_distributed() else None
    if typed.get("reproduce") is not None:
        raise BadInput(
            "resume goes on with a run, reproduce starts one anew; leave out one of them"
        )
    uri = typed.get("tracking.uri", tracking_uri())
    return find_run(str(typed["resume"]), uri)
