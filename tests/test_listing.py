"""Which files make up a user's own set, in every usual layout, and what is odd about it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Clone, Like
from PIL import Image

from mnist_exp.cli.main import expand_home
from mnist_exp.data import Dataset, image_folder
from mnist_exp.data.listing import Listing, find_images
from mnist_exp.errors import BadInput
from mnist_exp.paths import expand


def make(root: Path, *names: str, equal: bool = False) -> Path:
    """Images of random pixels at these paths below root; a name with * is ten of them."""
    random = np.random.default_rng(0)
    for name in names:
        for number in range(10) if "*" in name else [0]:
            path = root / name.replace("*", f"{number:02}")
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (6, 9), np.uint8)
            if Image.registered_extensions().get(path.suffix.lower()):
                Image.fromarray(pixels * (not equal)).save(path)
            else:
                path.write_bytes(b"not an image")
    return root


def count(listing: Listing) -> dict[str, int]:
    return {part: len(files) for part, files in listing.parts.items()}


PLAIN = ("cat/*.png", "dog/*.png")
TRAIN, VAL, TEST = ([f"{part}/{name}" for name in PLAIN] for part in ("train", "val", "test"))

# files of a folder: images in each part, and what a person is told
LAYOUTS: dict[str, tuple[list[str], dict[str, int], str]] = {
    "classes": ([*PLAIN], {"train": 16, "test": 4}, "training 16, test 4 (every fifth image); …"),
    "train": (TRAIN, {"train": 16, "test": 4}, "train/ 16, test 4 (every…train/); …cat, dog"),
    "train, val": ([*TRAIN, *VAL], {"train": 16, "test": 4, "val": 20}, "…val/ 20, test 4 (…"),
    "train, test": ([*TRAIN, *TEST], {"train": 20, "test": 20}, "train/ 20, test/ 20; …"),
    "all": ([*TRAIN, *VAL, *TEST], {"train": 20, "val": 20, "test": 20}, "…val/ 20, test/ 20;…"),
    "other names": (
        ["Training/a/*.png", "Training/b/*.png", "VALID/a/*.png", "testing/b/*.png"],
        {"train": 20, "val": 10, "test": 10},
        "Training/ 20, VALID/ 10, testing/ 10; classes a, b",
    ),
    "train is a class": (["train/*.png", "car/*.png"], {"train": 16, "test": 4}, "…car, train"),
    "a folder beside": ([*TRAIN, "docs/*.png"], {"train": 16, "test": 4}, "…cat, dog"),
    "hidden and foreign": (
        [
            *(*PLAIN, "cat/.ipynb_checkpoints/*.png", "__MACOSX/._0.png", "cat/@eaDir/0.png"),
            *("cat/Thumbs.db", "dog/._0.png", ".git/a.png", "cat/notes.txt", "README", "dog/a.xmp"),
        ],
        {"train": 16, "test": 4},
        "…classes cat, dog",
    ),
    "all endings": (
        ["cat/0.jfif", "cat/1.gif", "cat/2.webp", "cat/3.bmp", "cat/4.tif", "dog/0.JPG"],
        {"train": 5, "test": 1},
        "…cat, dog",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_usual_layout_is_found(layout: str, tmp_path: Path) -> None:
    names, counts, source = LAYOUTS[layout]
    found = find_images(make(tmp_path / "set", *names))
    assert count(found) == counts
    assert found.source == Like(source)
    beside = {
        "hidden and foreign": {".txt": 1, ".xmp": 1, "without an ending": 1},
        "a folder beside": {"docs/": 1},
    }
    assert found.left_out == beside.get(layout, {})


# files of a folder: why it is not a set
REFUSED = {
    "no train": ([*VAL, *TEST], "…test/ and val/ without train/"),
    "two of a kind": ([*TRAIN, *VAL, "valid/cat/*.png"], "…both val/ and valid/…"),
    "another class": ([*TRAIN, "val/emu/0.png"], "…classes differ: emu only in val/"),
    "no classes": (["train/0.png", "test/0.png"], "…each class needs a folder…"),
    "only foreign": (["cat/0.heic", "dog/0.png"], "…each class needs a folder with images…cat"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_is_no_set_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    names, said = REFUSED[case]
    with pytest.raises(BadInput) as raised:
        find_images(make(tmp_path / "set", *names))
    assert str(raised.value) == Like(f"data.root={tmp_path / 'set'}: {said}")


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    root = make(tmp_path / "set", *PLAIN)
    make(tmp_path / "elsewhere", "*.png")
    (root / "cat" / "again").symlink_to(".")
    (root / "cat" / "up").symlink_to("..")
    (root / "cat" / "dog").symlink_to("../dog")
    (root / "dog" / "cat").symlink_to("../cat")
    (root / "emu").symlink_to(tmp_path / "elsewhere")
    (root / "emu2").symlink_to(tmp_path / "elsewhere" / "..")
    make(root, "emu2/../emu2.png")
    (root / "emu2").unlink()
    found = find_images(root)
    assert (found.classes, count(found)) == (["cat", "dog", "emu"], {"train": 24, "test": 6})


# the lines of a CSV file: images in each part, or why it is refused
CSV: dict[str, dict[str, int] | str] = {
    "path,label\ncat/00.png,cat\ncat/01.png,cat\ndog/00.png,dog\n": {"train": 3, "test": 0},
    "cat/00.png,a,train\ndog/00.png,b,\ncat/01.png,a,VALID\ndog/01.png,a,test\n": {
        "train": 2,
        "val": 1,
        "test": 1,
    },
    "file,label,width,split\ncat/00.png,a,9,train\ndog/01.png,b,9,train\ndog/02.png,b,9,test\n": {
        "train": 2,
        "test": 1,
    },
    "\ufeffcat/00.png,Kätzchen\ndog/00.png,犬\n\n": {"train": 2, "test": 0},
    "cat/00.png\n": "…line 1…path,label…",
    "cat/00.png,a,prod\n": "…line 1…prod…train | val | test",
    "cat/00.png,a\ncat/00.png,b\n": "…line 2: cat/00.png…another label…",
    "cat/00.png,a,test\n": "…no image for training",
}


@pytest.mark.parametrize("text", CSV)
def test_labels_come_from_a_csv_file(text: str, tmp_path: Path) -> None:
    root, labels = make(tmp_path / "set", *PLAIN), tmp_path / "labels.csv"
    labels.write_text(text, "utf-8")
    expected = CSV[text]
    if isinstance(expected, dict):
        assert count(find_images(root, labels)) == expected
    else:
        with pytest.raises(BadInput) as raised:
            find_images(root, labels)
        assert str(raised.value) == Like(f"data.labels={labels}: {expected}")


def open_set(root: Path, **options: Any) -> Dataset:
    cache = str(root.parent / "cache")
    return image_folder(str(root), cache, **{"size": 6, "stratified": True, **options})


def test_a_split_has_each_class_in_both_parts_and_depends_on_the_seed(tmp_path: Path) -> None:
    root = make(tmp_path / "set", *PLAIN, "emu/0.png", "emu/1.png", "owl/0.png")
    for seed in range(20):
        dataset = open_set(root, split_seed=seed)
        assert dataset.train.labels.bincount().tolist() == [7, 7, 1, 1]
        assert dataset.val.labels.bincount(minlength=4).tolist() == [1, 1, 1, 0]
    first, again, other = (open_set(root, split_seed=seed).train.images for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_part_of_the_images_has_every_class(tmp_path: Path) -> None:
    dataset = open_set(make(tmp_path / "set", *PLAIN, "emu/*.png"))
    assert dataset.train.labels[:6].bincount().tolist() == [2, 2, 2]
    explicit = open_set(make(tmp_path / "parts", *TRAIN, *VAL))
    assert explicit.sizes == {"train": 16, "val": 20, "test": 4}
    assert explicit.val.labels[:4].bincount().tolist() == [2, 2]


# files of a folder: the warnings
ODD = {
    "rare": (
        [*(f"cat/{a}*.png" for a in "abcdef"), "dog/*.png", "emu/0.png", "emu/1.png"],
        ["…test has no emu", "48 of cat and 2 of emu to train on; …sampling=balanced…"],
    ),
    "no class in val": ([*TRAIN, "val/cat/*.png"], ["…validation has no dog"]),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_about_a_set_is_one_warning(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names, said = ODD[case]
    root = make(tmp_path / "set", *names)
    open_set(root)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [Like(f"data.root={root}: …{line}") for line in said]


def test_equal_images_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_set(make(tmp_path / "equal", *PLAIN, equal=True))
    root = make(tmp_path / "twice", *PLAIN)
    (root / "cat" / "00.png").write_bytes((root / "cat" / "04.png").read_bytes())
    open_set(root)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        Like("…: all 20 images are equal"),
        Like("…: equal images in two parts, 1 time: …cat/00.png (…) and …cat/04.png (test)"),
    ]


def test_large_sets_without_a_size_ask_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_exp.data.folders.LARGE", 1000)
    root = make(tmp_path / "set", *PLAIN)
    with pytest.raises(BadInput, match=r"20 images of 6×9 .*data\.size=224, or data\.size=\[6,9\]"):
        open_set(root, size=None, fit="pad")
    assert open_set(root, size=[6, 9], fit="pad").kind.image_shape == (1, 6, 9)


def test_a_path_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make(tmp_path / "pets", *PLAIN)
    assert image_folder("~/pets", "~/cache", size=6).sizes["test"] == 4
    assert sorted(os.listdir(tmp_path)) == ["cache", "pets"]  # noqa: PTH208
    with pytest.raises(BadInput, match="~nobody-here/x"):
        expand("~nobody-here/x")


HOME_PATHS = {
    "data.root=~/my pets": "data.root='/home/me/my pets'",
    'data.root="~/pets"': "data.root='/home/me/pets'",
    "hydra.run.dir=~": "hydra.run.dir='/home/me'",
    "tracking.note=~5 epochs": "tracking.note=~5 epochs",
    "~data.root": "~data.root",
}


def test_a_typed_home_folder_is_expanded_quoted_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert {word: expand_home(word) for word in HOME_PATHS} == HOME_PATHS


@pytest.mark.slow
def test_a_limited_run_on_a_folder_sees_every_class(clone: Clone, tmp_path: Path) -> None:
    root = make(tmp_path / "set", *PLAIN)
    typed = ("data=image_folder", f"data.root={root}", "data.size=8", "trainer=debug")
    done = clone.run("train.py", *typed, "batch_size=2", "tracking=none")
    assert done.returncode == 0, done.stderr
    assert "training 16, test 4 (every fifth image); classes cat, dog" in done.stdout
