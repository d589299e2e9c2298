"""Each picture is drawn in the right size and replaced atomically."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Clone
from matplotlib.figure import Figure
from matplotlib.image import imread

from mnist_exp.figures import draw


def size(path: Path) -> tuple[int, int]:
    height, width, _ = imread(path).shape
    return width, height


def test_a_heat_map_grows_with_its_grid_and_may_have_holes(tmp_path: Path) -> None:
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    draw.heat_map(small, ["lr", "batch"], [[0.1, 32], [0.01, 64]], [0.9, 0.95], "val/accuracy")
    grid = [[lr, batch] for lr in (0.1, 0.01, 0.001) for batch in (32, 64, 128, 256)]
    draw.heat_map(
        large, ["lr", "batch"], grid, [0.9 + 0.001 * n for n in range(12)], "val/accuracy"
    )
    assert size(large) > size(small)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.png", "small.png"]


def test_a_curve_and_a_scatter_are_drawn(tmp_path: Path) -> None:
    draw.curve(tmp_path / "curve.png", "lr", [1e-2, 1e-4, 1e-3], [0.9, 0.8, 0.95], [0.0] * 3, "a")
    draw.scatter(tmp_path / "dots.png", ["a", "b"], [[1, 2], [3, 4], [5, 1]], [1, 2, 3], "a")
    assert size(tmp_path / "curve.png") == (832, 512)
    assert size(tmp_path / "dots.png") == (832, 576)


def test_a_confusion_writes_every_count_and_colors_only_the_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(draw, "save", lambda figure, path: drawn.append(figure))
    counts = np.array([[3, 4, 0], [0, 1, 0], [1, 0, 1]])
    draw.confusion(tmp_path / "errors.png", ["cat", "dog", "eel"], counts)
    (axes,) = drawn[0].axes
    written = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    gray = "0.45"
    assert written == {
        (0, 0): ("3", gray),
        (1, 1): ("1", gray),
        (2, 2): ("1", gray),
        (1, 0): ("4", "white"),  # four cats, in the upper row, were taken for dogs
        (0, 2): ("1", "black"),
    }
    (image,) = axes.images
    assert image.get_array().tolist() == [[None, 4, None], [None] * 3, [1, None, None]]
    assert image.get_cmap().name == "viridis_r"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["cat", "dog", "eel"]
    assert axes.get_title() == "5 errors in 10 predictions"


def test_a_confusion_without_an_error_is_drawn_and_fits_a_page(tmp_path: Path) -> None:
    draw.confusion(tmp_path / "errors.png", ["a", "b"], np.diag([1, 2]))
    assert size(tmp_path / "errors.png") == (832, 800)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1e-4, 1e-1], "log"), ([32, 128], "log"), ([32, 64], "linear"), ([0, 5], "linear")],
)
def test_an_axis_over_orders_of_magnitude_is_logarithmic(
    values: list[float], expected: str
) -> None:
    assert draw.choose_scale(values) == expected


def test_the_first_picture_on_a_machine_says_nothing_of_fonts(clone: Clone, tmp_path: Path) -> None:
    script = "import logging; logging.basicConfig(level='INFO'); import mnist_exp.figures.draw"
    done = clone.run("-c", script, env={"MPLCONFIGDIR": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert any(tmp_path.glob("fontlist*"))
