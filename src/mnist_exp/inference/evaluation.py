"""A trained model on a whole split: its metrics, as tables, JSON and pictures, and to its run."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hydra import compose
from omegaconf import OmegaConf
from torch import Tensor

from mnist_exp.data import Dataset, Kind, Split
from mnist_exp.errors import BadInput
from mnist_exp.experiment import screen
from mnist_exp.experiment.build import load_dataset
from mnist_exp.experiment.load import TrainedModel, load_model
from mnist_exp.experiment.metrics import name_metrics
from mnist_exp.experiment.resume import FREE
from mnist_exp.experiment.shell import show_path
from mnist_exp.experiment.targets import initialize_hydra
from mnist_exp.inference.pictures import draw_curves, draw_filters, draw_predictions
from mnist_exp.inference.scores import Predictions, interval
from mnist_exp.paths import FIGURES
from mnist_exp.training.loop import evaluate
from mnist_exp.training.state import Metrics

log = logging.getLogger(__name__)

WIDEST = 25  # classes of a confusion that fits on the screen
DIVIDING = ("data.val_fraction=", "data.split_seed=")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a trained model is worth on a split."""

    trained: TrainedModel
    kind: Kind  # of the images
    name: str  # of the split; of another set than the run's with that one's
    split: Split  # raw images
    metrics: Metrics
    predictions: Predictions

    @property
    def logged(self) -> Metrics | None:
        """What training has found on this split with these weights."""
        best = self.trained.progress.best
        return {"test": self.trained.tested, "val": best.val if best else None}.get(self.name)

    def verdict(self) -> str:
        """Beside what training has logged, where it has."""
        if self.logged is None:
            return "the run has logged nothing of this split"
        if self.logged == self.metrics:
            return "equal to what the run has logged, to the last bit"
        return (
            f"the run has logged loss {self.logged.loss}, accuracy {self.logged.accuracy}; "
            "equal bits take its device, versions and threads, one process, and no trainer.compile"
        )

    def show(self, folder: Path) -> None:
        """Tables on the screen, or aligned lines in a pipe."""
        logging.basicConfig(level=logging.INFO, handlers=[screen.ScreenHandler()], force=True)
        source, trained_on = show_path(self.trained.source), self.trained.kind.name
        log.info("run      %s, trained on %s", source, trained_on)
        count, names = len(self.split), self.kind.class_names
        low, high = interval(self.metrics.accuracy, count)
        rows = [
            ("images", f"{count:,}"),
            ("loss", f"{self.metrics.loss:.4f}"),
            ("accuracy", f"{self.metrics.accuracy:.4f}  (95 %: {low:.4f} to {high:.4f})"),
            ("calibration error", f"{self.predictions.calibration_error():.4f}"),
        ]
        screen.show_table(f"{self.kind.name}, {self.name}", ("metric", "value"), rows)
        of_classes = [
            (name, f"{images:,}", *("–" if value is None else f"{value:.4f}" for value in values))
            for name, (images, *values) in zip(names, self.predictions.by_class(), strict=True)
        ]
        header = ("class", "images", "precision", "recall", "F1")
        screen.show_table("Classes", header, of_classes)
        if len(names) <= WIDEST:
            confusion = [
                (name, *(f"{count:,}" if count else "·" for count in row))
                for name, row in zip(names, self.predictions.confusion().tolist(), strict=True)
            ]
            screen.show_table("Confusion", ("true \\ predicted", *names), confusion)
        log.info("logged   %s", self.verdict())
        log.info("figures  %s", show_path(folder))

    def json(self) -> str:
        """Everything, by names."""
        scores = zip(self.kind.class_names, self.predictions.by_class(), strict=True)
        found = {
            "checkpoint": str(self.trained.source),
            "data": self.kind.name,
            "split": self.name,
            "images": len(self.split),
            "loss": self.metrics.loss,
            "accuracy": self.metrics.accuracy,
            "accuracy_interval": interval(self.metrics.accuracy, len(self.split)),
            "calibration_error": self.predictions.calibration_error(),
            "classes": {name: values._asdict() for name, values in scores},
            "confusion": self.predictions.confusion().tolist(),
            "logged": self.logged and asdict(self.logged),
        }
        return json.dumps(found, indent=2)

    def draw(self, folder: Path | None = None) -> tuple[Path, dict[str, list[Path]]]:
        """All pictures; returns their folder, and the files by their folder in the tracker.

        folder: by default that of the run's output folder, or the one here where there is none.
        """
        if folder is None:
            outputs = self.trained.source.absolute().parent.parent
            folder = outputs / FIGURES if (outputs / "config.yaml").is_file() else Path(FIGURES)
        own = folder / self.name.replace("/", "-")
        draw_predictions(own, self.predictions, self.split, self.kind)
        progress = self.trained.progress
        if progress.best:
            draw_curves(folder, progress.epochs, progress.best, self.trained.tested)
        draw_filters(folder, self.trained.model, self.kind)
        found = {FIGURES.as_posix(): folder, (FIGURES / own.name).as_posix(): own}
        return folder, {name: sorted(path.glob("*.png")) for name, path in found.items()}

    def log(self, uri: str | None, files: dict[str, list[Path]]) -> str:
        """Metrics and pictures to the run in MLflow; telling them twice changes nothing.

        Returns the run's id. Raises BadInput where MLflow has no such run, TrackerError.
        """
        from mnist_exp.tracking.store import log_to_run  # two seconds to import

        best = self.trained.progress.best
        step, at = (best.number, best.ended) if best else (0, 0.0)
        return log_to_run(self.trained.key, uri, self.named_metrics(), step, at, files)

    def named_metrics(self) -> dict[str, float]:
        """By their names in the tracker, without those that training has told it."""
        low, high = interval(self.metrics.accuracy, len(self.split))
        found = {
            **(name_metrics(self.name, self.metrics) if self.logged is None else {}),
            f"{self.name}/accuracy_low": low,
            f"{self.name}/accuracy_high": high,
            f"{self.name}/calibration_error": self.predictions.calibration_error(),
        }
        for name, scores in zip(self.kind.class_names, self.predictions.by_class(), strict=True):
            for score in ("precision", "recall", "f1"):
                if (value := getattr(scores, score)) is not None:
                    found[f"{self.name}/{score}/{name.replace('/', ' ')}"] = value
        return found


