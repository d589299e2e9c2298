"""A password in an address is read from the environment, and neither shown nor saved."""

from __future__ import annotations

import base64
import http.client
import json
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Clone, Like, closed_port, mlflow_server
from omegaconf import OmegaConf

from mnist_exp.cli.check import problems
from mnist_exp.errors import redact
from mnist_exp.experiment.resume import apply_overrides
from mnist_exp.tracking import TrackerError, store
from mnist_exp.tracking.addresses import restore_secret, tracking_uri

PASSWORD = "hunter2-Pw"

SHOWN = {
    f"http://ann:{PASSWORD}@host": "http://***@host",
    f"HTTPS://ann:{PASSWORD}@host:5000/base": "HTTPS://***@host:5000/base",
    f"http://ann:{PASSWORD}@2@host/x@y": "http://***@host/x@y",
    f"http://ann@lab.org:{PASSWORD}@host:5000": "http://***@host:5000",
    f"postgresql://ann@lab:{PASSWORD}@host:5432/db": "postgresql://***@host:5432/db",
    f"http://ann:12{PASSWORD}@[::1]:5000": "http://***@[::1]:5000",
    f"https://{PASSWORD}@host": "https://***@host",
    f"https://{PASSWORD}:@host": "https://***@host",
    f"postgresql://ann:{PASSWORD}/2@host/db": "postgresql://***@host/db",
    f"mysql+pymysql://ann:1/{PASSWORD}@host:3306/db": "mysql+pymysql://***@host:3306/db",
    f"postgresql://host/db?user=ann&password={PASSWORD}&x=1": (
        "postgresql://host/db?user=ann&password=***&x=1"
    ),
    f"https://host/?api_key={PASSWORD}": "https://host/?api_key=***",
    f"401 for url: http://ann:{PASSWORD}@host/api (http://b:{PASSWORD}@c)": (
        "401 for url: http://***@host/api (http://***@c)"
    ),
}
WITHOUT = [
    "http://127.0.0.1:5000",
    "https://cdn.test/npm/mnist@1.0/",
    "http://host:8000/mnist@1.0/",
    "http://[::1]:5000/x",
    "postgresql://ann@host/db",
    "sqlite:////home/ann/mlflow.db?timeout=3",
    "MLflow at http://host:5000 does not answer (ann@host)",
    "a: b@c",
]


def test_what_is_secret_in_an_address_is_shown_as_stars() -> None:
    assert {text: redact(text) for text in SHOWN} == SHOWN
    assert [redact(text) for text in SHOWN.values()] == list(SHOWN.values())
    assert [redact(text) for text in WITHOUT] == WITHOUT


def test_the_secret_comes_back_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    assert tracking_uri() is None
    assert restore_secret("http://***@host") is None
    assert restore_secret("http://host") == "http://host"
    full = f"http://ann:{PASSWORD}@host"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", full)
    assert tracking_uri() == "http://***@host"
    assert restore_secret("http://***@host") == restore_secret("http://host") == full
    assert restore_secret("http://***@other") is None
    assert restore_secret("http://other") == "http://other"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", PASSWORD)
    assert restore_secret("http://***@other") == "http://other"
    assert restore_secret("postgresql://other/db?password=***") is None


# --- typed, or in a YAML file ---


@pytest.mark.parametrize(
    ("typed", "remedy"),
    [
        (f"tracking.uri=http://ann:{PASSWORD}@host", "MLFLOW_TRACKING_PASSWORD"),
        (f"tracking.uri=https://{PASSWORD}@host", "MLFLOW_TRACKING_TOKEN"),
        (f"tracking.uri='postgresql://host/db?password={PASSWORD}'", "MLFLOW_TRACKING_URI"),
        ("tracking.uri=${oc.env:SECRET_URI}", "MLFLOW_TRACKING_URI"),
        (f"data.mirrors=[https://a.b/,https://ann:{PASSWORD}@host/]", "data.root"),
        (f"data.root='https://ann:{PASSWORD}@host/'", "leave it out"),
        (f"+hydra.job.env_set.MLFLOW_TRACKING_URI=http://ann:{PASSWORD}@host", "leave it out"),
    ],
)
def test_a_typed_password_is_refused_and_not_printed(
    monkeypatch: pytest.MonkeyPatch, typed: str, remedy: str
) -> None:
    monkeypatch.setenv("SECRET_URI", f"http://ann:{PASSWORD}@host")
    (line,) = problems([typed])
    assert line == Like(redact(f"{typed}: …password…"))
    assert remedy in line
    assert PASSWORD not in line


