"""From the command line to a run.

    train                   parse the flags, execute, and end the process with an exit code
      execute               check everything before anything is created, then plan a run or a sweep
        launch              hand the plan to Hydra, which makes the folder and composes the config
          run_with_hydra    what Hydra calls: a job of a sweep, or
            run_alone       a run that is new, resumed or reproduced

Only hydra, omegaconf and the standard library are imported here, so that --help and a typo are
answered at once; torch is imported with the run.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import hydra
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

import mnist_exp.experiment.rules  # noqa: F401  first, before a worker of a launcher gets the resolvers
from mnist_exp.cli.help import help_text
from mnist_exp.cli.process import exit_code, run_and_exit
from mnist_exp.errors import BadInput, Failure, print_line
from mnist_exp.experiment.bugs import describe_error
from mnist_exp.experiment.find import check_new, find_run, replace_lost_checkpoint
from mnist_exp.experiment.presets import initialize_hydra
from mnist_exp.experiment.shell import quote
from mnist_exp.experiment.signals import call_launcher, raise_on_signal, reset_signals
from mnist_exp.experiment.versions import HYDRA_MAIN
from mnist_exp.paths import CONF, IS_INSTALLED, LAST, SOURCES, add_config_dir, expand
from mnist_exp.tracking.addresses import tracking_uri
from mnist_exp.tracking.worker import start_worker
from mnist_exp.training.torchrun import is_distributed, is_torchrun, rank, restarts

if TYPE_CHECKING:
    from mnist_exp.experiment.metrics import Result
    from mnist_exp.sweeps.plan import SweepPlan

log = logging.getLogger(__name__)

# Hydra flags that the check of the command line does not see, or that unpickle a file.
UNSUPPORTED = {
    "config_path": "--config-dir FOLDER adds options of your own to those of conf/",
    "config_name": "resume= and reproduce= take the config of a run; conf/experiment/ has presets",
    "experimental_rerun": "reproduce= trains a run again",
}


def train() -> None:
    """What `python train.py` does.

    Exits with 2 for bad input, 1 for a failure, 128 + N for signal N.
    """

    def command() -> int:
        flags = parse_flags()
        if flags.help:
            print(help_text())
            return 0
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # makes Hydra raise its errors
        try:
            return execute(flags)
        except HydraException as error:  # from its flags and plugins; the keys have been checked
            raise BadInput(*str(error).splitlines()) from error

    run_and_exit(command)


def parse_flags() -> Namespace:
    """Hydra's flags in sys.argv, with the rest as `overrides`; adds the folder of --config-dir.

    Raises BadInput for a flag that is unknown or not supported.
    """
    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    flags = parser.parse_args()
    for flag, instead in UNSUPPORTED.items():
        if getattr(flags, flag) is not None:
            name = flag.replace("_", "-")
            raise BadInput(f"--{name} is not supported; {instead}")
    if flags.config_dir is not None:
        add_config_dir(flags.config_dir)
    flags.overrides = list(map(expand_home, flags.overrides))
    return flags


def expand_home(word: str) -> str:
    """The word, with ~ expanded in a key=value whose value is a path: no shell expands it there."""
    found = re.fullmatch(r"""([^=]+)=(["']?)(~(?:/[^,"']*)?)\2""", word)
    return f"{found[1]}={quote(str(expand(found[3])))}" if found else word


def refuse(message: str) -> NoReturn:
    """Report an unknown flag in one line; argparse would print its whole usage."""
    advice = "--help shows the options"
    if message.startswith("unrecognized arguments") and ": -" not in message:
        advice = "write flags such as -m before the first key=value"
    raise BadInput(f"{message}; {advice}")


def execute(flags: Namespace) -> int:
    """Show or run what the command line says, once it is checked; returns the exit code."""
    if flags.hydra_help or flags.shell_completion:
        try:
            show(flags)
        except (KeyError, ValueError) as error:  # Hydra's, about what follows -sc
            typed = " ".join(flags.overrides)
            raise BadInput(f"-sc {typed}: {error!r}; -sc install=bash prints a script") from error
        return 0
    only_show = bool(flags.cfg or flags.info)
    if rank() > 0:  # rank 0 checks, shows and plans
        if not (only_show or flags.multirun):
            with initialize_hydra():
                launch_together(flags.overrides)
        return 0
    check_flags(flags)
    from mnist_exp.cli.check import check, pin_init  # 30 ms that --help does not need

    words = flags.overrides
    if flags.multirun:
        from mnist_exp.sweeps.plan import add_recorded, plan_sweep

        words = add_recorded(words)
    with initialize_hydra() as loader:
        checked = check(words, flags.multirun, loader)
        if checked.problems:
            print(*checked.problems, sep="\n", file=sys.stderr)
            return BadInput.exit_code
        for note in checked.notes:
            print_line(note, sys.stderr)
        if pinned := pin_init(checked.arguments, checked.config):
            flags.overrides = words = [pinned.get(word, word) for word in words]
            checked = check(words, flags.multirun, loader)
        HydraConfig.instance().set_config(checked.config)  # for ${hydra:...} in a path
        if flags.multirun:
            overrides = {a.override.get_key_element(): a.override for a in checked.arguments}
            plan = plan_sweep(checked.config, overrides, checked.rows, checked.words, words)
            return execute_sweep(plan, bool(flags.cfg), loader)
        folder, resumes = find_folder(checked.config, words, needs_new_folder=not only_show)
        if checked.config.resume == "auto":
            words = replace_resume(words, folder if resumes else None)
        if only_show:
            show(flags)
        elif is_distributed() or is_torchrun():
            launch_together(words, folder, resumes)
        else:
            launch([*words, f"hydra.run.dir={quote(str(folder))}"])
    return 0


def check_flags(flags: Namespace) -> None:
    """Raises BadInput for flags that do not go together."""
    if flags.multirun and is_distributed():
        raise BadInput("-m starts its jobs itself; leave out torchrun")
    about_one_run = flags.run or flags.info or flags.package or flags.resolve
    if flags.multirun and (about_one_run or flags.cfg in ("hydra", "all")):
        raise BadInput("-m --cfg job lists the jobs of a sweep; other flags are about one run")
    if flags.resolve and not flags.cfg:
        raise BadInput("--resolve works only with --cfg")


def find_folder(
    config: DictConfig, words: Sequence[str], needs_new_folder: bool
) -> tuple[Path, bool]:
    """The output folder of a new run, or of the run to resume; and whether to resume.

    Raises BadInput if `resume` finds no run, or if a new folder is needed but is in use.
    """
    folder = Path(config.hydra.run.dir)
    if config.resume and config.reproduce:
        raise BadInput("resume continues a run, reproduce trains one again; leave out one of them")
    if config.resume and config.resume != "auto":
        uri = config.tracking.uri if "uri" in config.tracking else tracking_uri()
        return find_run(str(config.resume), uri, new=folder if needs_new_folder else None), True
    if config.resume and not any(word.startswith("hydra.run.dir=") for word in words):
        raise BadInput("resume=auto: needs hydra.run.dir=FOLDER, the same in each command")
    if config.resume and needs_new_folder:
        replace_lost_checkpoint(folder)
    resumes = config.resume is not None and (folder / LAST).is_file()
    if needs_new_folder and not resumes and not restarts():
        check_new(folder)
    return folder, resumes


def replace_resume(words: Sequence[str], folder: Path | None) -> list[str]:
    """The words, to resume from this folder (its checkpoint has the weights of `init`) or none."""
    left_out = ("resume=", "init=") if folder else "resume="
    kept = [word for word in words if not word.startswith(left_out)]
    return [*kept, f"resume={quote(str(folder))}"] if folder else kept


def execute_sweep(plan: SweepPlan, only_list: bool, loader: ConfigLoader) -> int:
    """List the jobs of a sweep or run them; returns the exit code."""
    if only_list:
        from mnist_exp.sweeps.plan import show_jobs

        show_jobs(plan, loader)
        return 0
    if not IS_INSTALLED:  # a job in a Python process of its own has to find this code
        others = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = f"{SOURCES}{os.pathsep}{others}".rstrip(os.pathsep)
    from mnist_exp.sweeps.plan import is_local

    if is_local(plan.config):
        from mnist_exp.sweeps.forkserver import start_forkserver

        start_forkserver(plan.config)
    start_worker(plan.config.tracking)  # imports MLflow while this process imports torch
    from mnist_exp.sweeps.sweep import run_sweep

    if str(plan.config.hydra.launcher._target_).endswith(".SlurmLauncher"):
        from mnist_exp.sweeps.slurm import watch_queue

        watch_queue()
    return run_sweep(plan, lambda: launch(plan.for_hydra))


def launch_together(words: list[str], folder: Path | None = None, resumes: bool = False) -> None:
    """Run in all processes that torchrun started, in rank 0's folder, resuming if rank 0 does.

    If torchrun has restarted the processes, the run is resumed there.
    """
    reset_signals()  # a signal does not reach Python while torch waits for another rank
    from mnist_exp.training.distributed import rendezvous

    folder, resumes = rendezvous(folder, resumes)
    if rank() > 0:
        words = ["hydra/job_logging=rank", *replace_resume(words, folder if resumes else None)]
        words = [word for word in words if not word.startswith("init=")]  # rank 0 has the weights
    elif restarts() and resumes:
        words = replace_resume(words, folder)
    overrides = [*words, f"hydra.run.dir={quote(str(folder))}"]
    with raise_on_signal():
        launch(overrides)


@hydra.main(**HYDRA_MAIN)  # only for what Hydra 1.4 sets around a call; the overrides pass through
def launch(overrides: list[str]) -> None:
    """Hand the overrides to Hydra, which composes the config of each job and calls `run_job`."""
    app = GlobalHydra.instance().hydra
    assert app is not None, "within initialize_hydra"
    start = app.multirun if "hydra.mode=MULTIRUN" in overrides else app.run
    start("config", run_with_hydra, overrides)


@hydra.main(**HYDRA_MAIN)
def show(flags: Namespace) -> None:
    """What Hydra's own flags print, such as --cfg, --info and --hydra-help."""
    app = GlobalHydra.instance().hydra
    if app is None:
        _run_hydra(flags, get_args_parser(), run_with_hydra, str(CONF), "config")
    elif flags.cfg:
        app.show_cfg("config", flags.overrides, flags.cfg, flags.package, flags.resolve)
    else:
        app.show_info(flags.info, "config", flags.overrides)


def run_with_hydra(config: DictConfig) -> object:
    """What Hydra calls once it has made the output folder: a run, or a job of a sweep.

    Returns a job's outcome, for the sweeper.
    """
    hydra_config = HydraConfig.get()
    for source in hydra_config.runtime.config_sources:  # a job can be in a process of its own
        if source.provider == "--config-dir":
            add_config_dir(source.path)
    folder, overrides = Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task)
    with open_dict(config):
        del config["sweep"]  # a run does not depend on the sweep that started it
    if rank() == 0:
        start_worker(config.tracking)  # imports MLflow while this process imports torch
    if hydra_config.mode is RunMode.MULTIRUN:
        from mnist_exp.sweeps.sweep import run_job

        with call_launcher():
            return run_job(config, folder, hydra_config.job.num, overrides)
    run_alone(config, folder, overrides)
    return None


def run_alone(config: DictConfig, folder: Path, overrides: list[str]) -> None:
    """Do a run that is new, resumed, or reproduced; end the process if it fails.

    The log file gets the traceback; with hydra.verbose=true, so does the screen.
    """
    try:
        start_run(config, folder, overrides)
    except Exception as error:  # a user's own model or data set can raise anything
        is_known = isinstance(error, (Failure, OSError))
        text = error if is_known else describe_error(error)
        log.error("error: %s", text, exc_info=not is_known or error.__cause__ is not None)
        raise SystemExit(exit_code(error)) from error


def start_run(config: DictConfig, folder: Path, overrides: list[str]) -> Result:
    """Train, resume or reproduce. Raises what these raise."""
    from mnist_exp.experiment.init import normalize_as_imagenet
    from mnist_exp.inference.hooks import HOOKS

    normalize_as_imagenet(config, overrides)
    if config.reproduce:
        from mnist_exp.experiment.reproduce import reproduce  # imports MLflow

        return reproduce(config, folder, overrides, HOOKS)
    from mnist_exp.experiment.run import resume, train

    start = resume if config.resume else train
    return start(config, folder, overrides, HOOKS)
