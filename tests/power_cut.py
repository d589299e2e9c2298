"""What a disk can hold after a power cut, from the record of power_cut.c.

It keeps what POSIX promises and no more. A file's contents are safe once the file was flushed, and
its name once its folder was. What was not flushed is there, or not, or partly: of each folder, the
first names that were changed; of each file, the first writes, the last of them torn, or zeros.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

HEAD = struct.Struct("=5Q")
SOURCE = Path(__file__).with_suffix(".c")


class Event(NamedTuple):
    """A call that has succeeded: what it did, to which inode or path."""

    op: str  # create, truncate, write, sync a file; rename, link, unlink, mkdir, directory sync
    inode: int
    offset: int
    path: Path
    data: bytes  # written, or the second path


@dataclass
class File:
    """A file's contents, and of them what has been flushed."""

    safe: bytes = b""
    writes: list[tuple[int, bytes | None]] = field(default_factory=list)  # since; None: truncated

    def read(self, count: int | None = None) -> bytearray:
        """Its contents after so many writes since the last flush, or all."""
        content = bytearray(self.safe)
        for offset, data in self.writes[:count]:
            if data is None:
                content[offset:] = bytes(max(0, offset - len(content)))
            else:
                content.extend(bytes(max(0, offset - len(content))))
                content[offset : offset + len(data)] = data
        return content

    def cut(self, draw: random.Random) -> bytes:
        """What a power cut leaves of it."""
        if not self.writes:
            return self.safe
        count = draw.randrange(len(self.writes))
        offset, data = self.writes[count]
        torn = data and data[: draw.randint(0, len(data))]
        content = File(bytes(self.read(count)), [(offset, torn)]).read()
        if draw.random() < 0.2:  # the size was on disk before the contents
            content = content[: len(self.safe)] + bytes(len(content[len(self.safe) :]))
        return bytes(content)


@dataclass
class Folder:
    """A folder's names, and of them what has been flushed."""

    safe: dict[str, File | Folder] = field(default_factory=dict)
    names: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[dict[str, File | Folder]] = field(default_factory=list)  # the names after each

    def change(self, **changed: File | Folder | None) -> None:
        names = {**self.names, **changed}
        self.names = {name: entry for name, entry in names.items() if entry is not None}
        self.changes.append(self.names)

    def write(self, path: Path, draw: random.Random | None) -> None:
        """Make the folder as it is, or as a power cut leaves it."""
        path.mkdir()
        names = draw.choice([self.safe, *self.changes]) if draw else self.names
        for name, entry in names.items():
            if isinstance(entry, Folder):
                entry.write(path / name, draw)
            else:
                (path / name).write_bytes(entry.cut(draw) if draw else entry.read())


class Disk:
    """The folder `root` after these events, before which it was empty and safe."""

    def __init__(self, root: Path, events: Iterable[Event]) -> None:
        self.root, self.top = root, Folder()
        self.files: dict[int, File] = {}  # by inode
        for event in events:
            self.apply(event)

    def write(self, target: Path, draw: random.Random | None = None) -> None:
        """Make `target` as the folder is, or as a power cut leaves it."""
        shutil.rmtree(target, ignore_errors=True)
        self.top.write(target, draw)

    def find(self, path: Path) -> Folder:
        folder = self.top
        for name in path.relative_to(self.root).parts:
            found = folder.names[name]
            assert isinstance(found, Folder)
            folder = found
        return folder

    def apply(self, event: Event) -> None:
        op, path, other = event.op, event.path, Path(os.fsdecode(event.data))
        if op == "c":
            self.files[event.inode] = File()
            self.find(path.parent).change(**{path.name: self.files[event.inode]})
        elif op == "w":
            self.files[event.inode].writes.append((event.offset, event.data))
        elif op == "t":
            self.files[event.inode].writes.append((event.offset, None))
        elif op == "s":
            file = self.files[event.inode]
            file.safe, file.writes = bytes(file.read()), []
        elif op == "d":
            folder = self.find(path)
            folder.safe, folder.changes = folder.names, []
        elif op == "m" and path != self.root:
            self.find(path.parent).change(**{path.name: Folder()})
        elif op == "u":
            self.find(path.parent).change(**{path.name: None})
        elif op == "l":
            self.find(other.parent).change(**{other.name: self.find(path.parent).names[path.name]})
        elif op == "r":
            assert path.parent == other.parent
            entry = self.find(path.parent).names[path.name]
            self.find(path.parent).change(**{other.name: entry, path.name: None})


def compile_recorder(folder: Path) -> dict[str, str]:
    """The environment in which a process is recorded: POWER_ROOT and POWER_LOG say what, where."""
    library = folder / "power_cut.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return {"LD_PRELOAD": str(library), "POWER_LOG": str(folder / "power.log")}


def read_events(log: Path) -> Iterator[Event]:
    content, at = log.read_bytes(), 0
    while at < len(content):
        op, inode, offset, path, data = HEAD.unpack_from(content, at)
        end = at + HEAD.size + path
        name = os.fsdecode(content[at + HEAD.size : end])
        yield Event(chr(op & 255), inode, offset, Path(name), content[end : end + data])
        at = end + data
