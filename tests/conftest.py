"""What the tests share: a clone of the repository to run commands in, helpers, fixtures."""

from __future__ import annotations

import atexit
import csv
import errno
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hydra import compose
from omegaconf import DictConfig

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: threads on cores with other work wait

import mnist_exp.experiment.rules  # noqa: F401  registers the resolvers that the YAML files use
from mnist_exp.experiment.presets import initialize_hydra
from mnist_exp.paths import REPOSITORY, add_config_dir, config_dirs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Done = subprocess.CompletedProcess[str]
Environment = Mapping[str, str]
EMPTY: Environment = {}
TRAINED = ("data=digits", "optimizer.lr=1e-2", "trainer.epochs=8")  # the run of `trained`
TIMES = {"speed/epoch_seconds", "speed/images_per_second"}  # differ between two equal runs


def compose_config(*overrides: str) -> DictConfig:
    """The config of `python train.py <overrides>`."""
    with initialize_hydra():
        return compose("config", list(overrides))


def read_metrics(folder: Path, times: bool = False) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, with its times or without."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if times or k not in TIMES} for line in lines]


def only_run(client: MlflowClient, experiment: str = "mnist_exp") -> Run:
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


@dataclass(frozen=True)
class Like:
    """Equals every line that has these words in this order; … stands for any others, or none."""

    words: str

    def __eq__(self, other: object) -> bool:
        pattern = ".*".join(map(re.escape, self.words.split("…")))
        return isinstance(other, str) and re.fullmatch(pattern, other) is not None


class Forks:
    """The process of forks.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("forks.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": ""},
        )
        atexit.register(self.close)

    def close(self) -> None:
        with self.process:  # which waits for it
            self.process.kill()

    def run(self, script: dict[str, object], timeout: float) -> int:
        """The exit code of this script, which is killed after `timeout` seconds."""
        self.process.stdin.write(json.dumps(script) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        killer = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
        killer.start()
        code = int(self.process.stdout.readline())
        killer.cancel()
        return code


forks = functools.cache(Forks)


started: list[subprocess.Popen[str]] = []  # by `Clone.start`


@dataclass(frozen=True)
class Clone:
    """A copy of the repository: its runs leave nothing in the real one."""

    root: Path

    def environment(self, **extra: str) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        return {**inherited, "PYTHONPATH": str(self.root / "src"), **extra}

    def start(self, *command: str, **options: object) -> subprocess.Popen[str]:
        """`python <command>` in the clone, not waited for."""
        env = self.environment(**options.pop("env", {}))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.root}
        process = subprocess.Popen(
            [sys.executable, *command], text=True, env=env, **{**pipes, **options}
        )
        started.append(process)
        return process

    def run(
        self,
        *command: str,
        timeout: float = 120,
        cwd: Path | None = None,
        env: Environment = EMPTY,
        fork: bool = sys.platform == "linux",
    ) -> Done:
        """`python <command>` in the clone, to its end, or killed after `timeout` seconds.

        fork: whether a script runs in a fork of a process that has imported torch and MLflow.
        """
        cwd, environment = cwd or self.root, self.environment(**env)
        if not fork or not command[0].endswith(".py"):
            process = self.start(*command, cwd=cwd, env=env)
            try:
                out, err = process.communicate(timeout=timeout)
            finally:
                process.kill()
            return subprocess.CompletedProcess(command, process.returncode, out, err)
        with tempfile.TemporaryDirectory() as folder:
            stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
            script = {"command": command, "cwd": str(cwd), "env": environment}
            code = forks().run({**script, "stdout": str(stdout), "stderr": str(stderr)}, timeout)
            return subprocess.CompletedProcess(
                command, code, stdout.read_text("utf-8"), stderr.read_text("utf-8")
            )

    @property
    def client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.root}/mlflow.db")

    def folders(self) -> list[Path]:
        """The output folders of runs, oldest first."""

        def started(config: Path) -> tuple[str, str, float]:  # names tell no more than the second
            return config.parts[-3], config.parts[-2][:8], config.stat().st_mtime

        configs = sorted(self.root.glob("outputs/*/*/config.yaml"), key=started)
        return [config.parent for config in configs]


# --- servers ---


@contextmanager
def closed_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def mlflow_server(folder: Path, uri: str) -> Iterator[None]:
    """A real server with its database and artifacts in the folder, that has answered."""
    *_, port = uri.rpartition(":")
    options = [
        "--port",
        port,
        "--workers",
        "1",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *options, *store],
        cwd=folder,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        ends = time.monotonic() + 60
        while not is_healthy(uri):
            assert time.monotonic() < ends, "the server does not answer"
            time.sleep(0.1)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # with its workers
        server.wait()


def is_healthy(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def proxy(server: str, before: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The address of a proxy of a server, which calls `before` with each request.

    `before` may wait, or answer the request and raise ConnectionError.
    """

    class Forward(BaseHTTPRequestHandler):
        def forward(self) -> None:
            with suppress(ConnectionError):
                before(self)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = urllib.request.Request(f"{server}{self.path}", body, self.headers)
                request.method = self.command
                try:
                    answer = urllib.request.urlopen(request)
                except urllib.error.HTTPError as error:
                    answer = error
                self.reply(answer.status, answer.read())

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None: ...

    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        setattr(Forward, f"do_{method}", Forward.forward)
    with ThreadingHTTPServer(("127.0.0.1", 0), Forward) as listening:
        listening.daemon_threads = True
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


