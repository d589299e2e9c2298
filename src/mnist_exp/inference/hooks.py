"""What happens after a training: the pictures, and the model that the tracker serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from mnist_exp.data import Kind, Split
from mnist_exp.experiment.metrics import Result
from mnist_exp.experiment.run import Hooks
from mnist_exp.inference.export import export
from mnist_exp.inference.pictures import draw_curves, draw_filters, draw_predictions
from mnist_exp.inference.scores import Predictions
from mnist_exp.training.state import Epoch


def draw_test(folder: Path, logits: Sequence[Tensor], split: Split, kind: Kind) -> None:
    """Draw confusion, reliability, and the most confident errors."""
    predictions = Predictions.from_logits(logits, split.labels.to(logits[0].device))
    draw_predictions(folder, predictions, split, kind)


def draw_training(
    folder: Path, model: nn.Module, kind: Kind, epochs: Sequence[Epoch], result: Result
) -> None:
    """Draw the curves of all epochs and the filters of the first layer."""
    draw_curves(folder, epochs, result.epoch, result.test)
    draw_filters(folder, model, kind)


def export_served(path: Path, model: nn.Module, kind: Kind) -> None:
    """Write a TorchScript file that takes raw images. Raises ExportError."""
    export(model, kind, "torchscript", path, preprocessing=True, test=None)


HOOKS = Hooks(draw_test, draw_training, export_served)
