"""Anybody's images, in a folder for each class."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnist_exp.data.cache import DataError, Record, idx_header, load, recorded, sum_of
from mnist_exp.data.splits import Channels, Dataset, Split, divided, histograms, mean_and_std
from mnist_exp.errors import BadInput
from mnist_exp.files import replacing

log = logging.getLogger(__name__)

CHUNK = 64  # images that are decoded before they are written
SLICE = 16  # images that a thread takes at once: handing over costs as much as a small image

T = TypeVar("T")
File = tuple[Path, int]  # and its label


def image_folder(
    root: str,
    cache: str,
    size: int | None = None,
    mean: Channels = None,
    std: Channels = None,
    skip_bad: bool = False,
    val_fraction: float = 0.15,
    split_seed: int = 0,
) -> Dataset:
    """The images under `root`: in `train/<class>/` and `test/<class>/`, or all in `<class>/`.

    Without a test folder, every fifth image of a class is for the test, its files in sorted order.
    Files and classes are found as torchvision's ImageFolder finds them; grey where all training
    images are. With `size` all are resized to size×size, antialiased; without, they have to be of
    one size. Files that cannot be read are left out with `skip_bad`.

    Decoded once, and again when a file has come, gone or changed, which its size and time tell.
    60,000 JPEGs of 32×32 take twelve seconds on two cores, half of one after that. Raises BadInput
    and DataError.
    """
    folder = Path(root).absolute()
    listing = _listing(folder)
    options = f"{folder}\0{size}\0{skip_bad}"
    kept = Path(cache) / "image_folder" / f"{folder.name}-{_sha256(options)[:12]}"
    record = recorded(
        kept, _sha256(options + listing), lambda: _decode(folder, kept, size, skip_bad)
    )
    if left_out := record["left_out"]:
        log.warning("data.root=%s: left out %d files: %s", root, len(left_out), _some(left_out))
    tensors = load(kept, record["sums"], known="what was cached")
    train, test = (
        Split(images, _labels(record["counts"][part])) for part, images in tensors.items()
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
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,  # PIL lets others run while it decodes
        replacing(folder / "train") as train,
        replacing(folder / "test") as test,
    ):
        form = _form(root, found, size, pool)
        parts = [
            _write(path, files, len(found.classes), form, pool)
            for path, files in ((train, found.train), (test, found.test))
        ]
        bad = {str(path.relative_to(root)): why for part in parts for path, why in part.bad.items()}
        if bad and not skip_bad:
            reasons = _some([f"{path} ({why})" for path, why in bad.items()])
            raise DataError(
                f"data.root={root}: {len(bad)} files are no whole images: {reasons}; mend or "
                "remove them, or leave them out with data.skip_bad=true"
            )
        counts = [part.counts for part in parts]
        if 0 in counts[0] or not any(counts[1]):
            raise BadInput(
                f"data.root={root}: too few images; each class needs one to train on, and the test "
                "part, which is test/ or every fifth image of a class, needs one"
            )
        sums = {"train": sum_of(train), "test": sum_of(test)}
    mean, std = mean_and_std(parts[0].histograms)
    return {
        "sums": sums,
        "classes": found.classes,
        "counts": dict(zip(sums, counts, strict=True)),
        "mean": mean,
        "std": std,
        "left_out": list(bad),
    }


class Form(NamedTuple):
    """What all images of a set are made to be."""

    mode: str  # PIL's: L or RGB
    size: tuple[int, int]  # width, height

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        width, height = self.size
        return (1 if self.mode == "L" else 3), height, width


def _form(root: Path, found: Found, size: int | None, pool: ThreadPoolExecutor) -> Form:
    """From what the files say of themselves. Raises BadInput where their sizes differ."""
    paths = [path for path, _ in found.train + found.test]
    headers = dict(zip(paths, _each(_header, paths, pool), strict=True))
    good = {path: header for path, header in headers.items() if isinstance(header, Form)}
    modes = {good[path].mode for path, _ in found.train if path in good}
    mode = "L" if modes <= {"1", "L", "LA"} else "RGB"
    if size is not None:
        return Form(mode, (size, size))
    first_of = {header.size: path for path, header in reversed(good.items())}
    common = Counter(header.size for header in good.values()).most_common(2)
    if len(common) > 1:
        said = [f"{first_of[of].relative_to(root)} has {of[0]}×{of[1]}" for of, _ in common]
        raise BadInput(
            f"data.root={root}: images of {len(first_of)} sizes: {', '.join(said)}; "
            f"data.size={min(common[0][0])} makes them one"
        )
    return Form(mode, common[0][0] if common else (1, 1))


class Written(NamedTuple):
    """A part of the set that is on disk."""

    counts: list[int]  # images of each class
    histograms: NDArray[np.int64]  # of its bytes, [channels, 256]
    bad: dict[Path, str]  # files that are no whole images, and what they are


def _write(
    path: Path, files: Sequence[File], classes: int, form: Form, pool: ThreadPoolExecutor
) -> Written:
    """The IDX file of these images, uint8 [n, channels, height, width]."""
    counts, bad = [0] * classes, {}
    seen = np.zeros((form.shape[0], 256), np.int64)
    read = partial(_pixels, form=form)
    with path.open("wb") as file:
        file.write(idx_header((0, *form.shape)))
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            images = []
            decoded = _each(read, [source for source, _ in chunk], pool)
            for (source, label), pixels in zip(chunk, decoded, strict=True):
                if isinstance(pixels, str):
                    bad[source] = pixels
                else:
                    counts[label] += 1
                    images.append(pixels)
            if images:
                together = np.stack(images)
                seen += histograms(torch.from_numpy(together))
                file.write(together.data)
        file.seek(0)
        file.write(idx_header((sum(counts), *form.shape)))
    return Written(counts, seen, bad)


def _each(
    read: Callable[[Path], T], paths: Sequence[Path], pool: ThreadPoolExecutor
) -> Iterator[T | str]:
    """What is read from each file, or why it is no image in a few words."""
    from PIL import UnidentifiedImageError

    def attempt(path: Path) -> T | str:
        try:
            return read(path)
        except UnidentifiedImageError:
            return "no image"
        except Exception as error:  # there is no list of what a damaged file can raise
            return " ".join(str(error).split()) or type(error).__name__

    slices = [paths[start : start + SLICE] for start in range(0, len(paths), SLICE)]
    for some in pool.map(lambda paths: [attempt(path) for path in paths], slices):
        yield from some


def _header(path: Path) -> Form:
    """What the file says of its image; nothing is decoded."""
    from PIL import Image

    with Image.open(path) as image:
        if image.mode[0] in "IF":
            raise ValueError("more than 8 bits a pixel")
        return Form(image.mode, image.size)


def _pixels(path: Path, form: Form) -> NDArray[np.uint8]:
    """The image in this form, uint8 [channels, height, width]."""
    from PIL import Image

    with Image.open(path) as image:
        if image.mode[0] in "IF":
            raise ValueError("more than 8 bits a pixel")
        converted = image.convert(form.mode)
        if converted.size != form.size:
            converted = converted.resize(form.size, Image.Resampling.BILINEAR)
    pixels = np.asarray(converted).reshape(*reversed(form.size), -1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
