"""`python predict.py`: photographed and drawn digits, and its error messages."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Clone, Like
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mnist_exp.data import digits, mnist
from mnist_exp.paths import LAST

UNKNOWN = "0123456789abcdef0123456789abcdef"


def photograph(
    digit: NDArray[np.uint8], random: np.random.Generator, sizes: tuple[int, int]
) -> Image.Image:
    """A light digit on dark blown up to 400 pixels, in two colors, dark on light or light on dark,
    off-center, in light that falls from one side, on paper with grain and fibers.

    sizes: of its field in pixels, the least and the most.
    """
    size = int(random.integers(*sizes))
    x, y = random.integers(0, 400 - size + 1, 2).tolist()
    big = Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)
    ink = np.asarray(ImageOps.expand(big, (x, y, 400 - size - x, 400 - size - y)))[..., None] / 255
    of_ink, of_paper = random.random((2, 3))
    while abs(of_ink.mean() - of_paper.mean()) < 0.3:
        of_ink, of_paper = random.random((2, 3))
    across, down = np.meshgrid(*[np.linspace(-1, 1, 400)] * 2)
    angle = random.uniform(0, 2 * np.pi)
    light = 1 + 0.15 * (np.cos(angle) * across + np.sin(angle) * down) - 0.08 * across**2
    fibers = Image.fromarray(random.normal(0, 0.02, (100, 100)).astype(np.float32))
    grain = random.normal(0, 0.03, (400, 400)) + np.asarray(fibers.resize((400, 400)))
    colors = (of_paper + (of_ink - of_paper) * ink) * light[..., None] + grain[..., None]
    return Image.fromarray((colors.clip(0, 1) * 255).astype(np.uint8))


def pictures_of(
    images: torch.Tensor, folder: Path, sizes: tuple[int, int], seed: int = 0
) -> list[Path]:
    """Of uint8 images [n, 1, height, width], every second one a JPEG, the others PNG."""
    random, paths = np.random.default_rng(seed), []
    for number, image in enumerate(images[:, 0].numpy()):
        paths.append(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
        photograph(image, random, sizes).save(paths[-1], quality=80)
    return paths


def test_images_are_classified_and_drawn_despite_unreadable_files(
    trained: Clone, tmp_path: Path, digits_cache: Path
) -> None:
    test = digits(cache=str(digits_cache), mean=0.3059, std=0.3763).test[:12]
    paths = pictures_of(test.images, tmp_path, (150, 300))
    (tmp_path / "words.txt").write_text("no image")
    Image.new("RGB", (300, 300), "white").save(tmp_path / "blank.png")
    bad = [tmp_path / name for name in ("words.txt", "blank.png", "none.png")]
    asked = [*map(str, paths[:5]), *map(str, bad), *map(str, paths[5:])]

    options = ("--run", "best:digits", "--json", "--show", f"{tmp_path}/seen.png")
    done = trained.run("predict.py", *options, *asked)
    assert done.returncode == 2
    said, *errors = done.stderr.splitlines()
    assert said == Like("…/outputs/…/checkpoints/last.pt…digits")
    problems = ("…", "no digit…", "…no such file")
    assert errors == [
        Like(f"error: {p}: {problem}") for p, problem in zip(bad, problems, strict=True)
    ]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["image"] for answer in answers] == [str(path) for path in paths]
    right = [a["label"] == str(y) for a, y in zip(answers, test.labels.tolist(), strict=True)]
    assert sum(right) >= 9
    for answer in answers:
        values = list(answer["probabilities"].values())
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert next(iter(answer["probabilities"])) == answer["label"]
    with Image.open(tmp_path / "seen.png") as picture:
        assert picture.format == "PNG"
        assert picture.height > 3 * picture.width  # a row for each image

    done = trained.run("predict.py", "--run", "latest", "--top", "10", str(paths[0]))
    assert done.returncode == 0
    assert done.stdout.startswith(f"{paths[0]}  ")
    shares = [float(share) for share in re.findall(r"\d ( *[0-9.]+) %", done.stdout)]
    assert len(shares) == 10
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_many_files_are_answered_in_order_as_each_alone(
    trained: Clone, tmp_path: Path, digits_cache: Path
) -> None:
    images = digits(cache=str(digits_cache), mean=0.3059, std=0.3763).test[:70].images[:, 0].numpy()
    for number, image in enumerate(images):
        Image.fromarray(image).resize((40, 40)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "40.png").write_bytes(b"no image")
    done = trained.run("predict.py", "--run", "best:digits", "--csv", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("error") == done.stderr.count("40.png: not an image") == 1
    rows = list(csv.DictReader(done.stdout.splitlines()))
    names = [f"{number:02}.png" for number in range(70) if number != 40]
    assert [Path(row["image"]).name for row in rows] == names
    alone = trained.run("predict.py", "--run", "best:digits", "--csv", f"{tmp_path}/69.png")
    (expected,) = csv.DictReader(alone.stdout.splitlines())
    assert rows[-1] == {**expected, "probability": rows[-1]["probability"]}
    assert float(rows[-1]["probability"]) == pytest.approx(float(expected["probability"]))


def test_only_files_are_read_and_no_program_is_started(trained: Clone, tmp_path: Path) -> None:
    gs, mark, pipe = tmp_path / "bin" / "gs", tmp_path / "mark", tmp_path / "pipe.png"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {mark}\n")
    gs.chmod(0o755)
    postscript = tmp_path / "postscript.png"
    postscript.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    os.mkfifo(pipe)
    problems = {
        str(postscript): "…",
        str(pipe): "…pipe…",
        str(tmp_path / "bin"): "…folder…",
        "/dev/zero": "…device…",
    }
    path = f"{gs.parent}{os.pathsep}{os.environ['PATH']}"
    done = trained.run("predict.py", "--run", "latest", *problems, env={"PATH": path})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[1:] == [
        Like(f"error: {name}: {problem}") for name, problem in problems.items()
    ]
    assert not mark.exists()
    done = trained.run("predict.py", "--checkpoint", str(pipe), "five.png", timeout=60)
    assert (done.returncode, done.stderr) == (1, Like(f"error: {pipe}: …pipe…\n"))


@pytest.mark.slow
def test_no_command_loads_a_run_without_a_finished_epoch(
    clone: Clone,
) -> None:
    done = clone.run("train.py", "data=digits", "optimizer=sgd", "optimizer.lr=1e20")
    assert done.returncode == 1  # its loss is not finite in the first epoch
    (folder,) = clone.folders()
    assert not (folder / "mnist_model.pth").exists()
    path = folder.relative_to(clone.root)
    for command in (
        ["predict.py", "five.png", "--run", "latest"],
        ["evaluate.py", "--checkpoint", str(path / LAST)],
        ["export.py", "--format", "pt2", "--run", str(path)],
        ["demo.py", "--port", "0", "--run", "latest"],
    ):
        done = clone.run(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == Like(f"error: …{path / LAST}: …python train.py resume={path}\n")


class Harmful:
    """Creates a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_a_missing_or_foreign_model_is_one_line(trained: Clone, tmp_path: Path) -> None:
    foreign, made = tmp_path / "foreign.pt", tmp_path / "made"
    torch.save({"format": 1, "model": Harmful(str(made))}, foreign)
    done = trained.run("predict.py", "--checkpoint", str(foreign), "five.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == Like(f"error: {foreign}: …checkpoint…\n")
    assert not made.exists()
    done = trained.run("predict.py", "--run", UNKNOWN, "five.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == Like(f"error: no MLflow run {UNKNOWN}…\n")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "…IMAGE"),
        (["--tpo", "3", "a.png"], "…--tpo"),
        (["--top", "0", "a.png"], "--top 0: …integer >= 1"),
        (["--show", "a.txt", "a.png"], "--show a.txt: ….png, .pdf, .svg"),
        (["--show", "absent/a.png", "b.png"], "--show absent/a.png: …no folder absent"),
        (["--show", "a.png", *["b.png"] * 51], "--show a.png: …50 images…51"),
        (["--run", "best", "--checkpoint", "a", "b"], "…--checkpoint: …"),
    ],
)
def test_a_wrong_option_is_one_line(trained: Clone, arguments: list[str], problem: str) -> None:
    done = trained.run("predict.py", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == Like(f"error: {problem}…--help…\n")


# MNIST_RUN in the environment names a run of the class of experiment=accurate, to be asked instead.
@pytest.mark.slow
@pytest.mark.skipif("MNIST_ROOT" not in os.environ, reason="needs the real MNIST")
@pytest.mark.timeout(1200)
def test_mnist_digits_on_paper_are_read(clone: Clone, tmp_path: Path) -> None:
    root, run, least = os.environ["MNIST_ROOT"], os.environ.get("MNIST_RUN"), 0.97
    if run is None:
        done = clone.run("train.py", f"data.root={root}", "tracking=none", timeout=600)
        assert done.returncode == 0, done.stderr
        run, least = "latest", 0.92
    test = mnist(root, str(clone.root / "data" / "cache"), mean=0.1307, std=0.3081).test[:400]
    paths = pictures_of(test.images, tmp_path, (140, 330))
    done = clone.run("predict.py", "--run", run, "--json", *map(str, paths), timeout=600)
    assert done.returncode == 0, done.stderr
    labels = [int(json.loads(line)["label"]) for line in done.stdout.splitlines()]
    right = np.mean(np.array(labels) == test.labels.numpy())
    assert right >= least
