"""Evaluate a trained model on a whole split: tables, JSON, pictures, and metrics for its run."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra import compose
from omegaconf import OmegaConf
from torch import Tensor

from mnist_exp.data import Dataset, Kind, Split
from mnist_exp.data.listing import abbreviate
from mnist_exp.errors import BadInput
from mnist_exp.experiment import screen
from mnist_exp.experiment.build import load_dataset
from mnist_exp.experiment.find import find_outputs
from mnist_exp.experiment.load import TrainedModel, load_model
from mnist_exp.experiment.presets import initialize_hydra
from mnist_exp.experiment.resume import FREE
from mnist_exp.experiment.shell import show_path
from mnist_exp.files import replace_csv
from mnist_exp.inference.hooks import draw_curves, draw_filters, draw_predictions
from mnist_exp.inference.scores import Predictions, Scores, wilson_interval
from mnist_exp.paths import FIGURES
from mnist_exp.training.loop import name_metrics
from mnist_exp.training.metrics import Metrics

log = logging.getLogger(__name__)

WIDEST = 25  # classes of the largest confusion matrix that is printed
LETTERS = 100  # of a class's name in a metric's name, which MLflow limits to 250
PLAIN = re.compile(rf"\w[\w.: -]{{,{LETTERS - 1}}}")
SPLIT_OPTIONS = ("data.val_fraction=", "data.split_seed=", "data.folds=", "data.fold=")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The metrics and predictions of a trained model on a split."""

    trained: TrainedModel
    kind: Kind  # of the images
    name: str  # of the split; with the data set's name if it is not the run's
    split: Split  # raw images
    metrics: Metrics
    predictions: Predictions
    images: tuple[str, list[str]]  # see Dataset.name_images

    @property
    def accuracy(self) -> float:
        """The fraction of correct predictions, 0..1."""
        return self.metrics.get("accuracy", self.predictions.correct.double().mean().item())

    @property
    def logged_metrics(self) -> Metrics | None:
        """The metrics that the run logged for this split and these weights."""
        best = self.trained.progress.best
        return {"test": self.trained.tested, "val": best.val if best else None}.get(self.name)

    def class_scores(self) -> list[tuple[str, Scores]]:
        """The name and the scores of each class."""
        return list(zip(self.kind.class_names, self.predictions.score_classes(), strict=True))

    def compare_with_log(self) -> str:
        """Whether the metrics are equal to those that the run logged."""
        logged = self.logged_metrics
        if logged is None:
            return "the run logged no metrics for this split"
        if logged == self.metrics:
            return "equal to the metrics that the run logged, bit for bit"
        return (
            f"the run logged {', '.join(f'{name} {value}' for name, value in logged.items())}; "
            "equal bits need the same device, versions, and threads, a single process, and no "
            "trainer.compile"
        )

    def show(self, folder: Path) -> None:
        """Print tables on a terminal, aligned lines into a pipe."""
        screen.show_on_screen()
        source, trained_on = show_path(self.trained.source), self.trained.kind.name
        log.info("run      %s, trained on %s", source, trained_on)
        count, names = len(self.split), self.kind.class_names
        accuracy = self.accuracy
        low, high = wilson_interval(accuracy, count)
        others = {name: value for name, value in self.metrics.items() if name != "accuracy"}
        rows = [
            ("images", f"{count:,}"),
            *((name, f"{value:.4f}") for name, value in others.items()),
            ("accuracy", f"{accuracy:.4f}  (95 %: {low:.4f} to {high:.4f})"),
            ("calibration error", f"{self.predictions.calibration_error():.4f}"),
        ]
        screen.show_table(f"{self.kind.name}, {self.name}", ("metric", "value"), rows)
        of_classes = [
            (name, f"{images:,}", *("–" if value is None else f"{value:.4f}" for value in values))
            for name, (images, *values) in self.class_scores()
        ]
        header = ("class", "images", "precision", "recall", "F1")
        screen.show_table("Classes", header, of_classes)
        if len(names) <= WIDEST:
            matrix = zip(names, self.predictions.confusion_matrix().tolist(), strict=True)
            confusion = [
                (name, *(f"{count:,}" if count else "·" for count in row)) for name, row in matrix
            ]
            screen.show_table("Confusion", ("true \\ predicted", *names), confusion)
        log.info("logged   %s", self.compare_with_log())
        log.info("figures  %s", show_path(folder))

    def to_json(self) -> str:
        """All results, by name."""
        found = {
            "checkpoint": str(self.trained.source),
            "data": self.kind.name,
            "split": self.name,
            "images": len(self.split),
            **self.metrics,
            "accuracy": self.accuracy,
            "accuracy_interval": wilson_interval(self.accuracy, len(self.split)),
            "calibration_error": self.predictions.calibration_error(),
            "classes": {name: values._asdict() for name, values in self.class_scores()},
            "confusion": self.predictions.confusion_matrix().tolist(),
            "logged": self.logged_metrics,
        }
        return json.dumps(found, indent=2)

    def draw(self, folder: Path | None = None) -> tuple[Path, dict[str, list[Path]]]:
        """Draw all pictures; returns their folder, and the files by their folder in the tracker.

        folder: by default figures/ in the run's output folder.
        """
        folder = folder or find_outputs(self.trained.source) / FIGURES
        own = folder / self.name.replace("/", "-")
        draw_predictions(own, self.predictions, self.split, self.kind)
        progress = self.trained.progress
        if progress.best:
            draw_curves(folder, progress, self.trained.tested)
        draw_filters(folder, self.trained.model, self.kind)
        found = {FIGURES.as_posix(): folder, (FIGURES / own.name).as_posix(): own}
        return folder, {name: sorted(path.glob("*.png")) for name, path in found.items()}

    def write_predictions(self, path: Path) -> None:
        """Write a CSV file: a line for each image, with a column for each class's probability."""
        names, found, (column, images) = self.kind.class_names, self.predictions, self.images
        columns = (images, found.labels, found.classes, found.probabilities.tolist())
        with replace_csv(path) as file:
            writer = csv.writer(file)
            writer.writerow([column, "label", "predicted", *(f"p({name})" for name in names)])
            for image, label, predicted, probabilities in zip(*columns, strict=True):
                writer.writerow([image, names[label], names[predicted], *probabilities])

    def log(self, uri: str | None, files: dict[str, list[Path]]) -> str:
        """Log metrics and pictures to the MLflow run; doing it twice changes nothing.

        Returns the run's id. Raises BadInput if MLflow has no such run, and TrackerError.
        """
        from mnist_exp.tracking.store import log_to_run  # two seconds to import

        best = self.trained.progress.best
        step, at = (best.number, best.ended) if best else (0, 0.0)
        return log_to_run(self.trained.key, uri, self.named_metrics(), step, at, files)

    def named_metrics(self) -> dict[str, float]:
        """By their names in the tracker, without those that the run logged itself."""
        low, high = wilson_interval(self.accuracy, len(self.split))
        found = {
            **(name_metrics(self.name, self.metrics) if self.logged_metrics is None else {}),
            f"{self.name}/accuracy_low": low,
            f"{self.name}/accuracy_high": high,
            f"{self.name}/calibration_error": self.predictions.calibration_error(),
        }
        for number, (name, scores) in enumerate(self.class_scores()):
            if not PLAIN.fullmatch(name):  # what MLflow replaces can make two names one
                name = f"{name[:LETTERS]} {number}".replace("/", " ")
            for score in ("precision", "recall", "f1"):
                if (value := getattr(scores, score)) is not None:
                    found[f"{self.name}/{score}/{name}"] = value
        return found


