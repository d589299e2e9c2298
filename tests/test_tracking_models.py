"""The model in MLflow: logged with its run, loaded and served from there, registered."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from conftest import Clone, Like
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from test_export import color

from mnist_exp.experiment.load import load_model
from mnist_exp.inference.export import export
from mnist_exp.models import MLP
from mnist_exp.tracking import ModelRecord, Score
from mnist_exp.tracking.models import log_model, register


@pytest.fixture(scope="module")
def client(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    """A client of a store with the experiment "models"."""
    database = shutil.copy(empty_store, tmp_path_factory.mktemp("store"))
    client = MlflowClient(f"sqlite:///{database}")
    client.create_experiment("models", tmp_path_factory.mktemp("artifacts").as_uri())
    return client


SCORE = Score("val/accuracy", 0.5, True)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    """The record of an untrained model of color images, in its second epoch."""
    kind, file = color(), tmp_path_factory.mktemp("exported") / "model.pt"
    model = MLP(kind.image_shape, 4, hidden_sizes=[8])
    export(model, kind, "torchscript", file, preprocessing=True, test=None)
    image = torch.arange(3 * 14 * 14).remainder(256).view(1, 3, 14, 14)
    return ModelRecord(file, image.tolist(), kind.class_names, 2, SCORE, kind.digest)


def new_run(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name("models")
    run_id = client.create_run(experiment.experiment_id).info.run_id
    for epoch, accuracy in enumerate((0.25, 0.5, 0.375), 1):
        client.log_metric(run_id, "val/accuracy", accuracy, step=epoch)
    return run_id


def models_of(client: MlflowClient, run_id: str) -> list[LoggedModel]:
    experiment_id = client.get_run(run_id).info.experiment_id
    return list(client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"))


def test_a_model_is_logged_with_its_run_and_the_metrics_of_its_epoch(
    client: MlflowClient, record: ModelRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = new_run(client)
    log_model(client, run_id, record)
    (model,) = models_of(client, run_id)
    assert (model.name, model.status, model.model_type) == ("model", "READY", "classifier")
    assert [(m.key, m.value, m.step) for m in model.metrics] == [("val/accuracy", 0.5, 2)]
    (output,) = client.get_run(run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 2)
    names = {file.path for file in client.list_logged_model_artifacts(model.model_id)}
    assert {"MLmodel", "served.py", "artifacts", "input_example.json"} <= names
    assert not any(name.endswith(".pkl") for name in names)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    loaded = mlflow.pyfunc.load_model(model.model_uri)
    schema = loaded.metadata.signature
    assert [(i.type, i.shape) for i in schema.inputs.inputs] == [(np.uint8, (-1, 3, 14, 14))]
    assert loaded.metadata.metadata == {"class_names": ["a", "b", "c", "d"]}
    assert loaded.input_example.shape == (1, 3, 14, 14)
    answered = loaded.predict(np.zeros((5, 3, 14, 14), np.uint8))
    assert answered["probabilities"].shape == (5, 4)
    assert answered["probabilities"].sum(1) == pytest.approx(1)
    assert len(set(answered["labels"])) == 1


def test_a_model_that_is_logged_again_is_the_same_one_and_of_another_epoch_another(
    client: MlflowClient, record: ModelRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, upload = new_run(client), MlflowClient.log_model_artifacts

    def away(*arguments: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", away)
    with pytest.raises(ConnectionError):
        log_model(client, run_id, record)
    assert [model.status for model in models_of(client, run_id)] == ["PENDING"]
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", upload)
    for _ in range(2):
        log_model(client, run_id, record)
        assert [model.status for model in models_of(client, run_id)] == ["READY"]
    log_model(client, run_id, replace(record, epoch=3))
    assert sorted(model.tags["epoch"] for model in models_of(client, run_id)) == ["2", "3"]
    assert len(client.get_metric_history(run_id, "val/accuracy")) == 3


def get_champion(client: MlflowClient) -> ModelVersion:
    return client.get_model_version_by_alias("digits", "champion")


def test_the_champion_is_the_best_in_validation_of_one_data_set(
    client: MlflowClient, record: ModelRecord
) -> None:
    def register_run(run_id: str, accuracy: float | None, **more: object) -> str:
        score = None if accuracy is None else SCORE._replace(value=accuracy)
        of_run = replace(record, score=score, **more)
        return register(client, "digits", log_model(client, run_id, of_run), of_run)

    first, second, third, fourth, fifth, sixth = (new_run(client) for _ in range(6))
    better = "digits version {}, now the champion (…{})"
    nothing = "digits version 1; no champion…"
    assert register_run(first, accuracy=None) == Like(nothing)
    assert register_run(second, accuracy=0.9) == Like(better.format(2, "0.9000"))
    assert register_run(second, accuracy=0.9) == "digits version 2, the champion"
    stays = "digits version {}; version 2 …champion…"
    assert register_run(third, accuracy=0.9) == Like(f"{stays.format(3)}(…0.9000, …0.9000)")
    other_set = register_run(fourth, accuracy=1.0, digest="1" * 64)
    assert other_set == Like(f"{stays.format(4)}data set")
    assert get_champion(client).run_id == second
    assert register_run(fifth, accuracy=0.90004) == Like(better.format(5, "0.9000, …0.9000"))
    assert get_champion(client).run_id == fifth
    client.delete_model_version_tag("digits", "5", "val_accuracy")
    assert register_run(sixth, accuracy=0.99) == Like(
        "digits version 6; version 5 …champion…no val/accuracy…"
    )
    assert len(client.search_model_versions("name = 'digits'")) == 6


# --- as a person sees it ---


@pytest.fixture(scope="module")
def served_clone(new_clone: object) -> Clone:
    """A clone with a finished run on the digits, the champion of the name digits."""
    clone = new_clone()  # type: ignore[operator]
    done = clone.run("train.py", "data=digits", "trainer.epochs=2", "tracking.register=digits")
    assert (done.returncode, done.stderr) == (0, "")
    accuracy = re.search(r"^val +\S+ +(\S+)$", done.stdout, re.MULTILINE)[1]
    says = Like(f"registered  digits version 1, now the champion (…{accuracy})")
    assert says in done.stdout.splitlines()
    return clone


def test_a_registered_model_labels_raw_images_as_the_checkpoint_does(
    served_clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{served_clone.root}/mlflow.db")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{served_clone.root}/mlflow.db")
    trained = load_model(served_clone.folders()[0] / "checkpoints" / "last.pt")
    images = trained.dataset().test.images
    expected = trained.logits(images)
    answered = mlflow.pyfunc.load_model("models:/digits@champion").predict(images[:, 0].numpy())
    assert answered["labels"] == [str(label) for label in expected.argmax(1).tolist()]
    found = torch.from_numpy(answered["probabilities"])
    torch.testing.assert_close(found, expected.softmax(1), rtol=0, atol=1e-6)


@contextmanager
def serve(clone: Clone) -> Iterator[str]:
    """`mlflow models serve` where this package cannot be imported; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    (clone.root / "without" / "mnist_exp").mkdir(parents=True, exist_ok=True)
    (clone.root / "without" / "mnist_exp" / "__init__.py").write_text("raise ImportError('absent')")
    command = ["models", "serve", "-m", "models:/digits@champion", "--env-manager", "local"]
    env = clone.environment(
        MLFLOW_TRACKING_URI=f"sqlite:///{clone.root}/mlflow.db",
        PYTHONPATH=str(clone.root / "without"),
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # of uvicorn
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", port],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        ends = time.monotonic() + 100
        while not answers(f"http://127.0.0.1:{port}/ping"):
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < ends, "the server does not answer"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # with its workers
        server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_a_served_model_answers_a_request_with_ten_images_without_this_package(
    served_clone: Clone,
) -> None:
    trained = load_model(served_clone.folders()[0] / "checkpoints" / "last.pt")
    images = trained.dataset().test.images[:10]
    with serve(served_clone) as url:
        request = urllib.request.Request(
            url,
            json.dumps({"inputs": images[:, 0].tolist()}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            predictions = json.load(answer)["predictions"]
    expected = trained.logits(images)
    assert predictions["labels"] == [str(label) for label in expected.argmax(1).tolist()]
    found = torch.tensor(predictions["probabilities"])
    torch.testing.assert_close(found, expected.softmax(1), rtol=0, atol=1e-6)
