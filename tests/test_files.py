"""A file is complete or absent."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import without_flock

from mnist_exp.files import Occupied, lock_folder, replace_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half_and_raise(path: Path, raised: type[BaseException]) -> None:
    with replace_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise raised


def test_writes_the_new_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with replace_file(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["weights"]


def test_a_reader_sees_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with replace_file(path) as temporary:
        temporary.write_bytes(b"ne")
        assert path.read_bytes() == b"old"
        with temporary.open("ab") as file:
            file.write(b"w")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_an_open_reader_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        first = reader.read(1)
        with replace_file(path) as temporary:
            temporary.write_bytes(b"new")
        assert first + reader.read() == b"old"


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_the_old_file_stays_when_the_block_raises(
    tmp_path: Path, raised: type[BaseException]
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with pytest.raises(raised):
        write_half_and_raise(path, raised)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["weights"]


def test_a_first_write_that_raises_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_half_and_raise(tmp_path / "weights", RuntimeError)
    assert names(tmp_path) == []


def test_the_old_file_stays_when_nothing_was_written(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), replace_file(path):
        pass
    assert path.read_bytes() == b"old"


def test_two_processes_write_to_different_temporaries(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    child = "; ".join(
        [
            "import pathlib, sys",
            "from mnist_exp.files import Occupied, lock_folder, replace_file",
            "r = replace_file(pathlib.Path(sys.argv[1]))",
            "print(r.__enter__())",
        ]
    )
    theirs = subprocess.run(
        [sys.executable, "-c", child, path], capture_output=True, text=True, check=True
    ).stdout.strip()
    with replace_file(path) as temporary:
        temporary.write_bytes(b"ours")
        assert str(temporary) != theirs


WRITER = """
import pathlib, sys
from mnist_exp.files import Occupied, lock_folder, replace_file
while True:
    for letter in b"ab":
        with replace_file(pathlib.Path(sys.argv[1])) as temporary, temporary.open("wb") as file:
            for _ in range(64):
                file.write(bytes([letter]) * 4096)
                file.flush()
"""


def test_a_reader_in_another_process_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 64 * 4096)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path])
    whole = {letter * 64 * 4096 for letter in (b"a", b"b")}
    try:
        seen, reads, deadline = set(), 0, time.monotonic() + 30
        while (reads < 500 or seen != whole) and time.monotonic() < deadline:
            seen.add(path.read_bytes())
            reads += 1
    finally:
        writer.kill()
        writer.wait()
    assert sorted(map(len, seen)) == [64 * 4096, 64 * 4096]
    assert seen == whole


def test_a_folder_is_one_processs_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from mnist_exp.files import lock_folder\n"
        "with lock_folder(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(Occupied, match="another process"), lock_folder(tmp_path):
            pass
        other.kill()
    with lock_folder(tmp_path):
        pass


HOLDER = "import sys, pathlib, time; from mnist_exp.files import lock_folder\n" + (
    "with lock_folder(pathlib.Path(sys.argv[1])): print('in', flush=True); time.sleep(100)"
)


@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_folder_is_one_processs_at_a_time_without_flock(tmp_path: Path, reason: int) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    env = {**os.environ, **without_flock(tmp_path, reason)}

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", HOLDER, str(folder)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=env, text=True, **pipes)

    with start() as first:
        assert first.stdout.readline() == "in\n"
        with start() as second:
            _, told = second.communicate()
        assert f"another process is at work on it; if there is none, remove {folder}" in told
        first.kill()
    with start() as third:
        assert third.stdout.readline() == "in\n", third.communicate()
        third.kill()
        assert third.communicate()[1] == ""


def test_what_a_killed_process_has_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    half, whole = (tmp_path / "checkpoints" / name for name in (".last.pt.new.123", "last.pt"))
    half.write_text("half")
    whole.write_text("whole")
    with lock_folder(tmp_path):
        assert names(tmp_path / "checkpoints") == ["last.pt"]
