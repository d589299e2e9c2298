"""A run that was killed or interrupted at any instant resumes bit for bit."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import random
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    TIMES,
    TRAINED,
    Clone,
    Like,
    compose_config,
    is_refused,
    only_run,
    read_metrics,
    wait_for_end,
)
from hydra.core.override_parser.overrides_parser import OverridesParser
from mlflow import MlflowClient
from omegaconf import OmegaConf
from torch.optim.swa_utils import AveragedModel

from mnist_exp.errors import BadInput, Failure
from mnist_exp.experiment import checkpoint
from mnist_exp.experiment import run as experiment
from mnist_exp.experiment.find import find_run
from mnist_exp.experiment.load import load_model
from mnist_exp.experiment.metrics import Entry
from mnist_exp.experiment.resume import apply_overrides
from mnist_exp.experiment.shell import quote
from mnist_exp.experiment.signals import Interrupted, call_launcher, defer_signals
from mnist_exp.files import lock_folder
from mnist_exp.paths import BEST, LAST
from mnist_exp.tracking import TrackerError
from mnist_exp.tracking.store import end_killed_runs
from mnist_exp.tracking.worker import Trackers

# 77 steps an epoch, with dropout, a checkpoint after every third step.
SETTINGS = ("data=digits", "batch_size=16", "model.dropout=0.2", "trainer.checkpoint_every_steps=3")
RUN = (*SETTINGS, "trainer.epochs=10")  # two seconds: long enough to be hit


# --- what a run has left ---


def history(client: MlflowClient) -> dict[str, list[tuple[int, float | None]]]:
    """All metrics of the store's only run, (step, value) in order; of times only the steps."""
    run = only_run(client)
    return {
        key: [
            (point.step, None if key in TIMES else point.value)
            for point in client.get_metric_history(run.info.run_id, key)
        ]
        for key in run.data.metrics
    }


def as_lists(node: Any) -> Any:
    """The same with plain lists for tensors, to be compared bit for bit."""
    if isinstance(node, torch.Tensor):
        return node.tolist()
    if isinstance(node, dict):
        return {key: as_lists(value) for key, value in node.items()}
    return [as_lists(item) for item in node] if isinstance(node, list | tuple) else node


def weights(folder: Path) -> Any:
    """The kept weights, and all that the next step depends on in the last and best checkpoint."""
    found = {"kept": torch.load(folder / "mnist_model.pth", weights_only=True)}
    for name in ("last", "best"):
        state = checkpoint.load(folder / "checkpoints" / f"{name}.pt")["state"]
        found[name] = [state.get(key) for key in ("model", "optimizer", "scheduler")]
        found[name].append(state.get("random", {}).get("torch"))  # MLflow draws from Python's, too
    return as_lists(found)


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of all files but the log."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_same(clone: Clone, whole: Clone) -> None:
    """The only runs of the two clones are equal but for times."""
    (folder,), (expected,) = clone.folders(), whole.folders()
    found = history(clone.client)
    assert found == history(whole.client)
    assert all(len({step for step, _ in points}) == len(points) for points in found.values())
    assert read_metrics(folder) == read_metrics(expected)
    assert weights(folder) == weights(expected)
    assert only_run(clone.client).info.status == "FINISHED"


# --- killed ---


class Victim:
    """A training in a clone that is killed at given moments and resumed."""

    def __init__(self, clone: Clone, settings: Sequence[str], rng: random.Random) -> None:
        self.clone, self.rng = clone, rng
        self.command = ("train.py", *settings, "hydra.run.dir=outputs/the/same", "resume=auto")
        self.half_written = 0  # kills that fell into the writing of a checkpoint

    def changed(self, name: str) -> int:
        """When this file of the run's folder was last written; 0 where it is not there."""
        files = self.clone.root.glob(f"outputs/*/*/{name}")
        return max((path.stat().st_mtime_ns for path in files), default=0)

    def being_written(self) -> set[Path]:
        return set(self.clone.root.glob("outputs/*/*/checkpoints/.last.pt.*"))

    def kill(self, moment: str) -> None:
        """Start the run or go on with it, and SIGKILL it at that moment after a random while."""
        before, model = self.being_written(), self.changed("mnist_model.pth")
        last = self.changed(str(LAST))
        process = self.clone.start(*self.command)

        def wait(happened: Callable[[], object], pause: float = 0) -> None:
            ends = time.monotonic() + 300
            while not happened():
                time.sleep(pause)
                assert process.poll() is None, f"it has ended before the kill: {process.stdout}"
                assert time.monotonic() < ends, f"{moment} does not come"

        if moment == "starting":
            time.sleep(self.rng.uniform(0, 4))
        elif moment == "closing":
            wait(lambda: self.changed("mnist_model.pth") != model, pause=0.005)
        else:
            wait(lambda: self.changed(str(LAST)) != last, pause=0.02)
            time.sleep(self.rng.uniform(0, 0.3))
        if moment == "writing":
            wait(lambda: self.being_written() - before)
        elif moment == "telling":
            told = self.changed("metrics.jsonl")
            wait(lambda: self.changed("metrics.jsonl") != told)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before the kill"
        wait_for_end(self.clone)
        self.half_written += bool(self.being_written() - before)

    def end(self) -> None:
        done = self.clone.run(*self.command)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.fixture(scope="module")
