"""Signals that end a run after its current step: from a person, a closing terminal, or Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing import parent_process
from types import FrameType

SIGHUP, *USER = (getattr(signal, name, None) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"))
SIGNALS = [  # under nohup SIGHUP stays ignored
    *(signal.SIGINT, signal.SIGTERM),
    *(n for n in (SIGHUP, *USER) if n and signal.getsignal(n) is not signal.SIG_IGN),
]
ONE_SIGNAL = 0.2  # seconds; a repetition within this time is the same signal


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)  # so that it can be pickled in a worker process
        self.number, self.exit_code = number, 128 + number


def reset_signals() -> None:
    """Let the next signal end the process, even while C code waits for a database."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def close_terminal() -> None:
    """Discard output if its terminal has closed: writing to that would be an error."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


@contextmanager
def _handle_by(receive: Callable[[int], object], numbers: Sequence[int]) -> Iterator[None]:
    """Call `receive` with the number of a signal; the second one ends the process at once.

    In a job of a local sweep the second one is ignored: it ends with the sweep's process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals only reach the main thread
        return

    def handle(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:  # Slurm sends each one twice, to the job and to its step
            signal.signal(each, signal.SIG_IGN)
        time.sleep(ONE_SIGNAL)
        if not is_job:
            reset_signals()
        if SIGHUP:
            signal.signal(SIGHUP, signal.SIG_IGN)  # a terminal that closes can send several
            close_terminal()
        receive(number)

    is_job = parent_process() is not None  # gets a signal from the terminal and from its sweep
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            if not (is_job and signal.getsignal(number) is signal.SIG_IGN):
                signal.signal(number, previous)


@contextmanager
def raise_on_signal(numbers: Sequence[int] = SIGNALS) -> Iterator[None]:
    """Raise Interrupted at a signal, wherever the code is; the second ends the process at once."""

    def interrupt(number: int) -> None:
        raise Interrupted(number)

    with _handle_by(interrupt, numbers):
        yield


def raise_on_ctrl_c() -> AbstractContextManager[None]:
    """Raise Interrupted at Ctrl-C, unless it is ignored."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return raise_on_signal(() if ignored else (signal.SIGINT,))


@contextmanager
def defer_signals() -> Iterator[Callable[..., None]]:
    """Raise Interrupted when the yielded function is next called after a signal, or at the end.

    A second signal ends the process at once. The function takes another one, by which several
    processes agree on the signal's number.
    """
    received: list[int] = []

    def check(agree: Callable[[int], int] = lambda number: number) -> None:
        if number := agree(received[0] if received else 0):
            raise Interrupted(number)

    with _handle_by(received.append, SIGNALS):
        yield check
    check()


@contextmanager
def call_launcher() -> Iterator[None]:
    """After Interrupted, call the handler that a launcher had set for the signal.

    submitit's requeues the job in Slurm and exits. If Slurm refuses, because it has requeued the
    job itself or never does, the job ends without a result, and its state in the queue decides.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    except Interrupted as interrupt:
        handler = before.get(interrupt.number)
        if callable(handler) and handler.__module__ not in (__name__, "_signal"):
            with suppress(subprocess.SubprocessError):
                handler(interrupt.number, None)
        raise
