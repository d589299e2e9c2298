"""A sweep on Ray, where its launcher is installed: with Hydra 1.4."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
from conftest import Clone, Like, find_sweep, read_leaderboard
from test_sweeps import QUICK

from mnist_exp.cli import check


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("hydra_plugins.hydra_ray_launcher") is None, reason="needs hydra-ray-launcher"
)
def test_jobs_on_ray_find_the_same_as_serial_jobs(
    clone: Clone, new_clone: Callable[[], Clone]
) -> None:
    serial, grid = new_clone(), (*QUICK, "batch_size=16,64")
    assert clone.run("train.py", *grid, "hydra/launcher=ray", fork=False).returncode == 0
    assert serial.run("train.py", *grid, "hydra/launcher=basic").returncode == 0
    columns = ("batch_size", "val_accuracy", "val_loss", "status")
    found, expected = (
        [[row[column] for column in columns] for row in read_leaderboard(find_sweep(one))]
        for one in (clone, serial)
    )
    assert found == expected


def test_ray_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    assert check.problems(["hydra/launcher=ray"], multirun=True) == [
        Like("hydra/launcher=ray: …Hydra 1.4…pip install -e '.[ray]'")
    ]
