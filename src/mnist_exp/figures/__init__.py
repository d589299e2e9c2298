"""Pictures from plain numbers, in one style that is readable in gray and by the color-blind."""

from mnist_exp.figures.draw import (
    confusion,
    curve,
    curves,
    filters,
    heat_map,
    most_wrong,
    predictions,
    reliability,
    scatter,
)

__all__ = [
    "confusion",
    "curve",
    "curves",
    "filters",
    "heat_map",
    "most_wrong",
    "predictions",
    "reliability",
    "scatter",
]
