"""The style of all pictures."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from mnist_exp.files import replace_file

COLORMAP = "viridis"  # perceptually uniform, also in gray
BLUE, RED, PALE = "#0072B2", "#D55E00", "0.45"  # distinct for everyone (Okabe and Ito, 2008)

# Decorates functions that draw: names of classes are text, never formulas.
use_style = matplotlib.rc_context({"text.parse_math": False})


def save(figure: Figure, path: Path) -> None:
    with replace_file(path) as temporary:
        kind = path.suffix.removeprefix(".")
        options = {"compress_level": 3} if kind == "png" else {}  # a tenth larger, half the time
        figure.savefig(temporary, format=kind, dpi=160, pil_kwargs=options)
