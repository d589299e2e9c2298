"""Load what a run saved: its config and state, and the trained model in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from mnist_exp.data import Dataset, Kind, Split
from mnist_exp.errors import BadInput
from mnist_exp.experiment import checkpoint, environment
from mnist_exp.experiment.build import (
    TensorOptions,
    build_loss,
    build_metrics,
    build_model,
    load_checked_dataset,
)
from mnist_exp.experiment.metrics import load_test_result
from mnist_exp.experiment.shell import resume_command
from mnist_exp.experiment.targets import check_saved_config
from mnist_exp.models.summary import summarize
from mnist_exp.training.loop import evaluate
from mnist_exp.training.metrics import Metric, Metrics
from mnist_exp.training.precision import Precision
from mnist_exp.training.state import Progress


@dataclass(frozen=True)
class TrainedModel:
    """The kept weights of a run, in their model, which computes as it did in the run."""

    source: Path  # the checkpoint
    config: DictConfig  # of the run
    kind: Kind
    precision: Precision
    model: nn.Module
    tensor_options: TensorOptions
    loss: nn.Module
    metrics: Mapping[str, Metric]
    progress: Progress  # of its training
    tested: Metrics | None  # on the test set, if it was opened for these weights
    key: str  # by which the tracker finds the run

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """For uint8 images [n, channels, height, width] of this kind: float32 [n, classes], CPU."""
        self.model.eval()
        with self.precision.autocast:
            return self.model(self.kind.normalize(images, *self.tensor_options)).float().cpu()

    def dataset(self) -> Dataset:
        """The images that the run's config names. Raises BadInput if they are not the run's."""
        dataset = load_checked_dataset(self.config, self.tensor_options[0])
        dataset.kind.check_digest(self.kind.digest)
        return dataset

    def test_split(self) -> Split:
        """The test set, normalized, on the device. Raises what `dataset` does."""
        dataset = self.dataset()
        return dataset.prepare(dataset.test, *self.tensor_options)

    def test(self) -> Metrics:
        """The metrics on the test set: bit for bit those that the run logged, or would have."""
        return self.evaluate(self.test_split())

    def evaluate(
        self, split: Split, on_logits: Callable[[Tensor], None] = lambda logits: None
    ) -> Metrics:
        """The metrics of the run on a split that lies on its device."""
        model, precision = self.model, self.precision
        return evaluate(model, split, precision, self.loss, self.metrics, on_logits=on_logits)


def load_model(path: Path, device: str | None = None) -> TrainedModel:
    """The model of a checkpoint, on the device of its run or on another one. Runs no code from it.

    Sets the threads and the determinism of the run, which the last bits depend on. Raises
    CheckpointError, BadInput.
    """
    saved = checkpoint.load(path)
    with checkpoint.raise_misfits(path):
        state, kind = saved["state"], Kind(**saved["data"])
        refuse_initial_weights(path, state)
        config = check_saved_config(saved["config"], path)
        environment.set_arithmetic(config.trainer.deterministic, compiles=False)
        chosen = environment.choose_device(device or config.trainer.device)
        parts = build_model(config, kind, chosen)
        check_finite(state["progress"]["kept"], kind)
        parts.model.load_state_dict(state["progress"]["kept"])
        metrics, monitor = build_metrics(config)
        progress = Progress(parts.model, monitor)
        progress.load_state_dict(state["progress"], chosen)
        best, tested = progress.best, load_test_result(saved["tested"])
        of_kept = tested.metrics if tested and best and tested.epoch == best.number else None
        with parts.precision.autocast:
            flops = summarize(parts.model, kind.image_shape).total.flops
        environment.set_threads(config.trainer.threads, flops * config.batch_size)
        key = str(saved["key"])
    loss = build_loss(config, parts)
    return TrainedModel(path, config, *parts, loss, metrics, progress, of_kept, key)


def check_finite(weights: Mapping[str, Tensor], kind: Kind) -> None:
    """Raises ValueError if every answer would be nan, and TypeError."""
    if not all(weight.isfinite().all() and not weight.is_complex() for weight in weights.values()):
        raise ValueError("its weights are not finite real numbers")
    if not all(math.isfinite(mean) for mean in kind.mean):
        raise ValueError(f"the mean of its images is {kind.mean}")
    if not all(math.isfinite(std) and std > 0 for std in kind.std):
        raise ValueError(f"the deviation of its images is {kind.std}")


def refuse_initial_weights(path: Path, state: Mapping[str, Any]) -> None:
    """Raises BadInput for the checkpoint of a run that was interrupted in its first epoch."""
    if not state["progress"]["epochs"]:
        folder = path.absolute().parent.parent
        is_run = (folder / "config.yaml").is_file()
        command = f": {resume_command(folder)}" if is_run else ""
        raise BadInput(f"{path}: no epoch of this run has ended; resume it{command}")
