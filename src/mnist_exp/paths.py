"""Where the code, its config and the files of runs are."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mnist_exp.errors import BadInput, print_line

PACKAGE = Path(__file__).resolve().parent
IS_INSTALLED = (PACKAGE / "conf").is_dir()  # by `pip install .`; otherwise this is a checkout
REPOSITORY = Path.cwd() if IS_INSTALLED else PACKAGE.parents[1]
CONF = (PACKAGE if IS_INSTALLED else REPOSITORY) / "conf"
SOURCES = PACKAGE if IS_INSTALLED else PACKAGE.parent

config_dirs = [CONF]  # where the groups and their options are looked for, in this order
HOME_WORD = "${home:}"  # HOME in a record, which may move with it


def expand(path: str | Path) -> Path:
    """An absolute path, as a shell would have it: ~ is the home folder, quoted or not.

    Every path from outside goes through here. Raises BadInput for the ~name of no user: else it
    would become a folder of that name.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 (Path raises RuntimeError)
    if expanded.startswith("~"):
        raise BadInput(
            f"{path}: there is no such home folder; write ./{path} for a file of that name"
        )
    return Path(expanded).absolute()


def find_home() -> Path:
    """The folder in which everything is written, wherever a command is started.

    It is MNIST_EXP_HOME; else the checkout; else, where that cannot be written, the current folder.
    Ends the process in one line if MNIST_EXP_HOME cannot be made.
    """
    if chosen := os.environ.get("MNIST_EXP_HOME"):
        try:
            home = expand(chosen).resolve()
            home.mkdir(parents=True, exist_ok=True)
        except (BadInput, OSError) as error:  # every script imports this before it can handle it
            print_line(f"error: MNIST_EXP_HOME={chosen}: {error}", sys.stderr)
            raise SystemExit(BadInput.exit_code) from None
        return home
    return REPOSITORY if os.access(REPOSITORY, os.W_OK) else Path.cwd()


HOME = find_home()
if os.path.expanduser("~") == "~":  # noqa: PTH111  a number without a name, as in a container
    os.environ["HOME"] = str(HOME)  # MLflow and Matplotlib ask for it


def replace_home(node: Any) -> Any:
    """Plain containers for a record: in each text, HOME as HOME_WORD where a path begins with it.

    So they stay valid when HOME is moved or copied; `restore_home` is the way back.
    """
    path = rf"(^|[\s=,:'\"\[({{]){re.escape(str(HOME))}(?=$|[/\s,'\"\])}}])"
    return map_texts(node, lambda text: re.sub(path, lambda m: m[1] + HOME_WORD, text))


def restore_home(node: Any, word: str = HOME_WORD) -> Any:
    """Plain containers from a record, with today's HOME. word: what stands for it there."""
    return map_texts(node, lambda text: text.replace(word, str(HOME)))


def map_texts(node: Any, change: Callable[[str], str]) -> Any:
    """A copy of plain containers with each text changed."""
    if isinstance(node, Mapping):
        return {key: map_texts(value, change) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [map_texts(value, change) for value in node]
    return change(node) if isinstance(node, str) else node


def shorten_path(path: Path) -> str:
    """The path relative to HOME, with which it may move; absolute for one that is elsewhere."""
    return str(path.relative_to(HOME) if path.is_relative_to(HOME) else path)


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
