"""Images that stay on disk: an index selects some, and their pixels are read when needed."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import read_array_header_1_0, read_magic
from torch import Tensor

CPU = torch.device("cpu")


class ArrayFile:
    """A .npy file of uint8 values in C order, of which single rows can be read.

    It stays open, so that nobody can replace it. Not mapped into memory: mapped pages would count
    as this process's memory, and a page fault for each image costs more than a read.
    Raises ValueError for any other file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.open("rb")
        weakref.finalize(self, self.file.close)
        if read_magic(self.file) != (1, 0):
            raise ValueError("another version of .npy")
        self.shape, fortran_order, dtype = read_array_header_1_0(self.file)
        if fortran_order or dtype != np.uint8:
            raise ValueError("not an array of bytes in C order")
        self.start = self.file.tell()

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


@dataclass(frozen=True, eq=False)
class Rows:
    """Some of the images in a file, in some order. An index selects, and reads nothing."""

    file: ArrayFile  # [n, channels, height, width], or gray images [n, height, width]
    places: Tensor  # int64 [n]
    device: torch.device = CPU  # where the images go once they are read

    ndim = 4

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, channels, height, width]"""
        _, *channels, height, width = self.file.shape
        return (len(self.places), *(channels or [1]), height, width)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Tensor | slice) -> Rows:
        return replace(self, places=self.places[index])

    def read(self) -> Tensor:
        """uint8 [n, channels, height, width]."""
        return self.file.read(self.places).view(self.shape)


def select_all(file: ArrayFile) -> Rows:
    return Rows(file, torch.arange(file.shape[0]))
