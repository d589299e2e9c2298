"""Validation accuracy over the swept keys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from mnist_exp.figures.style import COLORMAP, save, use_style

LOG_FROM = 4.0  # from this ratio of the largest to the smallest, an axis is logarithmic
MAX_TICKS = 8  # with more values, not each has a tick


@use_style
def heat_map(
    path: Path,
    names: Sequence[str],
    points: Sequence[Sequence[float]],
    accuracies: Sequence[float],
) -> None:
    """Validation accuracy over two numbers: the first upwards, the second to the right.

    points: (first, second) of each accuracy 0..1; missing pairs stay empty.
    """
    rows, columns = (sorted({point[axis] for point in points}) for axis in (0, 1))
    grid = [[float("nan")] * len(columns) for _ in rows]
    for (row, column), accuracy in zip(points, accuracies, strict=True):
        grid[rows.index(row)][columns.index(column)] = accuracy
    figure = Figure((1.8 + 1.1 * len(columns), 1.2 + 0.7 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, cmap=COLORMAP, origin="lower", aspect="auto")
    middle = (min(accuracies) + max(accuracies)) / 2
    for y, x in itertools.product(range(len(rows)), range(len(columns))):
        if not math.isnan(grid[y][x]):
            color = "white" if grid[y][x] < middle else "black"
            axes.text(x, y, f"{grid[y][x]:.4f}", ha="center", va="center", color=color)
    axes.set_yticks(range(len(rows)), [f"{row:g}" for row in rows])
    axes.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
    name_and_save(figure, names, image, path)


@use_style
def scatter(
    path: Path,
    names: Sequence[str],
    points: Sequence[Sequence[float]],
    accuracies: Sequence[float],
) -> None:
    """Validation accuracy at points that are not a grid; arguments as for `heat_map`."""
    ys, xs = zip(*points, strict=True)
    figure = Figure((5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    dots = axes.scatter(xs, ys, c=accuracies, cmap=COLORMAP, edgecolors="grey")
    for values, set_scale in ((xs, axes.set_xscale), (ys, axes.set_yscale)):
        set_scale(choose_scale(values))
    name_and_save(figure, names, dots, path)


@use_style
def curve(
    path: Path,
    name: str,
    xs: Sequence[float],
    accuracies: Sequence[float],
    spreads: Sequence[float],
) -> None:
    """Validation accuracy 0..1 over one number, with standard deviations unless all are 0."""
    xs, accuracies, spreads = zip(*sorted(zip(xs, accuracies, spreads, strict=True)), strict=True)
    figure = Figure((5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.errorbar(xs, accuracies, spreads if any(spreads) else None, marker="o", capsize=3)
    axes.set_xscale(choose_scale(xs))
    if len(xs) <= MAX_TICKS:
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.set_xlabel(name)
    axes.set_ylabel("validation accuracy")
    save(figure, path)


def name_and_save(
    figure: Figure, names: Sequence[str], colored: ScalarMappable, path: Path
) -> None:
    """Name the axes, the first number upwards, and add the color bar."""
    (axes,) = figure.axes
    axes.set_ylabel(names[0])
    axes.set_xlabel(names[1])
    figure.colorbar(colored, label="validation accuracy")
    save(figure, path)


def choose_scale(values: Sequence[float]) -> str:
    return "log" if 0 < min(values) * LOG_FROM <= max(values) else "linear"
