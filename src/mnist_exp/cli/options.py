"""The options that the scripts with a trained model share.

A script's own module parses its options and reports mistakes before anything heavy is imported; the
function that does the work imports what it needs.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import NoReturn

from mnist_exp.errors import BadInput, sanitize
from mnist_exp.experiment.shell import name_commands
from mnist_exp.paths import add_config_dir
from mnist_exp.tracking import EXPERIMENT
from mnist_exp.tracking.addresses import tracking_uri


class Parser(ArgumentParser):
    """A script's options; `--run`, `--checkpoint`, `--experiment` and `--device` choose a model.

    device: whether the script has the option `--device`. `--config-dir` applies to the whole
    process. A mistake ends the process with one line and exit code 2.
    """

    def __init__(self, description: str, device: bool = True) -> None:
        super().__init__(
            description=name_commands(description),
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        source = self.add_mutually_exclusive_group()
        source.add_argument(
            "--run",
            default="best",
            help="best (validation accuracy among the finished runs on the data set in "
            "conf/config.yaml; the default), best:NAME (on the data set NAME), latest, an output "
            "folder, or an MLflow run id",
        )
        source.add_argument("--checkpoint", metavar="PATH", help="a checkpoint file instead")
        self.add_argument(
            "--experiment",
            default=EXPERIMENT,
            metavar="NAME",
            help="the MLflow experiment that --run best searches",
        )
        self.add_argument(
            "--config-dir",
            metavar="FOLDER",
            help="more YAML files, besides those in conf/, for a model that they name",
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
            self.exit(error.exit_code, f"error: {error}\n")
        return options

    def error(self, message: str) -> NoReturn:
        advice = "--help shows the options"
        self.exit(BadInput.exit_code, f"error: {sanitize(message)}; {advice}\n")


def check_output(option: str, path: Path) -> None:
    """Raises BadInput for a path where no file can be written."""
    if path.is_dir():
        raise BadInput(f"{option} {path}: is a folder")
    if not path.parent.is_dir():
        raise BadInput(f"{option} {path}: there is no folder {path.parent}")


def choose_checkpoint(options: Namespace) -> Path:
    """The checkpoint of --checkpoint or --run. Raises what `find_checkpoint` raises."""
    if options.checkpoint:
        return Path(options.checkpoint)
    from mnist_exp.experiment.find import find_checkpoint

    return find_checkpoint(options.run, tracking_uri(), options.experiment)
