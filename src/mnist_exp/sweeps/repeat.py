"""What a sweep does again and again while its jobs run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeat(seconds: float, call: Callable[[], object]) -> Iterator[None]:
    """Make this call every so many seconds, in a thread, until the block ends."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
