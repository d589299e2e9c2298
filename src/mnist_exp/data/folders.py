"""Anybody's images, in a folder for each class."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mnist_exp.data.cache import DataError, Record, load, recorded, replacing_array, sum_of
from mnist_exp.data.dataset import Channels, Dataset, divided, mean_and_std
from mnist_exp.data.decoding import File, common_form, write_images
from mnist_exp.data.rows import ArrayFile
from mnist_exp.data.splits import as_split
from mnist_exp.errors import BadInput

log = logging.getLogger(__name__)


def image_folder(
    root: str,
    cache: str,
    size: int | None = None,
    mean: Channels = None,
    std: Channels = None,
    skip_bad: bool = False,
    val_fraction: float = 0.15,
    split_seed: int = 0,
    memory_limit: float = 8.0,
) -> Dataset:
    """The images under `root`: in `train/<class>/` and `test/<class>/`, or all in `<class>/`.

    Without a test folder, every fifth image of a class is for the test, its files in sorted order.
    Files and classes are found as torchvision's ImageFolder finds them; grey where all training
    images are. With `size` all are resized to size×size, antialiased; without, they have to be of
    one size. Files that cannot be read are left out with `skip_bad`.

    Decoded once, and again when a file has come, gone or changed, which its size and time tell.
    60,000 JPEGs of 32×32 take a quarter of a minute, and a second once they are decoded. With more
    than `memory_limit` GB they stay on disk, see `cache.load`. Raises BadInput and DataError.
    """
    folder = Path(root).absolute()
    listing = _listing(folder)
    options = f"{folder}\0{size}\0{skip_bad}"
    kept = Path(cache) / "image_folder" / f"{folder.name}-{_sha256(options)[:12]}"
    record = recorded(
        kept, _sha256(options + listing), lambda: _decode(folder, kept, size, skip_bad)
    )
    if left_out := record["left_out"]:
        log.warning("data.root=%s: left out of the set: %s", root, _some(left_out))
    arrays = load(kept, record["sums"], memory_limit)
    train, test = (
        as_split(images, _labels(record["counts"][part])) for part, images in arrays.items()
    )
    digest = _sha256(json.dumps([record["classes"], record["counts"], record["sums"]]))
    mean = record["mean"] if mean is None else mean
    std = record["std"] if std is None else std
    about = (folder.name, tuple(record["classes"]), digest)
    return divided(train, test, *about, mean, std, val_fraction, split_seed)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _labels(counts: Sequence[int]) -> Tensor:
    """int64 [n], from how many images each class has: they lie class by class."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


# --- what there is ---


def _listing(root: Path) -> str:
    """All folders, and path, size and time of all files: 0.3 s for 60,000. Raises BadInput."""
    if not root.is_dir():
        raise BadInput(f"data.root={root}: there is no such folder")
    lines = []
    for folder, _, names in os.walk(root, followlinks=True):
        lines.append(folder)
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 (Path takes twice as long)
            try:
                found = os.stat(path)  # noqa: PTH116
                lines.append(f"{path}\0{found.st_size}\0{found.st_mtime_ns}")
            except OSError:  # a link to nothing
                lines.append(path)
    return "\n".join(sorted(lines))


class Found(NamedTuple):
    """The class names, and the files of both parts, class by class."""

    classes: list[str]
    train: list[File]
    test: list[File]


def _find(root: Path) -> Found:
    """Raises BadInput for a folder that is not laid out as a set."""
    train, test = root / "train", root / "test"
    if train.is_dir() and test.is_dir():
        classes, files = _files_of(train)
        test_classes, test_files = _files_of(test)
        if classes != test_classes:
            only = {
                "train": sorted(set(classes) - set(test_classes)),
                "test": sorted(set(test_classes) - set(classes)),
            }
            said = [f"{_some(names)} only in {part}/" for part, names in only.items() if names]
            raise BadInput(f"data.root={root}: the classes differ: {'; '.join(said)}")
        return Found(classes, files, test_files)
    classes, files = _files_of(root)
    parts: tuple[list[File], list[File]] = ([], [])
    seen = Counter[int]()
    for path, label in files:
        seen[label] += 1
        parts[seen[label] % 5 == 0].append((path, label))
    return Found(classes, *parts)


def _files_of(root: Path) -> tuple[list[str], list[File]]:
    """Class names, and files class by class, as torchvision finds them. Raises BadInput."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    try:
        classes, labels = find_classes(root)
    except FileNotFoundError:
        raise BadInput(f"data.root={root}: no folders in it; each class is to have one") from None
    if len(classes) == 1:
        raise BadInput(f"data.root={root}: one class only, {classes[0]}; two are the least")
    found = make_dataset(root, labels, extensions=IMG_EXTENSIONS, allow_empty=True)
    files = [(Path(path), label) for path, label in found]
    present = {label for _, label in files}
    empty = [name for name in classes if labels[name] not in present]
    if empty:
        endings = " ".join(IMG_EXTENSIONS)
        raise BadInput(f"data.root={root}: no image in {_some(empty)} (they end in {endings})")
    return classes, files


def _some(names: Sequence[str]) -> str:
    """The first three, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


# --- decoding ---


def _decode(root: Path, folder: Path, size: int | None, skip_bad: bool) -> Record:
    """Write the pixels of both parts into the folder, an image at a time, and tell about them.

    Raises BadInput for images that cannot be one set, DataError for files that are no images.
    """
    found = _find(root)
    log.info("data.root=%s: decoding %d images", root, len(found.train) + len(found.test))
    with replacing_array(folder, "train") as train, replacing_array(folder, "test") as test:
        form = common_form(root, found.train, found.test, size)
        parts = [
            write_images(path, files, len(found.classes), form)
            for path, files in ((train, found.train), (test, found.test))
        ]
        bad = {str(path.relative_to(root)): why for part in parts for path, why in part.bad.items()}
        if bad and not skip_bad:
            reasons = _some([f"{path} ({why})" for path, why in bad.items()])
            raise DataError(
                f"data.root={root}: no whole images: {reasons}; mend or remove them, or leave "
                "them out with data.skip_bad=true"
            )
        counts = [part.counts for part in parts]
        if 0 in counts[0] or not any(counts[1]):
            raise BadInput(
                f"data.root={root}: too few images; each class needs one to train on, and the test "
                "part, which is test/ or every fifth image of a class, needs one"
            )
        sums = {"train": sum_of(ArrayFile(train)), "test": sum_of(ArrayFile(test))}
    mean, std = mean_and_std(parts[0].histograms)
    return {
        "sums": sums,
        "classes": found.classes,
        "counts": dict(zip(sums, counts, strict=True)),
        "mean": mean,
        "std": std,
        "left_out": list(bad),
    }
