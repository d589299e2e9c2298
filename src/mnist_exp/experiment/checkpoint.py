"""Checkpoints: all that the next step depends on, in one file that is whole or not there."""

from __future__ import annotations

import io
import pickle
import random
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from omegaconf.errors import OmegaConfBaseException
from torch.optim import Optimizer

from mnist_exp.errors import Failure, first_line, one_line
from mnist_exp.files import check_file, replacing
from mnist_exp.paths import BEST, LAST

FORMAT = 1  # raised when an older reader would misread a newer file


class CheckpointError(Failure):
    """A checkpoint that cannot be read, or not be written."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write numbers, strings and tensors to `path`, replacing what was there at once.

    Serialised in memory first, which costs the checkpoint's size, to know how much room it needs.
    Raises CheckpointError when it cannot be written; the file that was there is untouched.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    size = buffer.tell() / 1e6
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary, buffer.getbuffer() as content:
            temporary.write_bytes(content)
    except OSError as error:
        raise CheckpointError(
            f"{path}: a checkpoint of {size:.1f} MB could not be written ({error.strerror}); "
            "the one before it is whole"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, its tensors on the CPU. Nothing in the file can run code.

    Raises CheckpointError for a file that is absent, damaged, foreign, of a newer format, or that
    asks for anything but numbers, strings and tensors.
    """
    records = read_checked(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of what it then refuses
            state = torch.load(records, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:  # torch's message advises to let the file run its code
        reason = "it holds other things than numbers, strings and tensors"
        raise CheckpointError(f"{path}: not a checkpoint that can be read ({reason})") from None
    except Exception as error:  # a foreign file can make the reader raise anything
        reason = first_line(error).partition(". ")[0]  # torch adds advice
        raise CheckpointError(f"{path}: not a checkpoint that can be read ({reason})") from None
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise foreign(path)
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: of format {state['format']}, newer than this code, which reads {FORMAT}"
        )
    return state


def read_checked(path: Path) -> io.BytesIO:
    """The archive that torch.save wrote, with the CRC-32 of each record checked.

    Raises CheckpointError for a file that is absent, damaged, or not such an archive.
    """
    try:
        check_file(path)
        file = path.open("rb")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    with file:
        if file.read(4) != b"PK\3\4":
            raise foreign(path)
        try:
            copy = copy_checked(file)
        except Exception as error:  # a damaged archive can make zipfile raise anything
            raise CheckpointError(
                f"{path}: the checkpoint is damaged ({one_line(error)}); restore it from a copy, "
                f"or use {BEST.name} or {LAST.name} beside it"
            ) from None
    if copy is None:
        raise foreign(path)
    return copy


def copy_checked(file: BinaryIO) -> io.BytesIO | None:
    """A copy of the archive in `file`, in memory; None where torch.save did not write it.

    torch checks no CRC-32, and can read other bytes than zipfile has checked: one flipped bit marks
    a record as a folder, for which torch returns whatever the memory held. So it gets the checked
    bytes. A copy of 200 MB costs a third of a second. Raises BadZipFile and others.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as checked:
        entries, names = archive.infolist(), archive.namelist()
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or not any(name.endswith("/data.pkl") for name in names):
            return None  # torch.save compresses nothing
        if sum(entry.file_size for entry in entries) > file.seek(0, io.SEEK_END):
            raise zipfile.BadZipFile("its records overlap")
        if len(set(names)) < len(names):
            raise zipfile.BadZipFile("two records have one name")
        for entry in entries:
            checked.writestr(zipfile.ZipInfo(entry.filename), archive.read(entry))
    copy.seek(0)
    return copy


def foreign(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: not a checkpoint of this project; a run's are in its folder {LAST.parent}/"
    )


def peek(path: Path) -> dict[str, Any]:
    """What `load` gives, without the tensors: a file takes a millisecond, whatever its size.

    Nothing in the file can run code. Raises CheckpointError.
    """
    try:
        check_file(path)
        with zipfile.ZipFile(path) as archive:
            (entry,) = (e for e in archive.infolist() if e.filename.endswith("/data.pkl"))
            if entry.compress_type != zipfile.ZIP_STORED:  # torch.save compresses nothing
                raise foreign(path)
            state = TensorsIgnored(io.BytesIO(archive.read(entry))).load()
    except Exception as error:  # a foreign file can make the reader raise anything
        raise CheckpointError(f"{path}: not a checkpoint ({first_line(error)})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT}")
    return state


class Ignored(dict[Any, Any]):
    """What stands for a tensor, and for a mapping of tensors."""

    def __init__(self, *arguments: object) -> None:
        pass


class TensorsIgnored(pickle.Unpickler):
    """An unpickler that imports nothing: whatever a pickle names is Ignored."""

    def find_class(self, module: str, name: str) -> Any:
        return Ignored

    def persistent_load(self, storage: object) -> None:
        """A tensor's values stay in the file."""


# What taking up values of another kind, size or shape can raise.
MISFITS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OmegaConfBaseException,
    RuntimeError,
    TypeError,
    ValueError,
)


@contextmanager
def fitting(source: object) -> Iterator[None]:
    """Raise CheckpointError, which names the source, for what a state or a config that this code
    did not write can raise.
    """
    try:
        yield
    except MISFITS as error:
        raise CheckpointError(
            f"{source}: does not fit this code ({type(error).__name__}: {first_line(error)})"
        ) from error


def check_like(found: Any, expected: Any, where: str) -> None:
    """Raise ValueError for the first place where `found` has not the keys and shapes of `expected`.

    Numbers may be others; what they may be is not known here.
    """
    if isinstance(expected, torch.Tensor):
        shape = getattr(found, "shape", type(found).__name__)
        if shape != expected.shape:
            raise ValueError(f"{where}: {shape}, not {expected.shape}")
    elif isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            keys = list(found) if isinstance(found, dict) else type(found).__name__
            raise ValueError(f"{where}: {keys}, not {list(expected)}")
        for key in expected:
            check_like(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            raise ValueError(f"{where}: {found}, not {expected}")
        for number, pair in enumerate(zip(found, expected, strict=True)):
            check_like(*pair, f"{where}.{number}")
    elif kind(found) is not kind(expected):
        raise ValueError(f"{where}: {found!r}, not {expected!r}")


def kind(value: Any) -> type:
    return float if isinstance(value, int | float) else type(value)


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take up what a checkpoint has. It moves the parameters, which are to be loaded afterwards.

    Raises ValueError for a state of other shapes, which no optimizer looks at itself. What shapes
    there should be a step shows, of those parameters that have a state: an unused or frozen one has
    none.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number in state["state"]:  # none before the first step
        parameters[number].grad = torch.zeros_like(parameters[number])
    if state["state"]:
        optimizer.step()
        optimizer.zero_grad()
    check_like(state, optimizer.state_dict(), "optimizer")
    optimizer.load_state_dict(state)


def random_states() -> dict[str, Any]:
    """The states of all global random generators, as numbers and tensors."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put all global random generators where they were."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(states["numpy"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
