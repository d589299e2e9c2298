"""MLflow's store, SQLite and files in the repository or a server: opens it and finds runs."""

from __future__ import annotations

import atexit
import json
import logging
import os
import platform
import re
import shlex
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from urllib.parse import unquote
from urllib.request import url2pathname

from mnist_exp.errors import BadInput, Failure, Formatter, print_line
from mnist_exp.files import LOCK, lock_file, replace_file
from mnist_exp.paths import HOME, is_name, shorten_path
from mnist_exp.tracking import (
    DIGEST_LETTERS,
    EXPERIMENT,
    FinishedRun,
    Score,
    TrackerError,
    get_user,
    is_refusal,
    root_cause,
)
from mnist_exp.tracking.addresses import REMEDY, restore_secret, strip_user

# Read by mlflow: no telemetry unless the user has turned it on, and no progress bar for each small
# file.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from filelock import Timeout
from mlflow import MlflowClient, environment_variables
from mlflow.entities import Experiment, Metric, Run, ViewType
from mlflow.exceptions import MlflowException

logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each repetition
mlflow_log = logging.getLogger("mlflow")
mlflow_log.setLevel(logging.WARNING)  # its import has set INFO
for handler in mlflow_log.handlers:
    handler.setFormatter(Formatter("%(levelname)s %(name)s: %(message)s"))

LOCAL_URI = f"sqlite:///{HOME / 'mlflow.db'}"  # where a bare `mlflow ui` looks
ARTIFACTS = "mlruns"
LOCAL_ARTIFACTS = HOME / ARTIFACTS

# Where MLflow has absolute paths of artifacts, and runs from before 0.4.0 of their output folder.
LOCATIONS = (
    *("experiments.artifact_location", "runs.artifact_uri", "logged_models.artifact_location"),
    *("model_versions.source", "model_versions.storage_location", "trace_tags.value"),
    "tags.value",
)
FIRST_ANSWER = 6  # seconds until a server counts as absent
LATER_ANSWER, RETRIES = 60, 2  # a server that has answered may be slow or busy
MAX_RUNS = 50_000  # in one answer; MLflow allows no more
PREFIX = "mnist_exp."  # of our tags; up to version 0.2 they had none
KEY = f"{PREFIX}key"  # the tag by which a run is found again: MLflow chooses the run's id
ANOTHER_EXPERIMENT = "log to another experiment with tracking.experiment=NAME"
# For MLflow's UI: show training runs first, with columns of metrics when opened by this key.
VIEW = "mnist_exp"
COLUMNS = ("metrics.`val/accuracy`", "metrics.`val/loss`", "metrics.`test/accuracy`")
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    f"mlflow.sharedViewState.{VIEW}": json.dumps(
        {"selectedColumns": [*COLUMNS, "attributes.`Dataset`"]}
    ),
}


def set_patience(timeout: int, retries: int) -> None:
    """How long MLflow waits for a server, in seconds, and how often it repeats a request.

    These are the defaults of the user's own MLFLOW_HTTP_REQUEST_* variables.
    """
    environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.default = timeout
    environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.default = retries
    environment_variables.MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.default = 1


def open_store(uri: str) -> MlflowClient:
    """A client of a store that has answered: a server in FIRST_ANSWER seconds.

    A database is opened under a lock, because several processes that create an SQLite store at
    once can break it for good. A secret that `uri` shows as *** comes from the environment. Raises
    TrackerError.
    """
    address = restore_secret(uri)
    if address is None:
        raise TrackerError(f"MLflow at {uri}: runs do not save its password; {REMEDY}")
    is_server = uri.startswith("http")
    if not is_server:
        from mlflow.store.db import utils  # half a second to import

        utils.MAX_RETRY_COUNT = 1  # instead of ten tries in two minutes
    with raise_tracker_errors(uri), nullcontext() if is_server else lock_store(uri):
        if uri.startswith("sqlite:///") and (database := Path(uri[10:])).is_file():
            migrate(database)
        client = MlflowClient(address)
        set_patience(FIRST_ANSWER, retries=0)
        started = time.monotonic()
        try:
            client.search_experiments(max_results=1)
        except MlflowException as error:
            if time.monotonic() > started + FIRST_ANSWER or is_refusal(error):
                raise
            client.search_experiments(max_results=1)  # it may only have been busy
        set_patience(LATER_ANSWER, RETRIES)
        if uri == LOCAL_URI:
            follow_move(HOME / "mlflow.db")
            end_killed_runs(client)
    return client


