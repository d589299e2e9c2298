"""Any classification set of torchvision.datasets, by its name."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset

from mnist_exp.data.cache import DataError, Record, ensure_record, hash_text, load, save
from mnist_exp.data.dataset import Channels, Dataset, Size, split_dataset, width_and_height
from mnist_exp.data.sources import silence_download
from mnist_exp.data.splits import make_split
from mnist_exp.errors import BadInput, did_you_mean, one_line
from mnist_exp.paths import expand

log = logging.getLogger(__name__)

# The argument that chooses the training or the test images, and its values to try for each.
PARTS: dict[str, tuple[list[Any], list[Any]]] = {
    "train": ([True], [False]),
    "split": (["train", "trainval"], ["test", "val", "valid"]),
}
OURS = {"self", "kwargs", "root", "download", "transform", "target_transform", "transforms"}
BYTES = torch.tensor([1, 256])  # of a label, which has 16 bits
TIMEOUT = 15  # seconds that a server may stay silent


def torchvision_set(
    name: str,
    root: str,
    cache: str,
    options: Mapping[str, Any] | None = None,
    size: Size = None,
    mean: Channels = None,
    std: Channels = None,
    val_fraction: float = 0.15,
    split_seed: int = 0,
    memory_limit: float = 8.0,
) -> Dataset:
    """A set of torchvision.datasets that gives images and the number of their class.

    root: the folder that torchvision reads, or downloads to; it checks the checksums that it knows.
    options: other arguments of the set's class. size: for a set whose images differ in size. If a
    set has no test part, every fifth image is a test image. A set is decoded in memory.

    Raises ValueError for an unknown name or option, BadInput for a set of another kind or of
    several sizes, and DataError if torchvision cannot load it.
    """
    key = json.dumps([name, str(expand(root)), dict(options or {}), size], default=str)
    folder = expand(cache) / "torchvision" / f"{name}-{hash_text(key)[:12]}"
    record = ensure_record(folder, key, lambda: _decode(folder, name, root, options or {}, size))
    arrays = load(folder, record["sums"], memory_limit)
    train, test = (
        make_split(arrays[f"{part}-images"], arrays[f"{part}-labels"].long() @ BYTES)
        for part in ("train", "test")
    )
    digest = hash_text(json.dumps([record["classes"], record["sums"]]))
    about = (name.lower(), tuple(record["classes"]), digest)
    return split_dataset(train, test, *about, mean, std, val_fraction, split_seed)


def _decode(folder: Path, name: str, root: str, options: Mapping[str, Any], size: Size) -> Record:
    """Write the set's arrays into the folder; returns their record."""
    parts = _open_parts(name, root, options)
    whole, count = ConcatDataset[Any](parts), len(parts[0])
    log.info("data.name=%s: decoding %d images", name, len(whole))
    images, labels = _read(name, whole, size, count)
    is_fifth = np.arange(count) % 5 == 4
    train, test = (~is_fifth, is_fifth) if len(parts) == 1 else (slice(count), slice(count, None))
    arrays = {"train-images": images[train], "train-labels": labels[train]}
    arrays |= {"test-images": images[test], "test-labels": labels[test]}
    numbers = range(1 + int(labels.view("<u2").max()))
    return {
        **save(folder, arrays),
        "classes": list(map(str, getattr(parts[0], "classes", numbers))),
    }


def _open_parts(name: str, root: str, options: Mapping[str, Any]) -> list[Any]:
    """torchvision's objects for the training and test images, or one if they are not divided."""
    from torchvision import datasets  # over a second to import

    if name not in datasets.__all__:
        near = did_you_mean(name, datasets.__all__, cutoff=0)
        raise ValueError(f"torchvision has no such data set{near}")
    kind, known = getattr(datasets, name), set[str]()
    for base in kind.__mro__:
        found = inspect.signature(base.__init__).parameters.keys()
        known |= found
        if "kwargs" not in found:  # it passes no arguments on to the next class
            break
    argument = next((argument for argument in PARTS if argument in known), None)
    others = sorted(known - OURS - {argument})
    for option in options:
        if option not in others:
            raise ValueError(f"has no option {option}; it has {', '.join(others) or 'none'}")
    make = partial(kind, **options, **({"root": expand(root)} if "root" in known else {}))
    can_download = "download" in known
    if argument is None:
        return [_open(make, name, root, can_download)]

    def open_first(values: list[Any]) -> Any:
        """The part for the first of these values that the class accepts."""
        for value in values:
            try:
                return _open(partial(make, **{argument: value}), name, root, can_download)
            except ValueError as error:
                if value == values[-1] or not str(error).startswith("Unknown value"):
                    raise

    return [open_first(values) for values in PARTS[argument]]


def _open(make: Callable[..., Any], name: str, root: str, can_download: bool) -> Any:
    """torchvision's object, from the files under root or else from a download."""
    try:
        return make()
    except (ImportError, TypeError, ValueError):  # a package, an argument, a value
        raise
    except Exception as error:  # whatever its class raises without the files
        reason = one_line(error)
    if can_download:
        log.info("data.name=%s: not under %s; downloading", name, root)
        try:
            with silence_download(TIMEOUT):
                return make(download=True)
        except Exception as error:
            reason = f"no files, and the download failed ({one_line(error)})"
    raise DataError(f"data.name={name}: {reason}; put torchvision's files into data.root={root}")


def _read(
    name: str, whole: Any, size: Size, train_count: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images [n, channels, height, width], and the two bytes of their labels [n, 2].

    train_count: how many of the first images are to train on; if these are gray, all become gray.
    Raises BadInput.
    """
    from PIL import Image

    from mnist_exp.data.decoding import Form, common_mode, to_form

    modes, sizes, labels = [], set(), np.empty(len(whole), "<u2")
    for number in range(len(whole)):
        image, label = whole[number]
        if not isinstance(image, Image.Image) or not isinstance(label, int | np.integer):
            raise BadInput(f"data.name={name}: it does not give images with one class each")
        labels[number] = label
        modes.append(image.mode)
        sizes.add(image.size)
    if size is None and len(sizes) > 1:
        raise BadInput(
            f"data.name={name}: images of {len(sizes)} sizes; data.size=N makes them one"
        )
    form = Form(common_mode(modes[:train_count]), width_and_height(size) or sizes.pop(), "pad")
    images = np.empty((len(whole), *form.shape), np.uint8)
    for number, row in enumerate(images):
        row[:] = to_form(whole[number][0], form)
    return images, labels.view(np.uint8).reshape(-1, 2)
