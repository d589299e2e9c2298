"""What the README says to add: its files, put into a clone by its words alone, are trained with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Clone
from PIL import Image
from sklearn.datasets import load_digits

from mnist_exp.paths import REPOSITORY

README = (REPOSITORY / "README.md").read_text("utf-8")
QUICK = ("trainer.epochs=2", "optimizer.lr=1e-2")


def put(clone: Clone, thing: str) -> list[Path]:
    """Write the files that the paragraph on adding a thing shows, as many lines as it says."""
    _, _, after = README.partition(f"\n**{thing}**")
    paragraph = re.split(r"\n\*\*|\n## ", after, maxsplit=1)[0]
    blocks = re.findall(r"```(?:python|yaml)\n(# (\S+)\n.*?)```", paragraph, re.DOTALL)
    (said,) = re.findall(r"(\d+)\s+lines,\s+nothing\s+else\s+touched", paragraph)
    assert sum(text.count("\n") for text, _ in blocks) == int(said)
    paths = [clone.root / path for _, path in blocks]
    for path, (text, _) in zip(paths, blocks, strict=True):
        assert not path.exists()
        path.write_text(text)
    return paths


def train(clone: Clone, *arguments: str) -> str:
    """What `python train.py` says; it has to end well."""
    done = clone.run("train.py", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def checked(paths: list[Path]) -> None:
    """As the project's own code is."""
    code = [str(path) for path in paths if path.suffix == ".py"]
    for command in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]):
        subprocess.run([sys.executable, "-m", *command, *code], cwd=REPOSITORY, check=True)


@pytest.mark.slow
def test_a_model_of_two_files_is_trained_gone_on_with_and_used(clone: Clone) -> None:
    code, config = put(clone, "A model")
    assert (code.suffix, config.suffix) == (".py", ".yaml")
    checked([code])
    train(clone, "data=digits", "model=patches", "model.patch=2", *QUICK)
    train(clone, "resume=latest", "trainer.epochs=3")
    image = clone.root / "one.png"
    Image.fromarray(load_digits().images[1].astype(np.uint8) * 15).resize((80, 80)).save(image)
    done = clone.run("predict.py", "--run", "latest", str(image))
    assert (done.returncode, done.stdout.count("%")) == (0, 3)

    done = clone.run("train.py", "data=digits", "model=patches", "model.width=wide")
    assert done.stderr == "model.width=wide: must be an integer\n"
    done = clone.run("train.py", "model=patch")
    assert "must be cnn | linear | mlp | patches |" in done.stderr
    assert "did you mean patches?" in done.stderr


@pytest.mark.slow
def test_a_data_set_of_two_files_is_trained_on(clone: Clone) -> None:
    checked(put(clone, "A data set"))
    digits = load_digits()
    images = (digits.images[:, None] * 15).astype(np.uint8)
    parts = {"train": slice(0, 1500), "test": slice(1500, None)}
    arrays = {f"{part}_images": images[rows] for part, rows in parts.items()}
    arrays |= {f"{part}_labels": digits.target[rows] for part, rows in parts.items()}
    np.savez(clone.root / "digits.npz", **arrays)
    assert "data=arrays" in train(clone, "data=arrays", "data.file=digits.npz", *QUICK)
    done = clone.run("evaluate.py", "--run", "latest", "--json")
    assert '"images": 297' in done.stdout
    assert clone.run("train.py", "data=arrays").returncode == 2  # without a file


def test_an_optimizer_of_one_file_trains(clone: Clone) -> None:
    (config,) = put(clone, "An optimizer")
    assert config.suffix == ".yaml"
    assert "radam" in train(clone, "data=digits", "optimizer=radam", *QUICK)
