"""Checkpoints: whole or not there, and never a way to run somebody's code."""

from __future__ import annotations

import errno
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_exp import checkpoint
from mnist_exp.checkpoint import CheckpointError

STATE = {"weights": {"w": torch.arange(3.0)}, "step": 7, "name": "a", "none": None, "list": [1, 2]}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.pt"
    checkpoint.save(path, STATE)
    loaded = checkpoint.load(path)
    assert torch.equal(loaded.pop("weights")["w"], STATE["weights"]["w"])  # type: ignore[index]
    assert loaded == {"format": 1, "step": 7, "name": "a", "none": None, "list": [1, 2]}
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_checkpoint_before_and_says_how_much_was_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as half:
            half.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.save(path, {"weights": torch.zeros(1_000_000)})
    assert str(caught.value) == (
        f"{path}: a checkpoint of 4.0 MB could not be written (No space left on device); "
        "the one before it is whole"
    )
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    assert refusal(path) == f"{path}: there is no checkpoint"


@pytest.mark.parametrize("size", [0, 1, 100, 1000])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    path.write_bytes(path.read_bytes()[:size])
    assert refusal(path).startswith(f"{path}: not a checkpoint that can be read (")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"\x89PNG\r\n\x1a\n" + bytes(100),
            "it holds other things than numbers, strings and tensors",
        ),
        (b"epochs: 5\n", "no file that torch.save has written"),
        (b"PK\x03\x04", "PytorchStreamReader failed reading zip archive: not a ZIP archive"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    assert refusal(path) == f"{path}: not a checkpoint that can be read ({reason})"


@pytest.mark.parametrize("foreign", [{"w": torch.zeros(2)}, [1, 2], {"format": "7"}])
def test_a_torch_file_that_is_no_checkpoint_is_refused(tmp_path: Path, foreign: object) -> None:
    path = tmp_path / "last.pt"
    torch.save(foreign, path)
    assert refusal(path) == (
        f"{path}: not a checkpoint of this project; a run's lie in its folder checkpoints/"
    )


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"format": 2}, path)
    assert refusal(path) == f"{path}: of format 2, newer than this code, which reads 1"


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
    message = refusal(path)
    reason = "it holds other things than numbers, strings and tensors"
    assert message == f"{path}: not a checkpoint that can be read ({reason})"
    assert not target.exists()


def test_all_global_random_generators_go_on_where_they_were() -> None:
    def draw() -> list[object]:
        return [
            torch.rand(2).tolist(),
            np.random.rand(2).tolist(),
            random.random(),
            random.gauss(0, 1),
        ]

    draw()
    states = pickle.loads(pickle.dumps(checkpoint.random_states()))
    expected = draw()
    draw()
    checkpoint.set_random_states(states)
    assert draw() == expected
