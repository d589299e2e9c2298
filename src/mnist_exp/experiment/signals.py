"""Ctrl-C and SIGTERM (what Slurm sends before it preempts): the step in hand ends, then the run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONE_SIGNAL = 0.2  # seconds in which a repetition is not meant as a second one


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)  # an argument, so that it can be pickled on its way from a worker
        self.exit_code = 128 + number


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may, and only it is interrupted
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def end_at_once() -> None:
    """The next signal ends the process, even while C code waits for a database."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def end_at_next() -> None:
    """The same once this signal is over: Slurm sends each twice, to the job and to its step."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    time.sleep(ONE_SIGNAL)
    end_at_once()


@contextmanager
def raising() -> Iterator[None]:
    """A signal raises Interrupted wherever the code is; a second one ends the process at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        end_at_next()
        raise Interrupted(number)

    with _handled_by(interrupt):
        yield


@contextmanager
def deferred() -> Iterator[Callable[..., None]]:
    """A signal raises Interrupted when the yielded function is next called, at the latest at the
    end; a second one ends the process at once.

    The function may be given another, by which several processes agree on the signal's number.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        end_at_next()
        received.append(number)

    def check(agree: Callable[[int], int] = lambda number: number) -> None:
        if number := agree(received[0] if received else 0):
            raise Interrupted(number)

    with _handled_by(note):
        yield check
    check()
