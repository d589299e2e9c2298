"""A run that ends too early, at any instant, goes on as if nothing had happened."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Clone
from mlflow import MlflowClient

from mnist_exp import checkpoint
from mnist_exp.errors import BadInput
from mnist_exp.resuming import trusted

# Long enough to be hit: 40 epochs of 77 steps with dropout, a checkpoint after every third step.
RUN = (
    "data=digits",
    "batch_size=16",
    "model.dropout=0.2",
    "trainer.epochs=40",
    "trainer.checkpoint_every_steps=3",
)
TIMES = {"epoch_seconds", "images_per_second"}


def client_of(clone: Clone) -> MlflowClient:
    return MlflowClient(f"sqlite:///{clone.root}/mlflow.db")


def history(clone: Clone) -> dict[str, list[tuple[int, float | None]]]:
    """The whole history of the clone's only MLflow run; of times only that they are there."""
    client = client_of(clone)
    experiment = client.get_experiment_by_name("mnist_exp")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    return {
        key: [
            (point.step, None if key in TIMES else point.value)
            for point in client.get_metric_history(run.info.run_id, key)
        ]
        for key in run.data.metrics
    }


def journal(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def weights(folder: Path) -> list[Any]:
    """The kept weights, and the last ones with the optimizer's state."""
    last = checkpoint.load(folder / "checkpoints" / "last.pt")
    kept = torch.load(folder / "mnist_model.pth", weights_only=True)
    states = [
        state[name] for state in last["optimizer"]["state"].values() for name in sorted(state)
    ]
    return [t.tolist() for t in (*kept.values(), *last["model"].values(), *states)]


def kill_and_resume(clone: Clone, kills: int, rng: random.Random) -> int:
    """Start RUN, SIGKILL it `kills` times at random moments, resume it each time, let it end.

    A third of the kills fall into the writing of a checkpoint. Returns how many did.
    """
    command: tuple[str, ...] = RUN
    in_writing = 0

    def written() -> list[int]:
        """When the last checkpoint was, where there is one."""
        return [path.stat().st_mtime_ns for path in clone.root.rglob("last.pt")]

    def being_written() -> list[Path]:
        return list(clone.root.glob("outputs/*/*/checkpoints/.last.pt.*"))

    for number in range(kills):
        before, left = written(), being_written()
        process = clone.start("train.py", *command)
        while written() == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15))
        while number % 3 == 0 and being_written() == left:
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before the kill: a longer RUN"
        in_writing += being_written() != left
        command = ("resume=latest",)
    done = clone.run("train.py", *command)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return in_writing


def wait_for(happened: Callable[[], bool], seconds: float = 60, pause: float = 0.01) -> None:
    ends = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(pause)


@pytest.fixture(scope="module")
def whole(new_clone: Callable[[], Clone]) -> Clone:
    """RUN, never interrupted."""
    clone = new_clone()
    assert clone.run("train.py", *RUN).returncode == 0
    return clone


def same(clone: Clone, other: Clone) -> None:
    (folder,), (expected,) = clone.folders(), other.folders()
    found = history(clone)
    assert found == history(other)
    assert all(len({step for step, _ in points}) == len(points) for points in found.values())
    assert journal(folder) == journal(expected)
    assert weights(folder) == weights(expected)


