"""A tracker that is unreachable stops no training, and nothing is lost."""

from __future__ import annotations

import io
import itertools
import logging
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import requests
import torch
from alembic.script import ScriptDirectory
from conftest import TIMES, Clone, Like, closed_port, mlflow_server, only_run, proxy, read_metrics
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.store.db import utils

from mnist_exp.experiment.signals import Interrupted, raise_on_signal
from mnist_exp.tracking import RunRecord, Status, TrackerError, worker
from mnist_exp.tracking.store import explain_deletion, open_store
from mnist_exp.tracking.worker import RetryQueue, Trackers, get_worker


class Flaky:
    """A tracker that records in memory, and raises while it is away."""

    def __init__(self) -> None:
        self.away = False
        self.recorded: list[object] = []

    def _record(self, what: object) -> None:
        if self.away:
            raise ConnectionError("nobody there\nat all")
        self.recorded.append(what)

    def start(self, record: RunRecord) -> None: ...

    def log(self, metrics: Mapping[str, float], step: int, at: float) -> None:
        self._record(step)

    def upload(self, paths: Sequence[Path], folder: str = "") -> None:
        self._record(folder)

    def end(self, status: Status) -> None:
        self._record(status)

    def explain_deletion(self) -> None: ...


def test_calls_that_a_tracker_missed_are_repeated_in_order_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mnist_exp.tracking.worker.BACKOFF", 0)
    flaky = Flaky()
    queue = RetryQueue(flaky)
    assert queue.call("log", {}, 1, 0.0) is None
    flaky.away = True
    assert queue.call("log", {}, 2, 0.0) == "nobody there at all"
    assert queue.call("log", {}, 3, 0.0) == "nobody there at all"
    flaky.away = False
    assert queue.call("log", {}, 4, 0.0) is None
    assert flaky.recorded == [1, 2, 3, 4]


def test_the_end_is_tried_at_once_however_long_the_tracker_was_away() -> None:
    flaky = Flaky()
    queue = RetryQueue(flaky)
    flaky.away = True
    queue.call("log", {}, 1, 0.0)
    flaky.away = False
    queue.call("end", "FINISHED")
    assert flaky.recorded == [1, "FINISHED"]


FLAKY = {"_target_": f"{__name__}.Flaky"}
OPTIONS = {"flaky": FLAKY}
RECORD = RunRecord("key", "name", {}, {})


class InFile(Flaky):
    """Records in a file, which has what the processes before it recorded."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = Path(file)

    def _record(self, what: object) -> None:
        with self.file.open("a") as file:
            file.write(f"{what} ")


def in_file(file: Path) -> dict[str, object]:
    return {"tracker": {"_target_": f"{__name__}.InFile", "file": str(file)}}


def test_a_killed_tracker_is_started_again_and_gets_what_it_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_exp.tracking.worker.RESTARTS", 1)
    get_worker.cache_clear()
    ended, tracker = Trackers(in_file(tmp_path / "ended")), Trackers(in_file(tmp_path / "recorded"))
    try:
        ended.start(RunRecord("ended", "name", {}, {}))
        assert ended.end("FINISHED") is None
        tracker.start(RECORD)
        for step in range(2):
            tracker.log({}, step, 0.0)
            assert tracker.explain_deletion() is None  # it has been logged
            os.kill(tracker.worker.process.pid, signal.SIGKILL)
        tracker.log({}, 2, 0.0)
        assert tracker.end("FINISHED")
    finally:
        get_worker.cache_clear()
    again, gone = Like("…killed…another…"), Like("…killed…continues")
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if not text.startswith("waiting")] == [again, gone]
    assert (tmp_path / "recorded").read_text() == "0 0 1 "
    assert (tmp_path / "ended").read_text() == "FINISHED "


@contextmanager
def dripping_server() -> Iterator[str]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(b"x")
            time.sleep(0.1)

    with proxy("", answer) as uri:
        yield uri


class Remote(Flaky):
    """Uploads nothing to a server, and waits for its answer."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.uri = uri

    def upload(self, paths: Sequence[Path], folder: str = "") -> None:
        urllib.request.urlopen(self.uri).read()


