"""Images with labels, in memory or read from disk ahead of their use."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import read_array_header_1_0, read_magic
from torch import Tensor

from mnist_exp.errors import BadInput

AHEAD = 2**20  # values that are read ahead: 4 MB as float32


@dataclass(frozen=True)
class Split:
    """Images and their labels, in the same order.

    images: uint8 or floats [n, channels, height, width]; labels: int64 [n]. places: where each
    image was in its data set's training or test part, int64 [n]; None if not needed.
    """

    images: Tensor
    labels: Tensor
    places: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Split:
        places = None if self.places is None else self.places[index]
        return replace(self, images=self.images[index], labels=self.labels[index], places=places)

    def chunk(self, parts: int) -> list[Split]:
        """At most `parts` parts of about equal size."""
        both = zip(self.images.chunk(parts), self.labels.chunk(parts), strict=True)
        return [Split(images, labels) for images, labels in both]

    def batches(self, order: Iterable[Tensor | slice]) -> Iterator[Split]:
        """A batch for each index of the order."""
        for index in order:
            yield self[index]


class ArrayFile:
    """A .npy file of uint8 values in C order, of which single rows can be read.

    shape: that of the array, with a channel for images [n, height, width].

    It stays open, so that nobody can replace it. Not mapped into memory: mapped pages would count
    as this process's memory, and a page fault for each image costs more than a read.
    Raises ValueError for any other file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.open("rb")
        weakref.finalize(self, self.file.close)
        try:
            version = read_magic(self.file)
            self.raw_shape, fortran_order, dtype = read_array_header_1_0(self.file)
        except Exception as error:  # a damaged header can raise whatever Python's parser raises
            raise ValueError("no header of a .npy file") from error
        self.start = self.file.tell()
        sizes = all(type(size) is int and size >= 0 for size in self.raw_shape)
        if version != (1, 0) or fortran_order or dtype != np.uint8 or not sizes:
            raise ValueError("not an array of bytes in C order")
        if self.start + math.prod(self.raw_shape) != path.stat().st_size:
            raise ValueError("another size than in its header")
        count, *rest = self.raw_shape
        self.shape = (count, 1, *rest) if len(rest) == 2 else self.raw_shape

    def blocks(self) -> Iterator[bytes]:
        """All values, a megabyte at a time."""
        self.file.seek(self.start)
        while block := self.file.read(2**20):
            yield block

    def read(self, places: Tensor) -> Tensor:
        """The rows at int64 [n]. Other threads run meanwhile. Raises OSError."""
        rows = np.empty((len(places), *self.shape[1:]), np.uint8)
        for row, place in zip(rows, places.tolist(), strict=True):
            start = self.start + place * row.size
            if os.preadv(self.file.fileno(), [row], start) != row.size:
                raise OSError(f"{self.path} has become shorter")
        return torch.from_numpy(rows)


