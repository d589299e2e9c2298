"""Pictures from plain numbers, in one style that is readable in gray and by the color-blind."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mnist_exp.files import replace_file

log = logging.getLogger(__name__)

Images = NDArray[np.uint8] | NDArray[np.float32]  # [n, height, width, 1 or 3]; floats: 0..1
# A box (left, top, right, bottom) or None, the model's image, [height, width, 1 or 3], and the
# probabilities by class, the highest first.
Digit = tuple[tuple[int, int, int, int] | None, NDArray[np.uint8], Mapping[str, float]]

COLORMAP = "viridis"  # perceptually uniform, also in gray
BLUE, RED, PALE = "#0072B2", "#D55E00", "0.45"  # distinct for everyone (Okabe and Ito, 2008)
STYLES = {  # of each split's line
    "train": {"color": RED, "linestyle": "--", "marker": ".", "markersize": 4},
    "val": {"color": BLUE, "marker": "o", "markersize": 4},
    "test": {"color": "black", "marker": "D", "markersize": 5, "linestyle": "none"},
}
MAX_NAMED = 25  # with more classes, no names and counts are written
MAX_LETTERS, LETTERS_BELOW = 30, 12  # of a name in a figure, and below an image
COLUMNS = 6  # images in a row
TEXT_HEIGHT = 0.4  # of two lines below an image, in widths of an image
BARS = 10  # of the most probable classes beside an image
LOG_FROM = 4.0  # from this ratio of the largest to the smallest, an axis is logarithmic
MAX_TICKS = 8  # on a swept axis with more values, not every one has a tick

# Decorates functions that draw: names of classes are text, never formulas.
use_style = matplotlib.rc_context({"text.parse_math": False})


@cache
def find_fonts(letters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Families of fonts that have these letters, and the letters that no font here has."""
    families, missing = ["sans-serif"], set(letters)
    others = ((font.name, str(font.fname)) for font in fontManager.ttflist)
    for name, path in (("sans-serif", str(findfont(FontProperties()))), *others):
        if missing and not name.startswith("Last Resort"):  # which draws boxes
            with suppress(OSError, RuntimeError):  # a font that is damaged or gone
                font = FT2Font(path)
                if found := {letter for letter in missing if font.get_char_index(ord(letter))}:
                    families.append(name)
                    missing -= found
    return [*dict.fromkeys(families)], frozenset(missing)


def make_legible(names: Sequence[str]) -> list[str]:
    """The names for a figure: #number where no font here has the letters; the log has a legend.

    Long names are cut.
    """
    _, missing = find_fonts(frozenset("".join(names)))
    unknown = {n: name for n, name in enumerate(names) if missing & set(name)}
    if unknown:
        legend = ", ".join(f"#{n} {name}" for n, name in unknown.items())
        log.warning("no font has all letters of these classes; figures show numbers: %s", legend)
    return [f"#{n}" if n in unknown else shorten(name, MAX_LETTERS) for n, name in enumerate(names)]


