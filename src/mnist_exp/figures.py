"""Pictures from plain numbers, in one style. Readable in grey and by the colour-blind."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mnist_exp.files import replacing

COLOURS = "viridis"  # perceptually uniform, and ordered in grey, too
LOG_FROM = 4.0  # from this ratio of the largest to the smallest, an axis is logarithmic
STRONG = "#31688e"  # of the same scale, dark in grey, too
BARS = 10  # of the most probable classes
TICKS = 8  # up to so many values, each has its tick


def heat_map(
    path: Path,
    names: Sequence[str],
    points: Sequence[Sequence[float]],
    accuracies: Sequence[float],
) -> None:
    """Validation accuracy over two numbers: the first upwards, the second to the right.

    points: (first, second) of each accuracy 0..1; a pair that is absent stays empty.
    """
    rows, columns = (sorted({point[axis] for point in points}) for axis in (0, 1))
    grid = [[float("nan")] * len(columns) for _ in rows]
    for (row, column), accuracy in zip(points, accuracies, strict=True):
        grid[rows.index(row)][columns.index(column)] = accuracy
    figure = Figure((1.8 + 1.1 * len(columns), 1.2 + 0.7 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, cmap=COLOURS, origin="lower", aspect="auto")
    middle = (min(accuracies) + max(accuracies)) / 2
    for y, x in itertools.product(range(len(rows)), range(len(columns))):
        if not math.isnan(grid[y][x]):
            colour = "white" if grid[y][x] < middle else "black"
            axes.text(x, y, f"{grid[y][x]:.4f}", ha="center", va="center", color=colour)
    axes.set_yticks(range(len(rows)), [f"{row:g}" for row in rows])
    axes.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
    name_and_save(figure, names, image, path)


def scatter(
    path: Path,
    names: Sequence[str],
    points: Sequence[Sequence[float]],
    accuracies: Sequence[float],
) -> None:
    """Validation accuracy at points that are no grid; arguments as for `heat_map`."""
    ys, xs = zip(*points, strict=True)
    figure = Figure((5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    dots = axes.scatter(xs, ys, c=accuracies, cmap=COLOURS, edgecolors="grey")
    for values, set_scale in ((xs, axes.set_xscale), (ys, axes.set_yscale)):
        set_scale(scale(values))
    name_and_save(figure, names, dots, path)


def curve(
    path: Path,
    name: str,
    xs: Sequence[float],
    accuracies: Sequence[float],
    spreads: Sequence[float],
) -> None:
    """Validation accuracy 0..1 over one number, with standard deviations where there are any."""
    xs, accuracies, spreads = zip(*sorted(zip(xs, accuracies, spreads, strict=True)), strict=True)
    figure = Figure((5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.errorbar(xs, accuracies, spreads if any(spreads) else None, marker="o", capsize=3)
    axes.set_xscale(scale(xs))
    if len(xs) <= TICKS:
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.set_xlabel(name)
    axes.set_ylabel("validation accuracy")
    save(figure, path)


def confusion(
    path: Path, names: Sequence[str], labels: Sequence[int], predictions: Sequence[int]
) -> None:
    """How often each class was taken for which: errors in colour, what is right in grey.

    names: of the classes; labels and predictions: their indices, in step with each other.
    """
    counts = Counter(zip(labels, predictions, strict=True))
    errors = Counter({(y, x): count for (y, x), count in counts.items() if x != y})
    most = max(errors.values(), default=1)
    classes = range(len(names))
    figure = Figure((5.2, 5.0), layout="constrained")
    axes = figure.add_subplot()
    grid = [[errors[y, x] or math.nan for x in classes] for y in classes]
    axes.imshow(grid, cmap=f"{COLOURS}_r", vmin=0, vmax=most)  # the most is the darkest
    for (y, x), count in counts.items():
        if x == y:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="0.94"))
            axes.text(x, y, str(count), ha="center", va="center", color="0.45", fontsize=7)
        else:
            colour = "white" if count > most / 2 else "black"
            axes.text(x, y, str(count), ha="center", va="center", color=colour)
    axes.set_yticks(classes, names)
    axes.set_xticks(classes, names, rotation=0 if max(map(len, names)) < 4 else 45)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([place - 0.5 for place in classes[1:]], minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.set_ylabel("true class")
    axes.set_xlabel("predicted class")
    axes.set_title(f"{errors.total():,} errors in {len(labels):,} predictions", fontsize="medium")
    save(figure, path)


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
        colours = [STRONG if label == ranked[0] else "0.75" for label in told]
        bars = right.barh(range(count), values, color=colours)
        right.bar_label(bars, [f"{v:.1%}" for v in values], padding=3, fontsize="x-small")
        right.set_yticks(range(count), [names[label] for label in told], fontsize="small")
        right.invert_yaxis()
        right.set_xlim(0, 1.2)  # with room for what stands at a full bar's end
        right.set_xticks([])
        right.spines[["top", "right", "bottom"]].set_visible(False)
    save(figure, path)


def name_and_save(
    figure: Figure, names: Sequence[str], coloured: ScalarMappable, path: Path
) -> None:
    """Two numbers' names, the first upwards, and what the colours mean."""
    (axes,) = figure.axes
    axes.set_ylabel(names[0])
    axes.set_xlabel(names[1])
    figure.colorbar(coloured, label="validation accuracy")
    save(figure, path)


def scale(values: Sequence[float]) -> str:
    return "log" if 0 < min(values) * LOG_FROM <= max(values) else "linear"


def save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), dpi=160)
