"""A trained model in MLflow: logged with its run, and registered under a name."""

from __future__ import annotations

import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, infer_signature
from mlflow.pyfunc import save_model
from mlflow.utils import requirements_utils

from mnist_exp.tracking import ModelRecord, Score
from mnist_exp.tracking.store import lock_store

NAME = "model"  # in its run
CHAMPION = "champion"
EPOCH, DIGEST = "epoch", "data_digest"  # tags

# MLflow checks that what a model requires is installed. To know the modules of each package, which
# it does not need here, it would look through the files of all packages: half a second.
requirements_utils._MODULES_TO_PACKAGES = {}  # type: ignore[assignment]


def log_model(client: MlflowClient, run_id: str, record: ModelRecord) -> LoggedModel:
    """The run's model of that epoch; logged unless it is there and complete."""
    experiment_id = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models(
        [experiment_id], f"source_run_id = '{run_id}' AND tags.{EPOCH} = '{record.epoch}'"
    )
    if found:
        model = found[0]
    else:
        tags = {EPOCH: str(record.epoch)}
        model = client.create_logged_model(
            experiment_id, NAME, run_id, tags, model_type="classifier"
        )
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, NAME)
            write_model(folder, record, Model(run_id=run_id, model_id=model.model_id))
            client.log_model_artifacts(model.model_id, str(folder))
        outputs = client.get_run(run_id).outputs
        known = [output.model_id for output in outputs.model_outputs] if outputs else []
        if model.model_id not in known:  # MLflow refuses to log one again
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=record.epoch)])
        client.log_batch(run_id, copy_metrics(client, run_id, model.model_id, record.epoch))
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return model


def write_model(folder: Path, record: ModelRecord, model: Model) -> None:
    """Write the model for mlflow.pyfunc; this pickles nothing and does not import torch."""
    example = np.array(record.example, np.uint8)
    labels = np.array(record.class_names)
    answer = {"labels": labels, "probabilities": np.zeros((1, len(labels)), np.float32)}
    save_model(
        folder,
        python_model=Path(__file__).with_name("served.py"),
        artifacts={NAME: str(record.file)},
        signature=infer_signature(example, answer),
        input_example=example,
        pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("mlflow", "torch")],
        metadata={"class_names": list(record.class_names)},
        mlflow_model=model,
    )


def copy_metrics(client: MlflowClient, run_id: str, model_id: str, epoch: int) -> list[Metric]:
    """The run's metrics of that epoch as metrics of the model, which the UI shows with it."""
    return [
        Metric(past.key, past.value, past.timestamp, past.step, model_id, run_id=run_id)
        for key in client.get_run(run_id).data.metrics
        for past in client.get_metric_history(run_id, key)
        if past.step == epoch and past.model_id is None
    ]


def register(client: MlflowClient, name: str, model: LoggedModel, record: ModelRecord) -> str:
    """Register the model as a version of that name, and as its champion if it is better.

    A version that exists already is kept. Returns the result, in one line.
    """
    with lock_store(client.tracking_uri):  # one run compares at a time
        version = get_or_create_version(client, name, model, record)
        number = client.get_registered_model(name).aliases.get(CHAMPION)
        champion = client.get_model_version(name, number) if number else None
        if champion and int(champion.version) == int(version.version):
            return f"{name} version {version.version}, the champion"
        if reason := explain_rejection(record, champion):
            return f"{name} version {version.version}; {reason}"
        client.set_registered_model_alias(name, CHAMPION, version.version)
    before = ""
    if champion and record.score:
        before = f", before {float(champion.tags[value_tag(record.score)]):.4f}"
    return f"{name} version {version.version}, now the champion ({record.score}{before})"


def get_or_create_version(
    client: MlflowClient, name: str, model: LoggedModel, record: ModelRecord
) -> ModelVersion:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"run_id = '{model.source_run_id}'"):
        if version.name == name and version.source == model.artifact_location:
            return version
    tags = {DIGEST: record.digest}
    if record.score is not None:
        tags[value_tag(record.score)] = str(record.score.value)
    return client.create_model_version(
        name, model.artifact_location, model.source_run_id, tags, model_id=model.model_id
    )


def explain_rejection(record: ModelRecord, champion: ModelVersion | None) -> str | None:
    """Why the model does not become the champion; None if it does."""
    if record.score is None:
        return "no champion without validation"
    if champion is None:
        return None
    remains = f"version {champion.version} remains the champion"
    if champion.tags.get(DIGEST) != record.digest:
        return f"{remains}, which was trained on another data set"
    tag = value_tag(record.score)
    if tag not in champion.tags:
        return f"{remains}, which has no {record.score.monitor}"
    theirs = record.score._replace(value=float(champion.tags[tag]))
    if theirs.rank <= record.score.rank:
        return f"{remains} ({theirs}, here {record.score.value:.4f})"
    return None


def value_tag(score: Score) -> str:
    """The tag of a version that has this metric's value, such as val_accuracy."""
    return score.monitor.replace("/", "_")
