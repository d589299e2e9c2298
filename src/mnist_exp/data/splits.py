"""Images with labels, in memory or read from disk ahead of their use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mnist_exp.data.rows import Rows
from mnist_exp.errors import BadInput

AHEAD = 2**20  # values that are read ahead: 4 MB as float32


@dataclass(frozen=True)
class Split:
    """Images and their labels, in the same order.

    images: uint8 or floats [n, channels, height, width]; labels: int64 [n].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Split:
        return Split(self.images[index], self.labels[index])

    def chunk(self, parts: int) -> list[Split]:
        """At most `parts` parts of about equal size."""
        both = zip(self.images.chunk(parts), self.labels.chunk(parts), strict=True)
        return [Split(images, labels) for images, labels in both]

    def batches(self, order: Iterable[Tensor | slice]) -> Iterator[Split]:
        """A batch for each index of the order."""
        for index in order:
            yield self[index]


def identity(split: Split) -> Split:
    return split


@dataclass(frozen=True)
class Streamed(Split):
    """A split whose images stay on disk: only its batches are tensors.

    finish: applied to each part after it was read.
    """

    images: Rows  # type: ignore[assignment] # has a shape, a device, and an index
    finish: Callable[[Split], Split] = identity

    def __getitem__(self, index: Tensor | slice) -> Streamed:
        return replace(self, images=self.images[index], labels=self.labels[index])

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
            for following in [*parts[1:], []]:
                batches = iter(ahead.result())
                ahead = thread.submit(self._read, following)
                yield from batches

    def _read(self, places: list[Tensor]) -> list[Split]:
        """A batch for each index, all of them read at once."""
        if not places:
            return []
        index, sizes = torch.cat(places), [len(batch) for batch in places]
        whole = self.finish(Split(self.images[index].read(), self.labels[index]))
        both = zip(whole.images.split(sizes), whole.labels.split(sizes), strict=True)
        return [Split(images, labels) for images, labels in both]


def make_split(images: Tensor | Rows, labels: Tensor) -> Split:
    return Streamed(images, labels) if isinstance(images, Rows) else Split(images, labels)


def split_off(whole: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split at random into the rest and `fraction` of the whole; depends on `seed` alone.

    With a fraction of 0 the rest is the whole, in its order. Raises BadInput if a part would
    otherwise be empty.
    """
    if fraction == 0:
        return whole, whole[:0]
    count = round(len(whole) * fraction)
    if not 0 < count < len(whole):
        raise BadInput(
            f"data.val_fraction={fraction}: of {len(whole)} images this leaves "
            f"{len(whole) - count} for training and {count} for validation"
        )
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
    return whole[order[count:]], whole[order[:count]]
