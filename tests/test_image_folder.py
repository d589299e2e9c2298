"""A user's own images, with a folder for each class."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Like
from PIL import Image

from mnist_exp.data import DataError, Dataset, image_folder
from mnist_exp.errors import BadInput

RANDOM = np.random.default_rng(0)


def picture(path: Path, side: int = 8, mode: str = "L", height: int | None = None) -> np.ndarray:
    """An image of random pixels at `path`; returns them."""
    shape = (height or side, side, 3) if mode == "RGB" else (height or side, side)
    pixels = RANDOM.integers(0, 256, shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def make(root: Path, count: int = 10, **options: Any) -> dict[str, np.ndarray]:
    """Two classes of so many PNGs; returns the pixels by path below `root`."""
    names = [f"{name}/{number:02}.png" for name in ("cat", "dog") for number in range(count)]
    return {name: picture(root / name, **options) for name in names}


def open_set(root: Path, cache: Path, **options: Any) -> Dataset:
    return image_folder(str(root), str(cache), **options)


def is_decoding(message: str) -> bool:
    return " decoding " in message


def get_refusal(root: Path, **options: Any) -> str:
    """Why a folder is not a data set, without the beginning of the message."""
    with pytest.raises(BadInput) as raised:
        open_set(root, root.parent / "cache", **options)
    start = f"data.root={root}: "
    assert str(raised.value).startswith(start)
    assert "\n" not in str(raised.value)
    return str(raised.value).removeprefix(start)


# --- what becomes of them ---


def test_every_fifth_image_of_a_class_is_for_the_test(tmp_path: Path) -> None:
    pixels = make(tmp_path / "pets", count=10)
    dataset = open_set(tmp_path / "pets", tmp_path / "cache")
    assert dataset.kind.name == "pets"
    assert dataset.kind.class_names == ("cat", "dog")
    assert dataset.sizes == {"train": 14, "val": 2, "test": 4}
    assert dataset.kind.image_shape == (1, 8, 8)
    chosen = [pixels[f"{name}/{number}.png"] for name in ("cat", "dog") for number in ("04", "09")]
    assert torch.equal(dataset.test.images[:, 0], torch.from_numpy(np.stack(chosen)))
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]
    rest = [image for image in pixels.values() if not any(image is one for one in chosen)]
    found = torch.cat([dataset.train.images, dataset.val.images])[:, 0].tolist()
    assert sorted(found) == sorted(image.tolist() for image in rest)


def test_folders_train_and_test_are_the_two_parts(tmp_path: Path) -> None:
    make(tmp_path / "pets" / "train", count=6, mode="RGB")
    test = make(tmp_path / "pets" / "test", count=2, mode="RGB")
    (tmp_path / "pets" / "README.md").touch()
    dataset = open_set(tmp_path / "pets", tmp_path / "cache", val_fraction=0.25)
    assert dataset.sizes == {"train": 9, "val": 3, "test": 4}
    assert dataset.kind.image_shape == (3, 8, 8)
    expected = torch.from_numpy(np.stack(list(test.values()))).permute(0, 3, 1, 2)
    assert torch.equal(dataset.test.images, expected)


def test_classes_and_files_are_those_of_torchvisions_image_folder(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    make(tmp_path / "train", mode="RGB")
    picture(tmp_path / "train" / "cat" / "below" / "deep.JPG", mode="RGB")
    picture(tmp_path / "train" / "dog" / "b.webp", mode="RGB")
    (tmp_path / "train" / "dog" / "notes.txt").touch()
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    dataset = open_set(tmp_path, tmp_path.parent / "cache")
    theirs = ImageFolder(tmp_path / "test")
    assert list(dataset.kind.class_names) == theirs.classes
    assert dataset.test.labels.tolist() == theirs.targets
    images = [np.asarray(image).transpose(2, 0, 1) for image, _ in theirs]
    assert torch.equal(dataset.test.images, torch.from_numpy(np.stack(images)))


def test_each_image_is_named_by_its_file_in_every_split(tmp_path: Path) -> None:
    pixels = make(tmp_path / "pets", count=10)
    (tmp_path / "pets" / "cat" / "00.png").write_bytes(b"")
    found = open_set(tmp_path / "pets", tmp_path / "cache", skip_bad=True)
    for split, part in ((found.val, "train"), (found.test, "test")):
        column, names = found.name_images(split, part)
        assert column == "file"
        for name, image in zip(names, split.images, strict=True):
            assert np.array_equal(image[0], pixels[name])


def test_large_files_are_decoded_by_several_threads_in_the_same_order(tmp_path: Path) -> None:
    pixels = make(tmp_path / "pets", side=96)
    assert all(path.stat().st_size > 8_000 for path in (tmp_path / "pets").rglob("*.png"))
    dataset = open_set(tmp_path / "pets", tmp_path / "cache")
    chosen = [pixels[f"{name}/{number}.png"] for name in ("cat", "dog") for number in ("04", "09")]
    assert torch.equal(dataset.test.images[:, 0], torch.from_numpy(np.stack(chosen)))


def test_one_color_image_to_train_on_makes_all_of_them_color(tmp_path: Path) -> None:
    make(tmp_path / "pets")
    picture(tmp_path / "pets" / "dog" / "00.png", mode="RGB")
    dataset = open_set(tmp_path / "pets", tmp_path / "cache")
    assert dataset.kind.image_shape == (3, 8, 8)
    assert torch.equal(dataset.test.images[:, 0], dataset.test.images[:, 2])


def test_mean_and_deviation_are_found_by_channel_in_the_training_part(tmp_path: Path) -> None:
    pixels = make(tmp_path / "pets", mode="RGB")
    found = open_set(tmp_path / "pets", tmp_path / "cache")
    train = [pixels[name] for name in pixels if name[-5] not in "49"]
    scaled = np.stack(train) / 255
    assert found.kind.mean == pytest.approx(scaled.mean((0, 1, 2)), abs=1e-12)
    assert found.kind.std == pytest.approx(scaled.std((0, 1, 2)), abs=1e-12)
    given = open_set(tmp_path / "pets", tmp_path / "cache", mean=0.5, std=[0.1, 0.2, 0.3])
    assert (given.kind.mean, given.kind.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))


def test_a_size_makes_all_images_square_and_antialiased(tmp_path: Path) -> None:
    from torchvision.transforms.v2 import functional

    wide = make(tmp_path / "pets", side=32, height=24, mode="RGB")
    picture(tmp_path / "pets" / "cat" / "00.png", side=9, mode="RGB")
    dataset = open_set(tmp_path / "pets", tmp_path / "cache", size=8)
    assert dataset.kind.image_shape == (3, 8, 8)
    theirs = functional.resize(Image.fromarray(wide["cat/04.png"]), [8, 8], antialias=True)
    assert torch.equal(dataset.test.images[0], functional.pil_to_tensor(theirs))


# --- the cache ---


def test_a_second_start_decodes_nothing_and_imports_neither_torchvision_nor_pil(
    tmp_path: Path,
) -> None:
    make(tmp_path / "pets")
    first = open_set(tmp_path / "pets", tmp_path / "cache")
    child = (
        "import sys; from mnist_exp.data import image_folder\n"
        f"dataset = image_folder({str(tmp_path / 'pets')!r}, {str(tmp_path / 'cache')!r})\n"
        "print(dataset.kind.digest, dataset.kind.mean, {'torchvision', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert done.stdout == f"{first.kind.digest} {first.kind.mean} set()\n"


@pytest.mark.parametrize("change", ["added", "removed", "changed", "touched"])
def test_files_that_came_went_or_changed_are_noticed(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root, path = tmp_path / "pets", tmp_path / "pets" / "cat" / "07.png"
    make(root)
    before = open_set(root, tmp_path / "cache")
    if change == "added":
        shutil.copy(path, root / "cat" / "77.png")
    elif change == "removed":
        path.unlink()
    elif change == "changed":
        picture(path)
    else:
        os.utime(path, ns=(0, 0))
    after = open_set(root, tmp_path / "cache")
    assert (after.kind.digest == before.kind.digest) is (change == "touched")
    number = sum(after.sizes.values())
    assert number == 20 + {"added": 1, "removed": -1}.get(change, 0)
    assert [*filter(is_decoding, caplog.messages)] == [
        Like(f"data.root={root}: decoding {n} images…") for n in (20, number)
    ]


def test_a_class_folder_that_came_is_noticed_though_nothing_is_in_it(tmp_path: Path) -> None:
    make(tmp_path / "pets")
    open_set(tmp_path / "pets", tmp_path / "cache")
    (tmp_path / "pets" / "bird").mkdir()
    assert get_refusal(tmp_path / "pets") == Like("…class needs a folder with images…bird…")


def test_each_size_has_a_cache_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    make(tmp_path / "pets")
    for size in (4, None, 4, None):
        expected = (1, 4, 4) if size else (1, 8, 8)
        assert (
            open_set(tmp_path / "pets", tmp_path / "cache", size=size).kind.image_shape == expected
        )
    assert len([*filter(is_decoding, caplog.messages)]) == 2


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    make(tmp_path / "pets")
    open_set(tmp_path / "pets", tmp_path / "cache")
    (kept,) = (tmp_path / "cache" / "image_folder").glob("pets-*/train.npy")
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"^{re.escape(str(kept))} is not what was cached "):
        open_set(tmp_path / "pets", tmp_path / "cache")


def test_a_damaged_record_of_the_cache_is_made_again(tmp_path: Path) -> None:
    make(tmp_path / "pets")
    before = open_set(tmp_path / "pets", tmp_path / "cache").kind
    (record,) = (tmp_path / "cache" / "image_folder").glob("pets-*/record.json")
    whole = record.read_bytes()
    for bit in np.random.default_rng(0).integers(0, 8 * len(whole), 40).tolist():
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        record.write_bytes(flipped)
        assert open_set(tmp_path / "pets", tmp_path / "cache").kind == before
    for content in (b"", b"[]", whole[:-20]):
        record.write_bytes(content)
        assert open_set(tmp_path / "pets", tmp_path / "cache").kind == before
        assert record.read_bytes() == whole


@pytest.mark.parametrize("name", ["record.json", "train.npy"])
def test_a_pipe_in_the_cache_is_replaced(tmp_path: Path, name: str) -> None:
    make(tmp_path / "pets")
    before = open_set(tmp_path / "pets", tmp_path / "cache").kind
    (path,) = (tmp_path / "cache" / "image_folder").glob(f"pets-*/{name}")
    path.unlink()
    os.mkfifo(path)
    assert open_set(tmp_path / "pets", tmp_path / "cache").kind == before


def test_of_two_that_need_it_at_once_one_decodes_and_the_other_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make(tmp_path / "pets")
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(open_set, tmp_path / "pets", tmp_path / "cache") for _ in range(2)]
    assert both[0].result().kind.digest == both[1].result().kind.digest
    assert len([*filter(is_decoding, caplog.messages)]) == 1


# --- folders that are not a data set ---


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert get_refusal(tmp_path / "pets") == Like("…no such folder…")


def test_a_folder_without_class_folders(tmp_path: Path) -> None:
    picture(tmp_path / "pets" / "1.png")
    assert get_refusal(tmp_path / "pets") == Like("…class needs a folder…")


def test_a_folder_of_one_class(tmp_path: Path) -> None:
    picture(tmp_path / "pets" / "cat" / "1.png")
    assert get_refusal(tmp_path / "pets") == Like("…one class…cat…two…")


def test_class_folders_without_images(tmp_path: Path) -> None:
    make(tmp_path / "pets")
    for name in "abcd":
        (tmp_path / "pets" / name).mkdir()
    (tmp_path / "pets" / "a" / "notes.txt").touch()
    assert get_refusal(tmp_path / "pets") == Like(
        "…class needs a folder with images…a, b, c and 1 more"
    )


def test_test_classes_that_differ_from_those_to_train_on(tmp_path: Path) -> None:
    make(tmp_path / "pets" / "train")
    make(tmp_path / "pets" / "test")
    picture(tmp_path / "pets" / "train" / "cow" / "1.png")
    (tmp_path / "pets" / "test" / "dog").rename(tmp_path / "pets" / "test" / "bird")
    assert get_refusal(tmp_path / "pets") == Like("…classes differ…bird…test/…")


def test_too_few_images_for_a_test(tmp_path: Path) -> None:
    make(tmp_path / "pets", count=4)
    assert get_refusal(tmp_path / "pets") == Like("too few images…each class…test…")


def test_images_of_different_sizes(tmp_path: Path) -> None:
    make(tmp_path / "pets", side=8, height=12)
    picture(tmp_path / "pets" / "cat" / "03.png", side=9)
    assert get_refusal(tmp_path / "pets") == Like(
        "…2 sizes: cat/00.png …8×12, cat/03.png …9×9; data.size=8…"
    )


def spoil(root: Path) -> None:
    """Damage five files of `make`, each in another way."""
    (root / "cat" / "00.png").write_bytes(b"")
    (root / "cat" / "01.png").write_text("no image")
    whole = (root / "dog" / "02.png").read_bytes()
    (root / "dog" / "02.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "03.png").unlink()
    (root / "dog" / "03.png").symlink_to("nowhere")
    (root / "dog" / "09.png").write_bytes(whole.replace(b"IDAT", b"IDOT"))


def test_unreadable_and_truncated_files_are_named(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    make(root)
    spoil(root)
    with pytest.raises(DataError) as raised:
        open_set(root, tmp_path / "cache")
    assert str(raised.value) == Like(
        f"data.root={root}: …cat/00.png (…), cat/01.png (…), dog/02.png (…truncated) "
        "and 2 more; …data.skip_bad=true"
    )
    assert list((tmp_path / "cache").rglob("train*")) == []


def test_no_program_is_started_and_no_bomb_or_pipe_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, started = tmp_path / "pets", []
    make(root)
    (root / "cat" / "00.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("01.png", "02.png"):
        (root / "cat" / name).unlink()
    os.mkfifo(root / "cat" / "01.png")
    Image.new("1", (20_000, 20_000)).save(root / "cat" / "02.png")
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.append(command))
    with pytest.raises(DataError) as raised:
        open_set(root, tmp_path / "cache", size=8)
    for reason in ("00.png (…", "01.png (…pipe…", "02.png (…179 megapixels…"):
        assert str(raised.value) == Like(f"…cat/{reason}…")
    assert started == []


def test_skip_bad_leaves_unreadable_files_out_and_warns_at_each_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "pets"
    make(root)
    spoil(root)
    says = Like(f"data.root={root}: …cat/00.png, cat/01.png, dog/02.png and 2 more")
    for _ in range(2):
        dataset = open_set(root, tmp_path / "cache", skip_bad=True)
        assert dataset.sizes == {"train": 10, "val": 2, "test": 3}
        assert torch.cat([dataset.train.labels, dataset.val.labels]).bincount().tolist() == [6, 6]
    assert caplog.messages == [says, says]


# --- as a person sees it ---


@pytest.mark.slow
def test_training_on_a_folder_of_images(clone: Any, tmp_path: Path) -> None:
    make(tmp_path / "pets", side=8, mode="RGB")
    command = ("train.py", "data=image_folder", "trainer=debug", "tracking=none")
    without = clone.run(*command)
    assert (without.returncode, without.stderr) == (
        2,
        Like('data.root="???" (conf/data/image_folder.yaml): …no default…data.root=<value>\n'),
    )
    absent = clone.run(*command, f"data.root={tmp_path / 'cats'}")
    assert (absent.returncode, (absent.stdout + absent.stderr).splitlines()) == (
        2,
        [Like(f"error: data.root={tmp_path / 'cats'}: …no such folder…")],
    )
    done = clone.run(*command, f"data.root={tmp_path / 'pets'}", "data.size=6")
    assert done.returncode == 0, done.stderr
    assert Like(f"data.root={tmp_path / 'pets'}: training 16, test 4 …") in done.stdout.splitlines()
    config = (clone.folders()[0] / "config.yaml").read_text()
    assert "  size: 6\n" in config
    weights = torch.load(clone.folders()[0] / "mnist_model.pth", weights_only=True)
    assert next(iter(weights.values())).shape[1] == 3 * 6 * 6
    picture(tmp_path / "pets" / "cat" / "10.png", mode="RGB")
    changed = clone.run("train.py", "resume=latest", "trainer.epochs=3")
    *_, error = (changed.stdout + changed.stderr).splitlines()
    assert changed.returncode == 2
    assert re.fullmatch(r"error: data=pets: .*SHA-256 [0-9a-f]{12}….* [0-9a-f]{12}….*", error)
