"""Draw the pictures of docs/results.md: accuracy against time, learning curves, errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray
from rows import Row, Run, interval

from mnist_exp.figures import draw

COLORS = {  # of data sets: distinct for everyone (Okabe and Ito, 2008)
    "MNIST": "#0072B2",
    "Fashion-MNIST": "#D55E00",
    "CIFAR-10": "#009E73",
    "digits": "#CC79A7",
}
MARKERS = "os^v"  # of machines
TICKS = (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 7, 10, 20, 30, 50, 80)  # errors, percent
MIN_DISTANCE = 0.06  # between ticks, as a part of the axis
BEST = 99.95  # percent: better is drawn here
COLUMNS = 3
HARDEST = 18  # images


class Reference(NamedTuple):
    """A result of others, on another machine."""

    dataset: str
    accuracy: float  # percent
    name: str
    remark: str


@draw.use_style
def accuracy_by_time(
    path: Path, rows: Sequence[tuple[Row, str]], references: Sequence[Reference]
) -> None:
    """rows: with the name of the data set."""
    figure = Figure((8.0, 5.2), layout="constrained")
    axes = figure.add_subplot()
    machines = list(dict.fromkeys(row.machine for row, _ in rows))
    times: list[float] = []
    shown = [100 - reference.accuracy for reference in references]

    def add_row(name: str, runs: Sequence[Run], up: int, **style: Any) -> None:
        times.append(median(run.seconds for run in runs))
        ends = add_point(axes, times[-1], runs, **style)
        shown.extend(ends)
        axes.annotate(
            f"{name} (n = {len(runs)})",
            (times[-1], ends[0]),
            xytext=(7, up),
            textcoords="offset points",
            fontsize="small",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )

    for row, dataset in rows:
        number = machines.index(row.machine)
        style = {"color": COLORS[dataset], "marker": MARKERS[number % len(MARKERS)]}
        add_row(row.preset, row.runs, -11 if number else 4, **style)
        if row.recipe:
            add_row("recipe", row.recipe, -11, markerfacecolor="white", **style)
    for reference in references:
        error, color = 100 - reference.accuracy, COLORS[reference.dataset]
        axes.axhline(error, color=color, linestyle="--", linewidth=1, zorder=1)
        axes.annotate(
            f"{reference.name} {reference.accuracy:g}",
            (1, error),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize="small",
        )
    for dataset in dict.fromkeys(name for _, name in rows):
        axes.plot([], [], "o", color=COLORS[dataset], label=dataset)
    for marker, machine in zip(MARKERS, machines if len(machines) > 1 else [], strict=False):
        axes.plot([], [], marker, color="0.5", label=machine)
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 2.5, max(times) * 6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    scale_accuracy(axes, shown)
    axes.set_xlabel("training time, s" + f" ({machines[0]})" * (len(machines) == 1))
    axes.set_ylabel("test accuracy, %")
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize="small")
    draw.save(figure, path)


@draw.use_style
def learning_curves(path: Path, rows: Sequence[Row]) -> None:
    """Accuracy over the epochs, one panel for each row."""
    columns = min(COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = Figure((2.6 * columns, 2.3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flat
    for row, axes in zip(rows, grid, strict=False):
        shown: list[float] = []
        epochs = 1
        for split in row.runs[0].curves:
            found = [run.curves[split] for run in row.runs if split in run.curves]
            epochs = max(map(len, found))
            values = np.full((len(found), epochs), np.nan)
            for line, curve in zip(values, found, strict=True):
                line[: len(curve)] = clip(100 - 100 * np.array(curve))
            style = draw.STYLES[split] | {"marker": "" if epochs > 20 else "."}
            numbers = np.arange(1, epochs + 1)
            axes.plot(numbers, np.nanmean(values, axis=0), label=split, **style)
            low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
            axes.fill_between(numbers, low, high, color=style["color"], alpha=0.2, linewidth=0)
            shown += [*low, *high]
        test = draw.STYLES["test"] | {"label": "test", "markersize": 4}
        shown += add_point(axes, epochs, row.runs, **test)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        scale_accuracy(axes, shown)
        axes.set_title(f"{row.preset} (n = {len(row.runs)})", fontsize="medium")
        axes.set_xlabel("epoch")
        axes.set_ylabel("accuracy, %")
        axes.legend(frameon=False, fontsize="small", loc="lower right")
    for axes in grid:  # without a row
        axes.set_axis_off()
    draw.save(figure, path)


def errors(path: Path, runs: Sequence[Run], classes: Mapping[str, int]) -> None:
    """The confusion matrix of all runs. classes: name → test images."""
    counts = np.diag(np.array([*classes.values()]) * len(runs))
    for run in runs:
        for _, true, predicted in run.errors:
            counts[true, true] -= 1
            counts[true, predicted] += 1
    draw.confusion(path, [*classes], counts)


def list_hardest(runs: Sequence[Run]) -> list[int]:
    """Numbers of the test images that most runs get wrong; spread out over those that tie."""
    wrong = Counter(number for run in runs for number, *_ in run.errors)
    ranked = sorted(wrong, key=lambda number: (-wrong[number], number))
    if len(ranked) <= HARDEST:
        return ranked
    harder = [number for number in ranked if wrong[number] > wrong[ranked[HARDEST]]]
    tied = [number for number in ranked if wrong[number] == wrong[ranked[HARDEST]]]
    room = HARDEST - len(harder)
    return harder + [tied[i * len(tied) // room] for i in range(room)]


def hardest(
    path: Path, runs: Sequence[Run], names: Sequence[str], images: NDArray[np.uint8]
) -> None:
    """The images of `list_hardest`, [n, height, width, 1 or 3], with the parts of the runs."""
    predicted, true = [], []
    for number in list_hardest(runs):
        found = [error for run in runs for error in run.errors if error[0] == number]
        (said, times), *_ = Counter(names[wrong] for *_, wrong in found).most_common(1)
        predicted.append((said, times / len(runs)))
        true.append((names[found[0][1]], 1 - len(found) / len(runs)))
    heading = f"misclassified most often in {len(runs)} runs, with the fraction for each class"
    draw.most_wrong(path, images, predicted, true, heading)


def add_point(axes: Axes, x: float, runs: Sequence[Run], **style: Any) -> list[float]:
    """Draw the mean accuracy with its 95 % interval; return the error and its bounds, in %."""
    accuracies = [100 * run.accuracy for run in runs]
    error, (low, high) = 100 - fmean(accuracies), interval(accuracies)
    ends = [float(end) for end in clip(np.array([100 - high, 100 - low]))]
    whiskers = [[error - ends[0]], [ends[1] - error]]
    axes.errorbar([x], [error], whiskers, capsize=3, **{"linestyle": "none", **style})
    return [error, *ends]


def clip(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(errors, 100 - BEST, 100)


def scale_accuracy(axes: Axes, errors: Sequence[float]) -> None:
    """An axis of errors in percent, logarithmic and downwards, that reads as accuracy."""
    worst, best = min(100, max(errors) * 1.4), min(errors) / 1.5
    axes.set_yscale("log")
    axes.set_ylim(worst, best)
    ticks: list[float] = []
    for error in TICKS:
        apart = not ticks or error / ticks[-1] > (worst / best) ** MIN_DISTANCE
        if best <= error <= worst and apart:
            ticks.append(error)
    axes.set_yticks(ticks, [f"{100 - tick:g}" for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
