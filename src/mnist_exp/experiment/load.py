"""A trained model: the weights that a run kept, in their model, and the kind of its images."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from mnist_exp.data import Dataset, Kind, Split
from mnist_exp.errors import BadInput
from mnist_exp.experiment import checkpoint, environment
from mnist_exp.experiment.build import Form, build_parts, fitting_dataset
from mnist_exp.experiment.metrics import tested_of
from mnist_exp.experiment.ranking import find_best_run
from mnist_exp.experiment.resume import find_run, folder_named, is_run_id
from mnist_exp.experiment.shell import resume_command
from mnist_exp.experiment.targets import check_saved_config
from mnist_exp.models.summary import summarize
from mnist_exp.paths import LAST
from mnist_exp.tracking import EXPERIMENT
from mnist_exp.training.loop import evaluate
from mnist_exp.training.precision import Precision
from mnist_exp.training.rules import did_you_mean
from mnist_exp.training.state import Metrics, Progress


@dataclass(frozen=True)
class Trained:
    """A model that is done, and how it computed in its run."""

    source: Path  # the checkpoint
    config: DictConfig  # of the run
    kind: Kind
    precision: Precision
    model: nn.Module
    form: Form
    progress: Progress  # of its training
    tested: Metrics | None  # on the test set, where it has been opened for these weights
    key: str  # by which the tracker finds the run

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Of uint8 images [n, channels, height, width] of this kind; float32 [n, classes], CPU."""
        self.model.eval()
        with self.precision.autocast:
            return self.model(self.kind.normalised(images, *self.form)).float().cpu()

    def dataset(self) -> Dataset:
        """The images that the run's config names. Raises BadInput where they are not its own."""
        found = fitting_dataset(self.config, self.form[0])
        found.kind.check_digest(self.kind.digest)
        return found

    def prepared_test(self) -> Split:
        """The test set, opened. Raises what `dataset` does."""
        dataset = self.dataset()
        return dataset.prepare(dataset.test, *self.form)

    def test(self) -> Metrics:
        """What the run found with the test set, or would have, to the last bit."""
        return evaluate(self.model, self.prepared_test(), self.precision)


def find(word: str, uri: str | None = None, experiment: str = EXPERIMENT) -> Path:
    """The checkpoint that a word stands for: "best", "best:NAME" or "latest", a checkpoint's path,
    an output folder, or an MLflow run id.

    For "best" see `ranking.find_best_run`; "latest" has written a checkpoint last. uri: of MLflow,
    None for the repository's. Raises BadInput for a word that stands for no checkpoint,
    TrackerError.
    """
    if Path(word).is_file():
        return Path(word)
    if re.fullmatch("best(:.+)?", word):
        word = find_best_run(word, experiment, uri).reference
    named = folder_named(word)
    if is_run_id(word) and not named:
        from mnist_exp.tracking.store import find_output_file  # two seconds to import

        return find_output_file(word, LAST, uri)
    if word != "latest" and not named:
        near = did_you_mean(word, ["best", "latest"])
        raise BadInput(f"--run {word}: no file, no folder, no MLflow run id{near}")
    return find_run(word, uri, "--run ") / LAST


def load(path: Path, device: str | None = None) -> Trained:
    """The model of a checkpoint, on the device of its run or on that named. No code of it runs.

    Sets the threads and the determinism of its run, which the last bits depend on. Raises
    CheckpointError, BadInput.
    """
    saved = checkpoint.load(path)
    with checkpoint.fitting(path):
        refuse_initial_weights(path, saved)
        config, kind = check_saved_config(saved["config"], path), Kind(**saved["data"])
        environment.set_deterministic(config.trainer.deterministic)
        environment.set_full_float32()
        parts = build_parts(
            config, kind, environment.choose_device(device or config.trainer.device)
        )
        check_finite(saved["progress"]["kept"], kind)
        parts.model.load_state_dict(saved["progress"]["kept"])
        progress = Progress(parts.model)
        progress.load_state_dict(saved["progress"], parts.form[0])
        best, tested, key = progress.best, tested_of(saved["tested"]), str(saved["key"])
        of_kept = tested.metrics if tested and best and tested.epoch == best.number else None
        with parts.precision.autocast:
            flops = summarize(parts.model, kind.image_shape).flops
        environment.set_threads(config.trainer.threads, 3 * flops * config.batch_size)
    return Trained(
        path, config, kind, parts.precision, parts.model, parts.form, progress, of_kept, key
    )


def check_finite(weights: Mapping[str, Tensor], kind: Kind) -> None:
    """Raises ValueError where every answer would be nan, and TypeError."""
    if not all(weight.isfinite().all() and not weight.is_complex() for weight in weights.values()):
        raise ValueError("its weights are not finite real numbers")
    if not all(math.isfinite(mean) for mean in kind.mean):
        raise ValueError(f"the mean of its images is {kind.mean}")
    if not all(math.isfinite(std) and std > 0 for std in kind.std):
        raise ValueError(f"the deviation of its images is {kind.std}")


def refuse_initial_weights(path: Path, saved: Mapping[str, Any]) -> None:
    """Raises BadInput for the checkpoint of a run that was interrupted in its first epoch."""
    if not saved["progress"]["epochs"]:
        folder = path.absolute().parent.parent
        is_run = (folder / "config.yaml").is_file()
        command = f": {resume_command(folder)}" if is_run else ""
        raise BadInput(f"{path}: no epoch of this run has ended; resume it{command}")