def migrate(database: Path) -> None:
    """Bring a database of an older MLflow up to date, after a copy of it.

    Raises TrackerError for a database of a newer MLflow.
    """
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils

    with closing(sqlite3.connect(database)) as connection:
        try:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:  # it has no tables yet
            return
        scripts = ScriptDirectory.from_config(utils._get_alembic_config(""))
        known = [script.revision for script in scripts.walk_revisions()]  # the newest first
        if found is None or found[0] == known[0]:
            return
        if found[0] not in known:
            raise TrackerError(
                f"{database}: MLflow {mlflow.__version__} is older than the one that wrote it; "
                "pip install --upgrade mlflow, or tracking=none trains without it"
            )
        copy = copy_database(connection, database, "before_migration")
    text = f"MLflow {mlflow.__version__} migrates it; {copy.name} is a copy from before"
    print_line(f"{database}: {text}", sys.stderr)
    utils._upgrade_db(utils.create_sqlalchemy_engine(f"sqlite:///{database}"))


def lock_store(uri: str) -> AbstractContextManager[None]:
    """A lock for a process that creates something; for a database that is a file, beside it.

    For a server, only the processes of this user on this machine wait for each other.
    """
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and os.access(database.parent, os.W_OK):
        return lock_file(Path(f"{database}.lock"))
    name = sha256(f"{get_user()} {strip_user(uri)}".encode()).hexdigest()[:12]
    return lock_file(Path(tempfile.gettempdir(), f"mnist_exp-{name}.lock"))


def follow_move(database: Path) -> None:
    """Tell MLflow where its artifacts are, if the folder was moved or copied since last time.

    In one transaction, after a copy of the database. Artifacts that do lie elsewhere, without a
    database beside them, stay there: somebody has put them there.
    """
    home, moved = database.parent, set()
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        for name, uri in connection.execute("SELECT name, artifact_location FROM experiments"):
            start, _, last = str(uri).rpartition(f"/{ARTIFACTS}/")
            folder = Path(url2pathname(start.removeprefix("file://")))
            is_local = folder.is_absolute() and unquote(last) == name
            has_artifacts = os.access(folder / ARTIFACTS / name, os.F_OK)
            has_database = os.access(folder / database.name, os.F_OK)
            if is_local and folder != home and (has_database or not has_artifacts):
                moved.add(folder)
        if not moved:
            return
        copy = copy_database(connection, database, "before_move")
        with connection:  # one transaction
            for place, old in product(LOCATIONS, moved):
                table, _, column = place.partition(".")
                for was, now in ((f"{old.as_uri()}/", home.as_uri()), (f"{old}/", str(home))):
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE substr({column}, 1, ?) = ?",
                        (now, len(was), len(was), was),
                    )
    folders = ", ".join(sorted(map(str, moved)))
    print_line(f"{database}: was in {folders}; {copy.name} is a copy from before", sys.stderr)


def end_killed_runs(client: MlflowClient) -> None:
    """Mark runs as KILLED that are RUNNING but no longer have a process, as after a power cut.

    A lock in the output folder shows that: it is held until MLflow knows how the run has ended.
    Runs of other people are left alone, and those of other machines, whose locks may not be seen
    here.
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    running = "attributes.status = 'RUNNING'"
    for run in client.search_runs(experiments, running, max_results=MAX_RUNS):
        tags = read_tags(run)
        is_own = (tags.get("host"), tags.get("mlflow.user")) == (platform.node(), get_user())
        lock = HOME / tags.get("output_folder", "(unknown)") / LOCK
        if is_own and lock.exists():
            with suppress(Timeout, OSError, MlflowException), lock_file(lock, timeout=0):
                if client.get_run(run.info.run_id).info.status == "RUNNING":  # not ended just now
                    client.set_terminated(run.info.run_id, "KILLED")


def copy_database(connection: sqlite3.Connection, database: Path, suffix: str) -> Path:
    """Copy the database to a file beside it, which replaces an older copy; return its path."""
    path = database.with_name(f"{database.name}.{suffix}")
    with replace_file(path) as temporary, closing(sqlite3.connect(temporary)) as copy:
        connection.backup(copy)
    return path


@contextmanager
def raise_tracker_errors(uri: str) -> Iterator[None]:
    """Raise TrackerError for whatever a database or a network raises; our own errors pass."""
    try:
        yield
    except Failure:
        raise
    except Exception as error:
        reason = f"MLflow at {uri} does not answer ({root_cause(error)})"
        raise TrackerError(f"{reason}; tracking=none trains without it") from error


def get_viewer(uri: str, experiment_id: str) -> str:
    """The address of the experiment's runs, after the command that serves it if one is needed."""
    query = f"workflowType=machine_learning&viewStateShareKey={VIEW}"
    page = f"#/experiments/{experiment_id}/runs?{query}"
    if uri.startswith("http"):
        return f"{strip_user(uri).rstrip('/')}/{page}"
    command = "mlflow ui"
    if uri != LOCAL_URI:
        command += f" --backend-store-uri {shlex.quote(uri)}"
    elif Path.cwd() != HOME:
        command = f"cd {shlex.quote(str(HOME))} && {command}"
    return f"{command}, then http://127.0.0.1:5000/{page}"