@pytest.mark.parametrize("reason", ["stopped", "dripping", "Ctrl-C"])
def test_the_wait_for_the_end_says_what_for_and_ends_when_nothing_moves(
    reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "FIRST_LINE", 0)
    pause = 60 if reason == "Ctrl-C" else 0.5
    monkeypatch.setattr(worker, "LONGEST_PAUSE", {"FINISHED": pause})
    get_worker.cache_clear()
    with dripping_server() as uri, caplog.at_level(logging.INFO):
        tracker = Trackers({"remote": {"_target_": f"{__name__}.Remote", "uri": uri}})
        tracker.start(RECORD)
        tracker.get_viewers()
        if reason == "dripping":
            tracker.upload([])
        else:
            os.kill(tracker.worker.process.pid, signal.SIGSTOP)
        if reason == "Ctrl-C":
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            with raise_on_signal(), pytest.raises(Interrupted):
                tracker.end("FINISHED")
        else:
            assert tracker.end("FINISHED") == Like("…nothing had moved…")
    assert caplog.messages[0] == Like("waiting for the tracker to … the run; Ctrl-C…")
    assert not is_running(tracker.worker.process.pid)
    assert get_worker() is not tracker.worker


@pytest.mark.parametrize("status", [403, 413, 503])
def test_the_end_is_not_tried_again_once_the_server_has_refused_it(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(Flaky):
        def end(self, end: Status) -> None:
            self.recorded.append(end)
            if len(self.recorded) == 1:
                answer = requests.Response()
                answer.status_code = status
                raise requests.HTTPError("no", response=answer)

    queue = RetryQueue(Refused())
    monkeypatch.setattr(worker, "_queues", {"key": [queue]})
    if status == 503:
        worker._call("key", "end", "FINISHED")
    else:
        with pytest.raises(TrackerError):
            worker._call("key", "end", "FINISHED")
    assert len(queue.tracker.recorded) == (2 if status == 503 else 1)


def test_a_call_moves_on_with_each_request_and_megabyte_but_not_when_it_repeats_them() -> None:
    told: list[str] = []
    sending = worker.Sending()
    sending.tell = told.append
    blocks = [b"PUT / HTTP/1.1\r\n\r\n", *[bytes(2**19)] * 4]
    for attempt, expected in enumerate((3, 0, 1)):
        sending.begin("upload", [Path(__file__)])
        for block in blocks + [bytes(2**20)] * (attempt == 2):
            sending.watch("http.client.send", (None, block))
        assert len(told) == expected
        told.clear()
    sending.complete()
    assert told == [Like(f"upload {Path(__file__).name} (… MB)")]


def test_a_tracker_that_cannot_be_made_is_an_error_of_the_start() -> None:
    tracker = Trackers({"flaky": {**FLAKY, "more": 1}})
    tracker.start(RECORD)
    tracker.log({}, 1, 0.0)
    with pytest.raises(TrackerError, match="'more'"):
        tracker.get_viewers()
    assert tracker.end("FINISHED")


class Placed(Flaky):
    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def start(self, record: RunRecord) -> str:
        self.away = self.place == "far"
        return self.place


def test_each_tracker_gets_its_options_and_records_while_another_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "_queues", {})
    placed = {"_target_": f"{__name__}.Placed"}
    config = {"first": placed, "place": "far", "second": FLAKY, "third": FLAKY}
    assert worker._start(config, RECORD) == ["far"]
    with pytest.raises(TrackerError, match="nobody there at all"):
        worker._call("key", "log", {}, 1, 0.0)
    recorded = [queue.tracker.recorded for queue in worker._queues["key"]]
    assert recorded == [[], [1], [1]]


def test_a_started_tracker_is_ended_when_another_cannot_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: list[Status] = []
    monkeypatch.setattr(Placed, "end", lambda self, status: ends.append(status))
    monkeypatch.setattr(Flaky, "start", lambda self, record: 1 / 0)
    config = {"first": {"_target_": f"{__name__}.Placed"}, "place": "near", "second": FLAKY}
    with pytest.raises(ZeroDivisionError):
        worker._start(config, RECORD)
    assert ends == ["FAILED"]


