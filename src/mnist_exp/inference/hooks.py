"""What happens after training: the pictures of a run, and the model that the tracker serves.

All pictures together take a second, a third of it for importing matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_exp.data import Kind, Split
from mnist_exp.experiment.run import Hooks
from mnist_exp.inference.export import export
from mnist_exp.inference.scores import Predictions
from mnist_exp.training.metrics import Metrics
from mnist_exp.training.state import Progress

WORST = 18  # errors
FILTERS = 48  # of the first layer


def draw_curves(folder: Path, progress: Progress, tested: Metrics | None) -> None:
    """The loss of all epochs, and the monitored metric, or the first one."""
    from mnist_exp.figures import draw

    kept, epochs = progress.best, progress.epochs
    assert kept is not None, "no epoch has ended"
    lines = {
        "train": {epoch.number: epoch.train for epoch in epochs},
        "val": {epoch.number: epoch.val for epoch in epochs if epoch.val},
        "test": {kept.number: tested} if tested else {},
    }
    lines = {split: line for split, line in lines.items() if line}
    monitored = progress.monitor.name.partition("/")[2]
    names = [*dict.fromkeys(["loss", monitored, *kept.train])][:2]
    draw.curves(folder / "curves.png", lines, names, kept.number)


def draw_filters(folder: Path, model: nn.Module, kind: Kind) -> None:
    """The weights of the first layer, if they are images; otherwise draw nothing."""
    from mnist_exp.figures import draw

    weights = find_first_weights(model, kind.image_shape)
    if weights is None:
        return
    largest = weights.flatten(1).norm(dim=1).sort(descending=True, stable=True).indices[:FILTERS]
    chosen = weights[largest]
    bound = chosen.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(chosen.dtype).tiny)
    images = (chosen / bound + 1) / 2  # each on its own scale, zero in the middle
    few = f"the {len(chosen)} largest of " if len(chosen) < len(weights) else ""
    heading = f"{few}{len(weights)} filters of the first layer"
    draw.filters(folder / "filters.png", images.permute(0, 2, 3, 1).numpy(), heading)


def find_first_weights(model: nn.Module, image_shape: tuple[int, int, int]) -> Tensor | None:
    """The weights of the layer that sees the image, [n, 1 or 3, height, width], on the CPU."""
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    layer, (channels, height, width) = next(layers, None), image_shape
    if layer is None or channels not in (1, 3):
        return None
    weights = layer.weight.detach().float().cpu()
    if isinstance(layer, nn.Conv2d):
        return weights if weights.shape[1] == channels and weights[0, 0].numel() > 1 else None
    fits = layer.in_features == channels * height * width
    return weights.view(-1, *image_shape) if fits else None


def draw_predictions(folder: Path, predictions: Predictions, split: Split, kind: Kind) -> None:
    """Confusion, reliability, and the most confident errors, of a split with raw images."""
    from mnist_exp.figures import draw

    names, labels = draw.make_legible(kind.class_names), predictions.labels
    draw.confusion(folder / "confusion.png", names, predictions.confusion_matrix().numpy())
    counts, confidences, accuracies = zip(*predictions.bin_confidences(), strict=True)
    error = predictions.calibration_error()
    draw.reliability(folder / "reliability.png", confidences, accuracies, counts, error)
    worst = predictions.find_worst(WORST)

    def describe(classes: Tensor) -> list[tuple[str, float]]:
        """The names of the worst images' classes, and the probabilities of these."""
        probabilities = predictions.probability_of(classes)[worst].tolist()
        return list(zip([names[n] for n in classes[worst].tolist()], probabilities, strict=True))

    images = next(split.batches([worst])).images.cpu()
    if images.shape[1] != 3:
        images = images[:, :1]
    wrong = int((~predictions.correct).sum())
    few = f"the {len(worst)} most confident of " if len(worst) < wrong else ""
    heading = f"{few}{wrong:,} errors in {len(labels):,}: predicted class, true class"
    pixels = images.permute(0, 2, 3, 1).numpy()
    said, true = describe(predictions.classes), describe(labels)
    draw.most_wrong(folder / "most_wrong.png", pixels, said, true, heading)


def draw_test(folder: Path, logits: Sequence[Tensor], split: Split, kind: Kind) -> None:
    """Draw confusion, reliability, and the most confident errors."""
    draw_predictions(folder, Predictions.from_logits(logits, split.labels), split, kind)


def draw_training(
    folder: Path, model: nn.Module, kind: Kind, progress: Progress, tested: Metrics | None
) -> None:
    """Draw the curves of all epochs and the filters of the first layer."""
    draw_curves(folder, progress, tested)
    draw_filters(folder, model, kind)


def export_served(path: Path, model: nn.Module, kind: Kind) -> None:
    """Write a TorchScript file that takes raw images. Raises ExportError."""
    export(model, kind, "torchscript", path, preprocessing=True, test=None)


HOOKS = Hooks(draw_test, draw_training, export_served)
