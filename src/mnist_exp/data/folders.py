"""Your own images, one folder per class."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mnist_exp.data.cache import (
    DataError,
    Record,
    ensure_record,
    hash_array,
    hash_text,
    load,
    replace_array,
)
from mnist_exp.data.dataset import (
    Channels,
    Dataset,
    Size,
    compute_mean_and_std,
    split_dataset,
    width_and_height,
)
from mnist_exp.data.splits import ArrayFile, Rows, make_split
from mnist_exp.errors import BadInput

if TYPE_CHECKING:
    from mnist_exp.data.decoding import File

log = logging.getLogger(__name__)

DECODER = 3  # raised when it reads files in another way: older caches are made again


def image_folder(
    root: str,
    cache: str,
    size: Size = None,
    fit: str = "stretch",
    mean: Channels = None,
    std: Channels = None,
    skip_bad: bool = False,
    val_fraction: float = 0.15,
    split_seed: int = 0,
    memory_limit: float = 8.0,
) -> Dataset:
    """The images under `root`: in `train/<class>/` and `test/<class>/`, or all in `<class>/`.

    Without a test folder, every fifth image of a class, in sorted order, is a test image. Files and
    classes are found as torchvision's ImageFolder finds them. The set is gray if all training
    images are. With `size`, of one number or [height, width], the images are resized, antialiased:
    stretched, or, by `fit`, padded or cropped to keep their shape; without it, they must all have
    one size. With `skip_bad`, unreadable files are skipped.

    The images are decoded once, and again when a file was added, removed, or changed in size or
    time. 60,000 JPEGs of 32×32 take 15 s to decode, and 1 s to load afterwards. Above
    `memory_limit` GB the images stay on disk, see `cache.load`. Raises BadInput, DataError.
    """
    folder = Path(root).absolute()
    listing = _list_files(folder)
    options = f"{folder}\0{size}\0{fit}\0{skip_bad}"
    cached = Path(cache) / "image_folder" / f"{folder.name}-{hash_text(options)[:12]}"
    record = ensure_record(
        cached,
        hash_text(f"{DECODER}{options}{listing}"),
        lambda: _decode(folder, cached, width_and_height(size), fit, skip_bad),
    )
    if skipped := record["left_out"]:
        log.warning("data.root=%s: skipped: %s", root, abbreviate(skipped))
    arrays = load(cached, record["sums"], memory_limit)
    classes = torch.arange(len(record["classes"]))
    train, test = (  # the images are sorted by class
        make_split(images, classes.repeat_interleave(torch.tensor(record["counts"][part])))
        for part, images in arrays.items()
    )
    digest = hash_text(json.dumps([record["classes"], record["counts"], record["sums"]]))
    mean = record["mean"] if mean is None else mean
    std = record["std"] if std is None else std
    about = (folder.name, tuple(record["classes"]), digest)
    dataset = split_dataset(train, test, *about, mean, std, val_fraction, split_seed)
    kind = replace(dataset.kind, fit=fit, white=record["white"])
    return replace(dataset, kind=kind, files=record["files"])


# --- find the files ---


def _list_files(root: Path) -> str:
    """Path, size, and time of all files: 0.3 s for 60,000. Raises BadInput."""
    if not root.is_dir():
        raise BadInput(f"data.root={root}: no such folder")
    lines = []
    for folder, _, names in os.walk(root, followlinks=True):
        lines.append(folder)
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 (Path takes twice as long)
            try:
                found = os.stat(path)  # noqa: PTH116
                lines.append(f"{path}\0{found.st_size}\0{found.st_mtime_ns}")
            except OSError:  # a broken link
                lines.append(path)
    return "\n".join(sorted(lines))


def _find(root: Path) -> tuple[list[str], list[File], list[File]]:
    """The class names, and the training and test files, sorted by class.

    Raises BadInput for a folder that does not have the layout of a set.
    """
    train, test = root / "train", root / "test"
    if train.is_dir() and test.is_dir():
        classes, files = _find_class_files(train)
        test_classes, test_files = _find_class_files(test)
        if classes != test_classes:
            only = {
                "train": sorted(set(classes) - set(test_classes)),
                "test": sorted(set(test_classes) - set(classes)),
            }
            lists = "; ".join(
                f"{abbreviate(names)} only in {part}/" for part, names in only.items() if names
            )
            raise BadInput(f"data.root={root}: the classes differ: {lists}")
        return classes, files, test_files
    classes, files = _find_class_files(root)
    parts: tuple[list[File], list[File]] = ([], [])
    seen = Counter[int]()
    for path, label in files:
        seen[label] += 1
        parts[seen[label] % 5 == 0].append((path, label))
    return classes, *parts


def _find_class_files(root: Path) -> tuple[list[str], list[File]]:
    """Class names, and files sorted by class, as torchvision finds them. Raises BadInput."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    try:
        classes, labels = find_classes(root)
        files = make_dataset(root, labels, extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:
        message = f"data.root={root}: each class needs a folder with images: {error}"
        raise BadInput(message) from None
    if len(classes) == 1:
        raise BadInput(f"data.root={root}: only one class, {classes[0]}; at least two are needed")
    return classes, [(Path(path), label) for path, label in files]


def abbreviate(names: Sequence[str]) -> str:
    """The first three, and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


# --- decoding ---


def _decode(
    root: Path, folder: Path, size: tuple[int, int] | None, fit: str, skip_bad: bool
) -> Record:
    """Write the pixels of both parts into the folder, an image at a time; returns their record.

    Raises BadInput for images that cannot form a set, DataError for unreadable files.
    """
    from mnist_exp.data.decoding import find_form, write_images  # Pillow; not with a cache

    classes, train_files, test_files = _find(root)
    log.info("data.root=%s: decoding %d images", root, len(train_files) + len(test_files))
    with replace_array(folder, "train") as train, replace_array(folder, "test") as test:
        form = find_form(root, train_files, test_files, size, fit)
        (train_counts, bad_train), (test_counts, bad_test) = (
            write_images(path, files, len(classes), form)
            for path, files in ((train, train_files), (test, test_files))
        )
        unreadable = {
            str(path.relative_to(root)): why for path, why in (bad_train | bad_test).items()
        }
        if unreadable and not skip_bad:
            reasons = abbreviate([f"{path} ({why})" for path, why in unreadable.items()])
            raise DataError(
                f"data.root={root}: unreadable images: {reasons}; repair or remove them, or skip "
                "them with data.skip_bad=true"
            )
        if 0 in train_counts or not any(test_counts):
            raise BadInput(
                f"data.root={root}: too few images; each class needs one for training, and the "
                "test part (test/, or every fifth image of a class) needs one"
            )
        array = ArrayFile(train)
        mean, std = compute_mean_and_std(Rows(array, torch.arange(array.shape[0])))
        sums = {"train": hash_array(array), "test": hash_array(ArrayFile(test))}
    unread = bad_train | bad_test
    parts = {"train": train_files, "test": test_files}
    return {
        "sums": sums,
        "classes": classes,
        "counts": {"train": train_counts, "test": test_counts},
        "mean": mean,
        "white": form.white,
        "std": std,
        "left_out": list(unreadable),
        "files": {
            part: [str(path.relative_to(root)) for path, _ in files if path not in unread]
            for part, files in parts.items()
        },
    }
