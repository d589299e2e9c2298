"""Which checkpoint a word stands for."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mnist_exp import resuming
from mnist_exp.errors import BadInput
from mnist_exp.tracking.store import ranked_runs
from mnist_exp.trained import find

UNKNOWN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a store that has the experiment "empty", and one in which runs can be made."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    artifacts = tmp_path_factory.mktemp("artifacts").as_uri()
    for name in ("empty", "mixed", "away"):
        MlflowClient(uri).create_experiment(name, artifacts)
    return uri


def recorded(
    uri: str, experiment: str, folder: Path, accuracies: list[float], **more: str
) -> tuple[str, Path]:
    """A run of these validation accuracies, as a training leaves it: its id and its checkpoint."""
    client = MlflowClient(uri)
    run = client.create_run(client.get_experiment_by_name(experiment).experiment_id)
    run_id = run.info.run_id
    client.set_tag(run_id, "output_folder", str(folder))
    params = {"trainer.keep": "best", "parameters": "10"}
    for key, value in (params | {k.replace("_", "."): v for k, v in more.items()}).items():
        if key != "status":
            client.log_param(run_id, key, value)
    for epoch, accuracy in enumerate(accuracies, 1):
        client.log_metric(run_id, "val/accuracy", accuracy, step=epoch)
    client.set_terminated(run_id, more.get("status", "FINISHED"))
    return run_id, written(folder)


def written(folder: Path) -> Path:
    path = folder / "checkpoints" / "last.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    return path


def test_the_best_is_the_finished_run_whose_kept_weights_are_the_best_in_validation(
    store: str, tmp_path: Path
) -> None:
    recorded(store, "mixed", tmp_path / "a", [0.9, 0.5])
    recorded(store, "mixed", tmp_path / "last", [0.99, 0.6], trainer_keep="last")
    _, best = recorded(store, "mixed", tmp_path / "b", [0.5, 0.95, 0.7])
    recorded(store, "mixed", tmp_path / "same", [0.95])
    recorded(store, "mixed", tmp_path / "killed", [0.97], status="KILLED")
    recorded(store, "mixed", tmp_path / "blind", [])
    client = MlflowClient(store)
    sweep = client.create_run(client.get_experiment_by_name("mixed").experiment_id)
    client.log_metric(sweep.info.run_id, "val/accuracy", 0.98)  # its winner's, told again
    client.set_terminated(sweep.info.run_id)
    assert find("best", store, "mixed") == best
    ranked = [(run.accuracy, time.time() - run.began < 60) for run in ranked_runs("mixed", store)]
    assert ranked == [(accuracy, True) for accuracy in (0.95, 0.95, 0.9, 0.6, None)]


def test_a_run_id_is_its_folder_or_where_that_is_gone_its_copy_in_mlflow(
    store: str, tmp_path: Path
) -> None:
    run_id, checkpoint = recorded(store, "away", tmp_path / "run", [0.5])
    assert find(run_id, store) == checkpoint
    MlflowClient(store).log_artifact(run_id, str(checkpoint), "checkpoints")
    checkpoint.unlink()
    assert find(run_id, store).read_bytes() == b"weights"
    assert find("best", store, "away").read_bytes() == b"weights"

    run_id, checkpoint = recorded(store, "away", tmp_path / "lost", [0.4])
    checkpoint.unlink()
    with pytest.raises(BadInput, match=rf"^run {run_id}: there is neither {checkpoint} nor its co"):
        find(run_id, store)


def test_a_path_and_latest_need_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "REPOSITORY", tmp_path)
    latest = written(tmp_path / "outputs" / "2026-01-01" / "run")
    assert find("latest") == latest
    assert find(str(latest)) == latest
    assert find(str(latest.parents[1])) == latest
    assert find("outputs/2026-01-01/run") == latest  # from the repository, wherever one is


@pytest.mark.parametrize(
    ("word", "experiment", "problem"),
    [
        (UNKNOWN, "mixed", f"no MLflow run {UNKNOWN} at sqlite:"),
        ("best", "empty", "no run of empty is finished and has been validated"),
        ("best", "emty", "no MLflow experiment emty; there are Default, away, empty, mixed"),
        ("bset", "mixed", "--run bset: no file, no folder, no MLflow run id; did you mean best?"),
    ],
)
def test_a_word_that_stands_for_no_run_is_told_in_a_line(
    store: str, word: str, experiment: str, problem: str
) -> None:
    with pytest.raises(BadInput, match=f"^{re.escape(problem)}.*$"):
        find(word, store, experiment)


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^no best run of mnist_exp: there is no .*none.db$"):
        find("best", f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []
