"""After a power cut at any point, a run or a sweep resumes to the same end."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Clone, read_leaderboard, read_metrics
from omegaconf import OmegaConf
from power_cut import Disk, compile_recorder, read_events
from test_resume import as_lists

from mnist_exp.experiment import checkpoint
from mnist_exp.paths import LAST, METRICS, SWEEP

POINTS = int(os.environ.get("POWER_CUTS", "6"))
SETTINGS = ("data=digits", "model.dropout=0.2", "tracking=none", "trainer.epochs=3")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120 + 30 * POINTS),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="the recorder is written in C"),
]


def cut_anywhere(clone: Clone, tmp_path: Path, *command: str) -> Iterator[dict[Path, bytes]]:
    """Run the command, and make outputs/ as each of POINTS power cuts could have left it.

    Yields the files of outputs/ before the power cut. The whole outputs are copied to tmp_path.
    """
    outputs, volatile = clone.root / "outputs", tmp_path / "volatile"
    recorded = {**compile_recorder(tmp_path), "POWER_ROOT": str(outputs)}
    done = clone.run(*command, env=recorded, fork=False)
    assert done.returncode == 0, done.stderr
    shutil.copytree(outputs, tmp_path, dirs_exist_ok=True)
    events = list(read_events(tmp_path / "power.log"))
    Disk(outputs, events).write(volatile)
    assert read_tree(volatile) == read_tree(outputs)  # else a call was not recorded
    draw = random.Random(0)
    counts = draw.choices(range(1, len(events) + 1), k=POINTS)
    for seed, count in enumerate(counts):
        disk = Disk(outputs, events[:count])
        disk.write(volatile)
        before = {outputs / path: content for path, content in read_tree(volatile).items()}
        disk.write(outputs, random.Random(seed))
        print(f"power cut {seed}, after {count} of {len(events)} calls")
        yield before


def read_tree(folder: Path) -> dict[Path, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


def read_run(folder: Path) -> list[Any]:
    """What must be the same: all that the run leaves, but for times."""
    saved = checkpoint.load(folder / LAST)
    state, progress = saved["state"], saved["state"]["progress"]
    states = [state.get(name) for name in ("model", "optimizer", "scheduler")]
    texts = [OmegaConf.load(folder / "config.yaml"), (folder / "model.txt").read_text()]
    kept = [saved["ended"], progress["best"], progress["kept"]]
    return [*as_lists([*kept, states]), *texts, read_metrics(folder)]


def check_checkpoint(folder: Path, before: bytes) -> None:
    """The last checkpoint loads and has every epoch that the journal had before the power cut."""
    told = {json.loads(line)["epoch"] for line in before.splitlines()}
    if told or (folder / LAST).exists():
        saved = checkpoint.load(folder / LAST)
        assert len(saved["state"]["progress"]["epochs"]) >= len(told)


def test_a_run_resumes_to_the_same_bits(clone: Clone, tmp_path: Path) -> None:
    folder = clone.root / "outputs" / "a" / "b"
    every = "trainer.checkpoint_every_steps=7"
    whole: list[Any] = []
    for before in cut_anywhere(
        clone, tmp_path, "train.py", *SETTINGS, every, f"hydra.run.dir={folder}"
    ):
        if not whole:
            whole = read_run(tmp_path / "a" / "b")
        check_checkpoint(folder, before.get(folder / METRICS, b""))
        if (folder / LAST).exists():
            done = clone.run("train.py", f"resume={folder}")
            assert (done.returncode, done.stderr) == (0, "")
            assert read_run(folder) == whole


def test_a_sweep_resumes_to_the_same_leaderboard(clone: Clone, tmp_path: Path) -> None:
    folder = clone.root / "outputs" / "a" / "b"
    jobs: list[Any] = []
    for before in cut_anywhere(
        *(clone, tmp_path, "train.py", "-m", *SETTINGS, "optimizer.lr=1e-3,1e-2"),
        f"hydra.sweep.dir={folder}",
    ):
        if not jobs:
            jobs = [read_run(tmp_path / "a" / "b" / name) for name in "01"]
            rows = read_leaderboard(tmp_path / "a" / "b")
        if not (folder / SWEEP).exists():
            assert not any(path.match("0/*") for path in before)
            continue
        for name in "01":
            check_checkpoint(folder / name, before.get(folder / name / METRICS, b""))
            outcome = folder / name / "outcome.json"
            if outcome.exists() and json.loads(outcome.read_text())["status"] == "FINISHED":
                assert read_run(folder / name) == jobs[int(name)]
        done = clone.run("train.py", "-m", f"sweep.resume={folder}")
        assert (done.returncode, done.stderr) == (0, "")
        assert [read_run(folder / name) for name in "01"] == jobs
        for found, expected in zip(read_leaderboard(folder), rows, strict=True):
            assert {**found, "seconds": ""} == {**expected, "seconds": ""}
