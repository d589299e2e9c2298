"""A checkpoint is complete or absent, and loading one never runs code from it."""

from __future__ import annotations

import os
import pickle
import random
import resource
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Clone, Like

from mnist_exp import __version__
from mnist_exp.experiment import checkpoint
from mnist_exp.experiment.checkpoint import CheckpointError
from mnist_exp.paths import BEST, LAST
from mnist_exp.training.state import random_states, set_random_states

STATE = {"weights": {"w": torch.arange(3.0)}, "step": 7, "name": "a", "none": None, "list": [1, 2]}


def get_refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.pt"
    checkpoint.save(path, STATE)
    loaded, peeked = checkpoint.load(path), checkpoint.peek(path)
    assert torch.equal(loaded.pop("weights")["w"], STATE["weights"]["w"])  # type: ignore[index]
    written = {"format": checkpoint.FORMAT, "version": __version__}
    assert loaded == {**written, "step": 7, "name": "a", "none": None, "list": [1, 2]}
    assert {key: value for key, value in peeked.items() if key != "weights"} == loaded
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_keeps_the_previous_checkpoint_and_names_the_size(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # files of 1 MB at most
    try:
        with pytest.raises(CheckpointError) as caught:
            checkpoint.save(path, {"weights": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value) == Like(f"{path}: …4.0 MB…File too large…")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    assert get_refusal(path) == Like(f"{path}: …no such checkpoint…")


def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert get_refusal(tmp_path / "pipe") == Like(f"{tmp_path / 'pipe'}: …pipe…")
    assert get_refusal(tmp_path) == Like(f"{tmp_path}: …folder…")


FOREIGN = "…not a checkpoint of this project…"
DAMAGED = "…damaged…"


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" + bytes(100), b"epochs: 5\n"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    assert get_refusal(path) == Like(f"{path}: {FOREIGN}")


@pytest.mark.parametrize("content", [{"w": torch.zeros(2)}, [1, 2], {"format": "7"}])
def test_a_torch_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "last.pt"
    torch.save(content, path)
    assert get_refusal(path) == Like(f"{path}: {FOREIGN}")


# --- damage ---


@pytest.mark.parametrize("content", [b"", bytes(1000)])
def test_an_empty_file_is_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    assert get_refusal(path) == Like(f"{path}: {DAMAGED}empty…")


@pytest.mark.parametrize("size", [4, 100, 1000])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError):
        checkpoint.peek(path)
    assert get_refusal(path) == Like(f"{path}: {DAMAGED}")


def flip(content: bytes, bit: int) -> bytes:
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def to_plain(value: object) -> object:
    """A state in which tensors are bytes, so that two can be compared."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def loaded_otherwise(path: Path, bits: Iterator[int] | range) -> tuple[int, list[int]]:
    """Flip these bits one at a time; return how many are refused, and which change the state."""
    content, whole = path.read_bytes(), to_plain(checkpoint.load(path))
    refused, changed = 0, []
    for bit in bits:
        path.write_bytes(flip(content, bit))
        try:
            if to_plain(checkpoint.load(path)) != whole:
                changed.append(bit)
        except CheckpointError:
            refused += 1
    path.write_bytes(content)
    return refused, changed


@pytest.mark.parametrize("name", [LAST, BEST])
def test_a_checkpoint_with_a_flipped_bit_never_loads_other_weights(
    trained: Clone, tmp_path: Path, name: Path
) -> None:
    path = tmp_path / "flipped.pt"
    path.write_bytes((trained.folders()[0] / name).read_bytes())
    draw = random.Random(0)
    bits = (draw.randrange(8 * path.stat().st_size) for _ in range(200))
    refused, changed = loaded_otherwise(path, bits)
    assert changed == []
    assert refused > 160  # the others lie in padding between the records


def test_a_flipped_bit_in_the_archives_directory_never_changes_a_tensor(tmp_path: Path) -> None:
    path, name = tmp_path / "last.pt", b"/data/0"
    checkpoint.save(path, {"w": torch.ones(2)})
    end = path.read_bytes().rindex(name) + len(name)
    start = path.read_bytes().rindex(b"PK\1\2", 0, end)
    assert 40 < end - start < 80
    _, changed = loaded_otherwise(path, range(8 * start, 8 * end))
    assert changed == []


@pytest.mark.slow
def test_commands_refuse_a_damaged_checkpoint_in_one_line(trained: Clone, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / LAST).parent.mkdir(parents=True)
    for name in (LAST, BEST):
        content = (trained.folders()[0] / name).read_bytes()
        with zipfile.ZipFile(trained.folders()[0] / name) as archive:
            weights = max(archive.infolist(), key=lambda entry: entry.file_size)
        within = weights.header_offset + weights.file_size // 2
        (run / name).write_bytes(flip(content, 8 * within))
    for command, name in (
        (("evaluate.py", "--checkpoint", str(run / LAST)), LAST),
        (("evaluate.py", "--checkpoint", str(run / BEST)), BEST),
        (("train.py", f"resume={run}", "trainer.epochs=9"), LAST),
    ):
        done = trained.run(*command)
        assert done.returncode == 1
        (line,) = (done.stdout + done.stderr).splitlines()
        assert line == Like(f"error: {run / name}: {DAMAGED}Bad CRC-32 for file …")


def test_an_archive_that_torch_save_did_not_write_is_refused_before_it_is_unpacked(
    tmp_path: Path,
) -> None:
    path = tmp_path / "last.pt"
    np.savez(tmp_path / "arrays.npz", np.zeros(3))
    assert get_refusal(tmp_path / "arrays.npz") == Like(f"{tmp_path / 'arrays.npz'}: {FOREIGN}")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    assert get_refusal(path) == Like(f"{path}: {FOREIGN}")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("archive/data.pkl", b"2")
    assert "same name" in get_refusal(path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"format": checkpoint.FORMAT + 1}, path)
    with pytest.raises(CheckpointError):
        checkpoint.peek(path)
    assert get_refusal(path) == Like(f"{path}: …format 5 is newer…4…")


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_crafted_checkpoint_runs_nothing_and_is_refused_with_its_path(
    tmp_path: Path, legacy: bool
) -> None:
    path, target = tmp_path / "last.pt", tmp_path / "harm"
    content = {"format": 1, "weights": Bomb(target)}
    if legacy:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with suppress(CheckpointError):
        checkpoint.peek(path)
    unreadable = "…more than numbers, strings and tensors…"
    assert get_refusal(path) == Like(f"{path}: {FOREIGN if legacy else unreadable}")
    assert not target.exists()


def test_all_global_random_generators_are_restored() -> None:
    def draw() -> list[object]:
        return [
            torch.rand(2).tolist(),
            np.random.rand(2).tolist(),
            random.random(),
            random.gauss(0, 1),
        ]

    draw()
    states = pickle.loads(pickle.dumps(random_states()))
    expected = draw()
    draw()
    set_random_states(states)
    assert draw() == expected
