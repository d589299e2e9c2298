"""The plain types of the data room: images and labels in memory, or on their way there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mnist_exp.data.rows import Rows
from mnist_exp.errors import BadInput

AHEAD = 2**20  # values of images, 4 MB as float32, that are read while as many are used


@dataclass(frozen=True)
class Split:
    """Images and their labels, in step with each other.

    images: uint8 or floats [n, channels, height, width]; labels: int64 [n].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Split:
        return Split(self.images[index], self.labels[index])

    def chunk(self, parts: int) -> list[Split]:
        """At most so many parts of about equal size."""
        both = zip(self.images.chunk(parts), self.labels.chunk(parts), strict=True)
        return [Split(images, labels) for images, labels in both]

    def batches(self, order: Iterable[Tensor | slice]) -> Iterator[Split]:
        """What lies at each of these places, one batch after the other."""
        for index in order:
            yield self[index]


def unchanged(split: Split) -> Split:
    return split


@dataclass(frozen=True)
class Streamed(Split):
    """A split of which the images are on disk: only its batches have tensors.

    finish: what is to be done to each part of it that was read.
    """

    images: Rows  # type: ignore[assignment] # of which the shape, the device and an index are known
    finish: Callable[[Split], Split] = unchanged

    def __getitem__(self, index: Tensor | slice) -> Streamed:
        return replace(self, images=self.images[index], labels=self.labels[index])

    def batches(self, order: Iterable[Tensor | slice]) -> Iterator[Split]:
        """What lies at each of these places, one batch after the other.

        A thread reads and finishes some batches ahead, and is gone when the iterator is.
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
            for following in [*parts[1:], []]:
                batches = iter(ahead.result())
                ahead = thread.submit(self._read, following)
                yield from batches

    def _read(self, places: list[Tensor]) -> list[Split]:
        """A batch for each of these, all read at once."""
        if not places:
            return []
        index, sizes = torch.cat(places), [len(batch) for batch in places]
        whole = self.finish(Split(self.images[index].read(), self.labels[index]))
        both = zip(whole.images.split(sizes), whole.labels.split(sizes), strict=True)
        return [Split(images, labels) for images, labels in both]


def as_split(images: Tensor | Rows, labels: Tensor) -> Split:
    return Streamed(images, labels) if isinstance(images, Rows) else Split(images, labels)


def split_off(whole: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Divide a split at random into the rest and `fraction` of it, a function of `seed` alone.

    With a fraction of 0, the rest is everything, in its own order. Raises BadInput where otherwise
    one of the two would be empty.
    """
    if fraction == 0:
        return whole, whole[:0]
    count = round(len(whole) * fraction)
    if not 0 < count < len(whole):
        raise BadInput(
            f"data.val_fraction={fraction}: of {len(whole)} images it leaves "
            f"{len(whole) - count} to train on and {count} to validate with"
        )
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
    return whole[order[count:]], whole[order[:count]]
