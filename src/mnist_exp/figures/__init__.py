"""Pictures from plain numbers, in one style that is readable in gray and by the color-blind."""

from mnist_exp.figures.image import predictions
from mnist_exp.figures.run import confusion, curves, filters, most_wrong, reliability
from mnist_exp.figures.sweep import curve, heat_map, scatter

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
