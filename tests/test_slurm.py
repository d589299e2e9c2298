"""A sweep on a real Slurm of one node, started for the test, with a job preempted and requeued."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import (
    Clone,
    Like,
    find_sweep,
    list_sweep_runs,
    read_leaderboard,
    read_sweep_metrics,
)

from mnist_exp.paths import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "slurm_on_loopback.sh"
GRID = ("optimizer.lr=1e-4,1e-3,1e-2", "batch_size=16,32,64")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        os.name != "posix" or os.geteuid() != 0 or not shutil.which("slurmctld"),
        reason="needs root, and Debian's slurm-wlm and munge",
    ),
]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    started = subprocess.run(
        [SCRIPT, "start", tmp_path / "slurm"], check=True, capture_output=True, text=True
    )
    monkeypatch.setenv("SLURM_CONF", started.stdout.strip().partition("=")[2])
    yield
    subprocess.run([SCRIPT, "stop"], check=True)


@pytest.mark.usefixtures("slurm")
def test_a_grid_on_slurm_survives_a_preemption(
    clone: Clone,
    new_clone: Callable[[], Clone],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Refuses to requeue the second job, as Slurm does once it has requeued it itself.
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    real = shutil.which("scontrol")
    scontrol.write_text(f'#!/bin/sh\n{real} "$@" && case $2 in *_1) exit 1 ;; esac\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    work = ("-m", "data=digits", "trainer.epochs=50", "trainer.checkpoint_every_steps=5", *GRID)
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1")
    process = clone.start("train.py", *work, *launcher)
    ends = time.monotonic() + 120
    while len(list(clone.root.glob("outputs/*/*/*/checkpoints/last.pt"))) < min(os.cpu_count(), 9):
        assert time.monotonic() < ends, "the first jobs have not started"
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    # Alone it tries again for a minute, and so kills a job that has just been started again.
    once = ["timeout", "2", "scancel", "--user=root", "--state=RUNNING", "--signal=USR2"]
    subprocess.run(once, check=False)
    urgent = ["sbatch", "--partition=urgent", "--cpus-per-task=1", "--output=/dev/null"]
    subprocess.run([*urgent, "--wrap=sleep 3"], check=True, capture_output=True)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    rows = read_leaderboard(find_sweep(clone))
    assert [row["status"] for row in rows] == ["FINISHED"] * 9
    logs = [path.read_text() for path in find_sweep(clone).glob("*/train.log")]
    assert sum("interrupted in epoch" in log for log in logs) >= 1
    assert all(log.count("epoch 50/50") == 1 for log in logs)
    _, children = list_sweep_runs(clone)
    assert {run.info.status for run in children} == {"FINISHED"}

    in_turn = new_clone()
    assert in_turn.run("train.py", *work).returncode == 0
    assert read_sweep_metrics(clone) == read_sweep_metrics(in_turn)


@pytest.mark.usefixtures("slurm")
def test_an_array_keeps_its_bound_and_a_job_that_dies_fails_alone(clone: Clone) -> None:
    work = ("-m", "data=digits", "model=linear", "trainer.epochs=200", "tracking=none")
    bound = ("hydra/launcher=submitit_slurm", "hydra.launcher.array_parallelism=1")
    process = clone.start("train.py", *work, "batch_size=16,32,64", *bound)
    ends = time.monotonic() + 240
    while not any(clone.root.glob("outputs/*/*/1/checkpoints/last.pt")):
        assert time.monotonic() < ends, "the second job has not started"
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    running = ["squeue", "--noheader", "--array", "--states=running", "--format=%i"]
    assert len(subprocess.run(running, check=True, capture_output=True).stdout.splitlines()) == 1
    job = f"submitit.core._submit {find_sweep(clone)}"
    subprocess.run(["pkill", "-KILL", "-f", job], check=True)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, out + err
    statuses = {row["outputs"]: row["status"] for row in read_leaderboard(find_sweep(clone))}
    assert statuses == {"0": "FINISHED", "1": Like("FAILED: Slurm…"), "2": "FINISHED"}
    done = clone.run("train.py", "-m", "sweep.resume=latest", "hydra/launcher=basic")
    assert (done.returncode, done.stderr) == (0, "")
