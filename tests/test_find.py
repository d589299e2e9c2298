"""Which checkpoint `--run` stands for."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import Clone, Like
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput
from PIL import Image

from mnist_exp.errors import BadInput
from mnist_exp.experiment import checkpoint, find
from mnist_exp.experiment.find import check_new, find_checkpoint, find_run, rank_runs
from mnist_exp.paths import LAST, METRICS, SWEEP

UNKNOWN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a store that has the experiment "empty", and one in which runs can be made."""
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('store'))}"
    artifacts = tmp_path_factory.mktemp("artifacts").as_uri()
    for name in ("empty", "mixed", "sets", "away", "both"):
        MlflowClient(uri).create_experiment(name, artifacts)
    return uri


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder outputs/ of a repository in which nothing has been trained."""
    monkeypatch.setattr(find, "HOME", tmp_path)
    return tmp_path / "outputs"


def record_run(
    uri: str,
    experiment: str,
    folder: Path,
    accuracies: list[float],
    data: str = "mnist",
    digest: str = "1",
    status: str = "FINISHED",
    params: dict[str, str] | None = None,
) -> tuple[str, Path]:
    """A run of these validation accuracies, as a training leaves it: its id and its checkpoint."""
    client = MlflowClient(uri)
    run = client.create_run(client.get_experiment_by_name(experiment).experiment_id)
    run_id = run.info.run_id
    client.set_tag(run_id, "output_folder", str(folder))
    client.log_inputs(run_id, [DatasetInput(Dataset(data, digest, "local", "{}"), [])])
    for key, value in ({"trainer.keep": "best"} | (params or {})).items():
        client.log_param(run_id, key, value)
    for epoch, accuracy in enumerate(accuracies, 1):
        client.log_metric(run_id, "val/accuracy", accuracy, step=epoch)
    client.set_terminated(run_id, status)
    return run_id, write_checkpoint(folder)


def write_checkpoint(folder: Path) -> Path:
    path = folder / "checkpoints" / "last.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    return path


def test_the_best_is_the_finished_run_whose_kept_weights_are_the_best_in_validation(
    store: str, tmp_path: Path
) -> None:
    record_run(store, "mixed", tmp_path / "a", [0.9, 0.5])
    record_run(store, "mixed", tmp_path / "last", [0.99, 0.6], params={"trainer.keep": "last"})
    _, best = record_run(store, "mixed", tmp_path / "b", [0.5, 0.95, 0.7])
    record_run(store, "mixed", tmp_path / "same", [0.95])
    record_run(store, "mixed", tmp_path / "killed", [0.97], status="KILLED")
    record_run(store, "mixed", tmp_path / "blind", [])
    record_run(store, "mixed", tmp_path / "debug", [0.96], params={"trainer.max_batches": "5"})
    deleted, _ = record_run(store, "mixed", tmp_path / "deleted", [0.99])
    MlflowClient(store).delete_run(deleted)
    client = MlflowClient(store)
    sweep = client.create_run(client.get_experiment_by_name("mixed").experiment_id)
    client.log_metric(sweep.info.run_id, "val/accuracy", 0.98)  # its winner's, logged again
    client.set_terminated(sweep.info.run_id)
    assert find_checkpoint("best", store, "mixed") == best
    ranked = [
        (run.score and run.score.value, time.time() - run.start_time < 60)
        for run in rank_runs("mixed", store)
    ]
    assert ranked == [(accuracy, True) for accuracy in (0.95, 0.95, 0.9, 0.6, None)]


def test_the_best_is_of_one_data_set_and_of_the_images_that_it_had_last(
    store: str, tmp_path: Path
) -> None:
    _, mnist = record_run(store, "sets", tmp_path / "mnist", [0.8])
    _, digits = record_run(store, "sets", tmp_path / "digits", [0.9], "digits")
    record_run(store, "sets", tmp_path / "before", [0.99], "photos", digest="2")
    time.sleep(0.002)  # runs begin at a millisecond
    _, photos = record_run(store, "sets", tmp_path / "photos", [0.7], "photos", digest="3")
    words = ("best", "best:mnist", "best:digits", "best:photos")
    assert [find_checkpoint(word, store, "sets") for word in words] == [
        mnist,
        mnist,
        digits,
        photos,
    ]
    with pytest.raises(BadInput, match=r"digits, mnist, photos: .* did you mean best:mnist\?$"):
        find_checkpoint("best:mnsit", store, "sets")


def write_ended_run(
    folder: Path, accuracy: float | None, keep: int = 1, began: float = 0, **more: object
) -> Path:
    """The last checkpoint of a run without MLflow, by default one that has ended."""
    val = None if accuracy is None else {"accuracy": accuracy}
    epochs = [{"val": val, "ended": began + 10, "seconds": 10.0}] * keep
    state = {
        "name": folder.name,
        "config": {"trainer": {"max_batches": None}, "tracking": {}},
        "key": folder.name,
        "ended": True,
        "data": {"name": "mnist", "digest": "1" * 64},
        "state": {
            "model": torch.nn.Linear(2, 2).state_dict(),
            "progress": {"epochs": epochs, "best": keep},
        },
    }
    folder.mkdir(parents=True)
    checkpoint.save(folder / LAST, {**state, **more})
    return folder / LAST


def test_runs_without_mlflow_are_ranked_by_their_checkpoints_in_outputs(outputs: Path) -> None:
    write_ended_run(outputs / "2026-01-01" / "a", 0.9)
    best = write_ended_run(outputs / "2026-01-01" / "sweep" / "7", 0.95, keep=2, began=5)
    write_ended_run(outputs / "same", 0.95, began=6)
    write_ended_run(outputs / "blind", None)
    write_ended_run(outputs / "running", 0.99, ended=False)
    config = {"trainer": {"max_batches": 5}, "tracking": {}}
    write_ended_run(outputs / "debug", 0.99, config=config)
    other = {"trainer": {"max_batches": None}, "tracking": {"experiment": "other"}}
    write_ended_run(outputs / "other", 0.99, config=other)
    digits = write_ended_run(outputs / "digits", 0.99, data={"name": "digits", "digest": "2" * 64})
    write_ended_run(outputs / "foreign", 0.99, data={})
    write_checkpoint(outputs / "damaged")
    assert find_checkpoint("best") == best
    assert find_checkpoint("best:digits") == digits
    names = [run.name for run in rank_runs("mnist_exp", None)]
    assert names == ["digits", "7", "same", "a", "blind"]


def test_a_run_in_outputs_counts_once_and_not_if_it_is_deleted_in_mlflow(
    store: str, outputs: Path, tmp_path: Path
) -> None:
    def config(experiment: str) -> dict[str, object]:
        tracking = {"experiment": experiment}
        return {"trainer": {"max_batches": None}, "tracking": tracking}

    client = MlflowClient(store)
    for number, folder in enumerate((outputs / "there", tmp_path / "moved", outputs / "gone")):
        run_id, path = record_run(store, "both", folder, [0.5 + number / 10])
        path.unlink()
        path.parent.rmdir()
        folder.rmdir()
        client.set_tag(run_id, "key", folder.name)
    client.delete_run(run_id)
    write_ended_run(outputs / "there", 0.5, config=config("both"))
    write_ended_run(outputs / "moved", 0.6, config=config("both"))
    write_ended_run(outputs / "gone", 0.7, config=config("both"))
    resumed, _ = record_run(store, "both", outputs / "elsewhere", [0.4], status="KILLED")
    client.set_tag(resumed, "output_folder", str(outputs / "resumed"))
    write_ended_run(outputs / "resumed", 0.4, config=config("both"))  # without MLflow
    assert [run.score.value for run in rank_runs("both", store)] == [0.6, 0.5, 0.4]


def test_a_run_id_is_its_folder_or_where_that_is_gone_its_copy_in_mlflow(
    store: str, tmp_path: Path
) -> None:
    run_id, checkpoint = record_run(store, "away", tmp_path / "run", [0.5])
    assert find_checkpoint(run_id, store) == checkpoint
    MlflowClient(store).log_artifact(run_id, str(checkpoint), "checkpoints")
    checkpoint.unlink()
    assert find_checkpoint(run_id, store).read_bytes() == b"weights"
    assert find_checkpoint("best", store, "away").read_bytes() == b"weights"

    torch.save({"format": 4, "key": "of another run"}, checkpoint)  # in a folder of that name
    assert find_checkpoint(run_id, store).read_bytes() == b"weights"

    run_id, checkpoint = record_run(store, "away", tmp_path / "lost", [0.4])
    checkpoint.unlink()
    with pytest.raises(BadInput, match=rf"^run {run_id}: .*{checkpoint}"):
        find_checkpoint(run_id, store)


def test_a_folder_is_to_be_resumed_only_if_it_has_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / METRICS).touch()
    with pytest.raises(BadInput, match="already contains a run; choose another folder"):
        check_new(tmp_path)
    (tmp_path / LAST).parent.mkdir()
    (tmp_path / LAST).touch()
    with pytest.raises(BadInput, match="already contains a run; resume="):
        check_new(tmp_path)


def test_a_run_whose_folder_is_gone_is_resumed_from_mlflow_in_a_new_folder(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, checkpoint = record_run(store, "away", tmp_path / "run", [0.5])
    MlflowClient(store).log_artifact(run_id, str(checkpoint), "checkpoints")
    new = tmp_path / "new"
    assert find_run(run_id, store, new=new) == tmp_path / "run"
    checkpoint.unlink()
    assert find_run(run_id, store, new=new) == new
    assert (new / LAST).read_bytes() == b"weights"
    assert str(new) in capsys.readouterr().out
    with pytest.raises(BadInput, match="already contains a run"):
        find_run(run_id, store, new=new)

    run_id, checkpoint = record_run(store, "away", tmp_path / "lost", [0.5])
    checkpoint.unlink()
    with pytest.raises(BadInput, match=rf"^run {run_id}: .*{checkpoint}"):
        find_run(run_id, store, new=tmp_path / "not made")
    assert not (tmp_path / "not made").exists()


def test_a_path_and_latest_need_no_store(outputs: Path) -> None:
    latest = write_checkpoint(outputs / "2026-01-01" / "run")
    assert find_checkpoint("latest") == latest
    assert find_checkpoint(str(latest)) == latest
    assert find_checkpoint(str(latest.parents[1])) == latest
    assert find_checkpoint("outputs/2026-01-01/run") == latest  # of the repository


def test_the_jobs_of_a_sweep_are_not_the_latest_run_and_share_its_folder(outputs: Path) -> None:
    job = write_checkpoint(outputs / "2026-01-01" / "sweep" / "0")
    sweep = job.parents[2]
    (sweep / SWEEP).touch()
    with pytest.raises(BadInput, match=r"--run latest: .* jobs of sweeps"):
        find_checkpoint("latest")
    own = write_checkpoint(outputs / "2026-01-01" / "run")
    os.utime(own, (0, 0))
    assert find_checkpoint("latest") == own
    assert find_checkpoint(str(job.parents[1])) == job
    for folder in (sweep, sweep / "9"):
        with pytest.raises(BadInput, match=rf"^hydra.run.dir={folder}: .*sweep"):
            check_new(folder)


@pytest.mark.parametrize(
    ("word", "experiment", "problem"),
    [
        (UNKNOWN, "mixed", f"no MLflow run {UNKNOWN} …sqlite:…"),
        ("best", "empty", "--run best: empty …no finished run of mnist…"),
        ("best", "emty", "no MLflow experiment emty; …Default, away, both, empty, mixed…"),
        ("bset", "mixed", "--run bset: …; did you mean best?"),
    ],
)
def test_an_unknown_run_is_one_line(store: str, word: str, experiment: str, problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        find_checkpoint(word, store, experiment)
    assert str(caught.value) == Like(problem)


def test_a_missing_store_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"mnist_exp.*none\.db"):
        find_checkpoint("best", f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []


# --- as a person types it ---


@pytest.mark.slow
def test_best_is_chosen_on_the_configs_data_set_or_the_named_one(clone: Clone) -> None:
    (clone.root / "mlflow.db").unlink()
    for number in range(20):
        folder = clone.root / "photos" / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(9 * number).resize((8, 8)).save(folder / f"{number}.png")
    image = "photos/cat/1.png"

    def predict(*options: str) -> tuple[int, str]:
        done = clone.run("predict.py", image, *options)
        return done.returncode, done.stderr

    nothing = "error: --run best: mnist_exp …no finished run of mnist…trainer.max_batches…"
    assert predict() == (2, Like(f"{nothing}python train.py\n"))
    for data in (["data=digits"], ["data=image_folder", "data.root=photos"]):
        done = clone.run("train.py", *data, "model=linear", "trainer.epochs=1", "tracking=none")
        assert (done.returncode, done.stderr) == (0, "")
    assert predict() == (2, Like(f"{nothing}digits, photos: --run best:digits\n"))
    digits, photos = (folder / LAST for folder in clone.folders())
    assert predict("--run", "best:photos") == (0, Like(f"{photos}…photos\n"))
    config = clone.root / "conf" / "config.yaml"
    config.write_text(config.read_text().replace("data: mnist ", "data: digits "))
    assert predict() == (0, Like(f"{digits}…digits\n"))
    assert not (clone.root / "mlflow.db").exists()
