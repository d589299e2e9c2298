"""The training curves, errors, calibration and filters of one run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mnist_exp.figures.style import BLUE, COLORMAP, PALE, RED, save, use_style

Images = NDArray[np.uint8] | NDArray[np.float32]  # [n, height, width, 1 or 3]; floats: 0..1

STYLES = {  # of each split's line
    "train": {"color": RED, "linestyle": "--", "marker": ".", "markersize": 4},
    "val": {"color": BLUE, "marker": "o", "markersize": 4},
    "test": {"color": "black", "marker": "D", "markersize": 5, "linestyle": "none"},
}
MAX_NAMED = 25  # with more classes, no names and counts are written
MAX_LETTERS = 12  # of a class's name below an image
COLUMNS = 6  # images in a row
TEXT_HEIGHT = 0.4  # of two lines below an image, in widths of an image


@use_style
def curves(path: Path, metrics: Mapping[str, Mapping[int, tuple[float, float]]], kept: int) -> None:
    """Loss and accuracy over the epochs.

    metrics: split ("train", "val" or "test") → epoch → (loss, accuracy 0..1); kept: the epoch whose
    weights are kept.
    """
    figure = Figure((7.2, 2.8), layout="constrained")
    for axes, number, name in zip(figure.subplots(1, 2), (0, 1), ("loss", "accuracy"), strict=True):
        axes.axvline(kept, color="0.85", linewidth=4, zorder=0)
        for split, by_epoch in metrics.items():
            values = [pair[number] for pair in by_epoch.values()]
            axes.plot(list(by_epoch), values, label=split, **STYLES[split])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.set_xlabel(f"epoch (kept: {kept})")
        axes.set_ylabel(name)
    figure.axes[0].legend(frameon=False)
    save(figure, path)


@use_style
def confusion(
    path: Path, names: Sequence[str], labels: Sequence[int], predictions: Sequence[int]
) -> None:
    """The confusion matrix: errors in color, correct predictions in gray.

    names: of the classes; labels and predictions: indices of the true and the predicted class of
    each image. With very many classes only the colors are drawn.
    """
    counts = Counter(zip(labels, predictions, strict=True))
    errors = Counter({(y, x): count for (y, x), count in counts.items() if x != y})
    most = max(errors.values(), default=1)
    classes = range(len(names))
    figure = Figure((5.2, 5.0), layout="constrained")
    axes = figure.add_subplot()
    grid = [[errors[y, x] or math.nan for x in classes] for y in classes]
    image = axes.imshow(grid, cmap=f"{COLORMAP}_r", vmin=0, vmax=most)  # most frequent: darkest
    if len(names) <= MAX_NAMED:
        write_counts(axes, counts, most)
        axes.set_yticks(classes, names)
        axes.set_xticks(classes, names, rotation=0 if max(map(len, names)) < 4 else 45)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks([place - 0.5 for place in classes[1:]], minor=True)
        axes.grid(which="minor", color="0.88", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
    else:
        figure.colorbar(image, label="errors", shrink=0.8)
    axes.set_ylabel("true class")
    axes.set_xlabel("predicted class")
    axes.set_title(f"{errors.total():,} errors in {len(labels):,} predictions", fontsize="medium")
    save(figure, path)


def write_counts(axes: Axes, counts: Mapping[tuple[int, int], int], most: int) -> None:
    for (y, x), count in counts.items():
        if x == y:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="0.94"))
            axes.text(x, y, str(count), ha="center", va="center", color=PALE, fontsize=7)
        else:
            color = "white" if count > most / 2 else "black"
            axes.text(x, y, str(count), ha="center", va="center", color=color)


@use_style
def most_wrong(
    path: Path,
    images: Images,
    predicted: Sequence[tuple[str, float]],
    true: Sequence[tuple[str, float]],
    heading: str,
) -> None:
    """Images with the predicted and below it the true class, each with its probability 0..1."""
    rows = max(1, math.ceil(len(images) / COLUMNS))
    figure = Figure((7.2, 0.4 + 1.55 * rows), layout="constrained")
    axes = figure.add_subplot()
    cell_width, cell_height = tile(axes, images, COLUMNS, TEXT_HEIGHT)
    size = images.shape[2]
    for n, (wrong, right) in enumerate(zip(predicted, true, strict=True)):
        x, y = n % COLUMNS * cell_width + size / 2, (n // COLUMNS + 1) * cell_height
        for up, (name, probability), color in ((0.38, wrong, RED), (0.2, right, "black")):
            text = f"{shorten(name)}  {probability:.3f}"
            axes.text(x, y - up * size, text, ha="center", va="center", color=color, fontsize=8)
    axes.set_title(heading, fontsize="medium")
    save(figure, path)


@use_style
def reliability(
    path: Path,
    confidences: Sequence[float | None],
    accuracies: Sequence[float | None],
    counts: Sequence[int],
    error: float,
) -> None:
    """How often predictions of each confidence were correct (DeGroot and Fienberg, 1983).

    confidences and accuracies: means 0..1 in bins of equal width, None for an empty bin; counts: of
    predictions in each bin; error: the expected calibration error, 0..1.
    """
    figure = Figure((4.6, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    lefts = [n / len(counts) for n in range(len(counts))]
    size = {"width": 1 / len(counts), "align": "edge", "edgecolor": "white"}
    above.bar(lefts, [accuracy or 0 for accuracy in accuracies], color=BLUE, **size)
    above.plot([0, 1], [0, 1], color=PALE, linestyle="--", linewidth=1)
    mean = [(c, a) for c, a in zip(confidences, accuracies, strict=True) if c is not None]
    above.plot(*zip(*mean, strict=True), "D", color="black", markersize=3)
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    above.set_title(f"expected calibration error {error:.4f}", fontsize="medium")
    below.bar(lefts, [count / sum(counts) for count in counts], color="0.7", **size)
    below.set(ylabel="fraction", xlabel="confidence", ylim=(0, 1))
    for axes in (above, below):
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3)
    save(figure, path)


@use_style
def filters(path: Path, images: Images, heading: str) -> None:
    """Weights as images: negative ones are dark, positive ones bright."""
    columns = min(len(images), 2 * COLUMNS)
    rows = math.ceil(len(images) / columns)
    figure = Figure((max(2.6, 0.6 * columns), 0.4 + 0.6 * rows), layout="constrained")
    axes = figure.add_subplot()
    tile(axes, images, columns)
    axes.set_title(heading, fontsize="medium")
    save(figure, path)


def tile(axes: Axes, images: Images, columns: int, below: float = 0.0) -> tuple[int, int]:
    """Draw all images in rows, as one image: separate ones would cost 10 ms each.

    below: free space below each image, in widths of an image. Returns the width and height of a
    cell in pixels.
    """
    _, height, width, colors = images.shape
    gap = max(1, width // 10)
    cell_width, cell_height = width + gap, height + gap + round(below * width)
    white = 255 if images.dtype == np.uint8 else 1
    rows = max(1, math.ceil(len(images) / columns))
    page = np.full((rows * cell_height, columns * cell_width, colors), white, images.dtype)
    for n, image in enumerate(images):
        x, y = n % columns * cell_width, n // columns * cell_height
        page[y : y + height, x : x + width] = image
    axes.imshow(page[..., 0] if colors == 1 else page, cmap="gray", vmin=0, vmax=white)
    axes.set_axis_off()
    return cell_width, cell_height


def shorten(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}…"
