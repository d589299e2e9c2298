"""Replace files atomically, lock files and folders, and refuse paths that are not files."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from mnist_exp.errors import Failure

log = logging.getLogger(__name__)

TEMPORARY = ".new."
LOCK = ".lock"  # of a folder
LOOK_SECONDS = 1  # another process may only be checking for a moment whether somebody is at work
NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # some file systems of clusters
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class Occupied(Failure):
    """Another process is working in the folder."""


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

    A reader sees the old file or the new one, never a part, even after a power cut; once the block
    has ended, it is the new one. If the block raises, the old file stays and the temporary one is
    removed.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)  # the name
    finally:
        temporary.unlink(missing_ok=True)


def link_file(path: Path, name: Path) -> None:
    """Let `name` be the same file as `path`, or a copy where the file system has no links."""
    with replace_file(name) as temporary:
        try:
            temporary.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, temporary)


def sync(*paths: Path) -> None:
    """Flush files to disk, and the names in folders; takes some milliseconds each."""
    for path in paths:
        if not path.is_dir():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
            continue
        with suppress(OSError):  # not every system can, and some parents cannot be read
            folder = os.open(path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


@contextmanager
def pin(path: Path) -> Iterator[Path]:
    """A file of the same name that keeps its content while `path` is replaced."""
    pinned = path.parent / ".upload" / path.name
    pinned.parent.mkdir(exist_ok=True)
    link_file(path, pinned)
    try:
        yield pinned
    finally:
        pinned.unlink()
        with suppress(OSError):
            pinned.parent.rmdir()


@contextmanager
def lock_file(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock at `path`, which ends with this process, however that ends.

    Where the file system has no flock, the file `path`.pid names the process that holds the lock. A
    lock of a process that was killed is void, but only on its own machine: no other one can tell.

    timeout: seconds to wait; by default forever. Raises Timeout.
    """
    lock: BaseFileLock = FileLock(path, timeout, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        owner = pid_file(path)
        lock = SoftFileLock(owner, 60 if timeout < 0 else max(timeout, 1))
        while not lock.is_locked:
            try:
                lock.acquire()
            except Timeout:
                if timeout >= 0:
                    raise
                log.warning("waiting for the process in %s; if there is none, remove it", owner)
    try:
        yield
    finally:
        lock.release()


def pid_file(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.pid")


def is_occupied(folder: Path) -> bool:
    """Whether another process is at work in the folder."""
    try:
        with lock_file(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def replace_csv(path: Path) -> Iterator[TextIO]:
    """The same for a CSV file, in UTF-8: other bytes in a name become escapes."""
    with (
        replace_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        yield file


@contextmanager
def lock_folder(folder: Path, half_written: str = f"**/.*{TEMPORARY}*") -> Iterator[None]:
    """Keep other processes out of the folder, and remove what a killed one left half written.

    The folder itself then survives a power cut. half_written: the pattern of those files. Raises
    Occupied in LOOK_SECONDS if another process is in the folder.
    """
    lock = folder / LOCK
    try:
        with lock_file(lock, LOOK_SECONDS):
            sync(*folder.parents)
            for temporary in folder.glob(half_written):
                temporary.unlink()
            yield
    except Timeout:
        owner = pid_file(lock)
        advice = f"; if there is none, remove {owner}" if owner.exists() else ""
        raise Occupied(f"{folder}: another process is at work on it{advice}") from None