def whole(new_clone: Callable[[], Clone]) -> Clone:
    """RUN, never interrupted."""
    clone = new_clone()
    assert clone.run("train.py", *RUN).returncode == 0
    return clone


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_twenty_times_ends_as_one_that_was_not(
    new_clone: Callable[[], Clone],
) -> None:
    whole, clone, settings = new_clone(), new_clone(), (*SETTINGS, "trainer.epochs=100")
    assert whole.run("train.py", *settings).returncode == 0
    victim = Victim(clone, settings, random.Random(1))
    moments = ["writing"] * 7 + ["any"] * 6 + ["telling"] * 3 + ["starting"] * 2
    victim.rng.shuffle(moments)
    for moment in (*moments, "closing", "closing"):
        victim.kill(moment)
    victim.end()
    print(f"{victim.half_written} of 20 kills left half a checkpoint")
    assert victim.half_written > 0
    check_same(clone, whole)


# --- interrupted ---


@contextmanager
def lock_database(clone: Clone) -> Iterator[None]:
    """No other process can read or write the clone's database."""
    database = sqlite3.connect(clone.root / "mlflow.db", isolation_level=None, timeout=30)
    database.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        database.execute("ROLLBACK")
        database.close()


def wait_for_file(clone: Clone, name: str) -> None:
    """Wait until a run of the clone has written this file."""
    ends = time.monotonic() + 60
    while not any(path.stat().st_size for path in clone.root.glob(f"outputs/*/*/{name}")):
        assert time.monotonic() < ends, f"no {name}"
        time.sleep(0.001)


