"""Predictions for single images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mnist_exp.figures.style import BLUE, save, use_style

BARS = 10  # at most, one for each of the most probable classes


@use_style
def predictions(
    path: Path,
    names: Sequence[str],
    images: Sequence[tuple[str, Sequence[Sequence[Sequence[int]]], Sequence[float]]],
) -> None:
    """Each image as the model gets it, next to the probabilities of the most probable classes.

    names: of the classes; images: name, pixels 0..255 [height][width][1 or 3] and probabilities by
    class of each image.
    """
    count = min(len(names), BARS)
    figure = Figure((5.2, (0.5 + 0.17 * count) * len(images)), layout="constrained")
    grid = figure.subplots(len(images), 2, squeeze=False, width_ratios=(1, 1.6))
    for (left, right), (name, pixels, probabilities) in zip(grid, images, strict=True):
        left.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        left.set_title(name, fontsize="small")
        left.set_axis_off()
        ranked = sorted(range(len(names)), key=lambda label: -probabilities[label])
        labels = sorted(ranked[:count])
        values = [probabilities[label] for label in labels]
        colors = [BLUE if label == ranked[0] else "0.75" for label in labels]
        bars = right.barh(range(count), values, color=colors)
        right.bar_label(bars, [f"{v:.1%}" for v in values], padding=3, fontsize="x-small")
        right.set_yticks(range(count), [names[label] for label in labels], fontsize="small")
        right.invert_yaxis()
        right.set_xlim(0, 1.2)  # with space for the label of a full bar
        right.set_xticks([])
        right.spines[["top", "right", "bottom"]].set_visible(False)
    save(figure, path)