def save(figure: Figure, path: Path) -> None:
    """Write the figure, with fonts that have its letters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = figure.findobj(Text)
    families, missing = find_fonts(frozenset("".join(text.get_text() for text in texts)))
    for text in texts:
        text.set_fontfamily(families)
        text.set_text("".join(c if c not in missing else "?" for c in text.get_text()))
    with replace_file(path) as temporary:
        kind = path.suffix.removeprefix(".")
        options = {"compress_level": 3} if kind == "png" else {}  # a tenth larger, half the time
        figure.savefig(temporary, format=kind, dpi=160, pil_kwargs=options)


@use_style
def curves(
    path: Path,
    metrics: Mapping[str, Mapping[int, Mapping[str, float]]],
    names: Sequence[str],
    kept: int,
) -> None:
    """Metrics over the epochs, side by side.

    metrics: split ("train", "val" or "test") → epoch → name → value; names: of the metrics to draw;
    kept: the epoch whose weights are kept.
    """
    figure = Figure((3.6 * len(names), 2.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        axes.axvline(kept, color="0.85", linewidth=4, zorder=0)
        for split, by_epoch in metrics.items():
            values = [found[name] for found in by_epoch.values()]
            axes.plot(list(by_epoch), values, label=split, **STYLES[split])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.set_xlabel(f"epoch (kept: {kept})")
        axes.set_ylabel(name)
    figure.axes[0].legend(frameon=False)
    save(figure, path)


@use_style
def confusion(path: Path, names: Sequence[str], counts: NDArray[np.int64]) -> None:
    """The confusion matrix: errors in color, correct predictions in gray.

    names: of the classes; counts: of images by true class (row) and predicted class (column). With
    very many classes only the colors are drawn.
    """
    classes = range(len(names))
    errors = np.where(np.eye(len(names), dtype=bool), 0, counts)
    most = max(1, errors.max())
    figure = Figure((5.2, 5.0), layout="constrained")
    axes = figure.add_subplot()
    drawn = np.where(errors, errors, np.nan)
    image = axes.imshow(drawn, cmap=f"{COLORMAP}_r", vmin=0, vmax=most)  # most frequent: darkest
    if len(names) <= MAX_NAMED:
        for y, x in np.argwhere(counts):
            style: dict[str, Any] = {"color": "white" if counts[y, x] > most / 2 else "black"}
            if x == y:
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="0.94"))
                style = {"color": PALE, "fontsize": 7}
            axes.text(x, y, str(counts[y, x]), ha="center", va="center", **style)
        axes.set_yticks(classes, names)
        turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(classes, names, **turned if max(map(len, names)) > 3 else {})
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks([place - 0.5 for place in classes[1:]], minor=True)
        axes.grid(which="minor", color="0.88", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
    else:
        figure.colorbar(image, label="errors", shrink=0.8)
    axes.set_ylabel("true class")
    axes.set_xlabel("predicted class")
    axes.set_title(f"{errors.sum():,} errors in {counts.sum():,} predictions", fontsize="medium")
    save(figure, path)


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
            text = f"{shorten(name, LETTERS_BELOW)}  {probability:.3f}"
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


def shorten(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def list_bars(digits: Sequence[Digit]) -> list[tuple[str, float]]:
    """The names and lengths of the bars beside a picture."""
    if len(digits) > 1:
        return [next(iter(probabilities.items())) for *_, probabilities in digits]
    return list(digits[0][2].items())[:BARS]


@use_style
def predictions(path: Path, pictures: Sequence[tuple[str, Images, float, Sequence[Digit]]]) -> None:
    """Each picture with the boxes of its digits, what the model sees of them, and probabilities.

    pictures: a name; the picture, uint8 [height, width, 3]; a pixel's width in pixels of its
    file; and its digits. The bars are the most probable classes of a picture's only digit, or the
    most probable class of each of several.
    """
    bars = [list_bars(digits) for *_, digits in pictures]
    heights = [0.5 + 0.17 * max(len(some), 4) for some in bars]
    figure = Figure((7.2, sum(heights)), layout="constrained")
    grid = figure.subplots(
        len(pictures), 3, squeeze=False, width_ratios=(1.6, 1, 1.6), height_ratios=heights
    )
    for row, (name, picture, scale, digits), some in zip(grid, pictures, bars, strict=True):
        left, middle, right = row
        height, width = picture.shape[:2]
        left.imshow(picture, extent=(0, scale * width, scale * height, 0))
        left.set_title(name, fontsize="small")
        for box, _, probabilities in digits:
            if box:
                x, y, *_ = box
                size = box[2] - x, box[3] - y
                left.add_patch(Rectangle((x, y), *size, fill=False, edgecolor=RED))
                label = next(iter(probabilities))
                left.text(x, y, label, color=RED, fontsize="small", va="bottom")
        seen = [image for _, image, _ in digits]
        tile(middle, np.stack(seen), math.ceil(len(seen) ** 0.5))
        for axes in (left, middle):
            axes.set_axis_off()
        names, values = zip(*some, strict=True)
        colors = [BLUE if n == 0 or len(digits) > 1 else "0.75" for n in range(len(some))]
        drawn = right.barh(range(len(some)), values, color=colors)
        right.bar_label(drawn, [f"{v:.1%}" for v in values], padding=3, fontsize="x-small")
        right.set_yticks(range(len(some)), names, fontsize="small")
        right.invert_yaxis()
        right.set_xlim(0, 1.2)  # with space for the label of a full bar
        right.set_xticks([])
        right.spines[["top", "right", "bottom"]].set_visible(False)
    save(figure, path)


@use_style
def heat_map(
    path: Path,
    names: Sequence[str],
    points: Sequence[Sequence[float]],
    values: Sequence[float],
    metric: str,
) -> None:
    """A metric over two numbers: the first upwards, the second to the right.

    points: (first, second) of each value; missing pairs stay empty.
    """
    firsts, seconds = zip(*points, strict=True)
    rows, row_of_each = np.unique(firsts, return_inverse=True)
    columns, column_of_each = np.unique(seconds, return_inverse=True)
    grid = np.full((len(rows), len(columns)), np.nan)
    grid[row_of_each, column_of_each] = values
    figure = Figure((1.8 + 1.1 * len(columns), 1.2 + 0.7 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, cmap=COLORMAP, origin="lower", aspect="auto")
    middle = (min(values) + max(values)) / 2
    for y, x in np.argwhere(~np.isnan(grid)):
        color = "white" if grid[y, x] < middle else "black"
        axes.text(x, y, f"{grid[y, x]:.4f}", ha="center", va="center", color=color)
    axes.set_yticks(range(len(rows)), [f"{row:g}" for row in rows])
    axes.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
    name_and_save(figure, names, image, metric, path)


@use_style
def scatter(
    path: Path,
    names: Sequence[str],
    points: Sequence[Sequence[float]],
    values: Sequence[float],
    metric: str,
) -> None:
    """A metric at points that are not a grid; arguments as for `heat_map`."""
    ys, xs = zip(*points, strict=True)
    figure = Figure((5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    dots = axes.scatter(xs, ys, c=values, cmap=COLORMAP, edgecolors="gray")
    axes.set_xscale(choose_scale(xs))
    axes.set_yscale(choose_scale(ys))
    name_and_save(figure, names, dots, metric, path)


@use_style
def curve(
    path: Path,
    name: str,
    xs: Sequence[float],
    values: Sequence[float],
    spreads: Sequence[float],
    metric: str,
) -> None:
    """A metric over one number, with standard deviations unless all are 0."""
    xs, values, spreads = zip(*sorted(zip(xs, values, spreads, strict=True)), strict=True)
    figure = Figure((5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.errorbar(xs, values, spreads if any(spreads) else None, marker="o", capsize=3)
    axes.set_xscale(choose_scale(xs))
    if len(xs) <= MAX_TICKS:
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.set_xlabel(name)
    axes.set_ylabel(metric)
    save(figure, path)


def name_and_save(
    figure: Figure, names: Sequence[str], colored: ScalarMappable, metric: str, path: Path
) -> None:
    """Name the axes, the first number upwards, and the metric at the color bar."""
    (axes,) = figure.axes
    axes.set_ylabel(names[0])
    axes.set_xlabel(names[1])
    figure.colorbar(colored, label=metric)
    save(figure, path)


def choose_scale(values: Sequence[float]) -> str:
    return "log" if 0 < min(values) * LOG_FROM <= max(values) else "linear"