def heed_hangups() -> None:
    """Undo what nohup does, which may have started the tests."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def ignore_hangups() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.slow
def test_a_signal_ends_after_the_step_and_the_printed_command_resumes(
    whole: Clone, clone: Clone
) -> None:
    odd = 'it\'s [an] "odd" $HOME folder\\, a=b, ü'
    run_dir = f"hydra.run.dir={quote(f'{clone.root}/outputs/{odd}/1')}"
    command = shlex.join([sys.executable, "train.py", *RUN, run_dir])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    codes = {"TERM": 143, "INT": 130, "HUP": 129, "USR1": 138, "USR2": 140}
    for name, code in codes.items():
        for told in clone.root.glob("outputs/*/*/metrics.jsonl"):
            told.unlink()
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            env=clone.environment(PATH=path),
            cwd=clone.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_hangups,
        )
        wait_for_file(clone, "metrics.jsonl")
        process.send_signal(signal.Signals[f"SIG{name}"])
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (code, ""), out
        assert only_run(clone.client).info.status == "KILLED"
        command = out.splitlines()[-1]
        assert command.startswith("python train.py ")
    argument = shlex.split(command)[-1]
    assert OverridesParser.create().parse_override(argument).value() == f"outputs/{odd}/1"
    done = clone.run("train.py", argument)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    check_same(clone, whole)


def wait_for_metric(clone: Clone) -> None:
    """Wait until MLflow has a metric of a run of the clone."""
    uri, ends = f"file:{clone.root}/mlflow.db?mode=ro", time.monotonic() + 60
    while time.monotonic() < ends:
        with suppress(sqlite3.Error), closing(sqlite3.connect(uri, uri=True)) as database:
            if database.execute("SELECT * FROM metrics").fetchone():
                return
        time.sleep(0.02)
    raise AssertionError("MLflow has no metric")


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(clone: Clone) -> None:
    process = clone.start("train.py", *RUN, "trainer.epochs=1000")
    wait_for_metric(clone)
    with lock_database(clone):
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):  # it wants to tell the tracker
            process.wait(timeout=1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=1)
    assert process.returncode == -signal.SIGTERM  # 143, for a shell
    assert wait_for_end(clone) == ["KILLED"]


@pytest.mark.slow
def test_a_running_run_is_not_resumed_and_under_nohup_no_hangup_ends_it(clone: Clone) -> None:
    process = clone.start("train.py", *RUN, "trainer.epochs=1000", preexec_fn=ignore_hangups)
    wait_for_file(clone, "metrics.jsonl")
    process.send_signal(signal.SIGHUP)
    done = clone.run("train.py", "resume=latest")
    assert is_refused(done, 2, "resume=latest", "at work")
    (folder,) = clone.folders()
    done = clone.run("train.py", f"resume={folder}")
    assert done.returncode == 1
    assert re.search("^error: .*: another process", done.stdout, re.MULTILINE)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert only_run(clone.client).info.status == "KILLED"


@pytest.mark.slow
def test_a_signal_after_the_training_lets_the_run_finish(clone: Clone) -> None:
    process = clone.start("train.py", "data=digits", "trainer=debug")
    wait_for_file(clone, "mnist_model.pth")
    with lock_database(clone):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "")
    assert out.splitlines()[-1] == Like("compare  mlflow ui, …")
    assert only_run(clone.client).info.status == "FINISHED"
    (folder,) = clone.folders()
    assert checkpoint.load(folder / LAST)["ended"]


def test_ctrl_c_while_the_command_line_is_checked_prints_nothing(clone: Clone) -> None:
    code = (
        "import os, signal, sys; from mnist_exp.cli import check, main as cli; "
        "sys.argv = ['train.py']; "
        "check.check = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT); cli.train()"
    )
    done = clone.run("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# --- found, and left alone ---


def test_a_finished_run_is_left_unchanged_by_a_resume(trained: Clone, tmp_path: Path) -> None:
    (folder,) = trained.folders()
    client = trained.client
    run, before = only_run(client), hashes(folder)
    script = str(trained.root / "train.py")
    done = trained.run(script, f"resume={run.info.run_id}", *TRAINED, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == Like(f"{folder} …already…trainer.epochs=N…\n")
    assert hashes(folder) == before
    assert only_run(client).to_dictionary() == run.to_dictionary()
    assert trained.folders() == [folder]
    assert list(tmp_path.iterdir()) == []


def test_the_next_command_tells_killed_of_a_run_that_a_power_cut_has_ended(clone: Clone) -> None:
    assert clone.run("train.py", "data=digits", "trainer=debug").returncode == 0
    client, (folder,) = clone.client, clone.folders()
    cut = only_run(client)
    client.update_run(cut.info.run_id, status="RUNNING")
    at_work = shutil.copytree(folder, folder.with_name("at_work"))
    place = "mnist_exp.output_folder"
    others = {
        "another machine's": {"mnist_exp.host": "other"},
        "another person's": {"mlflow.user": "other"},
        "gone": {place: "outputs/gone"},
        "at work": {place: str(at_work.relative_to(clone.root))},
    }
    for name, tags in others.items():
        tags = {**cut.data.tags, **tags, "mlflow.runName": name}
        client.create_run(cut.info.experiment_id, tags=tags)
    with lock_folder(at_work):
        assert clone.run("train.py", f"resume={'0' * 32}").returncode == 2
    found = {run.info.run_name: run.info.status for run in client.search_runs(["1"])}
    assert found == {cut.info.run_name: "KILLED", **dict.fromkeys(others, "RUNNING")}


def test_a_run_that_ends_while_the_next_command_looks_at_it_stays_finished(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert clone.run("train.py", "data=digits", "trainer=debug").returncode == 0
    client = clone.client
    run_id = only_run(client).info.run_id
    client.update_run(run_id, status="RUNNING")

    class SlowClient(MlflowClient):
        def search_runs(self, *args: Any, **options: Any) -> Any:
            found = super().search_runs(*args, **options)
            client.set_terminated(run_id)
            return found

    monkeypatch.setattr("mnist_exp.tracking.store.HOME", clone.root)
    end_killed_runs(SlowClient(f"sqlite:///{clone.root}/mlflow.db"))
    assert client.get_run(run_id).info.status == "FINISHED"


def test_the_config_of_a_run_to_resume_can_be_shown(trained: Clone) -> None:
    (folder,) = trained.folders()
    before = hashes(folder)
    done = trained.run("train.py", "resume=latest", "--cfg", "job")
    assert (done.returncode, done.stderr) == (0, "")
    assert "resume: latest\n" in done.stdout
    assert hashes(folder) == before


@pytest.mark.parametrize("more", [(), ("reproduce=0123456789abcdef0123456789abcdef",)])
def test_a_new_run_does_not_take_an_old_folder(trained: Clone, more: tuple[str, ...]) -> None:
    (folder,) = trained.folders()
    before = hashes(folder)
    done = trained.run("train.py", *TRAINED, f"hydra.run.dir={folder}", *more)
    assert done.returncode == 2
    name = folder.relative_to(trained.root)
    (line,) = done.stderr.splitlines()
    assert line == Like(f"…hydra.run.dir={name}: …already…resume={name}…")
    assert hashes(folder) == before


def test_the_same_command_starts_resumes_and_leaves_alone_a_run(clone: Clone) -> None:
    command = ("train.py", *SETTINGS, "tracking=none", "hydra.run.dir=outputs/mine", "resume=auto")
    folder = clone.root / "outputs" / "mine"
    for epochs in (1, 2):
        done = clone.run(*command, f"trainer.epochs={epochs}")
        assert (done.returncode, done.stderr) == (0, "")
        assert len(read_metrics(folder)) == epochs + 1  # and the test
    before = hashes(folder)
    done = clone.run(*command, "trainer.epochs=2", "init=latest")  # which was another run
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == Like("outputs/mine …already…\n")
    assert hashes(folder) == before
    assert is_refused(clone.run("train.py", "resume=auto"), 2, "resume=auto", "hydra.run.dir=")


@pytest.mark.slow
def test_the_same_command_goes_on_from_the_best_checkpoint_or_starts_again(clone: Clone) -> None:
    command = ("train.py", *SETTINGS, "tracking=none", "hydra.run.dir=outputs/mine", "resume=auto")
    folder = clone.root / "outputs" / "mine"
    last = folder / LAST
    assert clone.run(*command, "trainer.epochs=1").returncode == 0
    last.unlink()  # else best.pt, which is the same file, would be emptied, too
    for said in ("best.pt", "starts again"):
        last.write_bytes(b"")
        refused = clone.run("train.py", "resume=outputs/mine")
        assert (refused.returncode, refused.stdout) == (1, Like(f"error: {last}: …damaged…\n"))
        done = clone.run(*command, "trainer.epochs=2")
        assert (done.returncode, done.stderr) == (0, Like(f"outputs/mine/{LAST}: …{said}…\n"))
        assert len(read_metrics(folder)) == 3
    assert (folder / "metrics.jsonl.damaged").exists()


def test_a_handler_of_the_launcher_is_called_once_the_run_has_ended() -> None:
    events: list[object] = []

    @call_launcher()
    def run_job() -> None:
        with defer_signals():
            signal.raise_signal(signal.SIGUSR2)
            events.append("ended")

    before = signal.signal(signal.SIGUSR2, lambda number, frame: events.append(number))
    try:
        with pytest.raises(Interrupted):
            run_job()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert events == ["ended", signal.SIGUSR2]


def test_a_folder_without_a_run_may_be_taken_by_one(clone: Clone) -> None:
    folder = clone.root / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("kept")
    typed = ("data=digits", "trainer=debug", "tracking=none", f"hydra.run.dir={folder}")
    done = clone.run("train.py", *typed)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / LAST).exists()
    assert (folder / "notes.txt").read_text() == "kept"


def with_checkpoint(folder: Path, age: float) -> Path:
    """The folder, with a file where the last checkpoint is, `age` seconds old."""
    last = folder / LAST
    last.parent.mkdir(parents=True)
    last.touch()
    os.utime(last, (time.time() - age,) * 2)
    return folder


def test_a_run_is_found_by_any_path_of_its_folder_and_as_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_exp.experiment.find.HOME", tmp_path)
    old = with_checkpoint(tmp_path / "outputs" / "2026-01-01" / "a", age=10)
    new = with_checkpoint(tmp_path / "outputs" / "2025-01-01" / "sweep" / "3", age=5)
    odd = with_checkpoint(tmp_path / "elsewhere" / "it's [odd], a=b", age=0)
    assert find_run("latest", None) == new
    with lock_folder(new):  # it is at work
        assert find_run("latest", None) == old
        assert find_run("latest", None, "--run ") == new
    assert find_run(str(old), None) == old
    assert find_run("outputs/2026-01-01/a", None) == old  # from the repository, wherever one is
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_run("it's [odd], a=b", None) == odd
    assert find_run("../outputs/2026-01-01/a", None).resolve() == old


@pytest.mark.parametrize(
    "value",
    [
        "a b",
        "it's",
        "\\",
        "a\\b",
        "a\\",
        "a\\'b",
        "\\\\'",
        "a=b,c",
        "ü",
        "[x]",
        "null",
        " a(b)",
        "",
    ],
)
def test_hydra_reads_a_quoted_value_unchanged(value: str) -> None:
    override = OverridesParser.create().parse_override(f"resume={quote(value)}")
    assert override.value() == value


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["resume=latest"], "resume=latest: .*outputs/.*"),
        (["resume=nowhere"], "resume=nowhere: .*latest"),
        (["resume=conf"], "resume=conf: .*/conf/checkpoints/last.pt"),
        ([f"resume={'a' * 32}"], f"no MLflow run {'a' * 32}: .*/mlflow.db"),
        (["resume=conf", "reproduce=a"], ".*resume.* reproduce.*"),
    ],
)
def test_a_run_that_cannot_be_resumed_is_one_line_and_creates_nothing(
    clone: Clone, arguments: list[str], problem: str
) -> None:
    (clone.root / "mlflow.db").unlink()
    done = clone.run("train.py", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"error: {problem}\n", done.stderr)
    assert list((clone.root / "outputs").iterdir()) == []
    assert not (clone.root / "mlflow.db").exists()


# --- in this process, where nothing has to start ---


class Desk:
    """Runs and resumes in one folder."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, f"data.cache={cache}"
        folder.mkdir(parents=True)

    def run(self, *overrides: str) -> None:
        typed = ["data=digits", self.cache, "model.dropout=0.3", *overrides]
        experiment.train(compose_config(*typed), self.folder, typed)

    def resume(self, *overrides: str) -> None:
        typed = ["resume=latest", *overrides]
        experiment.resume(compose_config(*typed), self.folder, typed)


