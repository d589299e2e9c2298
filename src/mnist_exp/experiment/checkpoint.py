"""Checkpoints: a run's config and state in one file, which is complete or absent.

Its content is plain: what the run is ("name", "key", "tags", "parent", "data", "tested", "ended"),
its "config", the "state" of the training, and "format" and "version" of what wrote it.
"""

from __future__ import annotations

import io
import pickle
import textwrap
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mnist_exp import __version__
from mnist_exp.errors import Failure, first_line, one_line
from mnist_exp.experiment.renamed import find_old_home
from mnist_exp.files import check_file, replace_file, sync
from mnist_exp.paths import BEST, LAST, restore_home

FORMAT = 4  # increased when an older reader would misread a newer file
STATE_OF_FORMAT_1 = ("model", "average", "optimizer", "scheduler", "scaler", "progress", "random")


class CheckpointError(Failure):
    """A checkpoint cannot be read or written."""


class LostCheckpoint(CheckpointError):
    """The file is absent, empty, cut short or altered."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write numbers, strings and tensors to `path`; a reader sees the old file or the new one.

    Raises CheckpointError if it cannot be written; then the old file is untouched.
    """
    content = {"format": FORMAT, "version": __version__, **content}
    try:
        if not path.parent.exists():
            path.parent.mkdir()
            sync(path.parent.parent)
        with replace_file(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch hides it
        if not isinstance(cause, OSError):
            raise
        size = Size()
        torch.save(content, size)
        raise CheckpointError(
            f"{path}: a checkpoint of {size.bytes / 1e6:.1f} MB could not be written "
            f"({cause.strerror}); the previous one is intact"
        ) from error


class Size(io.BytesIO):
    """Counts the bytes that are written to it, and forgets them."""

    bytes = 0

    def write(self, data: Any) -> int:
        self.bytes += len(data)
        return len(data)


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, its tensors on the CPU. Nothing in the file can run code.

    Raises CheckpointError for a file that is absent, damaged, foreign, of a newer format, or that
    contains anything but numbers, strings and tensors.
    """
    return upgrade(read(path), path)


def read(path: Path) -> Any:
    """Read what torch.save wrote, in the same way. Raises CheckpointError, as `load` does."""
    records = read_and_check(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about what it then refuses
            return torch.load(records, weights_only=True, map_location="cpu")
    except Exception as error:  # a foreign file can make the reader raise anything
        reason = first_line(error).partition(". ")[0]  # torch adds advice
        if isinstance(error, pickle.UnpicklingError):  # to let the file run its code
            reason = "it contains more than numbers, strings and tensors"
        raise CheckpointError(f"{path}: unreadable checkpoint ({reason})") from None


def upgrade(content: Any, path: Path) -> dict[str, Any]:
    """A checkpoint's content as FORMAT has it.

    Raises CheckpointError for another file's content, and for a newer format.
    """
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise foreign(path)
    if content["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: format {content['format']} is newer than this code, which reads {FORMAT}"
        )
    if content["format"] == 1:
        state = {key: content[key] for key in STATE_OF_FORMAT_1 if key in content}
        state["ema"] = state.pop("average", None)
        rest = {key: value for key, value in content.items() if key not in STATE_OF_FORMAT_1}
        content = {**rest, "version": "0.1.0", "state": state}
    if content["format"] < 4 and (old := find_old_home(content.get("config"))):
        content = {**content, "config": restore_home(content["config"], old)}
    return content


def read_and_check(path: Path) -> io.BytesIO:
    """A copy of the archive that torch.save wrote, after a check of the CRC-32 of each record.

    torch checks no CRC-32, and can read other bytes than zipfile checked: one flipped bit marks a
    record as a folder, for which torch returns whatever was in memory. So torch gets the checked
    bytes. A copy of 200 MB takes a third of a second.

    Raises LostCheckpoint, and CheckpointError for a file of another kind.
    """
    copy = io.BytesIO()
    try:
        check_file(path)
        with path.open("rb") as file:
            if (start := file.read(4)) != b"PK\3\4":
                if not start.strip(b"\0"):  # as some file systems leave it after a power cut
                    raise zipfile.BadZipFile("it is empty")
                raise foreign(path)
            with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as checked:
                entries, names = archive.infolist(), archive.namelist()
                stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
                if not stored or not any(name.endswith("/data.pkl") for name in names):
                    raise foreign(path)  # torch.save compresses nothing
                if sum(entry.file_size for entry in entries) > file.seek(0, io.SEEK_END):
                    raise zipfile.BadZipFile("its records overlap")
                if len(set(names)) < len(names):
                    raise zipfile.BadZipFile("two records have the same name")
                for entry in entries:
                    checked.writestr(zipfile.ZipInfo(entry.filename), archive.read(entry))
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise LostCheckpoint(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # a damaged archive can make zipfile raise anything
        raise LostCheckpoint(
            f"{path}: the checkpoint is damaged ({one_line(error)}); restore it from a copy, "
            f"or use {BEST.name} or {LAST.name} beside it"
        ) from None
    copy.seek(0)
    return copy


def foreign(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: not a checkpoint of this project; a run keeps its own in {LAST.parent}/"
    )


def peek(path: Path) -> dict[str, Any]:
    """What `load` returns, without the tensors: it takes a millisecond, however large the file is.

    Nothing in the file can run code. Raises CheckpointError.
    """
    try:
        check_file(path)
        with zipfile.ZipFile(path) as archive:
            (entry,) = (e for e in archive.infolist() if e.filename.endswith("/data.pkl"))
            if entry.compress_type != zipfile.ZIP_STORED:  # torch.save compresses nothing
                raise foreign(path)
            content = TensorsIgnored(io.BytesIO(archive.read(entry))).load()
    except Exception as error:  # a foreign file can make the reader raise anything
        raise CheckpointError(f"{path}: not a checkpoint ({first_line(error)})") from None
    return upgrade(content, path)


class Ignored(dict[Any, Any]):
    """Takes the place of a tensor, and of a mapping of tensors."""

    def __init__(self, *arguments: object) -> None:
        pass


class TensorsIgnored(pickle.Unpickler):
    """An unpickler that imports nothing: everything that a pickle names is Ignored."""

    def find_class(self, module: str, name: str) -> Any:
        return Ignored

    def persistent_load(self, storage: object) -> None:
        """Leave the values of a tensor in the file."""


@contextmanager
def raise_misfits(source: object) -> Iterator[None]:
    """Raise CheckpointError, which names the source, for a state or a config that does not fit.

    Such errors are of many kinds; those about a file or a person's input pass through.
    """
    try:
        yield
    except (Failure, OSError):
        raise
    except Exception as error:
        reason = textwrap.shorten(one_line(error), 300, placeholder=" …")  # torch's are long
        raise CheckpointError(
            f"{source}: does not fit this code ({type(error).__name__}: {reason})"
        ) from error