@pytest.mark.slow
def test_other_mistakes_do_not_repeat_it_either(clone: Clone) -> None:
    address = f"http://ann:{PASSWORD}@host"
    for typed in (
        [f"trakcing.uri={address}", f"tracking={address}", f"data.mirrors=[{address}"],
        [f"--tracking.uri={address}"],
        ["-m", f"tracking.uri={address},http://host"],
    ):
        done = clone.run("train.py", *typed)
        assert (done.returncode, done.stdout) == (2, "")
        assert "://***@host" in done.stderr
        assert PASSWORD not in done.stderr
    assert clone.folders() == []


def test_a_password_in_a_yaml_file_is_refused(clone: Clone) -> None:
    (clone.root / "conf" / "experiment" / "mine.yaml").write_text(
        f"# @package _global_\ntracking:\n  uri: http://ann:{PASSWORD}@host\n"
    )
    done = clone.run("train.py", "data=digits", "experiment=mine")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == Like("…(conf/experiment/mine.yaml): …password…\n")
    assert PASSWORD not in done.stderr


def test_an_older_config_is_saved_again_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    now = OmegaConf.create({"tracking": {"uri": None}, "scheduler": {"_target_": "a.constant"}})
    saved = OmegaConf.merge(now, {"tracking": {"uri": f"http://ann:{PASSWORD}@host"}})
    config = apply_overrides(saved, now, [])
    assert config.tracking.uri == "http://***@host"


# --- what a run leaves ---


def check_nowhere(root: Path, *said: str) -> None:
    """No file of the clone, and nothing on the screen, has the password, plain or in base64."""
    encoded = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
    for secret in (PASSWORD, encoded):
        assert not any(secret in text for text in said)
        files = [path for path in root.rglob("*") if path.is_file()]
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_the_error_about_an_unreachable_server_hides_its_password(clone: Clone) -> None:
    with closed_port() as uri:
        env = {"MLFLOW_TRACKING_URI": uri.replace("//", f"//ann:{PASSWORD}@")}
    for command in (
        ["train.py", "data=digits", "trainer=debug"],
        ["train.py", "resume=latest"],
        ["train.py", "-m", "data=digits", "trainer=debug", "seed=1,2"],
    ):
        done = clone.run(*command, env=env)
        assert done.returncode == 1
        *_, last = (done.stdout + done.stderr).splitlines()
        assert last == Like(f"error: …{uri.replace('//', '//***@')}…")
        check_nowhere(clone.root, done.stdout, done.stderr)


@pytest.mark.slow
def test_the_error_about_a_missing_database_hides_its_password(clone: Clone) -> None:
    uri = f"postgresql://ann:{PASSWORD}@127.0.0.1:1/db"
    done = clone.run("train.py", "data=digits", "trainer=debug", env={"MLFLOW_TRACKING_URI": uri})
    assert done.returncode == 1
    assert Like("error: …postgresql://***@127.0.0.1:1/db…") in done.stdout.splitlines()
    check_nowhere(clone.root, done.stdout, done.stderr)


