"""`python train.py`: what it prints, what it leaves, what MLflow then has."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from conftest import Clone, Like, is_refused, only_run, read_metrics
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import OmegaConf

from mnist_exp.data import digits
from mnist_exp.models import MLP
from mnist_exp.training.loop import evaluate

EPOCH_METRICS = {
    "train/loss",
    "train/accuracy",
    "val/loss",
    "val/accuracy",
    "lr",
    "speed/epoch_seconds",
    "speed/images_per_second",
}
VAL_METRICS = {"val/loss", "val/accuracy"}


@pytest.fixture(scope="module")
def trained(new_clone: Callable[[], Clone]) -> tuple[Clone, str]:
    """A clone in which one run has ended, and what it printed into a pipe."""
    clone = new_clone()
    done = clone.run("train.py", "data=digits", "seed=7", "trainer.epochs=3")
    assert (done.returncode, done.stderr) == (0, "")
    return clone, done.stdout


@pytest.fixture(scope="module")
def client(trained: tuple[Clone, str]) -> MlflowClient:
    return trained[0].client


@pytest.fixture(scope="module")
def run(client: MlflowClient) -> Run:
    return only_run(client)


@pytest.fixture(scope="module")
def folder(trained: tuple[Clone, str]) -> Path:
    (folder,) = trained[0].folders()
    return folder


def test_a_pipe_gets_plain_lines_one_per_epoch_and_a_closing_table(
    trained: tuple[Clone, str], folder: Path
) -> None:
    clone, printed = trained
    number = r"\d+\.\d{4}"
    epoch = (
        rf"epoch %d/3  train loss {number} accuracy {number}  val loss {number} "
        rf"accuracy {number}  \d+\.\d s  [\d,]+ images/s"
    )
    expected = [
        r"mlp-adam-lr0\.001-bs64-data=digits-seed=7-epochs=3 on cpu, .+, float32: "
        r"17,226 parameters, 34,048 FLOP an image",
        *(epoch % n for n in (1, 2, 3)),
        r"Weights of epoch \d",
        r"split  loss    accuracy",
        *(rf"{split:<5}  {number}  {number}" for split in ("train", "val", "test")),
        rf"outputs  {re.escape(str(folder.relative_to(clone.root)))}",
        r"compare  mlflow ui, then http://127\.0\.0\.1:5000/#/experiments/1/runs\?.+",
    ]
    lines = printed.splitlines()
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    assert "\x1b" not in printed
    assert "\r" not in printed


def test_the_output_folder_holds_log_config_metrics_and_weights(
    trained: tuple[Clone, str], folder: Path
) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-[0-9a-f]{6}", "/".join(folder.parts[-2:]))
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "mnist_model.pth",
        "model.txt",
        "requirements.txt",
        "train.log",
    }
    logged = [line.split(" ", 3)[-1] for line in (folder / "train.log").read_text().splitlines()]
    assert logged[0] == trained[1].splitlines()[0]
    config = OmegaConf.load(folder / "config.yaml")
    assert (config.seed, config.batch_size, config.trainer.epochs) == (7, 64, 3)
    resolved = (folder / "config.yaml").read_text().replace("${home:}", "")
    assert "${" not in resolved
    *layers, total = (folder / "model.txt").read_text("utf-8").splitlines()
    assert [line.split()[0] for line in layers] == ["layer", *(f"layers.{n}" for n in range(5))]
    assert total.split() == ["total", "MLP", "10", "17,226", "34,048"]


def test_metrics_jsonl_has_a_line_per_epoch_and_one_of_the_test(folder: Path) -> None:
    *epochs, test = read_metrics(folder, times=True)
    assert [epoch.pop("epoch") for epoch in epochs] == [1, 2, 3]
    assert all(set(epoch) == EPOCH_METRICS for epoch in epochs)
    best = max(epochs, key=lambda epoch: epoch["val/accuracy"])  # the first of equals
    assert test["epoch"] == epochs.index(best) + 1
    assert set(test) == {"epoch", "test/loss", "test/accuracy"}


def test_the_weights_are_a_plain_state_dict_that_gives_the_logged_test_metrics(
    folder: Path, digits_cache: Path
) -> None:
    state_dict = torch.load(folder / "mnist_model.pth", weights_only=True)
    model = MLP(input_shape=(1, 8, 8), classes=10)
    model.load_state_dict(state_dict)
    dataset = digits(cache=str(digits_cache), mean=0.3059, std=0.3763)
    found = evaluate(model, dataset.prepare(dataset.test, torch.device("cpu")))
    *_, test = read_metrics(folder, times=True)
    assert found["accuracy"] == test["test/accuracy"]
    assert found["loss"] == pytest.approx(test["test/loss"], rel=1e-6)


def test_mlflow_holds_every_metric_once_with_its_epoch(
    client: MlflowClient, run: Run, folder: Path
) -> None:
    assert run.info.status == "FINISHED"
    *epochs, test = read_metrics(folder, times=True)
    assert set(run.data.metrics) == EPOCH_METRICS | {"test/loss", "test/accuracy"}
    for key in EPOCH_METRICS:
        history = client.get_metric_history(run.info.run_id, key)
        assert [(m.step, m.value) for m in history] == [(e["epoch"], e[key]) for e in epochs]
    for key in ("test/loss", "test/accuracy"):
        history = client.get_metric_history(run.info.run_id, key)
        assert [(m.step, m.value) for m in history] == [(test["epoch"], test[key])]


def test_mlflow_holds_every_config_leaf_name_tags_and_data_set(run: Run, folder: Path) -> None:
    config = OmegaConf.load(folder / "config.yaml")
    assert run.data.params["optimizer.lr"] == "0.001"
    assert run.data.params["model.hidden_sizes"] == "[128, 64]"
    assert run.data.params["data.split_seed"] == "0"
    leaves = sum(len(v) if OmegaConf.is_config(v) else 1 for v in config.values())
    assert run.data.params["parameters"] == "17226"
    assert run.data.params["flops_per_image"] == "34048"
    assert len(run.data.params) == leaves + 3  # with the direction of the monitor
    assert run.info.run_name == "mlp-adam-lr0.001-bs64-data=digits-seed=7-epochs=3"
    assert run.data.tags["mnist_exp.torch"] == torch.__version__
    assert run.data.tags["mnist_exp.device"].startswith("cpu, 1 thread,")
    assert run.data.tags["mlflow.source.git.commit"]
    assert run.data.tags["mlflow.source.git.dirty"] in ("true", "false", "unknown")
    (inputs,) = run.inputs.dataset_inputs
    assert inputs.dataset.name == "digits"
    assert len(inputs.dataset.digest) == 12
    assert json.loads(inputs.dataset.profile) == {"train": 1222, "val": 216, "test": 359}


def test_mlflow_holds_the_artifacts_and_they_lie_under_mlruns(
    client: MlflowClient, run: Run, trained: tuple[Clone, str], folder: Path
) -> None:
    clone, _ = trained
    names = [
        *("config.yaml", "metrics.jsonl", "mnist_model.pth", "model.txt"),
        "requirements.txt",
    ]
    found = client.list_artifacts(run.info.run_id)
    assert [artifact.path for artifact in found] == ["checkpoints", *names]
    checkpoints = client.list_artifacts(run.info.run_id, "checkpoints")
    assert [artifact.path for artifact in checkpoints] == ["checkpoints/last.pt"]
    artifacts = clone.root / "mlruns" / "mnist_exp" / run.info.run_id / "artifacts"
    assert run.info.artifact_uri == artifacts.as_uri()
    for name in names:
        assert (artifacts / name).read_bytes() == (folder / name).read_bytes()
    versions = (folder / "requirements.txt").read_text().splitlines()
    assert f"torch=={torch.__version__.partition('+')[0]}" in [
        v.partition("+")[0] for v in versions
    ]


def test_another_start_folder_changes_nothing_but_the_hint(clone: Clone, tmp_path: Path) -> None:
    (clone.root / "mlflow.db").unlink()
    script = str(clone.root / "train.py")
    done = clone.run(script, "data=digits", "trainer=debug", cwd=tmp_path)
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
    assert f"compare  cd {clone.root} && mlflow ui, then http://" in done.stdout
    (folder,) = clone.folders()
    assert f"outputs  {folder}\n" in done.stdout
    assert (clone.root / "mlflow.db").exists()
    assert len(list(clone.root.glob("mlruns/mnist_exp/*/artifacts/config.yaml"))) == 1


def test_without_tracking_there_is_no_mlflow_no_worker_and_no_store(clone: Clone) -> None:
    (clone.root / "mlflow.db").unlink()
    code = (
        "import atexit, sys; from mnist_exp.cli import main as cli; "
        "from mnist_exp.tracking.worker import get_worker; "
        "atexit.register(lambda: print('mlflow' in sys.modules, "
        "'torchvision' in sys.modules, get_worker.cache_info().currsize)); "
        "sys.argv = ['train.py', 'data=digits', 'tracking=none', 'trainer=debug']; cli.train()"
    )
    done = clone.run("-c", code)
    assert done.stdout.splitlines()[-1] == "False False 0", done.stderr
    assert not (clone.root / "mlflow.db").exists()
    assert list((clone.root / "mlruns").iterdir()) == []


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_seed_the_same_split(clone: Clone) -> None:
    runs = []
    for seed in (1, 1, 2):
        done = clone.run("train.py", "data=digits", "tracking=none", f"seed={seed}")
        assert done.returncode == 0
        folder = clone.folders()[-1]
        state_dict = torch.load(folder / "mnist_model.pth", weights_only=True)
        runs.append((read_metrics(folder), [tensor.tolist() for tensor in state_dict.values()]))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_run_without_validation_prints_how_to_choose_it(clone: Clone) -> None:
    done = clone.run("train.py", "data=digits", "data.val_fraction=0", "tracking=none")
    folder = clone.folders()[0].relative_to(clone.root)
    text = Like(f"--run best…without validation…--run {folder}")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, text)


def test_without_validation_all_images_train_and_no_validation_metric_is_shown(
    clone: Clone,
) -> None:
    command = ("train.py", "-m", "data=digits", "data.val_fraction=0", "seed=1,2")
    done = clone.run(*command, "trainer.epochs=2", "tracking=none", "sweep.test=all")
    assert (done.returncode, done.stderr) == (0, "")
    _, row, *_ = done.stdout.split("Leaderboard\n")[1].splitlines()
    rank, epoch, _seconds, *rest = row.split()  # no accuracy, no loss
    assert (rank, epoch, rest) == ("1", "2", ["FINISHED", "0", "1"])
    assert re.search(r"test     accuracy 0\.\d{4} ± 0\.\d{4} \(n=2\)", done.stdout)
    for folder in clone.folders():
        *epochs, test = read_metrics(folder, times=True)
        assert len(epochs) == 2
        assert all(epoch.keys() - {"epoch"} == EPOCH_METRICS - VAL_METRICS for epoch in epochs)
        assert test["epoch"] == 2
    refused = clone.run("train.py", "data=digits", "data.val_fraction=0", "trainer.patience=2")
    assert (refused.returncode, refused.stdout) == (
        2,
        Like("error: trainer.patience=2: …data.val_fraction=0…\n"),
    )


def test_a_diverged_loss_fails_the_run(clone: Clone) -> None:
    done = clone.run("train.py", "data=digits", "optimizer=sgd", "optimizer.lr=1e20")
    assert done.returncode == 1
    assert re.search(
        r"^error: .*loss.* finite.* epoch 1 \(train \S+, val \S+\).* 1e\+20$",
        done.stdout,
        re.MULTILINE,
    )
    assert "Traceback" not in done.stdout + done.stderr
    (folder,) = clone.folders()
    assert not (folder / "mnist_model.pth").exists()  # it would have the initial weights
    assert "finite" in (folder / "train.log").read_text()
    assert only_run(clone.client).info.status == "FAILED"


def test_an_unwritable_output_folder_is_one_line(clone: Clone) -> None:
    (clone.root / "mlflow.db").unlink()
    (clone.root / "outputs").rmdir()
    (clone.root / "outputs").write_text("a file, where a folder should be")
    done = clone.run("train.py", "data=digits")
    assert is_refused(done, 2, "outputs: not a folder", "MNIST_EXP_HOME=")
    assert not (clone.root / "mlflow.db").exists()


def test_options_that_do_not_go_together_are_bad_input(clone: Clone) -> None:
    (clone.root / "mlflow.db").unlink()
    done = clone.run(
        "train.py",
        "data=digits",
        "optimizer=sgd",
        "optimizer.nesterov=true",
        "optimizer.momentum=0",
    )
    assert done.returncode == 2
    assert done.stdout == Like("error: optimizer=sgd: Nesterov momentum…\n")
    assert not (clone.root / "mlflow.db").exists()


@pytest.mark.slow
@pytest.mark.skipif("MNIST_ROOT" not in os.environ, reason="MNIST_ROOT: a folder with the files")
def test_the_baseline_reaches_the_accuracy_of_the_tutorial_pipeline(clone: Clone) -> None:
    done = clone.run("train.py", f"data.root={os.environ['MNIST_ROOT']}", timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = clone.folders()
    *epochs, test = read_metrics(folder, times=True)
    assert len(epochs) == 5
    assert test["test/accuracy"] >= 0.968  # the tutorial pipeline gives 0.97 ± 0.003


def has_default_experiment(database: Path) -> bool:
    """Whether MLflow's UI has created its tables, which no other process may do meanwhile."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return ("Default",) in connection.execute("SELECT name FROM experiments").fetchall()
    except sqlite3.OperationalError:
        return False


@pytest.mark.slow
def test_artifacts_are_stored_even_if_the_ui_was_started_first(clone: Clone) -> None:
    (clone.root / "mlflow.db").unlink()
    ui = clone.start(
        "-m", "mlflow", "ui", "--port", "0", env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    )
    try:
        for _ in range(600):
            if has_default_experiment(clone.root / "mlflow.db"):
                break
            time.sleep(0.1)
        done = clone.run("train.py", "data=digits", "trainer=debug")
        assert done.returncode == 0
    finally:
        ui.terminate()
        ui.communicate(timeout=60)
    artifacts = clone.client.list_artifacts(only_run(clone.client).info.run_id)
    assert "mnist_model.pth" in [artifact.path for artifact in artifacts]
