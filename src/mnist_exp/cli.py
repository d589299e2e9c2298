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
from omegaconf import DictConfig

from mnist_exp.command_line import problems
from mnist_exp.errors import BadInput, Failure
from mnist_exp.paths import CONF
from mnist_exp.resuming import find_run, quoted
from mnist_exp.signals import end_at_once, raising

log = logging.getLogger(__name__)


def train() -> None:
    """What `python train.py` does.

    Exits with 2 for bad input, 1 for a failure, 130 for Ctrl-C and 143 for SIGTERM.
    """
    arguments = get_args_parser().parse_args()
    if arguments.help or arguments.hydra_help or arguments.shell_completion:
        run_with_hydra()
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises what goes wrong
    try:
        with raising():
            if found := problems(arguments.overrides, multirun=arguments.multirun):
                leave("\n".join(found), code=BadInput.exit_code)
            sys.argv += folder_of_resumed(arguments.overrides, arguments.multirun)
            run_with_hydra()
    except KeyboardInterrupt as interrupt:
        leave("", code=getattr(interrupt, "exit_code", 130))
    except (Failure, OSError) as error:
        leave(f"error: {error}", code=exit_code(error))
    except HydraException as error:  # about its own flags; its keys have been checked
        leave(f"error: {error}", code=BadInput.exit_code)
    if not arguments.multirun:
        leave("", code=0)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run_with_hydra(config: DictConfig) -> None:
    """One run, or one job of a sweep, in the output folder that Hydra made for it."""
    from mnist_exp.experiment import resume, run

    job = HydraConfig.get()
    folder, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    try:
        if config.reproduce:
            from mnist_exp.reproduction import reproduce  # imports MLflow

            reproduce(config, folder, overrides)
        elif config.resume:
            resume(config, folder, overrides)
        else:
            run(config, folder, overrides)
    except (Failure, OSError) as error:
        log.error("error: %s", error)  # here too, because only here it reaches the job's log file
        if job.mode is RunMode.MULTIRUN:
            raise  # Hydra goes on with the other jobs, and raises it again at the end
        leave("", exit_code(error))


def folder_of_resumed(arguments: list[str], multirun: bool) -> list[str]:
    """With resume=..., the override that makes Hydra work in that run's folder."""
    overrides = OverridesParser.create().parse_overrides(arguments)
    typed: dict[str, Any] = {o.key_or_group: o.value() for o in overrides}
    if typed.get("resume") is None:
        return []
    if multirun:
        raise BadInput("resume goes on with one run; leave out -m")
    if typed.get("reproduce") is not None:
        raise BadInput(
            "resume goes on with a run, reproduce starts one anew; leave out one of them"
        )
    uri = typed.get("tracking.uri", os.environ.get("MLFLOW_TRACKING_URI"))
    folder = find_run(str(typed["resume"]), uri)
    return [f"hydra.run.dir={quoted(str(folder))}"]


def exit_code(error: Exception) -> int:
    return error.exit_code if isinstance(error, Failure) else 1


def leave(message: str, code: int) -> NoReturn:
    """End the process without tearing the interpreter down.

    With torch and MLflow loaded that takes one to four seconds and frees only memory.
    """
    end_at_once()
    if message:
        print(message, file=sys.stderr)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