def get_or_create_experiment(client: MlflowClient, experiment: str, uri: str) -> str:
    """The experiment's id. Raises TrackerError for a name that would leave LOCAL_ARTIFACTS."""
    if not is_name(experiment):
        raise TrackerError(f"tracking.experiment={experiment}: not a name; leave out / and \\")
    with lock_store(uri):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            # Set here, because `mlflow ui` would choose a scheme that a client of the database
            # cannot write to.
            artifacts = (LOCAL_ARTIFACTS / experiment).as_uri() if uri == LOCAL_URI else None
            return client.create_experiment(experiment, artifacts, EXPERIMENT_TAGS)
    if found.lifecycle_stage == "deleted":
        raise TrackerError(f"{explain_restoring(found)}, or {ANOTHER_EXPERIMENT}")
    for tag, value in EXPERIMENT_TAGS.items():
        if found.tags.get(tag) != value:
            client.set_experiment_tag(found.experiment_id, tag, value)
    return found.experiment_id


def find_key(client: MlflowClient, key: str, *experiment_ids: str) -> str | None:
    """The id of the newest run whose record has this key, even if it is deleted."""
    for tag in (KEY, KEY.removeprefix(PREFIX)):
        found = client.search_runs([*experiment_ids], f"tags.`{tag}` = '{key}'", ViewType.ALL, 1)
        if found:
            return found[0].info.run_id
    return None


def name_tag(name: str) -> str:
    """A tag's name in MLflow, which has names of its own for some."""
    return name if name.startswith("mlflow.") else f"{PREFIX}{name}"


def read_tags(run: Run) -> dict[str, str]:
    """All tags of a run, ours without their prefix."""
    tags = run.data.tags
    ours = {key.removeprefix(PREFIX): tags[key] for key in tags if key.startswith(PREFIX)}
    return tags | ours


def explain_deletion(client: MlflowClient, run_id: str) -> str | None:
    """Which of the run and its experiment is deleted, and how to restore it; None if neither is."""
    try:
        run = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return f"the MLflow run {run_id} is deleted for good"
    if run.lifecycle_stage != "deleted":
        return None
    experiment = client.get_experiment(run.experiment_id)
    if experiment.lifecycle_stage == "deleted":  # and with it its runs
        return explain_restoring(experiment)
    return f"the MLflow run {run_id} is deleted; restore it in the UI"


def explain_restoring(experiment: Experiment) -> str:
    """How to restore a deleted experiment, which the UI does not show."""
    return (
        f"the MLflow experiment {experiment.name} is deleted; restore it with "
        f"mlflow experiments restore -x {experiment.experiment_id}"
    )


@dataclass(frozen=True)
class RecordedRun:
    """What MLflow has recorded of a run."""

    name: str
    tags: dict[str, str]  # ours without their prefix
    params: dict[str, str]
    metrics: dict[str, dict[int, float]]  # by name and epoch
    config: str  # YAML
    versions: str  # name==version, a line each


def open_existing(uri: str | None, purpose: str) -> MlflowClient:
    """The store, which is not created for this `purpose`. Raises BadInput, TrackerError."""
    uri = uri or LOCAL_URI
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:") and not database.exists():
        raise BadInput(f"{purpose}: there is no {database}")
    return open_store(uri)


def find_run(run_id: str, uri: str | None) -> tuple[MlflowClient, Run]:
    """The run, and the client of its store. Raises BadInput for an unknown id, TrackerError."""
    client = open_existing(uri, f"no MLflow run {run_id}")
    try:
        return client, client.get_run(run_id)
    except MlflowException as error:
        at = uri or LOCAL_URI
        raise BadInput(f"no MLflow run {run_id} at {at}: {root_cause(error)}") from None