@pytest.fixture
def new_desk(tmp_path: Path, digits_cache: Path) -> Callable[[], Desk]:
    numbers = itertools.count()
    return lambda: Desk(tmp_path / f"desk{next(numbers)}", digits_cache)


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    """What MLflow holds of runs in this process."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{shutil.copy(empty_store, folder)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mnist_exp.tracking.store.HOME", folder)
        patch.setattr("mnist_exp.tracking.store.LOCAL_URI", uri)
        patch.setattr("mnist_exp.tracking.store.LOCAL_ARTIFACTS", folder / "mlruns")
        patch.setattr("mnist_exp.tracking.worker.start_worker", lambda options: None)
        yield MlflowClient(uri)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_more_epochs_resume_bit_for_bit(new_desk: Callable[[], Desk], keep: str) -> None:
    settings = ("tracking=none", f"trainer.keep={keep}")
    whole, further = new_desk(), new_desk()
    whole.run(*settings, "trainer.epochs=6")
    further.run(*settings, "trainer.epochs=2")
    further.resume("trainer.epochs=4")
    further.resume("trainer.epochs=6")
    assert read_metrics(further.folder) == read_metrics(whole.folder)
    assert weights(further.folder) == weights(whole.folder)


@pytest.mark.parametrize(
    ("settings", "size"),
    [((), 4), (("trainer.keep_state=false",), 1), (("scheduler=cosine",), 1)],
    ids=["more epochs", "told not to", "no more epochs"],
)
def test_an_ended_run_keeps_its_weights_and_only_what_more_epochs_need(
    new_desk: Callable[[], Desk], settings: tuple[str, ...], size: int
) -> None:
    """Adam has two values per weight, and the kept weights need not be the last ones."""
    desk = new_desk()
    desk.run("tracking=none", "trainer.epochs=2", *settings)
    last, best = desk.folder / LAST, desk.folder / BEST
    assert best.samefile(last)
    weight = (desk.folder / "mnist_model.pth").stat().st_size
    assert round(last.stat().st_size / weight) == size
    saved = checkpoint.load(last)
    assert ("optimizer" in saved["state"]) == (size > 1)
    if size == 1:
        with pytest.raises(BadInput, match=r"trainer\.epochs=3: "):
            desk.resume("trainer.epochs=3")
        checkpoint.save(last, {**saved, "ended": False})  # as if the tracker had been away
        desk.resume("trainer.keep_state=true")
        state = checkpoint.load(last)["state"]
        assert as_lists(state["progress"]["kept"]) == weights(desk.folder)["kept"]
        assert "optimizer" not in state
        assert load_model(last).test()["accuracy"] > 0.5


def test_a_run_trained_further_has_each_metric_of_each_epoch_once(
    new_desk: Callable[[], Desk], store: MlflowClient
) -> None:
    desk = new_desk()
    desk.run("tracking.experiment=further", "trainer.epochs=2", "trainer.keep=last")
    desk.resume("trainer.epochs=3")
    run = only_run(store, "further")
    assert run.info.status == "FINISHED"
    for key in run.data.metrics:
        points = store.get_metric_history(run.info.run_id, key)
        expected = [2, 3] if key.startswith("test/") else [1, 2, 3]
        assert [point.step for point in points] == expected


def test_a_test_whose_weights_stay_the_best_is_not_done_again(
    new_desk: Callable[[], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        Trackers, "log", lambda self, metrics, step, at: told.append((*metrics, step, at))
    )
    desk = new_desk()
    desk.run("tracking=none", "optimizer=sgd", "optimizer.lr=1e-9", "trainer.epochs=1")
    (before,) = [line for line in told if "test/loss" in line]
    told.clear()
    desk.resume("trainer.epochs=3")  # no better: the earliest of equals is kept
    assert [line for line in told if "test/loss" in line] == [before]


def test_a_run_without_a_tracker_can_get_one_later(
    new_desk: Callable[[], Desk], store: MlflowClient
) -> None:
    desk, later = new_desk(), ("tracking=mlflow", "tracking.experiment=later")
    desk.run("tracking=none", "trainer.epochs=1")
    desk.resume(*later, "trainer.epochs=2")
    desk.resume("tracking=none", "trainer.epochs=3")
    desk.resume(*later, "trainer.epochs=4")
    run = only_run(store, "later")
    points = store.get_metric_history(run.info.run_id, "val/loss")
    assert [point.step for point in points] == [1, 2, 3, 4]
    assert run.info.status == "FINISHED"


def test_a_checkpoint_that_names_the_former_empty_tracker_resumes(
    new_desk: Callable[[], Desk],
) -> None:
    whole, desk = new_desk(), new_desk()
    whole.run("tracking=none", "trainer.epochs=3")
    desk.run("tracking=none", "trainer.epochs=2")
    saved = checkpoint.load(desk.folder / LAST)
    saved["config"]["tracking"]["none"] = {"_target_": "mnist_exp.tracking.NoTracker"}
    checkpoint.save(desk.folder / LAST, saved)
    desk.resume("trainer.epochs=3")
    assert weights(desk.folder) == weights(whole.folder)
    assert "NoTracker" not in (desk.folder / "config.yaml").read_text()


class Kill(BaseException):
    """The process is killed here."""


def kill(*arguments: object) -> None:
    raise Kill


@pytest.mark.parametrize(
    ("where", "call"),
    [("mnist_exp.files.os.fsync", 100), ("mnist_exp.experiment.log.RunLog.add", 2)],
    ids=["writing a checkpoint", "before an epoch is told"],
)
def test_a_run_killed_between_two_writes_resumes_bit_for_bit(
    new_desk: Callable[[], Desk], monkeypatch: pytest.MonkeyPatch, where: str, call: int
) -> None:
    calls = itertools.count(1)
    whole, desk = new_desk(), new_desk()
    settings = (*SETTINGS, "tracking=none", "trainer.epochs=5")
    whole.run(*settings)
    with monkeypatch.context() as patch:
        patch.setattr(where, lambda *arguments: kill() if next(calls) == call else None)
        with pytest.raises(Kill):
            desk.run(*settings)
    assert next(calls) == call + 1
    desk.resume()
    assert weights(desk.folder) == weights(whole.folder)
    assert read_metrics(desk.folder) == read_metrics(whole.folder)


def test_a_run_with_every_option_resumes_bit_for_bit_in_an_epoch(
    new_desk: Callable[[], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        "augment=affine",
        "data.sampling=balanced",
        "data.folds=5",
        "data.fold=3",
        "loss=focal",
        "loss.class_weights=balanced",
        "metrics=[accuracy,macro_f1,top5]",
        "callbacks=[gradient_norm,step_loss]",
        "callbacks.step_loss.every=3",
        "scheduler=plateau",
        "scheduler.patience=0",
        "trainer.monitor=val/macro_f1",
        "trainer.clip_norm=1",
        "trainer.ema_decay=0.9",
        "trainer.accumulate=2",
        "trainer.patience=2",
        "trainer.freeze=[layers.0.bias]",
        "optimizer.groups=[{match: layers.6.*, lr: 0.01}]",
    )
    whole, desk = new_desk(), new_desk()
    settings = (*options, "tracking=none", "trainer.epochs=3", "trainer.checkpoint_every_steps=4")
    whole.run(*settings)
    steps = itertools.count(1)
    average = "mnist_exp.training.state.AveragedModel.update_parameters"
    really = AveragedModel.update_parameters
    with monkeypatch.context() as patch:
        patch.setattr(average, lambda *models: kill() if next(steps) == 30 else really(*models))
        with pytest.raises(Kill):
            desk.run(*settings)
    desk.resume()
    assert weights(desk.folder) == weights(whole.folder)
    assert read_metrics(desk.folder) == read_metrics(whole.folder)


def test_a_kill_between_last_and_best_leaves_no_stale_best(
    new_desk: Callable[[], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, desk = new_desk(), new_desk()
    settings = ("tracking=none", "trainer.epochs=2")
    whole.run(*settings)
    with monkeypatch.context() as patch:
        patch.setattr("mnist_exp.experiment.folder.link_file", kill)
        with pytest.raises(Kill):
            desk.run(*settings)
    assert not (desk.folder / "checkpoints" / "best.pt").exists()
    desk.resume()
    assert weights(desk.folder) == weights(whole.folder)
    assert read_metrics(desk.folder) == read_metrics(whole.folder)


def test_a_kill_while_resuming_leaves_the_metrics_that_were_there(
    new_desk: Callable[[], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = new_desk()
    desk.run("tracking=none", "trainer.epochs=2")
    before = read_metrics(desk.folder)
    monkeypatch.setattr(Entry, "to_json", kill)
    with pytest.raises(Kill):
        desk.resume("trainer.epochs=3")
    assert read_metrics(desk.folder) == before


def test_a_run_resumes_once_its_tracker_answers(
    new_desk: Callable[[], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise TrackerError("nobody there")

    whole, desk = new_desk(), new_desk()
    whole.run("tracking=none", "trainer.epochs=3")
    with monkeypatch.context() as patch:
        patch.setattr(Trackers, "check", refuse)
        with pytest.raises(TrackerError, match="nobody there"):
            desk.run("tracking=none", "trainer.epochs=2")
    desk.resume("trainer.epochs=3")
    assert weights(desk.folder) == weights(whole.folder)
    assert read_metrics(desk.folder) == read_metrics(whole.folder)


# --- what may change on the way ---

SAVED = OmegaConf.create(
    {
        "model": {"_target_": "mnist_exp.models.MLP", "hidden_sizes": [128, 64], "dropout": 0.2},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9},
        "scheduler": {"_target_": "mnist_exp.training.schedules.constant"},
        "tracking": {"figures": False, "run_name": None, "note": None, "tags": None},
        "trainer": {"epochs": 3, "device": "cpu", "checkpoint_every_steps": None},
        "metrics": {
            name: {"_target_": "mnist_exp.training.metrics.Accuracy"}
            for name in ("accuracy", "top5")
        },
        "batch_size": 64,
        "resume": None,
        "reproduce": None,
    }
)


@pytest.mark.parametrize(
    ("typed", "problems"),
    [
        (["batch_size=32"], ["batch_size=32: …64…"]),
        (["optimizer=sgd", "optimizer.lr=0.2"], ["optimizer.lr=0.2: …0.1…"]),
        (["init=weights.pth"], ["init=weights.pth: …None…"]),
        (["model.hidden_sizes=[64]"], ["model.hidden_sizes=[64]: …[128, 64]…"]),
        (["trainer.epochs=2"], ["trainer.epochs=2: …3…raised"]),
        (["metrics=accuracy"], ["metrics.top5._target_=None: …Accuracy…"]),
        (
            ["seed=1", "trainer.epochs=1", "model=linear"],
            [
                "model._target_=mnist_exp.models.Linear: …mnist_exp.models.MLP…",
                "seed=1: …None…",
                "trainer.epochs=1: …3…raised",
            ],
        ),
    ],
)
def test_an_override_that_changes_the_training_is_refused_with_both_values(
    typed: list[str], problems: list[str]
) -> None:
    saved = SAVED.copy()
    saved.optimizer = compose_config("optimizer=sgd").optimizer
    with pytest.raises(BadInput) as caught:
        apply_overrides(saved, compose_config(*typed), typed)
    assert str(caught.value).splitlines() == [*map(Like, problems)]


def test_unchanged_values_and_machine_settings_are_accepted() -> None:
    typed = ["resume=latest", "batch_size=64", "model.hidden_sizes=[128,64]", "trainer.epochs=9"]
    typed += ["trainer.device=auto", "trainer.checkpoint_every_steps=7", "model.dropout=0.2"]
    typed += ["tracking=mlflow", "tracking.experiment=other"]
    config = apply_overrides(SAVED, compose_config(*typed), typed)
    assert config.model == SAVED.model
    assert (config.batch_size, config.resume) == (64, None)
    assert config.trainer == {"epochs": 9, "device": "auto", "checkpoint_every_steps": 7}
    assert config.tracking.experiment == "other"
    assert config.tracking.mlflow._target_.endswith("MLflowTracker")
    without = apply_overrides(config, compose_config("tracking=none"), ["tracking=none"])
    assert without.tracking == SAVED.tracking


# --- foreign and damaged files ---


class Bomb:
    """Creates the folder `harm` when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


