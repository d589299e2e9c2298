"""A checkout that is moved, copied, read-only, or beside another one; users without a name."""

from __future__ import annotations

import getpass
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from conftest import TRAINED, Clone, find_sweep, is_refused, only_run, read_files, read_metrics

from mnist_exp import paths
from mnist_exp.errors import BadInput
from mnist_exp.experiment import checkpoint
from mnist_exp.experiment.find import check_writable
from mnist_exp.experiment.renamed import find_old_home
from mnist_exp.paths import HOME, LAST, REPOSITORY, replace_home, restore_home
from mnist_exp.tracking import get_user
from mnist_exp.tracking.store import LOCATIONS, follow_move

SHORT = ("data=digits", "trainer.epochs=1")


def succeed(clone: Clone, *command: str, **options: object) -> str:
    done = clone.run(*command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read_locations(database: Path) -> set[str]:
    """Every absolute path that MLflow has of its own."""
    with closing(sqlite3.connect(database)) as connection:
        columns = (place.split(".") for place in LOCATIONS)
        rows = [connection.execute(f"SELECT {column} FROM {table}") for table, column in columns]
        values = {str(value) for row in rows for (value,) in row}
    paths = {value for value in values if value.startswith(("/", "file:/"))}
    return {path for path in paths if not path.endswith("/mlruns/0")}  # of where the tests run


def test_a_copy_works_on_its_runs_and_leaves_the_original_alone(
    new_clone: Callable[[], Clone], tmp_path: Path
) -> None:
    original = new_clone()
    succeed(original, "train.py", *SHORT, "tracking.register=digits")
    run_id = only_run(original.client).info.run_id
    before = read_files(original.root)
    copied = Clone(tmp_path / "a copy")
    shutil.copytree(original.root, copied.root)
    done = copied.run("train.py", f"resume={run_id}", "trainer.epochs=2")
    assert done.returncode == 0, done.stderr
    assert str(original.root) in done.stderr
    assert len(copied.client.get_metric_history(run_id, "val/loss")) == 2
    assert read_files(original.root) == before
    locations = read_locations(copied.root / "mlflow.db")
    assert len(locations) == 4  # of the experiment, run, model and its version
    ours = (str(copied.root), copied.root.as_uri())
    assert [each for each in locations if not each.startswith(ours)] == []
    assert read_locations(copied.root / "mlflow.db.before_move") == read_locations(
        original.root / "mlflow.db"
    )


@pytest.mark.slow
def test_every_command_works_on_the_runs_of_a_moved_checkout(
    new_clone: Callable[[], Clone],
) -> None:
    clone, twin = new_clone(), new_clone()
    for each in (clone, twin):
        succeed(each, "train.py", *TRAINED)
    run_id = only_run(clone.client).info.run_id
    (start,) = clone.folders()
    swept = ("-m", *SHORT, f"init={start}", "optimizer.lr=1e-2,1e-3")
    succeed(clone, "train.py", *swept)
    outcome = find_sweep(clone) / "1" / "outcome.json"
    outcome.write_text(outcome.read_text().replace("FINISHED", "KILLED"))
    moved = Clone(clone.root.rename(clone.root.with_name("moved")))
    assert str(clone.root) in moved.run("evaluate.py", "--run", run_id).stderr
    image = "docs/digit.png"
    (moved.root / "docs").mkdir()
    shutil.copy(REPOSITORY / "docs" / "demo.png", moved.root / image)
    succeed(moved, "predict.py", "--run", "best:digits", image)
    succeed(moved, "export.py", "--run", run_id, "--format", "torchscript")
    assert "every metric is the same" in succeed(moved, "train.py", f"reproduce={run_id}")
    sweep = find_sweep(moved)
    succeed(moved, "train.py", "-m", f"sweep.resume={sweep}")
    assert "FINISHED" in (sweep / "1" / "outcome.json").read_text()
    more = (f"resume={run_id}", "trainer.epochs=10")
    succeed(moved, "train.py", *more)
    (folder,) = twin.folders()
    succeed(twin, "train.py", f"resume={folder}", more[1])
    resumed = moved.root / start.relative_to(clone.root)
    assert read_metrics(resumed) == read_metrics(folder)
    assert not clone.root.exists()


def test_artifacts_that_lie_elsewhere_on_purpose_stay_there(
    empty_store: Path, tmp_path: Path
) -> None:
    database = Path(shutil.copy(empty_store, tmp_path))
    disk, gone = tmp_path / "disk", Path("/gone é")
    (disk / "mlruns" / "big").mkdir(parents=True)
    places = {
        "big": f"{disk.as_uri()}/mlruns/big",
        "bucket": "s3://bucket/mlruns/bucket",
        "served": "mlflow-artifacts:/3",
        "é": f"{gone.as_uri()}/mlruns/%C3%A9",
    }
    with closing(sqlite3.connect(database)) as connection, connection:
        for number, place in enumerate(places.items(), start=1):
            row = (number, *place, "active", "default")
            columns = "experiment_id, name, artifact_location, lifecycle_stage, workspace"
            connection.execute(f"INSERT INTO experiments ({columns}) VALUES (?, ?, ?, ?, ?)", row)
    for _ in range(2):
        follow_move(database)
        with closing(sqlite3.connect(database)) as connection:
            query = "SELECT name, artifact_location FROM experiments WHERE experiment_id > 0"
            now = dict(connection.execute(query).fetchall())
        assert now == {**places, "é": f"{tmp_path.as_uri()}/mlruns/%C3%A9"}


def test_paths_in_records_follow_home_and_others_stay() -> None:
    values = {
        "cache": f"{HOME}/data",
        "typed": [f"init='{HOME}/a b.pt'", f"data.root={HOME}", 1, None],
        "other": [f"/x{HOME}/data", f"{HOME}_2/data", "data"],
    }
    kept = replace_home(values)
    assert kept["cache"] == "${home:}/data"
    assert kept["typed"] == ["init='${home:}/a b.pt'", "data.root=${home:}", 1, None]
    assert kept["other"] == values["other"]
    assert restore_home(kept) == values


def test_a_config_from_before_whole_paths_were_replaced_is_of_here(tmp_path: Path) -> None:
    shared, checkout = tmp_path / "shared", tmp_path / "checkout"
    shared.mkdir()
    (checkout / "conf").mkdir(parents=True)
    for folder, expected in ((shared, None), (checkout, str(checkout)), ("/gone", "/gone")):
        config = {"data": {"cache": f"{folder}/data/cache", "root": f"{folder}/data"}}
        assert find_old_home(config) == expected
        content = checkpoint.upgrade({"format": 3, "config": config}, tmp_path / LAST)
        assert content["config"]["data"]["root"] == f"{HOME if expected else folder}/data"
    for foreign in (
        None,
        {"data": None},
        {"data": {"cache": 3}},
        {"data": {"cache": "/data/cache"}},
    ):
        assert find_old_home(foreign) is None


def test_each_checkout_runs_its_own_code_config_and_outputs(
    new_clone: Callable[[], Clone], tmp_path: Path
) -> None:
    installed, other = new_clone(), new_clone()
    for name in ("conf/config.yaml", "src/mnist_exp/__init__.py"):
        path = other.root / name
        path.write_text(path.read_text().replace("batch_size: 64", "batch_size: 50"))
    env = {"PYTHONPATH": str(installed.root / "src")}
    script = str(other.root / "train.py")
    sweep = ("-m", *SHORT, "tracking=none", "seed=1")  # in processes that import for themselves
    succeed(other, script, *sweep, env=env, cwd=tmp_path)
    assert list((installed.root / "outputs").iterdir()) == []
    assert "batch_size: 50" in (find_sweep(other) / "0" / "config.yaml").read_text()
    done = other.run("-m", "mnist_exp", "--cfg", "job", env=env)
    assert "batch_size: 64" in done.stdout
    assert is_refused(done, 0, str(installed.root), str(other.root))


def test_everything_is_written_to_mnist_exp_home(clone: Clone, tmp_path: Path) -> None:
    def read_names() -> set[Path]:
        return {path for path in read_files(clone.root) if path.suffix != ".pyc"}

    before, home = read_names(), tmp_path / "home"
    env = {"MNIST_EXP_HOME": str(home)}
    succeed(clone, "train.py", *SHORT, env=env)
    found = {path.name for path in home.iterdir()}
    assert found >= {"data", "mlflow.db", "mlruns", "outputs"}
    assert read_names() == before
    succeed(clone, "evaluate.py", "--run", "best:digits", env=env)


def test_what_cannot_be_written_is_refused_by_the_name_of_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    access = os.access

    def refuse(path: Path, mode: int) -> bool:
        return access(path, mode) and not (mode == os.W_OK and path in (REPOSITORY, tmp_path))

    monkeypatch.delenv("MNIST_EXP_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert paths.find_home() == REPOSITORY
    monkeypatch.setattr(os, "access", refuse)
    assert paths.find_home() == tmp_path
    with pytest.raises(BadInput, match=f"{tmp_path}: .*MNIST_EXP_HOME"):
        check_writable(tmp_path / "outputs" / "run")


def test_a_file_is_no_folder_to_write_to(clone: Clone) -> None:
    folder = "hydra.run.dir=train.py/run"
    assert is_refused(clone.run("train.py", folder), 2, "train.py: not a folder")
    done = clone.run("train.py", "--help", env={"MNIST_EXP_HOME": "train.py"})
    assert is_refused(done, 2, "MNIST_EXP_HOME=train.py: ")


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    assert get_user() == "ann"

    def fail() -> str:
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr(getpass, "getuser", fail)
    assert get_user() == str(os.getuid())


def test_every_module_is_imported_without_what_only_posix_has() -> None:
    """As on Windows, as far as our own modules go: others look at the name of the platform."""
    modules = [
        ".".join(path.relative_to(REPOSITORY / "src").with_suffix("").parts)
        for path in (REPOSITORY / "src").rglob("*.py")
        if path.name != "__main__.py"
    ]
    code = f"""if True:
        import importlib, os, signal, sys
        for module in {modules}:
            importlib.import_module(module)  # with all that they import
        for module in [name for name in sys.modules if name.startswith(("mnist_exp", "hydra_pl"))]:
            del sys.modules[module]
        for module in ("fcntl", "grp", "pwd", "resource", "termios"):
            sys.modules[module] = None
        for name in ("getuid", "fork", "killpg", "setsid", "sched_getaffinity", "register_at_fork"):
            delattr(os, name)
        for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM", "pthread_sigmask"):
            delattr(signal, name)
        for module in {modules}:
            importlib.import_module(module)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