def test_a_run_killed_twice_ends_as_one_that_was_not(whole: Clone, clone: Clone) -> None:
    kill_and_resume(clone, kills=2, rng=random.Random(0))
    same(clone, whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_and_the_last_line_goes_on(
    number: signal.Signals, code: int, whole: Clone, clone: Clone
) -> None:
    process = clone.start("train.py", *RUN)
    wait_for(lambda: len(list(clone.root.glob("outputs/*/*/metrics.jsonl"))) == 1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, "")
    client = client_of(clone)
    (run,) = client.search_runs([client.get_experiment_by_name("mnist_exp").experiment_id])
    assert run.info.status == "KILLED"
    (folder,) = clone.folders()
    python, *command = out.splitlines()[-1].split()
    assert (python, command) == (
        "python",
        ["train.py", f"resume={folder.relative_to(clone.root)}"],
    )
    assert clone.run(*command).returncode == 0
    same(clone, whole)


def test_latest_run_id_and_folder_find_the_run_and_an_ended_one_stays_as_it_is(
    clone: Clone, tmp_path: Path
) -> None:
    assert clone.run("train.py", "data=digits", "trainer.epochs=2").returncode == 0
    (folder,) = clone.folders()
    client = client_of(clone)
    (run,) = client.search_runs([client.get_experiment_by_name("mnist_exp").experiment_id])

    def state() -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"]
        return {str(path): path.read_bytes() for path in files}

    before = state()
    script = str(clone.root / "train.py")
    for word in ("latest", str(folder), run.info.run_id):
        done = clone.run(script, f"resume={word}", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{folder} has already ended; trainer.epochs=N trains it further\n"
    assert state() == before
    (after,) = client.search_runs([run.info.experiment_id])
    assert after.to_dictionary() == run.to_dictionary()
    assert clone.folders() == [folder]


def test_more_epochs_go_on_bit_for_bit(new_clone: Callable[[], Clone]) -> None:
    folders = []
    for commands in ([["trainer.epochs=4"]], [["trainer.epochs=2"], ["trainer.epochs=4"]]):
        clone = new_clone()
        first, *more = commands
        assert clone.run("train.py", "data=digits", "tracking=none", *first).returncode == 0
        for command in more:
            assert clone.run("train.py", "resume=latest", *command).returncode == 0
        folders += clone.folders()
    expected, found = folders
    assert weights(found) == weights(expected)
    assert [line for line in journal(found) if "lr" in line] == [
        line for line in journal(expected) if "lr" in line
    ]


def test_what_would_change_the_training_is_refused_with_both_values(clone: Clone) -> None:
    assert clone.run("train.py", "data=digits", "tracking=none").returncode == 0
    done = clone.run(
        "train.py", "resume=latest", "optimizer.lr=0.5", "batch_size=64", "trainer.epochs=3"
    )
    assert done.returncode == 2
    assert done.stdout + done.stderr == (
        "error: optimizer.lr=0.5: the run has 0.001, which cannot change\n"
        "trainer.epochs=3: the run has 5, which can only be raised\n"
    )


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("latest", "resume=latest: no run in outputs/ has a checkpoint"),
        ("nowhere", "resume=nowhere: neither a folder, nor an MLflow run id, nor latest"),
        ("conf", "resume=conf: there is no .*/conf/checkpoints/last.pt"),
        ("0" * 32, f"no MLflow run {'0' * 32}: there is no .*/mlflow.db"),
    ],
)
def test_a_run_that_is_not_there_is_one_line(clone: Clone, word: str, problem: str) -> None:
    done = clone.run("train.py", f"resume={word}")
    assert done.returncode in (1, 2)
    assert re.fullmatch(f"error: {problem}\n", done.stderr)
    assert done.stdout == ""
    assert list((clone.root / "outputs").iterdir()) == []


def test_a_file_that_is_no_checkpoint_is_one_line(clone: Clone) -> None:
    last = clone.root / "outputs" / "mine" / "checkpoints" / "last.pt"
    last.parent.mkdir(parents=True)
    for content, problem in (
        (b"PK\x03\x04 half a file", "not a checkpoint that can be read"),
        (None, "of format 99, newer than this code, which reads 1"),
    ):
        if content is None:
            torch.save({"format": 99}, last)
        else:
            last.write_bytes(content)
        done = clone.run("train.py", "resume=outputs/mine")
        assert done.returncode == 1
        assert done.stdout.startswith(f"error: {last}: {problem}")
        assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "mnist_exp.data.sources.subprocess.run",
        "mnist_exp.models.mlp.nn.Linear.__init__.__globals__",
        "torch.nn.modules.module.torch.load",
    ],
)
def test_a_saved_config_runs_only_what_is_trusted(target: str) -> None:
    for config in ({"model": {"_target_": target}}, {"model": {"layers": [{"_target_": target}]}}):
        with pytest.raises(BadInput, match=re.escape(target)):
            trusted(config)


def test_a_full_disk_keeps_the_last_good_checkpoint(clone: Clone, tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(mounted)]
    try:
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("mounting a small file system needs root")
    except FileNotFoundError:
        pytest.skip("there is no mount")
    try:
        # 0.3 MB a checkpoint: the first two files fit, their successors do not.
        done = clone.run("train.py", *RUN, f"hydra.run.dir={mounted}/run", "model.dropout=0")
        assert done.returncode == 1
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
        assert re.search(r"a checkpoint of \d\.\d MB could not be written \(No space left", line)
        assert "Traceback" not in done.stdout + done.stderr
        assert checkpoint.load(mounted / "run" / "checkpoints" / "last.pt")["format"] == 1
    finally:
        subprocess.run(["umount", str(mounted)], check=False)