@contextmanager
def locked_server(behind: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Answers 401 to all but ann with the password or the token; passes on to another server.

    Gives its address, and the Authorization of each request.
    """
    basic = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
    seen: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append(self.headers.get("Authorization", ""))
            status, kind, content = 401, "text/plain", b"who are you?"
            if seen[-1] in (f"Basic {basic}", f"Bearer {PASSWORD}"):
                status, kind, content = 200, "application/json", b"{}"
                if behind:
                    other = http.client.HTTPConnection(behind.removeprefix("http://"))
                    kept = {k: v for k, v in self.headers.items() if k.lower() == "content-type"}
                    other.request(self.command, self.path, body, kept)
                    answer = other.getresponse()
                    status, content = answer.status, answer.read()
                    kind = answer.headers.get("Content-Type", kind)
                    other.close()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


@pytest.mark.parametrize(
    "variables",
    [
        {"USERNAME": "ann", "PASSWORD": PASSWORD},
        {"TOKEN": PASSWORD},
        {"URI": "http://ann:{password}@{host}"},
    ],
)
def test_each_variable_opens_a_server_that_asks_for_a_password(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    with locked_server() as (uri, seen):
        with pytest.raises(TrackerError, match="401"):
            store.open_store(uri)
        host = uri.removeprefix("http://")
        for name, value in variables.items():
            value = value.format(password=PASSWORD, host=host)
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
        store.open_store(tracking_uri() or uri)
        store.open_store(f"http://***@{host}")  # as a run has saved it
    assert seen[0] == ""
    assert all(seen[1:])


def test_a_saved_address_without_its_password_names_the_variable_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("URI", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    with pytest.raises(TrackerError, match=r"http://\*\*\*@host.*MLFLOW_TRACKING_PASSWORD"):
        store.open_store("http://***@host")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("in_address", [True, False])
def test_no_command_leaves_the_servers_password_anywhere(
    clone: Clone, tmp_path: Path, in_address: bool
) -> None:
    with closed_port() as behind:
        pass
    with mlflow_server(tmp_path, behind), locked_server(behind) as (uri, _):
        env = {"MLFLOW_TRACKING_URI": uri.replace("//", f"//ann:{PASSWORD}@")}
        if not in_address:
            env = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": "ann"}
            env["MLFLOW_TRACKING_PASSWORD"] = PASSWORD

        def run(*command: str) -> str:
            done = clone.run(*command, env=env, timeout=300)
            assert (done.returncode, done.stderr) == (0, ""), done.stdout
            check_nowhere(clone.root, done.stdout)
            return done.stdout

        said = run("train.py", "data=digits", "trainer.epochs=1", "tracking.register=digits")
        shown = redact(env["MLFLOW_TRACKING_URI"])
        assert f"compare  {uri}/#/experiments/1/runs" in said
        (folder,) = clone.folders()
        assert OmegaConf.load(folder / "config.yaml").tracking.uri == shown
        run("train.py", "resume=latest", "trainer.epochs=2")
        said = run("train.py", "-m", "data=digits", "trainer.epochs=1", "seed=1,2")
        assert f"compare  {uri}/#/experiments/1/runs" in said
        run("evaluate.py", "--run", "best:digits", "--log")
        runs = store_runs(clone, env)
        run("train.py", f"reproduce={runs[0]}")
        check_nowhere(tmp_path)


def store_runs(clone: Clone, env: dict[str, str]) -> list[str]:
    """The ids of the finished runs, by a process that has the environment of a person."""
    code = (
        "import json; from mnist_exp.tracking.addresses import tracking_uri as uri;"
        "from mnist_exp.experiment.find import rank_runs;"
        "print(json.dumps([run.reference for run in rank_runs('mnist_exp', uri())]))"
    )
    done = clone.run("-c", code, env=env)
    assert done.returncode == 0, done.stderr
    ids: list[str] = json.loads(done.stdout)
    return ids


# --- names that are paths ---


@pytest.mark.slow
def test_an_experiment_whose_name_is_a_path_makes_no_folder(clone: Clone) -> None:
    for typed in (
        "tracking.experiment=../../x",
        "tracking.experiment='..'",
        "tracking.experiment='a\x1b[31m'",
        "tracking.register='..'",
    ):
        done = clone.run("train.py", "data=digits", "trainer=debug", typed)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == Like(f"{typed.partition('=')[0]}=…name…\n")
    assert clone.folders() == []
    later = shlex.split("tracking.experiment='${hydra:job.name}' hydra.job.name=../../x")
    done = clone.run("train.py", "data=digits", "trainer=debug", *later)
    assert done.returncode == 1
    assert "error: tracking.experiment=../../x: " in done.stdout
    assert not (clone.root.parent / "x").exists()
    assert list((clone.root / "mlruns").iterdir()) == []
