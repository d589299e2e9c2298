"""Logs one run to MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mnist_exp.errors import sanitize
from mnist_exp.files import pin
from mnist_exp.tracking import (
    DESCRIPTION,
    DIGEST_LETTERS,
    ModelRecord,
    RunRecord,
    Status,
    TrackerError,
    store,
)

# The store has set environment variables that mlflow reads when it is imported.
# isort: split
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag


class MLflowTracker:
    """One MLflow run, logged through a client that leaves MLflow's global state alone.

    note: the user's, above the description. tags: the user's own. run_name: whether a person
    has chosen the name in the record; otherwise it is numbered if other runs have it.
    """

    def __init__(
        self,
        experiment: str,
        uri: str | None = None,
        log_checkpoints: bool = True,
        log_model: bool = False,
        register: str | None = None,
        run_name: str | None = None,
        note: str | None = None,
        tags: Mapping[str, object] | None = None,
    ) -> None:
        self.experiment, self.uri = experiment, uri or store.LOCAL_URI
        self.log_checkpoints, self.register = log_checkpoints, register
        self.chosen_name, self.note, self.tags = run_name, note or "", tags or {}
        if log_model or register:
            # Takes half a second: now, during the training, rather than after it.
            import mnist_exp.tracking.models  # noqa: F401
        self.client: MlflowClient
        self.run_id: str
        self.known: set[tuple[str, int]] = set()  # metrics and steps of a run that was reopened

    def start(self, record: RunRecord) -> str:
        with store.raise_tracker_errors(self.uri):
            self.client = store.open_store(self.uri)
            experiment_id = store.get_or_create_experiment(self.client, self.experiment, self.uri)
            run_id = store.find_key(self.client, record.key, experiment_id)
            if run_id:
                if deletion := store.explain_deletion(self.client, run_id):
                    raise TrackerError(f"{deletion}, or {store.ANOTHER_EXPERIMENT}")
                self.client.update_run(run_id, status="RUNNING")
                self.known = self._find_metrics(run_id)
            else:
                name = record.name
                if not (self.chosen_name or record.parent):
                    name = self._number(experiment_id, name)
                started, tags = int(record.started * 1000), {store.KEY: record.key}
                run = self.client.create_run(experiment_id, started, tags, name)
                run_id = run.info.run_id
            self.run_id = run_id
            self._log_record(record, experiment_id)
            return store.get_viewer(self.uri, experiment_id)

    def _find_metrics(self, run_id: str) -> set[tuple[str, int]]:
        """The metrics that the run has of each epoch, also of those after its last checkpoint.

        They would be logged again with other times.
        """
        names = self.client.get_run(run_id).data.metrics
        points = (point for name in names for point in self.client.get_metric_history(run_id, name))
        return {(point.key, point.step) for point in points}

    def _number(self, experiment_id: str, name: str) -> str:
        """The name, or name #2, #3, ... if other runs of the experiment have it."""
        plain = re.sub(r"[^\w.,=+-]", "_", name)  # where _ stands for any character
        for pattern in (f"{plain} #%", plain):
            called = f"attributes.run_name LIKE '{pattern}'"
            if found := self.client.search_runs([experiment_id], called, max_results=1):
                number = re.search(r" #(\d+)$", found[0].info.run_name)
                return f"{name} #{int(number[1]) + 1 if number else 2}"
        return name

    def _log_record(self, record: RunRecord, experiment_id: str) -> None:
        """Log tags, params and the data set. A param that was changed on resume keeps its value."""
        known = self.client.get_run(self.run_id).data.params
        params = [
            Param(key, str(value)) for key, value in record.params.items() if key not in known
        ]
        tags = [RunTag(store.name_tag(key), value) for key, value in record.tags.items()]
        tags += [RunTag(str(key), sanitize(str(value))) for key, value in self.tags.items()]
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
        new = {key: metrics[key] for key in metrics if (key, step) not in self.known}
        if new:
            batch = [Metric(key, value, int(at * 1000), step) for key, value in new.items()]
            self.client.log_batch(self.run_id, batch)

    def describe(self, text: str) -> None:
        """Replace our part of the description; what a person wrote above it stays."""
        tag = "mlflow.note.content"
        above = self.client.get_run(self.run_id).data.tags.get(tag, "").partition(DESCRIPTION)[0]
        if self.note not in above:
            above = f"{self.note}\n\n{above}"
        self.client.set_tag(self.run_id, tag, f"{above.strip()}\n\n{text}".strip())

    def upload(self, paths: Sequence[Path], folder: str = "") -> None:
        if folder != "checkpoints":
            for path in paths:
                self.client.log_artifact(self.run_id, str(path), folder or None)
        elif self.log_checkpoints:
            for path in paths:
                with pin(path) as pinned:  # the training may replace it meanwhile
                    self.client.log_artifact(self.run_id, str(pinned), folder)

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