def test_the_trackers_of_a_killed_process_end_its_runs_and_themselves(tmp_path: Path) -> None:
    code = f"""if True:
        import os, signal
        from mnist_exp.tracking import RunRecord
        from mnist_exp.tracking.worker import Trackers
        for key in ("ended", "open"):
            tracker = Trackers({{"tracker": {{
                "_target_": "test_worker.InFile", "file": {str(tmp_path)!r} + "/" + key
            }}}})
            tracker.start(RunRecord(key, "name", {{}}, {{}}))
            assert key == "open" or tracker.end("FINISHED") is None
        tracker.get_viewers()
        print(tracker.worker.process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    assert done.returncode == -signal.SIGKILL
    ends = time.monotonic() + 10
    while is_running(int(done.stdout)):
        assert time.monotonic() < ends, "it is still there"
        time.sleep(0.01)
    assert (tmp_path / "ended").read_text() == "FINISHED "
    assert (tmp_path / "open").read_text() == "KILLED "


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@contextmanager
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "server", [closed_port, pytest.param(silent_server, marks=pytest.mark.slow)]
)
def test_a_tracker_out_of_reach_at_the_start_is_one_line(clone: Clone, server: object) -> None:
    with server() as uri:  # type: ignore[operator]
        done = clone.run("train.py", "data=digits", env={"MLFLOW_TRACKING_URI": uri})
    assert done.returncode == 1
    *_, advice, command, line = done.stdout.splitlines()
    assert line == Like(f"error: …{uri} …tracking=none…")
    (folder,) = clone.folders()
    assert advice == Like("…tracker…")
    assert command == f"python train.py resume={folder.relative_to(clone.root)}"
    assert done.stdout.count("does not answer") == 1  # no warning before it


@pytest.mark.slow
def test_a_long_training_ends_within_seconds_when_no_run_can_be_opened(clone: Clone) -> None:
    started = time.monotonic()
    with silent_server() as uri:
        env = {"MLFLOW_TRACKING_URI": uri}
        done = clone.run("train.py", "data=digits", "trainer.epochs=100000", env=env)
    assert done.returncode == 1
    assert Like(f"error: …{uri} …") in done.stdout.splitlines()
    assert time.monotonic() - started < 30  # 10 on a machine without other work


def steps(client: MlflowClient, run_id: str, name: str = "val/loss") -> list[int]:
    return [metric.step for metric in client.get_metric_history(run_id, name)]


LONG = ("data=digits", "batch_size=1", "trainer.epochs=20")  # a quarter of a minute


def wait_for_metric(uri: str) -> None:
    """Wait until MLflow has a metric of a run: the worker opens it during training."""
    client, ends = MlflowClient(uri), time.monotonic() + 60
    while time.monotonic() < ends:
        experiment = client.get_experiment_by_name("mnist_exp")
        if experiment and any(
            r.data.metrics for r in client.search_runs([experiment.experiment_id])
        ):
            return
        time.sleep(0.05)
    raise AssertionError("MLflow has no metric")


@pytest.mark.slow
def test_a_database_that_is_locked_for_a_while_misses_nothing(clone: Clone) -> None:
    clone.run("train.py", "data=digits", "trainer=debug", "tracking.experiment=first")  # the store
    process = clone.start("train.py", *LONG)
    wait_for_metric(f"sqlite:///{clone.root}/mlflow.db")
    with sqlite3.connect(clone.root / "mlflow.db", isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(8)
        database.execute("ROLLBACK")
    database.close()
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
    client = clone.client
    run_id = only_run(client).info.run_id
    if "python train.py" in out:
        *_, command = [line for line in out.splitlines() if line.startswith("python train.py")]
        assert clone.run(*command.split()[1:]).returncode == 0
    assert steps(client, run_id) == list(range(1, 21))
    assert client.get_run(run_id).info.status == "FINISHED"


def check_complete(client: MlflowClient, run_id: str, clone: Clone, times: bool = True) -> None:
    """The tracker has each line of the journal once, all files, and the end."""
    (folder,) = clone.folders()
    lines = read_metrics(folder, times)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    names = run.data.metrics.keys() - (set() if times else TIMES)
    assert names == {key for line in lines for key in line} - {"epoch"}
    for key in names:
        points = client.get_metric_history(run_id, key)
        logged = [(line["epoch"], line[key]) for line in lines if key in line]
        assert [(point.step, point.value) for point in points] == logged
    for path in ("metrics.jsonl", "mnist_model.pth", "checkpoints/last.pt"):
        client.download_artifacts(run_id, path, str(clone.root))
    assert (clone.root / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()


LONGER = (*LONG, "trainer.epochs=40")  # so that a server can be started in it


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_killed_and_started_again_during_training_misses_nothing(
    clone: Clone, tmp_path: Path
) -> None:
    with closed_port() as uri:
        pass
    with mlflow_server(tmp_path, uri):
        process = clone.start("train.py", *LONGER, env={"MLFLOW_TRACKING_URI": uri})
        wait_for_metric(uri)
    time.sleep(1)
    with mlflow_server(tmp_path, uri):
        assert process.poll() is None, "it ended before the server was back"
        out, err = process.communicate(timeout=200)
        assert (process.returncode, err) == (0, "")
        assert out.count("tracker") == 1
        assert "python train.py" not in out
        client = MlflowClient(uri)
        run_id = only_run(client).info.run_id
        check_complete(client, run_id, clone)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_left_dead_is_brought_up_to_date_by_the_last_command(
    clone: Clone, tmp_path: Path
) -> None:
    with closed_port() as uri:
        pass
    env = {"MLFLOW_TRACKING_URI": uri}
    with mlflow_server(tmp_path, uri):
        process = clone.start("train.py", *LONG, env=env)
        wait_for_metric(uri)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, "")
    assert out.count("does not answer") == 1
    assert "waiting for the tracker" in out
    (folder,) = clone.folders()
    command = f"python train.py resume={folder.relative_to(clone.root)}"
    assert re.search(rf"^.*tracker.*:\n{re.escape(command)}\n", out, re.MULTILINE)
    with mlflow_server(tmp_path, uri):
        client = MlflowClient(uri)
        run_id = only_run(client).info.run_id
        assert client.get_run(run_id).info.status == "RUNNING"
        done = clone.run(*command.split()[1:], env=env)
        assert (done.returncode, done.stderr) == (0, "")
        check_complete(client, run_id, clone)
        before = client.get_run(run_id).to_dictionary()
        done = clone.run(*command.split()[1:], env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert "already" in done.stdout
        assert client.get_run(run_id).to_dictionary() == before
        check_complete(client, run_id, clone)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_whose_folder_is_lost_resumes_from_the_server_bit_for_bit(
    clone: Clone, new_clone: Callable[[], Clone], tmp_path: Path
) -> None:
    run = (*LONG, "trainer.epochs=10")
    whole = new_clone()
    assert whole.run("train.py", *run, "tracking=none").returncode == 0
    with closed_port() as uri:
        pass
    env = {"MLFLOW_TRACKING_URI": uri}
    with mlflow_server(tmp_path, uri):
        process = clone.start("train.py", *run, "tracking.upload_every=2", env=env)
        wait_for_metric(uri)
        client, ends = MlflowClient(uri), time.monotonic() + 120
        run_id = only_run(client).info.run_id
        while not client.list_artifacts(run_id, "checkpoints"):
            assert time.monotonic() < ends, "no checkpoint has come"
            time.sleep(0.1)
        process.kill()
        process.communicate()
        shutil.rmtree(clone.root / "outputs")
        done = clone.run("train.py", f"resume={run_id}", env=env)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        check_complete(client, run_id, clone, times=False)  # of the first training of an epoch
    (folder,), (expected,) = clone.folders(), whole.folders()
    assert read_metrics(folder) == read_metrics(expected)
    ours, theirs = (
        torch.load(path / "mnist_model.pth", weights_only=True) for path in (folder, expected)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs | ours)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_slow_and_busy_server_gets_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LONGEST_PAUSE", {"FINISHED": 20})
    get_worker.cache_clear()
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom(12 * 2**20))
    count = itertools.count(1)

    def hinder(request: BaseHTTPRequestHandler) -> None:
        number, size = next(count), int(request.headers.get("Content-Length", 0))
        if number == 1:
            time.sleep(4)
        parts = [2**20] * (size // 2**20) + [size % 2**20]
        received = []
        for part in parts:
            received.append(request.rfile.read(part))
            time.sleep(2 * (part == 2**20))  # longer than LONGEST_PAUSE for the whole file
        request.rfile = io.BytesIO(b"".join(received))
        if number % 10 == 0:
            request.send_error(503)
            raise ConnectionError

    with closed_port() as server:
        pass
    with mlflow_server(tmp_path, server), proxy(server, hinder) as uri:
        target = "mnist_exp.tracking.mlflow.MLflowTracker"
        tracker = Trackers({"mlflow": {"_target_": target}, "experiment": "slow", "uri": uri})
        tracker.start(RECORD)
        for step in range(1, 20):
            tracker.log({"loss": 1.0}, step, 0.0)
        tracker.upload([large])
        assert tracker.end("FINISHED") is None
        run = only_run(MlflowClient(server), "slow")
        assert steps(MlflowClient(server), run.info.run_id, "loss") == list(range(1, 20))
        (stored,) = tmp_path.rglob("artifacts/large.bin")
        assert stored.read_bytes() == large.read_bytes()
    assert next(count) > 20


QUICK = ("data=digits", "model=linear", "trainer.epochs=20")
FIRST = "(SELECT min(start_time) FROM runs)"
DELETE = f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE start_time = {FIRST}"


def delete_first_run(clone: Clone) -> None:
    """Delete the first run as soon as a run has a metric: it, or a job of the sweep that it is."""
    uri, ends = f"file:{clone.root}/mlflow.db?mode=rw", time.monotonic() + 60
    while time.monotonic() < ends:
        with suppress(sqlite3.Error), closing(sqlite3.connect(uri, uri=True)) as database:
            if database.execute("SELECT * FROM metrics").fetchone():
                database.execute(DELETE)
                database.commit()
                return
        time.sleep(0.01)
    raise AssertionError("MLflow has no metric")


@pytest.mark.slow
def test_a_run_that_is_deleted_meanwhile_fails_and_is_logged_once_it_is_restored(
    clone: Clone,
) -> None:
    process = clone.start("train.py", *QUICK)
    delete_first_run(clone)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, ""), out
    (folder,) = clone.folders()
    client = clone.client
    experiments = [client.get_experiment_by_name("mnist_exp").experiment_id]
    (run,) = client.search_runs(experiments, "", ViewType.DELETED_ONLY)
    path = folder.relative_to(clone.root)
    deleted = f"error: …{run.info.run_id} …deleted…restore…"
    said = f"{deleted}python train.py resume={path}…{path}"
    assert out.splitlines()[-1] == Like(said)
    assert (folder / "mnist_model.pth").exists()

    done = clone.run("train.py", f"resume={path}")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == Like(f"{deleted}tracking.experiment=NAME")
    assert len(client.search_runs(experiments, "", ViewType.ALL)) == 1
    client.restore_run(run.info.run_id)
    done = clone.run("train.py", f"resume={path}")
    assert (done.returncode, done.stderr) == (0, "")
    check_complete(client, run.info.run_id, clone)


@pytest.mark.slow
def test_a_sweep_whose_run_is_deleted_meanwhile_fails(clone: Clone) -> None:
    process = clone.start("train.py", "-m", *QUICK, "seed=1,2", "trainer.epochs=2")
    delete_first_run(clone)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, ""), out
    assert re.search("^error: .*MLflow run .* deleted.*restore.*$", out, re.M)
    assert "sweep.resume=" in out.splitlines()[-1]


def test_a_deletion_is_explained_by_what_was_deleted(empty_store: Path, tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{shutil.copy(empty_store, tmp_path)}")
    experiment = client.create_experiment("mine")
    run_id = client.create_run(experiment).info.run_id
    assert explain_deletion(client, run_id) is None
    client.delete_experiment(experiment)
    assert explain_deletion(client, run_id) == Like(
        f"…experiment mine …deleted…mlflow experiments restore -x {experiment}"
    )
    gone = "0123456789abcdef0123456789abcdef"
    assert explain_deletion(client, gone) == Like(f"…{gone} …deleted for good")


def test_a_database_is_copied_before_it_is_migrated_and_one_of_a_newer_mlflow_is_refused(
    empty_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    database, copy = tmp_path / "mlflow.db", tmp_path / "mlflow.db.before_migration"
    uri, newest = f"sqlite:///{database}", utils._get_latest_schema_revision()
    scripts = ScriptDirectory.from_config(utils._get_alembic_config(""))

    def set_version(version: object, path: Path = database) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
            connection.commit()

    def upgrade(engine: object) -> None:
        assert copy.exists()
        set_version(newest)

    monkeypatch.setattr(utils, "_upgrade_db", upgrade)
    shutil.copy(empty_store, database)
    open_store(uri)
    assert not copy.exists()
    set_version(scripts.get_revision(newest).down_revision)
    open_store(uri)
    assert capsys.readouterr().err == Like(f"{database}…MLflow…{copy.name}…\n")
    set_version("ffffffffffff")
    with pytest.raises(TrackerError, match=r"mlflow\.db: MLflow .* is older .*upgrade"):
        open_store(uri)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_four_trainings_started_at_once_in_a_fresh_clone_all_end_well(
    clone: Clone, number: int
) -> None:
    (clone.root / "mlflow.db").unlink()
    for path in (clone.root / "data" / "cache").rglob("*"):
        if path.is_file():
            path.unlink()
    processes = [clone.start("train.py", "data=digits", "trainer=debug") for _ in range(4)]
    for process in processes:
        out, err = process.communicate(timeout=200)
        assert (process.returncode, err) == (0, ""), out
    client = clone.client
    runs = client.search_runs([client.get_experiment_by_name("mnist_exp").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert len(set(clone.folders())) == 4
    assert len(client.search_experiments()) == 2  # ours and MLflow's own
    files = [path.name for path in (clone.root / "data" / "cache").rglob("*") if path.is_file()]
    assert sorted(files) == ["images.npy", "labels.npy", "lock", "record.json"]
