"""What a model says of single images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mnist_exp.figures.style import BLUE, save, styled

BARS = 10  # of the most probable classes


@styled
def predictions(
    path: Path,
    names: Sequence[str],
    shown: Sequence[tuple[str, Sequence[Sequence[Sequence[int]]], Sequence[float]]],
) -> None:
    """What a model sees, and beside it how probable it finds the most probable classes.

    names: of the classes; shown: of each image its name, its pixels 0..255 [height][width][1 or 3],
    and its probabilities by class.
    """
    count = min(len(names), BARS)
    figure = Figure((5.2, (0.5 + 0.17 * count) * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 2, squeeze=False, width_ratios=(1, 1.6))
    for (left, right), (name, pixels, probabilities) in zip(grid, shown, strict=True):
        left.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        left.set_title(name, fontsize="small")
        left.set_axis_off()
        ranked = sorted(range(len(names)), key=lambda label: -probabilities[label])
        told = sorted(ranked[:count])
        values = [probabilities[label] for label in told]
        colours = [BLUE if label == ranked[0] else "0.75" for label in told]
        bars = right.barh(range(count), values, color=colours)
        right.bar_label(bars, [f"{v:.1%}" for v in values], padding=3, fontsize="x-small")
        right.set_yticks(range(count), [names[label] for label in told], fontsize="small")
        right.invert_yaxis()
        right.set_xlim(0, 1.2)  # with room for what stands at a full bar's end
        right.set_xticks([])
        right.spines[["top", "right", "bottom"]].set_visible(False)
    save(figure, path)
