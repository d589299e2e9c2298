"""How the process of a script ends."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable
from traceback import format_exception
from typing import Any, NoReturn

from mnist_exp.errors import Failure, Formatter, sanitize_lines
from mnist_exp.experiment.signals import raise_on_signal, reset_signals


def print_traceback(*error: Any) -> None:
    """Print the traceback of an uncaught error, sanitized."""
    print(sanitize_lines("".join(format_exception(*error))), end="", file=sys.stderr)


sys.excepthook = print_traceback
if logging.lastResort:  # prints warnings where no handler has been set up
    logging.lastResort.setFormatter(Formatter())


def run_and_exit(command: Callable[[], int]) -> NoReturn:
    """Run the command, then end the process with the exit code that it returns.

    With 2 for bad input, 1 for a failure, 130 for Ctrl-C and 143 for SIGTERM instead.
    """
    try:
        with raise_on_signal():
            code = command()
            sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        exit_now("", getattr(interrupt, "exit_code", 130))
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_now("", 1)
    except (Failure, OSError) as error:
        exit_now(f"error: {error}", exit_code(error))
    exit_now("", code)


def exit_code(error: Exception) -> int:
    return error.exit_code if isinstance(error, Failure) else 1


def exit_now(message: str, code: int) -> NoReturn:
    """End the process without tearing the interpreter down.

    With torch and MLflow loaded that takes one to four seconds and only frees memory.
    """
    reset_signals()
    if message:
        print(sanitize_lines(message), file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