State = dict[str, Any]
HARMFUL = {"_target_": "os.mkdir", "_args_": ["harm"]}


def remove(state: State, *keys: str) -> State:
    """The state without the entry at these keys."""
    first, *more = keys
    rest = {key: value for key, value in state.items() if key != first}
    return {**rest, first: remove(state[first], *more)} if more else rest


def replace(state: State, value: object, *keys: Any) -> State:
    """The state with this value at these keys."""
    first, *more = keys
    return {**state, first: replace(state[first], value, *more) if more else value}


def first_weight(state: State) -> str:
    return next(iter(state["state"]["model"]))


FIRST_STATE = ("state", "optimizer", "state", 0)  # of the first parameter


def state_shape(state: State) -> torch.Size:
    return state["state"]["optimizer"]["state"][0]["exp_avg"].shape


UNKNOWN = "not a checkpoint of this project"
DAMAGED = "damaged"
FOREIGN = "numbers, strings and tensors"
MISFIT = "does not fit…"
RANDOM = random.Random(5)
CUTS = [*(RANDOM.random() for _ in range(4)), 0.999]

# What is done to a good checkpoint of two epochs, and how it is then refused.
CRAFTED: dict[str, tuple[Callable[[State], object], str]] = {
    "a pickle that runs a command": (lambda state: pickle.dumps(Bomb()), UNKNOWN),
    "a command among the tensors": (
        lambda state: replace(state, Bomb(), "state", "model"),
        FOREIGN,
    ),
    "a command in the config": (
        lambda state: replace(state, [128, (HARMFUL,)], "config", "model", "hidden_sizes"),
        "saved config…model.hidden_sizes.1.0._target_",
    ),
    **{
        f"cut at {cut:.3f} of it": (partial(lambda cut, state: (cut, state), cut), DAMAGED)
        for cut in CUTS
    },
    "of a newer format": (lambda state: {**state, "format": 99}, "format 99 is newer"),
    "weights alone": (lambda state: state["state"]["model"], UNKNOWN),
    "no config": (lambda state: remove(state, "config"), f"{MISFIT}'config'"),
    "no trainer": (
        lambda state: remove(state, "config", "trainer"),
        f"{MISFIT}'trainer.epochs'",
    ),
    "no random states": (lambda state: remove(state, "state", "random"), f"{MISFIT}'random'"),
    "no weights": (lambda state: replace(state, {}, "state", "model"), f"{MISFIT}model"),
    "weights of another shape": (
        lambda state: replace(state, torch.ones(3), "state", "model", first_weight(state)),
        f"{MISFIT}model",
    ),
    "kept weights of another shape": (
        lambda state: replace(state, {"w": torch.ones(3)}, "state", "progress", "kept"),
        f"{MISFIT}kept",
    ),
    "an optimizer's state of another shape": (
        lambda state: replace(state, torch.ones(3), *FIRST_STATE, "exp_avg"),
        f"{MISFIT}optimizer",
    ),
    "an optimizer's state that broadcasts": (
        lambda state: replace(state, torch.zeros(1), *FIRST_STATE, "exp_avg"),
        f"{MISFIT}optimizer",
    ),
    "an optimizer's state with one value in memory": (
        lambda state: replace(
            state, torch.zeros(1).expand(state_shape(state)), *FIRST_STATE, "exp_avg"
        ),
        f"{MISFIT}optimizer",
    ),
    "an optimizer's state that lacks a tensor": (
        lambda state: remove(state, *FIRST_STATE, "exp_avg"),
        f"{MISFIT}optimizer",
    ),
    "a scheduler's step that is a word": (
        lambda state: replace(state, "x", "state", "scheduler", "last_epoch"),
        f"{MISFIT}scheduler",
    ),
    "a learning rate that is a word": (
        lambda state: replace(
            state,
            [{**state["state"]["optimizer"]["param_groups"][0], "lr": "x"}],
            "state",
            "optimizer",
            "param_groups",
        ),
        f"{MISFIT}optimizer",
    ),
    "no progress": (lambda state: replace(state, 5, "state", "progress"), MISFIT),
}


