"""Sets of torchvision.datasets, by their name."""

from __future__ import annotations

import bz2
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Clone, Like

from mnist_exp.data import DataError, Dataset, torchvision_set
from mnist_exp.errors import BadInput
from mnist_exp.experiment.build import load_dataset

FAKE = {"size": 20, "image_size": [3, 6, 5], "num_classes": 300}


def write_usps(folder: Path) -> dict[str, tuple[np.ndarray, list[int]]]:
    """The set in torchvision's files: text of label and pixels from -1 to 1, compressed."""
    random, parts = np.random.default_rng(0), {}
    for name, count in (("usps", 30), ("usps.t", 10)):
        labels = (np.arange(count) % 10).tolist()
        pixels = random.integers(0, 2, (count, 16, 16))
        lines = [
            " ".join([str(label + 1), *(f"{n}:{2 * p - 1}" for n, p in enumerate(image.ravel()))])
            for label, image in zip(labels, pixels, strict=True)
        ]
        (folder / f"{name}.bz2").write_bytes(bz2.compress("\n".join(lines).encode()))
        parts[name] = (pixels * 255, labels)
    return parts


def open_set(name: str, folder: Path, **options: Any) -> Dataset:
    return torchvision_set(name, str(folder), str(folder / "cache"), **options)


def test_a_set_is_read_from_torchvisions_files_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    parts = write_usps(tmp_path)
    for _ in range(2):
        usps = open_set("USPS", tmp_path, val_fraction=0)
        for found, name in ((usps.train, "usps"), (usps.test, "usps.t")):
            pixels, labels = parts[name]
            assert found.images[:, 0].tolist() == pixels.tolist()
            assert found.labels.tolist() == labels
    assert usps.kind.class_names == tuple("0123456789")
    assert usps.kind.image_shape == (1, 16, 16)
    assert caplog.messages == ["data.name=USPS: decoding 40 images"]


def test_a_set_of_one_part_gives_every_fifth_image_to_the_test(tmp_path: Path) -> None:
    fake = open_set("FakeData", tmp_path, options=FAKE, val_fraction=0)
    assert fake.sizes == {"train": 16, "val": 0, "test": 4}
    assert fake.kind.image_shape == (3, 6, 5)
    from torchvision.datasets import FakeData

    theirs = [FakeData(**FAKE)[number] for number in (4, 9, 14, 19)]
    assert fake.test.labels.tolist() == [label for _, label in theirs]
    assert max(fake.train.labels) > 255
    pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image, _ in theirs])
    assert torch.equal(fake.test.images, torch.from_numpy(pixels))


WRONG = [
    ("usps", {}, ValueError, "…did you mean USPS?"),
    ("USPS", {"sise": 3}, ValueError, "…no option sise…"),
    ("SVHN", {"split": "extra"}, ValueError, "…no option split…"),
    ("EMNIST", {"split": "latters"}, ValueError, "…latters…letters…"),
    ("EMNIST", {}, TypeError, "…split…"),
    ("VOCSegmentation", {}, DataError, "…data.root=…"),
    ("USPS", {}, DataError, "…USPS…download failed…data.root=…"),
]


@pytest.mark.parametrize(("name", "options", "error", "said"), WRONG)
def test_what_cannot_be_loaded_is_one_line(
    name: str,
    options: dict[str, Any],
    error: type[Exception],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(error) as raised:
        open_set(name, tmp_path, options=options)
    assert str(raised.value) == Like(said)
    assert "\n" not in str(raised.value)


def test_images_of_several_sizes_need_data_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    class Ragged(datasets.FakeData):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return image.resize((4 + index % 2, 4)), label

    monkeypatch.setattr(datasets, "FakeData", Ragged)
    with pytest.raises(BadInput, match=r"FakeData.* 2 sizes.*data\.size=N"):
        open_set("FakeData", tmp_path, options=FAKE)
    assert open_set("FakeData", tmp_path, options=FAKE, size=4).kind.image_shape == (3, 4, 4)


@pytest.mark.slow
def test_a_run_trains_on_a_set_by_its_name(clone: Clone) -> None:
    write_usps(clone.root / "data")
    typed = ("data=torchvision", "data.name=USPS", "tracking=none", "trainer.epochs=1")
    done = clone.run("train.py", *typed)
    assert done.returncode == 0, done.stderr
    assert "data.name=USPS: decoding 40 images" in done.stdout


def test_a_fold_of_a_set_is_taken_whatever_its_function_is(tmp_path: Path) -> None:
    import yaml

    config = {"_target_": "mnist_exp.data.torchvision_set", "name": "FakeData", "options": FAKE}
    places = {"root": str(tmp_path), "cache": str(tmp_path / "cache"), "folds": 4, "fold": 3}
    dataset = load_dataset(yaml.dump({**config, **places}))
    assert dataset.sizes == {"train": 12, "val": 4, "test": 4}