def evaluate_checkpoint(
    checkpoint: Path, split: str, data: Sequence[str] = (), device: str | None = None
) -> Evaluation:
    """Evaluate a checkpoint on a split, "test" or "val", of its own data set or of another.

    data: checked overrides, the data set's name first; none for the run's own. Raises BadInput if
    there are no images or they do not fit the model, and what `load_model` and
    the set raise.
    """
    trained = load_model(checkpoint, device)
    dataset = load_other_dataset(trained, data) if data else trained.dataset()
    own = dataset.kind.digest == trained.kind.digest and not any(
        word.startswith(SPLIT_OPTIONS) for word in data
    )
    raw = {"test": dataset.test, "val": dataset.val}[split]
    batches = trained.config.trainer.max_batches
    if own and split == "val" and batches:
        raw = raw[: batches * trained.config.batch_size]
    if not len(raw):
        raise BadInput(f"--split {split}: data.val_fraction=0 leaves no validation images")
    rescaled = replace(dataset, kind=trained.kind)  # the normalization of the training
    prepared = rescaled.prepare(raw, *trained.tensor_options)
    logits: list[Tensor] = []
    metrics = trained.evaluate(prepared, logits.append)
    name = split if own else f"{dataset.kind.name}/{split}"
    predictions = Predictions.from_logits(logits, prepared.labels)
    images = dataset.name_images(raw, "test" if split == "test" else "train")
    return Evaluation(trained, dataset.kind, name, raw, metrics, predictions, images)


def load_other_dataset(trained: TrainedModel, data: Sequence[str]) -> Dataset:
    """The data set of these overrides; one of the same type takes the run's other options.

    Raises BadInput if its images or classes differ from the run's.
    """
    with initialize_hydra():
        config = compose("config", list(data)).data
    typed = {word.partition("=")[0] for word in data}
    if config._target_ == trained.config.data._target_:
        for name, value in trained.config.data.items():
            if f"data.{name}" not in (*FREE, *typed) and name in config:
                config[name] = value
    dataset = load_dataset(OmegaConf.to_yaml(config, resolve=True))
    of_set, of_run = dataset.kind, trained.kind
    if of_set.image_shape != of_run.image_shape:
        sizes = ("×".join(map(str, kind.image_shape)) for kind in (of_set, of_run))
        raise BadInput("--data {}: its images are of {}, the run's of {}".format(data[0], *sizes))
    if of_set.class_names != of_run.class_names:
        found = (abbreviate(kind.class_names) for kind in (of_set, of_run))
        raise BadInput("--data {}: its classes are {}; the run's are {}".format(data[0], *found))
    return dataset
