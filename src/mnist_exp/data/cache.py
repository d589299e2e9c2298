"""Cache of decoded sets on disk, verified each time they are loaded.

A set is a folder with one .npy file of unsigned bytes per array, and a record of their checksums:
the SHA-256 of each array as an IDX file, the form in which MNIST was published.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnist_exp.data.splits import ArrayFile
from mnist_exp.errors import Failure
from mnist_exp.files import check_file, lock_file, replace_file

RECORD = "record.json"
OWN_SUM = "sha256"  # in a record: of everything else in it

Files = dict[str, bytes]  # file name → its uncompressed bytes
Arrays = dict[str, NDArray[np.uint8]]
Record = dict[str, Any]  # what is known of a cached set; "sums": of its arrays


class DataError(Failure):
    """Data that is missing, or not what it should be."""


# --- IDX, the file format of MNIST: a big-endian header, then unsigned bytes ---


def idx_header(shape: tuple[int, ...]) -> bytes:
    """The header of an IDX file of unsigned bytes (type 8)."""
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


def idx_encode(array: NDArray[np.uint8]) -> bytes:
    return idx_header(array.shape) + array.tobytes()


def idx_decode(raw: bytes) -> NDArray[np.uint8]:
    """The array in an IDX file whose checksum was verified."""
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


# --- checksums ---


def verify(raw: bytes, expected: str, what: str, remedy: str = "") -> None:
    """Raise DataError unless the bytes have this checksum, MD5 or SHA-256 by its length.

    what: the bytes' name in the message.
    """
    name, of = ("MD5", "") if len(expected) == 32 else ("SHA-256", " of the uncompressed bytes")
    found = hashlib.new(name.replace("-", ""), raw, usedforsecurity=False).hexdigest()
    if found != expected:
        raise DataError(
            f"{what} is not the published data "
            f"({name}{of}: expected {expected}, found {found}){remedy}"
        )


def read(path: Path, expected: str, packed: bool = False) -> bytes:
    """The verified bytes of a published file, unzipped if it is packed. Raises DataError."""
    raw = path.read_bytes()
    if packed:
        raw = unzip(raw)
    verify(raw, expected, str(path), "; delete or replace it")
    return raw


def hash_array(array: NDArray[np.uint8] | ArrayFile) -> str:
    """SHA-256 of an array as an IDX file."""
    shape = array.raw_shape if isinstance(array, ArrayFile) else array.shape
    found = hashlib.sha256(idx_header(shape))
    for block in array.blocks() if isinstance(array, ArrayFile) else [array.data]:
        found.update(block)
    return found.hexdigest()


def hash_text(text: str) -> str:
    """SHA-256 of a text, which may have the surrogate escapes of a path."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def unzip(packed: bytes) -> bytes:
    """gzip.decompress, but a truncated or damaged file gives what is left of it, to be hashed."""
    stream, raw = zlib.decompressobj(wbits=31), bytearray()
    with suppress(zlib.error):
        for start in range(0, len(packed), 2**16):
            raw += stream.decompress(packed[start : start + 2**16])
    return bytes(raw)


# --- the cache ---


def load_or_make(
    folder: Path, key: str, make: Callable[[], Arrays], memory_limit: float = math.inf
) -> dict[str, Any]:
    """The arrays of a cached set by name; `make` provides them if the cache lacks any.

    Hashing all of MNIST costs 0.03 to 0.2 seconds at each start, and ensures that no run trains on
    a damaged cache. Raises DataError for a cache that is damaged or cannot be written, and what
    `make` raises. memory_limit: see `load`.
    """
    record = ensure_record(folder, key, lambda: save(folder, make()))
    return load(folder, record["sums"], memory_limit)


def save(folder: Path, arrays: Arrays) -> Record:
    """Write the arrays of a set into its folder; returns the record of their checksums."""
    for name, array in arrays.items():
        with replace_array(folder, name) as temporary, temporary.open("wb") as file:
            np.save(file, array)
    return {"sums": {name: hash_array(array) for name, array in arrays.items()}}


def ensure_record(folder: Path, key: str, fill: Callable[[], Record]) -> Record:
    """What `fill` returned about the arrays that it wrote into the folder for this key.

    It is called when the folder lacks arrays, has those of another key, or has a damaged record.
    Raises DataError for a folder that cannot be written, and what `fill` raises.
    """

    def read_current() -> Record | None:
        try:
            check_file(folder / RECORD)
            record = json.loads((folder / RECORD).read_text("utf-8"))
            whole = record.pop(OWN_SUM) == hash_text(json.dumps(record))
            complete = all(array_path(folder, name).is_file() for name in record["sums"])
            return record if whole and complete and record["key"] == key else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    try:
        if current := read_current():
            return current
        folder.mkdir(parents=True, exist_ok=True)
        with lock_file(folder / "lock"):  # one process fills it, and the others wait
            if current := read_current():
                return current
            (folder / RECORD).unlink(missing_ok=True)
            record = {"key": key, **fill()}
            with replace_file(folder / RECORD) as temporary:
                temporary.write_text(
                    json.dumps({**record, OWN_SUM: hash_text(json.dumps(record))}), "utf-8"
                )
            return record
    except OSError as error:
        raise _cache_error(folder, error) from None


def load(folder: Path, sums: Mapping[str, str], memory_limit: float = math.inf) -> dict[str, Any]:
    """The arrays of a cached set by name: tensors, or files for images that do not fit into memory.

    memory_limit: GB (1e9 bytes) for the whole set, which needs five bytes per value: the byte and a
    float32. Raises DataError.
    """
    paths = {name: array_path(folder, name) for name in sums}
    try:
        needed = 5 * sum(path.stat().st_size for path in paths.values())
        fits = needed <= memory_limit * 1e9
        return {name: _load(path, sums[name], fits) for name, path in paths.items()}
    except OSError as error:
        raise _cache_error(folder, error) from None


def _load(path: Path, expected: str, fits: bool) -> Tensor | ArrayFile:
    """The verified array: as a tensor, or on disk if it has images that do not fit."""
    try:
        loaded: Tensor | ArrayFile = (file := ArrayFile(path))
        if fits or len(file.shape) < 3:
            loaded = torch.from_numpy(np.fromfile(file.file, np.uint8).reshape(file.raw_shape))
        found = hash_array(file if isinstance(loaded, ArrayFile) else loaded.numpy())
    except ValueError:
        found = "no array"
    if found != expected:
        raise DataError(
            f"{path} is not what was cached (SHA-256 as IDX: expected {expected}, found {found}); "
            "delete it"
        )
    return loaded


def array_path(folder: Path, name: str) -> Path:
    """The file of a cached array."""
    return folder / f"{name}.npy"


@contextmanager
def replace_array(folder: Path, name: str) -> Iterator[Path]:
    """A temporary path to write an array to; on leaving it replaces the cached one."""
    with replace_file(array_path(folder, name)) as temporary:
        yield temporary
    (folder / name).unlink(missing_ok=True)  # versions before 0.2 kept the array there, as IDX


def _cache_error(folder: Path, error: OSError) -> DataError:
    return DataError(f"the cache {folder} cannot be used: {error}; set data.cache")