def evaluated(
    checkpoint: Path, split: str, data: Sequence[str] = (), device: str | None = None
) -> Evaluation:
    """A checkpoint's model on a split, "test" or "val", of its own data set or of another.

    data: overrides that have no problems, the set's name first; none for the run's own. Raises
    BadInput where the images are not of the run's kind or there are none, and what `trained.load`
    and the set do.
    """
    trained = load_model(checkpoint, device)
    dataset = other_dataset(trained, data) if data else trained.dataset()
    own = dataset.kind.digest == trained.kind.digest and not any(
        word.startswith(DIVIDING) for word in data
    )
    raw = {"test": dataset.test, "val": dataset.val}[split]
    batches = trained.config.trainer.max_batches
    if own and split == "val" and batches:
        raw = raw[: batches * trained.config.batch_size]
    if not len(raw):
        raise BadInput(f"--split {split}: data.val_fraction=0 leaves no images to validate with")
    normalised = replace(dataset, kind=trained.kind)  # as the model was trained, whatever the set
    prepared = normalised.prepare(raw, *trained.form)
    logits: list[Tensor] = []
    metrics = evaluate(trained.model, prepared, trained.precision, on_logits=logits.append)
    name = split if own else f"{dataset.kind.name}/{split}"
    predictions = Predictions.of(logits, prepared.labels)
    return Evaluation(trained, dataset.kind, name, raw, metrics, predictions)


def other_dataset(trained: TrainedModel, data: Sequence[str]) -> Dataset:
    """The set of these overrides; one of the run's own sort is divided and decoded as there.

    Raises BadInput where its images or classes are other than the run's.
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
        found = (in_short(kind.class_names) for kind in (of_set, of_run))
        raise BadInput("--data {}: its classes are {}; the run's are {}".format(data[0], *found))
    return dataset


def in_short(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]}, … {names[-1]}"
