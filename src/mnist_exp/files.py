"""Replace files atomically, lock folders, and refuse paths that are not files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mnist_exp.errors import Failure

TEMPORARY = ".new."
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class Occupied(Failure):
    """Another process works in the folder."""


class NotAFile(OSError):
    """The path is a folder, a pipe, a socket or a device, which may never end."""


def check_file(path: Path) -> None:
    """Raise NotAFile for a folder, a pipe, a socket or a device, and OSError as `stat` does."""
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:
        raise NotAFile(f"{KINDS.get(kind, 'a device')}, not a file")


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, then flush it to disk and rename it to `path`.

    A reader sees the old file or the new one, never a part. If the block raises, the old file stays
    and the temporary one is removed.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")
    try:
        yield temporary
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path, half_written: str = f"**/.*{TEMPORARY}*") -> Iterator[None]:
    """Keep other processes out of the folder, and remove what a killed one left half written.

    half_written: the pattern of those files. Raises Occupied at once if another process is in the
    folder.
    """
    try:
        with FileLock(folder / ".lock", timeout=0):
            for temporary in folder.glob(half_written):
                temporary.unlink()
            yield
    except Timeout:
        raise Occupied(f"{folder}: another process is at work on it") from None
