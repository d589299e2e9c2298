"""The command lines of the scripts that use what was trained, and what they share.

A script's own module reads its options and answers mistakes with nothing heavy imported; what it
then does is imported by the function that does it.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mnist_exp.cli.process import exit_code, leave
from mnist_exp.errors import BadInput, Failure, sanitize
from mnist_exp.experiment.signals import raise_on_signal
from mnist_exp.paths import add_config_dir
from mnist_exp.tracking import EXPERIMENT
from mnist_exp.tracking.addresses import tracking_uri


class Parser(ArgumentParser):
    """Options, of which `--run`, `--checkpoint`, `--experiment` and `--device` choose a model.

    device: whether there is a choice. `--config-dir` holds for the whole process. A mistake ends
    it with one line and the exit code 2.
    """

    def __init__(self, description: str, device: bool = True) -> None:
        super().__init__(
            description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
        )
        chosen = self.add_mutually_exclusive_group()
        chosen.add_argument(
            "--run",
            default="best",
            help="best (validation accuracy among the finished runs on the data set in "
            "conf/config.yaml; the default), best:NAME (on the data set NAME), latest, an output "
            "folder, or an MLflow run id",
        )
        chosen.add_argument("--checkpoint", metavar="PATH", help="a checkpoint's file instead")
        self.add_argument(
            "--experiment", default=EXPERIMENT, metavar="NAME", help="in MLflow, of --run best"
        )
        self.add_argument(
            "--config-dir",
            metavar="FOLDER",
            help="YAML files of your own, beside those of conf/, for a model that they name",
        )
        if device:
            self.add_argument(
                "--device", help="auto, cpu, cuda, cuda:<index> or mps; by default that of the run"
            )

    def parse_args(self) -> Namespace:  # type: ignore[override]
        options = super().parse_args()
        try:
            if options.config_dir:
                add_config_dir(options.config_dir)
        except BadInput as error:
            leave(f"error: {error}", error.exit_code)
        return options

    def error(self, message: str) -> NoReturn:
        message = sanitize(message)
        leave(f"error: {message}; --help shows the options", BadInput.exit_code)


def chosen(options: Namespace) -> Path:
    """The checkpoint that the shared options choose. Raises what `trained.find` does."""
    if options.checkpoint:
        return Path(options.checkpoint)
    from mnist_exp.experiment.find import find_checkpoint

    return find_checkpoint(options.run, tracking_uri(), options.experiment)


def answer(act: Callable[[], int]) -> NoReturn:
    """Act, then end the process with the exit code that this returns.

    With 2 for bad input, 1 for a failure, 130 for Ctrl-C and 143 for SIGTERM instead.
    """
    try:
        with raise_on_signal():
            code = act()
            sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        leave("", getattr(interrupt, "exit_code", 130))
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave("", 1)
    except (Failure, OSError) as error:
        leave(f"error: {error}", exit_code(error))
    leave("", code)
