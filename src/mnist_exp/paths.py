"""Where the code, its config and the files of runs are."""

import os
from pathlib import Path

from mnist_exp.errors import BadInput

PACKAGE = Path(__file__).resolve().parent
IS_INSTALLED = (PACKAGE / "conf").is_dir()  # by `pip install .`; otherwise this is a checkout
# All that runs make goes here: into the checkout, wherever they are started.
REPOSITORY = Path.cwd() if IS_INSTALLED else PACKAGE.parents[1]
CONF = (PACKAGE if IS_INSTALLED else REPOSITORY) / "conf"
SOURCES = PACKAGE if IS_INSTALLED else PACKAGE.parent

config_dirs = [CONF]  # where the groups and their options are looked for, in this order


def expand(path: str | Path) -> Path:
    """An absolute path, as a shell would have it: ~ is the home folder, quoted or not.

    Every path from outside goes through here. Raises BadInput for the ~name of nobody: else it
    would become a folder of that name.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 (Path raises RuntimeError)
    if expanded.startswith("~"):
        raise BadInput(
            f"{path}: there is no such home folder; write ./{path} for a file of that name"
        )
    return Path(expanded).absolute()


def add_config_dir(folder: str) -> None:
    """Look for options in this folder, too, as --config-dir asks. Raises BadInput."""
    path = Path(folder).absolute()
    if not path.is_dir():
        raise BadInput(f"--config-dir {folder}: there is no such folder")
    config_dirs[1:] = [path]


# In a run's output folder.
LAST = Path("checkpoints", "last.pt")
BEST = Path("checkpoints", "best.pt")
METRICS = "metrics.jsonl"
FIGURES = Path("figures")
SERVED = Path("served_model.pt")  # exported, for the tracker
# In a sweep's folder.
SWEEP = "sweep.json"


def is_name(text: str) -> bool:
    """Whether it can name a folder: on one line, without a slash or backslash, not . or .."""
    return text.isprintable() and not set(text) & set("/\\") and text.strip() not in ("", ".", "..")
