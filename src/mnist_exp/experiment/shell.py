"""Commands that a person can paste into a shell, from where they are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from mnist_exp.paths import REPOSITORY, config_dirs


def shown(folder: Path) -> str:
    """The folder as a person would type it from where they are."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def resume_command(folder: Path, *more: str) -> str:
    """What resumes the run in this folder, to be typed from where the person is."""
    return command(f"resume={typed_as(folder)}", *more)


def typed_as(folder: Path) -> str:
    """The folder as a person would type it for a value, so that Hydra reads it so, too."""
    value = shown(folder)
    return value if re.fullmatch(r"/?[\w.-]+(/[\w.-]+)+", value, re.ASCII) else quoted(value)


def command(*arguments: str) -> str:
    """What runs train.py with these arguments, to be pasted into a shell."""
    own = [word for folder in config_dirs[1:] for word in ("--config-dir", shown(folder))]
    return shlex.join(["python", shown(REPOSITORY / "train.py"), *own, *arguments])


def quoted(value: str) -> str:
    """A string that Hydra reads as this one, whatever is in it."""
    doubled = re.sub(r"(\\+)(?='|\Z)", r"\1\1", value)  # elsewhere a backslash is itself
    return "'" + doubled.replace("'", "\\'") + "'"