@dataclass(frozen=True)
class Streamed(Split):
    """A split whose images stay on disk, at `places` in a file: only its batches are tensors.

    finish: applied to each part after it was read.
    """

    images: ArrayFile  # type: ignore[assignment]
    places: Tensor
    finish: Callable[[Split], Split] = lambda split: split

    def __getitem__(self, index: Tensor | slice) -> Streamed:
        return replace(self, labels=self.labels[index], places=self.places[index])

    def batches(self, order: Iterable[Tensor | slice]) -> Iterator[Split]:
        """A batch for each index of the order.

        A thread reads some batches ahead and finishes them. It ends with the iterator.
        """
        every = torch.arange(len(self))
        places = [every[index.cpu() if isinstance(index, Tensor) else index] for index in order]
        if not places:
            return
        values = math.prod((len(places[0]), *self.images.shape[1:]))
        several = max(1, AHEAD // max(1, values))
        parts = [places[start : start + several] for start in range(0, len(places), several)]
        with ThreadPoolExecutor(1, "reads-ahead") as thread:
            ahead = thread.submit(self._read, parts[0])
            for following in parts[1:]:
                batches = iter(ahead.result())
                ahead = thread.submit(self._read, following)
                yield from batches
            yield from ahead.result()

    def _read(self, places: list[Tensor]) -> list[Split]:
        """A batch for each index, all of them read at once."""
        index, sizes = torch.cat(places), [len(batch) for batch in places]
        images = self.images.read(self.places[index])
        whole = self.finish(Split(images, self.labels[index]))
        both = zip(whole.images.split(sizes), whole.labels.split(sizes), strict=True)
        return [Split(images, labels) for images, labels in both]


def make_split(images: Tensor | ArrayFile, labels: Tensor) -> Split:
    """images: uint8 [n, channels, height, width], or [n, height, width]; labels: integers [n]."""
    labels, places = labels.long(), torch.arange(len(labels))
    if isinstance(images, ArrayFile):
        return Streamed(images, labels, places)
    return Split(images if images.ndim == 4 else images.unsqueeze(1), labels, places)


def split_off(whole: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split at random into the rest and `fraction` of the whole; depends on `seed` alone.

    With a fraction of 0 the rest is the whole, in its order. Raises BadInput if a part would
    otherwise be empty.
    """
    if fraction == 0:
        return whole, whole[:0]
    count = round(len(whole) * fraction)
    check_parts(fraction, len(whole) - count, count)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
    return whole[order[count:]], whole[order[:count]]


def split_by_class(whole: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split into the rest and about `fraction` of each class, by `seed` and the labels alone.

    A class of two or more images is in both parts, unless the fraction is 0. The first images of
    a part, however many, have each class in proportion. Raises BadInput if a part would be empty.
    """
    rest, taken = [], []
    for images in shuffle_classes(whole.labels, seed):
        count = min(max(round(len(images) * fraction), 1), len(images) - 1) if fraction else 0
        rest.append(images[: len(images) - count])
        taken.append(images[len(images) - count :])
    parts = whole[interleave(rest)], whole[interleave(taken)]
    if fraction:
        check_parts(fraction, *map(len, parts))
    return parts


def check_parts(fraction: float, rest: int, taken: int) -> None:
    """Raises BadInput for a fraction that leaves nothing for training or for validation."""
    if not (rest and taken):
        raise BadInput(
            f"data.val_fraction={fraction}: of {rest + taken} images this leaves {rest} for "
            f"training and {taken} for validation"
        )


def join(first: Split, second: Split) -> Split:
    """Both, in this order. Images on disk must be in one file."""
    labels, places = torch.cat([first.labels, second.labels]), None
    if first.places is not None and second.places is not None:
        places = torch.cat([first.places, second.places])
    in_file = isinstance(first, Streamed)
    images = first.images if in_file else torch.cat([first.images, second.images])
    return replace(first, images=images, labels=labels, places=places)


def split_fold(whole: Split, folds: int, fold: int, seed: int) -> tuple[Split, Split]:
    """Split for cross-validation: all but one of `folds` parts, and that one, by `seed` and labels.

    The parts differ by at most one image, in total and of each class. Raises BadInput for fewer
    images than folds, and for a fold that does not exist.
    """
    if len(whole) < folds:
        raise BadInput(f"data.folds={folds}: there are only {len(whole)} training images")
    if not 0 <= fold < folds:
        raise BadInput(f"data.fold={fold}: must be from 0 to {folds - 1} with data.folds={folds}")
    classes = shuffle_classes(whole.labels, seed)
    parts = (torch.arange(len(whole)) % folds).split([len(images) for images in classes])
    both = list(zip(classes, parts, strict=True))
    rest = [images[part != fold] for images, part in both]
    return whole[interleave(rest)], whole[interleave([i[part == fold] for i, part in both])]


def shuffle_classes(labels: Tensor, seed: int) -> list[Tensor]:
    """Where the images of each class are, in a random order: int64 [n of the class] each."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return [order[labels[order] == label] for label in labels.unique()]


def interleave(classes: Sequence[Tensor]) -> Tensor:
    """One order of them all, whose first images, however many, have each class in proportion."""
    shares = [torch.arange(len(images)) / len(images) for images in classes]
    return torch.cat(list(classes))[torch.cat(shares).argsort(stable=True)]