def craft(change: Callable[[State], object], last: Path) -> None:
    """Replace the good checkpoint by a changed one."""
    made = change(checkpoint.load(last))
    if isinstance(made, bytes):
        last.write_bytes(made)
    elif isinstance(made, tuple):
        last.write_bytes(last.read_bytes()[: int(made[0] * last.stat().st_size)])
    else:
        torch.save(made, last)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, digits_cache: Path) -> Path:
    """The folder of a run of two epochs."""
    desk = Desk(tmp_path_factory.mktemp("good") / "run", digits_cache)
    desk.run("tracking=none", "trainer.epochs=2")
    return desk.folder


@pytest.mark.parametrize(("change", "problem"), CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_checkpoint_is_refused_and_runs_nothing(
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[State], object],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(good, tmp_path / "run")
    craft(change, folder / LAST)
    before = hashes(tmp_path)
    with pytest.raises(Failure) as caught:
        experiment.resume(compose_config("trainer.epochs=3"), folder, ["trainer.epochs=3"])
    assert str(caught.value) == Like(f"{folder / LAST}: …{problem}…")
    assert hashes(tmp_path) == before
    assert not (tmp_path / "harm").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_refuses_every_crafted_checkpoint(good: Path, clone: Clone) -> None:
    for number, (change, problem) in enumerate(CRAFTED.values()):
        folder = shutil.copytree(good, clone.root / "outputs" / f"{number}")
        craft(change, folder / LAST)
        before = hashes(folder)
        done = clone.run("train.py", f"resume=outputs/{number}", "trainer.epochs=3")
        assert done.returncode in (1, 2)
        assert done.stderr == ""
        (line,) = done.stdout.splitlines()
        print(line)
        assert line == Like(f"error: {folder / LAST}: …{problem}…")
        assert hashes(folder) == before
    assert not (clone.root / "harm").exists()


# --- a full disk ---


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
        typed = ("data=digits", "tracking=none", f"hydra.run.dir={mounted}/run")
        done = clone.run("train.py", *typed)
        assert (done.returncode, done.stderr) == (1, "")
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
        assert re.search(r"\d\.\d MB.*No space left", line)
        assert checkpoint.load(mounted / "run" / LAST)["format"] == checkpoint.FORMAT
    finally:
        subprocess.run(["umount", str(mounted)], check=False)
