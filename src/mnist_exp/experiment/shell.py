"""Commands that a person can paste into a shell, from where they are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from mnist_exp.paths import IS_INSTALLED, REPOSITORY, config_dirs


def show_path(path: Path) -> str:
    """The path as a person would type it from where they are."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def quote_path(path: Path) -> str:
    """The same as the value of an override, quoted where Hydra's grammar needs it."""
    value = show_path(path)
    return value if re.fullmatch(r"/?[\w.-]+(/[\w.-]+)+", value, re.ASCII) else quote(value)


def quote(value: str) -> str:
    """A string that Hydra's grammar reads as this one, whatever is in it."""
    doubled = re.sub(r"(\\+)(?='|\Z)", r"\1\1", value)  # elsewhere a backslash is literal
    return "'" + doubled.replace("'", "\\'") + "'"


def train_command(*arguments: str) -> str:
    """The shell command that trains with these arguments."""
    own = [word for folder in config_dirs[1:] for word in ("--config-dir", show_path(folder))]
    script = ["mnist-exp"] if IS_INSTALLED else ["python", show_path(REPOSITORY / "train.py")]
    return shlex.join([*script, *own, *arguments])


def name_commands(text: str) -> str:
    """The text, with its commands as an installed package has them, where there are no scripts."""
    return re.sub(r"python (\w+)\.py", r"mnist-exp \1", text) if IS_INSTALLED else text


def resume_command(folder: Path, *more: str) -> str:
    """The shell command that resumes the run in this folder."""
    return train_command(f"resume={quote_path(folder)}", *more)