def find_finished_runs(experiment: str, uri: str | None) -> tuple[list[FinishedRun], set[str]]:
    """All finished runs except those with trainer.max_batches; and the keys and output folders of
    all runs that are finished or deleted.

    Raises BadInput if there is no such experiment, unless it is the default one, and TrackerError.
    """
    client = open_existing(uri, f"no best run of {experiment}")
    found = client.get_experiment_by_name(experiment)
    if found is None:
        if experiment == EXPERIMENT:
            return [], set()
        names = [other.name for other in client.search_experiments()]
        raise BadInput(f"no MLflow experiment {experiment}; there are {', '.join(sorted(names))}")
    finished: list[FinishedRun] = []
    known: set[str] = set()
    for run in client.search_runs([found.experiment_id], "", ViewType.ALL, MAX_RUNS):
        deleted = run.info.lifecycle_stage == "deleted"
        if not deleted and run.info.status != "FINISHED":
            continue
        tags = read_tags(run)
        known |= {tags.get("key", ""), shorten_path(HOME / tags.get("output_folder", ""))}
        is_parent = "sweep" in tags and "job" not in tags
        inputs = run.inputs.dataset_inputs if run.inputs and not is_parent else []
        complete = run.data.params.get("trainer.max_batches", "None") == "None"
        if inputs and complete and not deleted:
            finished.append(
                FinishedRun(
                    run.info.run_id,
                    run.info.run_name,
                    inputs[0].dataset.name,
                    inputs[0].dataset.digest[:DIGEST_LETTERS],
                    run.info.start_time / 1000,
                    get_kept_score(client, run),
                )
            )
    return finished, known


def get_kept_score(client: MlflowClient, run: Run) -> Score | None:
    """The score of the kept weights. MLflow's answer has only the value of the last epoch."""
    params = run.data.params
    name = params.get("trainer.monitor", "val/accuracy")
    last = run.data.metrics.get(name)
    if last is None:
        return None
    higher_is_better = params.get("higher_is_better", "True") == "True"
    if params.get("trainer.keep") == "last":
        return Score(name, last, higher_is_better)
    history = client.get_metric_history(run.info.run_id, name)
    scores = (Score(name, metric.value, higher_is_better) for metric in history)
    return min(scores, key=lambda score: score.rank)


def find_output_folder(run_id: str, uri: str | None) -> tuple[Path, str]:
    """The run's output folder on the machine that it ran on, and the run's key.

    On another machine that folder can be another run's. Raises what `find_run` does.
    """
    tags = read_tags(find_run(run_id, uri)[1])
    return HOME / tags.get("output_folder", "(unknown)"), tags.get("key", "")


def copy_file(run_id: str, name: Path, uri: str | None) -> Path:
    """A temporary copy of a file among the run's artifacts.

    Raises what `find_run` does, and BadInput if it is not there.
    """
    client, run = find_run(run_id, uri)
    file = HOME / read_tags(run).get("output_folder", "(unknown)") / name
    copies = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, copies, ignore_errors=True)
    try:
        return Path(client.download_artifacts(run_id, name.as_posix(), copies))
    except (MlflowException, OSError) as error:
        raise BadInput(
            f"run {run_id}: there is neither {file} nor its copy in MLflow ({root_cause(error)})"
        ) from None


def read_run(run_id: str, uri: str | None) -> RecordedRun:
    """Everything that MLflow has recorded of a run. Raises what `find_run` does, TrackerError."""
    client, run = find_run(run_id, uri)
    metrics = {
        key: {metric.step: metric.value for metric in client.get_metric_history(run_id, key)}
        for key in run.data.metrics
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            config, versions = (
                Path(client.download_artifacts(run_id, name, folder)).read_text("utf-8", "replace")
                for name in ("config.yaml", "requirements.txt")
            )
        except (MlflowException, OSError) as error:
            raise TrackerError(f"{run_id}: artifacts are missing ({root_cause(error)})") from None
    data = run.data
    return RecordedRun(run.info.run_name, read_tags(run), data.params, metrics, config, versions)


def log_to_run(
    key: str,
    uri: str | None,
    metrics: Mapping[str, float],
    step: int,
    at: float,
    files: Mapping[str, Sequence[Path]],
) -> str:
    """Log to a run that has ended, found by its key; return its id. Its status stays the same.

    files: by their folder among its artifacts. Raises BadInput if no run has the key,
    TrackerError.
    """
    client = open_existing(uri, "--log")
    with raise_tracker_errors(uri or LOCAL_URI):
        run_id = find_key(client, key, *(e.experiment_id for e in client.search_experiments()))
        if run_id is None:
            raise BadInput(f"--log: MLflow at {uri or LOCAL_URI} does not have this run")
        if deletion := explain_deletion(client, run_id):
            raise BadInput(f"--log: {deletion}")
        batch = [
            Metric(clean_name(name), value, int(at * 1000), step) for name, value in metrics.items()
        ]
        client.log_batch(run_id, batch)
        for folder, paths in files.items():
            for path in paths:
                client.log_artifact(run_id, str(path), folder)
    return run_id


def clean_name(name: str) -> str:
    """A metric's name, with characters that MLflow refuses replaced: classes can have any name."""
    return re.sub(r"[^\w./: -]", "_", name)
