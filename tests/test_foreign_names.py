"""Class and file names in any script, and in no valid UTF-8, go through every command."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import Clone
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from PIL import Image

from mnist_exp.errors import sanitize
from mnist_exp.experiment.versions import HYDRA_1_3
from mnist_exp.figures import draw

INVALID = os.fsdecode(b"caf\xe9\xff")  # not UTF-8
CLASSES = ["猫", "كلب", "😀", "😁", "नमस्ते", "a/b's\n$x_{1}$", "w" * 250, "-rf", INVALID]
FILES = ["写真.png", "é😀.png", os.fsdecode(b"\xfe\x01 .png"), "3.png", "4.png"]


def make_set(root: Path) -> Path:
    """A folder for each class but the one with a slash, and a CSV file that names them all."""
    rows = [("path", "label")]
    for number, name in enumerate(CLASSES):
        folder = root / name.replace("/", "_")
        folder.mkdir(parents=True)
        for file in FILES:
            pixels = np.full((12, 12), 255, np.uint8)
            pixels[number] = FILES.index(file)
            Image.fromarray(pixels).save(folder / file)
            rows.append((f"{folder.name}/{file}", name))
    labels = root.with_suffix(".csv")
    with labels.open("w", newline="", encoding="utf-8", errors="surrogateescape") as table:
        csv.writer(table).writerows(rows)
    return labels


def is_quiet(stderr: str) -> bool:
    """Whether there is nothing but our own lines."""
    own = ("no font has all letters ", "outputs/", "/")
    return all(line.startswith(own) for line in stderr.splitlines())


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="names are UTF-8")
def test_foreign_names_go_through_every_command(clone: Clone, tmp_path: Path) -> None:
    root = tmp_path / (INVALID if HYDRA_1_3 else "café 猫")  # Hydra 1.4 refuses it
    labels = make_set(root)
    names = sorted(map(sanitize, CLASSES))
    typed = ("data=image_folder", f'data.root="{root}"', "batch_size=8", "tracking.figures=true")
    done = clone.run("train.py", *typed, "trainer.epochs=1", "tracking=tensorboard")
    assert (done.returncode, done.stderr) == (0, "")
    typed = (*typed, f'data.labels="{labels}"', "trainer.epochs=9", "tracking.log_model=true")
    done = clone.run("train.py", *typed)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Glyph" not in done.stdout
    (run,) = clone.client.search_runs(["1"])
    assert run.data.params["data.root"] == sanitize(str(root))

    latest = ("--run", "latest")
    done = clone.run("evaluate.py", *latest, "--log", "--predictions", "p.csv")
    assert done.returncode == 0, done.stderr
    assert is_quiet(done.stderr)
    with (clone.root / "p.csv").open(newline="", encoding="utf-8") as table:
        assert sorted(line["label"] for line in csv.DictReader(table)) == names
    metrics = clone.client.get_run(run.info.run_id).data.metrics
    assert len([name for name in metrics if name.startswith("test/recall/")]) == len(CLASSES)

    files = [str(root / name / FILES[n % 3]) for n, name in enumerate((INVALID, "猫", "😀", "كلب"))]
    done = clone.run("predict.py", *latest, "--json", "--show", "seen.png", *files)
    assert (done.returncode, is_quiet(done.stderr)) == (0, True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["image"] for answer in answers] == files
    assert {answer["label"] for answer in answers} <= set(names)
    done = clone.run("predict.py", *latest, "--csv", str(root), env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, is_quiet(done.stderr)) == (0, True)
    assert len(list(csv.reader(io.StringIO(done.stdout)))) == 1 + len(CLASSES) * len(FILES)

    done = clone.run("export.py", *latest, "--format", "pt2")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_figure_takes_a_font_that_has_the_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fonts = {"DejaVu Sans", "STIXGeneral"}
    few = [font for font in fontManager.ttflist if font.name in fonts]
    monkeypatch.setattr(fontManager, "ttflist", few)  # the second has Ⓐ
    draw.find_fonts.cache_clear()
    names = draw.make_legible(["cat", "Ⓐ", "猫", "w" * 99])
    assert names == ["cat", "Ⓐ", "#2", "w" * 29 + "…"]
    (line,) = caplog.messages
    assert line.endswith(" #2 猫")
    figure = Figure()
    titles = [figure.text(0, 0, text) for text in ("Ⓐ", "a 猫")]
    draw.save(figure, tmp_path / "a.png")  # a warning would be an error
    assert titles[0].get_fontfamily() == ["sans-serif", "STIXGeneral"]
    assert titles[1].get_text() == "a ?"
    draw.find_fonts.cache_clear()
