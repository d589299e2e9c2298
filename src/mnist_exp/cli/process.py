"""How the process of a script ends."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from traceback import format_exception
from typing import Any, NoReturn

from mnist_exp.errors import Failure, Formatter, sanitize_lines
from mnist_exp.experiment.signals import raise_on_signal, reset_signals
from mnist_exp.training.torchrun import is_distributed, is_torchrun

if logging.lastResort:  # prints warnings where no handler has been set up
    logging.lastResort.setFormatter(Formatter())


def run_and_exit(command: Callable[[], int]) -> NoReturn:
    """Run the command, then exit with the code that it returns.

    With 2 for bad input, 1 for a failure, 128 + N for signal N instead. Like any script it raises
    SystemExit, so that a notebook, a debugger or a profiler around it goes on.
    """
    sys.excepthook = print_traceback
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal may lack letters of a name
        sys.stdout.reconfigure(errors="backslashreplace")
    atexit.register(hurry)
    try:
        with raise_on_signal():
            code = command()
            sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        code = getattr(interrupt, "exit_code", 130)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (Failure, OSError) as error:
        print(sanitize_lines(f"error: {error}"), file=sys.stderr)
        code = exit_code(error)
    if is_distributed() or is_torchrun():  # threads of torch's store can abort a usual exit
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def exit_code(error: Exception) -> int:
    return error.exit_code if isinstance(error, Failure) else 1


def print_traceback(*error: Any) -> None:
    """Print the traceback of an uncaught error, sanitized."""
    print(sanitize_lines("".join(format_exception(*error))), end="", file=sys.stderr)


def hurry() -> None:
    """Let the interpreter end without a search for garbage, and by any signal.

    With torch loaded that search takes a second, and the memory is freed anyway. Libraries made
    with nanobind, as Triton is from 3.9 on, print what was not freed, so with them it takes 0.6 s.
    """
    reset_signals()
    gc.disable()
    if not any(kind.__module__ == "nanobind" for kind in object.__subclasses__()):
        gc.freeze()
