"""What all pictures share."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from mnist_exp.files import replacing

COLOURS = "viridis"  # perceptually uniform, and ordered in grey, too
BLUE, RED, PALE = "#0072B2", "#D55E00", "0.45"  # apart for everyone (Okabe and Ito, 2008)

# For a function that draws: what people call their classes is text, and no formula.
styled = matplotlib.rc_context({"text.parse_math": False})


def save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        kind = path.suffix.removeprefix(".")
        quick = {"compress_level": 3} if kind == "png" else {}  # a tenth larger, half the time
        figure.savefig(temporary, format=kind, dpi=160, pil_kwargs=quick)
