"""Several processes under torchrun are one training with one run and one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Clone, Like, only_run, read_metrics

from mnist_exp.training.distributed import ProcessGroup

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
TWO = (*TORCHRUN, "train.py", "data=digits")
LONG = ("trainer.epochs=100", "trainer.precision=float64", "trainer.checkpoint_every_steps=3")


def close_to(found: list[dict[str, float]], relative: float) -> list[object]:
    return [pytest.approx(line, rel=relative) for line in found]


def pid_of(torchrun: subprocess.Popen[str], rank: int) -> int:
    """The process with this rank."""
    for pid in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            return int(pid)
    raise AssertionError(f"no rank {rank}")


def wait_for_epochs(clone: Clone, count: int) -> Path:
    """Wait until a run has so many epochs; return its folder."""
    ends = time.monotonic() + 100
    while time.monotonic() < ends:
        for path in clone.root.glob("outputs/*/*/metrics.jsonl"):
            if len(path.read_text().splitlines()) >= count:
                return path.parent
        time.sleep(0.01)
    raise AssertionError("too few epochs")


# --- a rank alone ---


def test_the_parts_of_uneven_shares_add_up_to_the_mean_of_the_batch() -> None:
    losses = torch.rand(7, dtype=torch.float64)
    three = [ProcessGroup(rank, 3) for rank in range(3)]
    assert [len(one.shard(losses)) for one in three] == [3, 2, 2]
    parts = [one.shard(losses).sum() / len(losses) for one in three]
    torch.testing.assert_close(sum(parts), losses.mean())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["batch_size=63"], "batch_size=63: …2 processes…62 or 64"),
        (["reproduce=x"], "reproduce=x: …torchrun"),
        (["-m", "seed=1,2"], "error: -m…torchrun"),
    ],
)
def test_what_several_processes_do_not_support_is_one_line(
    clone: Clone, arguments: list[str], line: str
) -> None:
    env = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    done = clone.run("train.py", *arguments, "data=digits", env=env)
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (2, "", [Like(line)])
    assert not list((clone.root / "outputs").iterdir())


def test_one_process_by_torchrun_is_the_same_as_without_torchrun(clone: Clone) -> None:
    env = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    sweep = ("-m", "seed=1,2", "data=digits", "trainer=debug", "tracking=none")
    done = clone.run("train.py", *sweep, "batch_size=63", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(clone.root.glob("outputs/*/*/*/config.yaml"))) == 2


# --- two of them ---


@pytest.mark.slow
def test_two_processes_find_what_one_finds(clone: Clone) -> None:
    settings = ("data=digits", "trainer.epochs=2", "trainer.precision=float64")
    done = clone.run(*TORCHRUN, "train.py", *settings, "batch_size=50")
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert done.stdout.count("epoch 2/2") == 1
    (folder,) = clone.folders()
    assert (folder / "train.log").read_text().count("epoch 2/2") == 1
    run = only_run(clone.client)
    assert run.info.status == "FINISHED"
    assert "2 processes" in run.data.tags["mnist_exp.device"]
    assert clone.run("train.py", *settings, "batch_size=50").returncode == 0
    one, two = (
        read_metrics(folder) for folder in sorted(clone.folders(), key=lambda f: f != folder)
    )
    assert two == close_to(one, 1e-6)


@pytest.mark.slow
def test_float32_of_two_processes_is_within_a_hundredth_of_one(clone: Clone) -> None:
    settings = ("train.py", "data=digits", "tracking=none", "trainer.epochs=2")
    assert clone.run(*TORCHRUN, *settings).returncode == 0
    (folder,) = clone.folders()
    assert clone.run(*settings).returncode == 0
    one, two = (
        read_metrics(folder) for folder in sorted(clone.folders(), key=lambda f: f != folder)
    )
    assert two == close_to(one, 0.01)


@pytest.fixture(scope="module")
def whole(new_clone: Callable[[], Clone]) -> list[dict[str, float]]:
    """The metrics of LONG in one process, not interrupted."""
    clone = new_clone()
    assert clone.run("train.py", "data=digits", *LONG, "tracking=none").returncode == 0
    return read_metrics(*clone.folders())


def goes_on_alone(clone: Clone, whole: list[dict[str, float]]) -> None:
    """Resume the only run of the clone in one process; its metrics are those of `whole`."""
    done = clone.run("train.py", "resume=latest")
    assert (done.returncode, done.stderr) == (0, "")
    assert only_run(clone.client).info.status == "FINISHED"
    assert read_metrics(*clone.folders()) == close_to(whole, 1e-6)


@pytest.mark.slow
def test_a_killed_rank_ends_all_and_one_process_resumes(
    clone: Clone, whole: list[dict[str, float]]
) -> None:
    torchrun = clone.start(*TWO, *LONG)
    wait_for_epochs(clone, 2)
    os.kill(pid_of(torchrun, 1), signal.SIGKILL)
    out, _ = torchrun.communicate(timeout=60)
    assert torchrun.returncode == 1
    assert out.splitlines()[-1] == Like("error: …process…killed")
    assert only_run(clone.client).info.status == "FAILED"
    goes_on_alone(clone, whole)


@pytest.mark.slow
def test_a_rank_that_fails_ends_all_with_its_reason(clone: Clone) -> None:
    augmentation = clone.root / "src" / "mnist_exp" / "training" / "augmentation.py"
    broken = 'if __import__("os").environ["RANK"] == "1": raise ValueError("worn\\nout")\n    '
    text = augmentation.read_text().replace("return images", f"{broken}return images", 1)
    augmentation.write_text(text)
    done = clone.run(*TWO)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "error: rank 1: worn out"
    (log_file,) = clone.root.glob("outputs/*/*/train.log")
    assert log_file.read_text().endswith("error: rank 1: worn out\n")
    assert only_run(clone.client).info.status == "FAILED"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_training_resumes_in_another_number_of_processes(
    clone: Clone, whole: list[dict[str, float]], number: signal.Signals
) -> None:
    torchrun = clone.start(*TWO, *LONG)
    wait_for_epochs(clone, 2)
    torchrun.send_signal(number)
    out, _ = torchrun.communicate(timeout=60)
    assert out.splitlines()[-1].startswith("python train.py resume=outputs/")
    assert only_run(clone.client).info.status == "KILLED"
    goes_on_alone(clone, whole)


@pytest.mark.slow
def test_a_run_of_one_process_resumes_in_two(clone: Clone, whole: list[dict[str, float]]) -> None:
    process = clone.start("train.py", "data=digits", *LONG)
    folder = wait_for_epochs(clone, 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    done = clone.run(*TORCHRUN, "train.py", f"resume={folder}", timeout=250)
    assert done.returncode == 0, done.stderr
    assert only_run(clone.client).info.status == "FINISHED"
    assert read_metrics(folder) == close_to(whole, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_restarts_and_resumes_the_run(
    clone: Clone, whole: list[dict[str, float]], rank: int
) -> None:
    torchrun = clone.start(*TORCHRUN, "--max-restarts=1", "train.py", "data=digits", *LONG)
    folder = wait_for_epochs(clone, 2)
    os.kill(pid_of(torchrun, rank), signal.SIGKILL)
    _, err = torchrun.communicate(timeout=250)
    assert torchrun.returncode == 0, err
    assert clone.folders() == [folder]
    assert only_run(clone.client).info.status == "FINISHED"
    assert read_metrics(folder) == close_to(whole, 1e-6)


@pytest.mark.slow
def test_torchrun_restarts_and_resumes_a_run_of_one_process(clone: Clone) -> None:
    one = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")
    torchrun = clone.start(*one, "--max-restarts=1", "train.py", "data=digits", *LONG)
    folder = wait_for_epochs(clone, 2)
    os.kill(pid_of(torchrun, 0), signal.SIGKILL)
    _, err = torchrun.communicate(timeout=250)
    assert torchrun.returncode == 0, err
    assert clone.folders() == [folder]
    assert len(read_metrics(folder)) == 101  # 100 epochs and the test