# --- sweeps ---


def list_sweep_runs(clone: Clone) -> tuple[Run, list[Run]]:
    """The only sweep's parent run, and its children by job number."""
    client = clone.client
    experiment = client.get_experiment_by_name("mnist_exp")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parent.info.run_id}
    return parent, sorted(children, key=lambda run: int(run.data.tags["mnist_exp.job"]))


def find_sweep(clone: Clone) -> Path:
    """The folder of the newest sweep."""
    return max(clone.root.glob("outputs/*/*/sweep.json"), key=lambda p: p.stat().st_mtime).parent


def read_leaderboard(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_sweep_metrics(clone: Clone) -> list[dict[str, float]]:
    _, children = list_sweep_runs(clone)
    return [
        {key: value for key, value in run.data.metrics.items() if key not in TIMES}
        for run in children
    ]


def signal_after(
    process: subprocess.Popen[str],
    happened: Callable[[], bool],
    number: int,
    find: Callable[[], int] | None = None,
) -> str:
    """Send a signal once something has happened; return what the process printed.

    find: the number of another process that gets it.
    """
    ends = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < ends, "it did not happen"
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(find() if find else process.pid, number)
    out, _ = process.communicate(timeout=60)
    return out


def find_writer(path: Path) -> int:
    """The number of the process that has this file open, on Linux."""
    for opened in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if opened.readlink() == path:
                return int(opened.parts[2])
    raise AssertionError(f"nobody writes to {path}")


def wait_for_end(clone: Clone) -> list[str]:
    """Wait until no run of the clone is running in MLflow; return the statuses of all."""
    client, ends = clone.client, time.monotonic() + 60
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    while "RUNNING" in (found := [run.info.status for run in client.search_runs(ids)]):
        assert time.monotonic() < ends, found
        time.sleep(0.05)
    return found


def read_files(folder: Path) -> dict[Path, bytes]:
    """Every file below the folder, but for locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.read_bytes() for path in files}


def is_refused(done: subprocess.CompletedProcess[str], code: int, *said: str) -> bool:
    """Whether the command ended with this exit code, and with one line that has these words."""
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stdout + done.stderr
    return all(words in done.stderr for words in said)


def find_table(printed: str) -> list[str]:
    """The lines of the leaderboard."""
    lines = printed.splitlines()
    return lines[lines.index("Leaderboard") : lines.index("Leaderboard") + 6]


NO_FLOCK = """
#include <errno.h>
#include <stdlib.h>
int flock(int fd, int operation) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""


def without_flock(folder: Path, reason: int = errno.ENOSYS) -> dict[str, str]:
    """The environment of a process for which no file system has flock; `folder` gets a library."""
    if shutil.which("gcc") is None:
        pytest.skip("a C library stands for the file system")
    source, library = folder / "no_flock.c", folder / "no_flock.so"
    source.write_text(NO_FLOCK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library), "FLOCK_ERRNO": str(reason)}


# --- fixtures ---


@pytest.fixture(autouse=True)
def end_processes() -> Iterator[None]:
    """Kill what a test has started and, where it failed, not waited for: a sweep on a Slurm that is
    gone would wait for its jobs forever.
    """
    before = len(started)
    yield
    for process in started[before:]:
        process.kill()
        process.wait()
    del started[before:]


@pytest.fixture
def own_options(tmp_path: Path) -> Iterator[Path]:
    """The folder of --config-dir in this process, with a folder for models."""
    folder = tmp_path / "own_options"
    (folder / "model").mkdir(parents=True)
    add_config_dir(str(folder))
    yield folder
    del config_dirs[1:]


@pytest.fixture(scope="session")
def digits_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the decoded digits, read once for all tests."""
    from mnist_exp.data import digits

    cache = tmp_path_factory.mktemp("cache")
    digits(cache=str(cache), mean=0.3059, std=0.3763)
    return cache


@pytest.fixture
def quick(digits_cache: Path) -> list[str]:
    """Overrides of a run that takes a second."""
    settings = ["data=digits", f"data.cache={digits_cache}", "tracking=none", "trainer.device=cpu"]
    return [*settings, "trainer.epochs=2"]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, to be copied: making one takes more than a second."""
    from mnist_exp.tracking.store import open_store

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{database}")
    return database


@pytest.fixture(scope="session")
def new_clone(
    tmp_path_factory: pytest.TempPathFactory, digits_cache: Path, empty_store: Path
) -> Callable[[], Clone]:
    def make() -> Clone:
        root = tmp_path_factory.mktemp("clone")
        for name in ("src", "conf"):
            shutil.copytree(REPOSITORY / name, root / name)  # with compiled modules
        shutil.copy(empty_store, root)
        for name in ("outputs", "mlruns"):
            (root / name).mkdir()
        for script in REPOSITORY.glob("*.py"):
            shutil.copy(script, root)
        shutil.copytree(digits_cache, root / "data" / "cache")
        return Clone(root)

    return make


@pytest.fixture
def clone(new_clone: Callable[[], Clone]) -> Clone:
    """A clone, with the decoded digits and an empty MLflow database already there."""
    return new_clone()


@pytest.fixture(scope="session")
def trained(new_clone: Callable[[], Clone]) -> Clone:
    """A clone with one finished run on the digits, for tests that only use it."""
    clone = new_clone()
    done = clone.run("train.py", *TRAINED)
    assert done.returncode == 0, done.stderr
    return clone
