"""Errors in code that a person wrote: what to show of them in one line."""

from __future__ import annotations

import os
from pathlib import Path
from traceback import FrameSummary, extract_tb

from mnist_exp.errors import Failure, one_line
from mnist_exp.experiment.shell import show_path
from mnist_exp.paths import PACKAGE

STANDARD_LIBRARY = Path(os.__file__).parent


def describe_error(error: BaseException) -> str:
    """The error in one line; one that is no Failure with its type and place."""
    if isinstance(error, Failure | OSError):
        return one_line(error)
    name, message = type(error).__name__, one_line(error)
    place = find_place(error)
    return (name if message == name else f"{name}: {message}") + (f" ({place})" if place else "")


def find_place(error: BaseException, caller: str = "") -> str:
    """file:line of the deepest frame in this package or in a person's code; "" without one.

    caller: a file of this package that only calls what a person wrote.
    """
    own = [frame for frame in extract_tb(error.__traceback__) if is_own(frame)]
    if not own or own[-1].filename == caller:
        return ""
    return f"{show_path(Path(own[-1].filename))}:{own[-1].lineno}"


def is_deliberate(error: BaseException) -> bool:
    """Whether a `raise` in such code raised it, and not Python or a library below it."""
    frame = extract_tb(error.__traceback__)[-1]
    return is_own(frame) and (frame.line or "").startswith("raise ")


def is_own(frame: FrameSummary) -> bool:
    path = Path(frame.filename)
    if path.is_relative_to(PACKAGE):
        return True
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return path.is_absolute() and not installed and not path.is_relative_to(STANDARD_LIBRARY)
