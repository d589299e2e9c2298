"""Logs one run to MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mnist_exp.tracking import DIGEST_LETTERS, ModelRecord, RunRecord, Status, TrackerError, store

# The store has set environment variables that mlflow reads when it is imported.
# isort: split
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag


class MLflowTracker:
    """One MLflow run, logged through a client that leaves MLflow's global state alone."""

    def __init__(
        self,
        experiment: str,
        uri: str | None = None,
        log_checkpoints: bool = True,
        log_model: bool = False,
        register: str | None = None,
    ) -> None:
        self.experiment, self.uri = experiment, uri or store.LOCAL_URI
        self.log_checkpoints, self.register = log_checkpoints, register
        if log_model or register:
            # Takes half a second: now, during the training, rather than after it.
            import mnist_exp.tracking.models  # noqa: F401
        self.client: MlflowClient
        self.run_id: str

    def start(self, record: RunRecord) -> str:
        with store.raise_tracker_errors(self.uri):
            self.client = store.open_store(self.uri)
            experiment_id = store.get_or_create_experiment(self.client, self.experiment, self.uri)
            run_id = store.find_key(self.client, record.key, experiment_id)
            if run_id:
                if deletion := store.explain_deletion(self.client, run_id):
                    raise TrackerError(f"{deletion}, or {store.ANOTHER_EXPERIMENT}")
                self.client.update_run(run_id, status="RUNNING")
            else:
                tags = {store.KEY: record.key}
                run = self.client.create_run(experiment_id, tags=tags, run_name=record.name)
                run_id = run.info.run_id
            self.run_id = run_id
            self._describe(record, experiment_id)
            return store.get_viewer(self.uri)

    def _describe(self, record: RunRecord, experiment_id: str) -> None:
        """Log tags, params and the data set. A param that was changed on resume keeps its value."""
        known = self.client.get_run(self.run_id).data.params
        params = [
            Param(key, str(value)) for key, value in record.params.items() if key not in known
        ]
        tags = [RunTag(key, value) for key, value in record.tags.items()]
        if record.parent and (parent := store.find_key(self.client, record.parent, experiment_id)):
            tags.append(RunTag("mlflow.parentRunId", parent))
        self.client.log_batch(self.run_id, params=params, tags=tags)
        if record.dataset:
            dataset = Dataset(
                name=record.dataset.name,
                digest=record.dataset.digest[:DIGEST_LETTERS],
                source_type="local",
                source=json.dumps({"name": record.dataset.name}),
                profile=json.dumps(dict(record.dataset.sizes)),
            )
            context = InputTag("mlflow.data.context", "training")
            self.client.log_inputs(self.run_id, [DatasetInput(dataset, [context])])

    def log(self, metrics: Mapping[str, float], step: int, at: float) -> None:
        # MLflow ignores a metric that it already has with the same value, step and time.
        batch = [Metric(key, value, int(at * 1000), step) for key, value in metrics.items()]
        self.client.log_batch(self.run_id, batch)

    def upload(self, paths: Sequence[Path], folder: str = "") -> None:
        if folder == "checkpoints" and not self.log_checkpoints:
            return
        for path in paths:
            self.client.log_artifact(self.run_id, str(path), folder or None)

    def log_model(self, record: ModelRecord) -> str | None:
        from mnist_exp.tracking import models

        model = models.log_model(self.client, self.run_id, record)
        if self.register is None:
            return None
        return models.register(self.client, self.register, model, record)

    def end(self, status: Status) -> None:
        self.client.set_terminated(self.run_id, status)

    def explain_deletion(self) -> str | None:
        return store.explain_deletion(self.client, self.run_id)
