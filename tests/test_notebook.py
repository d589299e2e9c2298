"""From Python: compose, train and load; a notebook, a profiler, a debugger around the script."""

from __future__ import annotations

import logging
import pstats
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Clone, read_metrics
from PIL import Image
from sklearn.datasets import load_digits

import mnist_exp
from mnist_exp.errors import BadInput
from mnist_exp.inference.classifier import Classifier
from mnist_exp.paths import REPOSITORY

DIGITS = (load_digits().images * 15).astype(np.uint8)


@pytest.fixture(autouse=True)
def _keep_logging() -> Iterator[None]:
    handlers = logging.root.handlers[:]
    yield
    logging.basicConfig(handlers=handlers, force=True)


@pytest.fixture(scope="module")
def model(trained: Clone) -> Classifier:
    (folder,) = trained.folders()
    return mnist_exp.load(folder)


# --- from Python ---


def test_train_does_what_the_script_does(quick: list[str], clone: Clone, tmp_path: Path) -> None:
    config = mnist_exp.compose(*quick, f"hydra.run.dir={tmp_path}/${{unique:}}")
    results = [mnist_exp.train(config) for _ in range(2)]
    assert len({result.folder for result in results}) == 2
    assert "epoch 2/2" in (results[0].folder / "train.log").read_text()

    assert clone.run("train.py", *quick).returncode == 0
    metrics = [read_metrics(folder) for folder in (results[0].folder, *clone.folders())]
    assert metrics[0] == metrics[1]

    with pytest.raises(BadInput, match=r"no such key.*\n.*must be"):
        mnist_exp.compose("optimzer.lr=1", "batch_size=0")


@pytest.mark.slow
def test_the_lines_in_the_docs_train_and_predict(clone: Clone) -> None:
    page = (REPOSITORY / "docs" / "extend.md").read_text("utf-8")
    (code,) = re.findall(r"\n## From Python\n.*?```python\n(.*?)```", page, re.DOTALL)
    Image.fromarray(DIGITS[5]).resize((80, 80)).save(clone.root / "five.png")
    done = clone.run("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = clone.folders()
    assert f"\n{folder} " in done.stdout
    assert re.match(r"(\d) \{'\1': \d", done.stdout.splitlines()[-1])


def test_a_model_predicts_files_and_arrays_alike(model: Classifier, tmp_path: Path) -> None:
    images, file = DIGITS[:3], tmp_path / "0.png"
    Image.fromarray(images[0]).save(file)
    colors = np.stack([images] * 3, -1)
    several = [
        images,
        colors,
        torch.from_numpy(images)[:, None],
        torch.from_numpy(colors).movedim(-1, 1),
        [file, images[1], torch.from_numpy(colors[2])],
        [str(file), colors[1:]],
    ]
    found = [model.predict(pictures) for pictures in several]
    labels = [[prediction.label for prediction in predictions] for predictions in found]
    assert labels == [["0", "1", "2"]] * len(several)
    assert model.predict(file)[0].probabilities == pytest.approx(found[0][0].probabilities)
    assert sum(found[0][0].probabilities.values()) == pytest.approx(1)
    assert found[0][0].found.image.shape == (1, 8, 8)

    page = np.full((60, 200), 255, np.uint8)
    for number, digit in enumerate(images):
        page[10:50, 20 + 60 * number : 60 + 60 * number] -= digit.repeat(5, 0).repeat(5, 1)
    assert len(model.predict([file, page])) == 1 + 3


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        ("no.png", "no.png: no such file"),
        (np.zeros((8, 8), np.uint8), "0: no digit"),
        (DIGITS[0] / 255, "float64: must be uint8"),
        (DIGITS[0, 0], "[8] of uint8: must be"),
    ],
)
def test_a_picture_that_cannot_be_predicted_is_one_line(
    model: Classifier, picture: object, said: str
) -> None:
    with pytest.raises(BadInput) as raised:
        model.predict(picture)
    assert said in str(raised.value)


def test_the_package_imports_nothing_until_a_function_is_used(clone: Clone) -> None:
    code = "import sys, mnist_exp; print(mnist_exp.__version__, 'hydra' in sys.modules)"
    assert clone.run("-c", code).stdout == f"{mnist_exp.__version__} False\n"


# --- in a process that is not ours ---

RUN = ["train.py", "data=digits", "tracking=none", "trainer.epochs=1"]


@pytest.mark.slow
def test_a_notebook_runs_scripts_and_goes_on(clone: Clone) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    cells = [
        f"%run {' '.join(RUN)}",
        "%run train.py optimzer.lr=1",
        "from mnist_exp import compose, load, train\n"
        "result = train(compose('data=digits', 'trainer.epochs=2'))",
        "load('best:digits').trained.source.parents[1] == result.folder",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(book, kernel_name="python3", allow_errors=True, timeout=120)
    client.execute(cwd=str(clone.root), env=clone.environment())
    texts = [str(cell.outputs) for cell in book.cells]
    assert "epoch 1/1" in texts[0]
    assert "SystemExit" not in texts[0]
    assert "did you mean optimizer.lr?" in texts[1]
    assert book.cells[1].outputs[-1]["ename"] == "SystemExit"
    assert "epoch 2/2" in texts[2]
    assert "'True'" in texts[3]
    assert len(clone.folders()) == 2


@pytest.mark.slow
def test_a_profiler_and_a_debugger_outlive_the_run(clone: Clone) -> None:
    done = clone.run("-m", "cProfile", "-o", "profile", *RUN)
    assert (done.returncode, done.stderr) == (0, "")
    names = {name for _, _, name in pstats.Stats(str(clone.root / "profile")).stats}
    assert "train_step" in names

    done = clone.run("-m", "pdb", "-c", "continue", "-c", "quit", *RUN)
    assert "exit status: 0" in done.stdout.lower()


@pytest.mark.slow
def test_coverage_writes_its_data(clone: Clone) -> None:
    pytest.importorskip("coverage")
    done = clone.run("-m", "coverage", "run", "--source=src", *RUN)
    assert (done.returncode, done.stderr) == (0, "")
    assert "loop.py" in clone.run("-m", "coverage", "report").stdout
