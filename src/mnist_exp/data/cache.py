"""Decoded sets on disk, and the proof that each is still what it was.

A file of the cache is one array in IDX, LeCun's format: a big-endian header of type and sizes, then
unsigned bytes. It is known by its SHA-256: the published one, or where nobody has published that of
the decoded bytes, the one recorded when it was made.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from mnist_exp.data.rows import Rows, rows_of
from mnist_exp.errors import Failure
from mnist_exp.files import check_file, replacing

RECORD = "record.json"
OWN_SUM = "sha256"  # in a record: of all else in it

Files = dict[str, bytes]  # file name → its uncompressed bytes
Sums = Mapping[str, str]  # file name → SHA-256, or MD5 where that is what was published
Arrays = dict[str, Tensor | Rows]
Record = dict[str, Any]  # what is known of a cached set; "sums": of its files


class DataError(Failure):
    """Data that is absent, or not what it should be."""


# --- IDX ---


def idx_header(shape: tuple[int, ...]) -> bytes:
    """The header of an IDX file of unsigned bytes (type 8)."""
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


def idx_encode(array: NDArray[np.uint8]) -> bytes:
    """The IDX file of an array of unsigned bytes."""
    return idx_header(array.shape) + array.tobytes()


def idx_decode(raw: bytes) -> Tensor:
    """The uint8 tensor in an IDX file whose sum was checked."""
    sizes = struct.unpack_from(f">{raw[3]}I", raw, 4)
    # A bytearray, because torch warns of a buffer that it must not write to.
    values = torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=4 + 4 * len(sizes))
    return values.view(sizes)


# --- sums ---


PUBLISHED, CACHED = "the published data", "what was cached"


def verify(
    raw: bytes | Path, expected: str, what: str, remedy: str = "", known: str = PUBLISHED
) -> None:
    """Raise DataError unless the bytes hash to the sum that is known, MD5 or SHA-256 by its length.

    raw: the bytes, or a file that may be larger than the memory; what, known: how the message calls
    them, and those that it had to find.
    """
    name, of = ("MD5", "") if len(expected) == 32 else ("SHA-256", " of the uncompressed bytes")
    if isinstance(raw, Path):
        found = sum_of(raw)
    else:
        found = hashlib.new(name.replace("-", ""), raw, usedforsecurity=False).hexdigest()
    if found != expected:
        raise DataError(
            f"{what} is not {known} ({name}{of}: expected {expected}, found {found}){remedy}"
        )


def read(path: Path, expected: str, packed: bool = False, known: str = PUBLISHED) -> bytes:
    """The verified bytes of a file, or of a packed one those in it. Raises DataError."""
    raw = path.read_bytes()
    if packed:
        raw = unzip(raw)
    verify(raw, expected, str(path), "; delete or replace it", known)
    return raw


def sum_of(path: Path) -> str:
    """SHA-256 of a file, which may be larger than the memory."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            found.update(chunk)
    return found.hexdigest()


def unzip(packed: bytes) -> bytes:
    """As gzip.decompress, but of a truncated or damaged file what it still holds, to be hashed."""
    stream, raw = zlib.decompressobj(wbits=31), bytearray()
    with suppress(zlib.error):
        for start in range(0, len(packed), 2**16):
            raw += stream.decompress(packed[start : start + 2**16])
    return bytes(raw)


# --- the cache ---


def load_cached(
    folder: Path, sums: Sums, make: Callable[[], Files], memory_limit: float = math.inf
) -> Arrays:
    """A set of which the sums of the decoded files were published, made where it is absent.

    Hashing all of MNIST costs 0.03 to 0.2 seconds a start, and means that no run trains on a
    damaged cache. Raises DataError for a cache that is damaged or cannot be written, and what
    `make` raises. memory_limit: as of `load`.
    """

    def complete() -> bool:
        return all((folder / name).is_file() for name in sums)

    _once(folder, complete, lambda: _write(folder, make()))
    return load(folder, sums, memory_limit)


def load_recorded(
    folder: Path, key: str, make: Callable[[], Files], memory_limit: float = math.inf
) -> Arrays:
    """A set of which other sums were published: its files' own are recorded when it is made.

    Raises what `load_cached` does. memory_limit: as of `load`.
    """

    def fill() -> Record:
        files = make()
        _write(folder, files)
        return {"sums": {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}}

    return load(folder, recorded(folder, key, fill)["sums"], memory_limit, CACHED)


def recorded(folder: Path, key: str, fill: Callable[[], Record]) -> Record:
    """What `fill` has told of the files that it put into the folder for this key.

    It is called where the folder lacks files, has those of another key, or has a damaged record.
    Raises DataError for a folder that cannot be written, and what `fill` raises.
    """

    def current() -> Record | None:
        try:
            check_file(folder / RECORD)
            record = json.loads((folder / RECORD).read_text("utf-8"))
            whole = record.pop(OWN_SUM, None) in (None, record_sum(record))  # older ones have none
            complete = all((folder / name).is_file() for name in record["sums"])
            return record if whole and complete and record["key"] == key else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def fill_and_record() -> None:
        (folder / RECORD).unlink(missing_ok=True)
        record = {"key": key, **fill()}
        with replacing(folder / RECORD) as temporary:
            temporary.write_text(json.dumps({**record, OWN_SUM: record_sum(record)}), "utf-8")

    _once(folder, lambda: current() is not None, fill_and_record)
    record = current()
    if record is None:
        raise DataError(f"the cache {folder} was changed by another process; start again")
    return record


def record_sum(record: Record) -> str:
    """SHA-256 of a record's JSON, which is the same after reading it."""
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def load(
    folder: Path, sums: Sums, memory_limit: float = math.inf, known: str = PUBLISHED
) -> Arrays:
    """The arrays of a cached set by file name; images stay on disk where memory does not suffice.

    memory_limit: GB (1e9 bytes) for the whole set, of which each value needs five bytes: its own
    and a float32. Raises DataError.
    """
    paths = {name: folder / name for name in sums}
    try:
        needed = 5 * sum(path.stat().st_size for path in paths.values())
        fits = needed <= memory_limit * 1e9
        return {
            name: _load(path, sums[name], known, whole=fits or _dimensions(path) < 3)
            for name, path in paths.items()
        }
    except OSError as error:
        raise _unusable(folder, error) from None


def _load(path: Path, expected: str, known: str, whole: bool) -> Tensor | Rows:
    if whole:
        return idx_decode(read(path, expected, known=known))
    verify(path, expected, str(path), "; delete or replace it", known)
    return rows_of(path)


def _dimensions(path: Path) -> int:
    """Of the array in an IDX file: three or four where it has images."""
    with path.open("rb") as file:
        return (file.read(4) or bytes(4))[-1]


def _once(folder: Path, done: Callable[[], bool], make: Callable[[], object]) -> None:
    """Of several processes that need the folder filled, one does it and the others wait."""
    try:
        if not done():
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                if not done():
                    make()
    except OSError as error:
        raise _unusable(folder, error) from None


def _write(folder: Path, files: Files) -> None:
    for name, raw in files.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(raw)


def _unusable(folder: Path, error: OSError) -> DataError:
    return DataError(f"the cache {folder} cannot be used: {error}; set data.cache")
