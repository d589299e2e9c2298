"""A tracker that is not there, or goes away: training does not die of it, and nothing is lost."""

from __future__ import annotations

import logging
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Clone
from mlflow import MlflowClient

from mnist_exp.tracking import Patient, RunRecord, Status


class Flaky:
    """Remembers what it was told; raises while it is away."""

    def __init__(self) -> None:
        self.away = False
        self.told: list[object] = []

    def _hear(self, what: object) -> None:
        if self.away:
            raise ConnectionError("nobody there\nat all")
        self.told.append(what)

    def start(self, record: RunRecord, run_id: str | None) -> str | None:
        return run_id

    def log(self, metrics: Mapping[str, float], step: int, at: float) -> None:
        self._hear(step)

    def upload(self, paths: Sequence[Path], folder: str = "") -> None:
        self._hear(folder)

    def end(self, status: Status) -> None:
        self._hear(status)

    def where(self) -> None: ...


def test_what_a_tracker_missed_it_is_told_in_order_when_it_is_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_exp.tracking.PATIENCE", 0)
    flaky = Flaky()
    patient = Patient(flaky)
    patient.log({}, 1, 0.0)
    flaky.away = True
    with caplog.at_level(logging.WARNING):
        patient.log({}, 2, 0.0)
        patient.log({}, 3, 0.0)
    assert patient.behind
    assert [record.getMessage() for record in caplog.records] == [
        "the tracker does not answer (nobody there at all); the run goes on"
    ]
    flaky.away = False
    patient.log({}, 4, 0.0)
    assert flaky.told == [1, 2, 3, 4]
    assert not patient.behind


def test_the_end_is_told_at_once_however_long_the_tracker_was_away() -> None:
    flaky = Flaky()
    patient = Patient(flaky)
    flaky.away = True
    patient.log({}, 1, 0.0)
    flaky.away = False
    patient.end("FINISHED")
    assert flaky.told == [1, "FINISHED"]


@contextmanager
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def closed_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("server", [closed_port, silent_server])
def test_a_tracker_out_of_reach_at_the_start_is_one_line(clone: Clone, server: object) -> None:
    with server() as uri:  # type: ignore[operator]
        done = clone.run("train.py", "data=digits", env={"MLFLOW_TRACKING_URI": uri})
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"error: MLflow at {uri} does not answer (")
    assert line.endswith("; tracking=none trains without it")


def only_run(uri: str) -> tuple[MlflowClient, str]:
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mnist_exp").experiment_id])
    return client, run.info.run_id


def steps(client: MlflowClient, run_id: str) -> list[int]:
    return [metric.step for metric in client.get_metric_history(run_id, "val/loss")]


LONG = ("data=digits", "batch_size=16", "trainer.epochs=40")


def wait_for_epoch(clone: Clone) -> None:
    ends = time.monotonic() + 60
    while not any(path.read_text() for path in clone.root.glob("outputs/*/*/metrics.jsonl")):
        assert time.monotonic() < ends, "no epoch has ended"
        time.sleep(0.01)


def test_a_database_that_is_locked_for_a_while_misses_nothing(clone: Clone) -> None:
    process = clone.start("train.py", *LONG)
    wait_for_epoch(clone)
    with sqlite3.connect(clone.root / "mlflow.db", isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(8)
        database.execute("ROLLBACK")
    database.close()
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
    client, run_id = only_run(f"sqlite:///{clone.root}/mlflow.db")
    if "the tracker has not got everything" in out:
        *_, command = [line for line in out.splitlines() if line.startswith("python train.py")]
        assert clone.run(*command.split()[1:]).returncode == 0
    assert steps(client, run_id) == list(range(1, 41))
    assert client.get_run(run_id).info.status == "FINISHED"


def test_four_trainings_started_at_once_in_a_fresh_clone_all_end_well(clone: Clone) -> None:
    for path in (clone.root / "data" / "cache").rglob("*"):
        if path.is_file():
            path.unlink()
    processes = [clone.start("train.py", "data=digits", "trainer=debug") for _ in range(4)]
    for process in processes:
        out, err = process.communicate(timeout=200)
        assert (process.returncode, err) == (0, ""), out
    client = MlflowClient(f"sqlite:///{clone.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("mnist_exp").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert len(set(clone.folders())) == 4
