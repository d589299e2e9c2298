"""Images that stay on disk: which there are is known, the pixels are read as they are needed."""

from __future__ import annotations

import os
import struct
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CPU = torch.device("cpu")


class ImageFile:
    """An IDX file of uint8 [n, channels, height, width], or of grey images without channels.

    It stays open, so that nobody can put another in its place. Not mapped: mapped pages would count
    as this process's memory, and a page fault for each image costs more than a read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.descriptor = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        dimensions = os.pread(self.descriptor, 4, 0)[3]
        self.start = 4 + 4 * dimensions
        sizes = struct.unpack(f">{dimensions}I", os.pread(self.descriptor, 4 * dimensions, 4))
        self.count, *channels, height, width = sizes
        self.image_shape = (*(channels or [1]), height, width)

    def read(self, places: Tensor) -> Tensor:
        """The images at int64 [n]. Other threads run meanwhile. Raises OSError."""
        images = np.empty((len(places), *self.image_shape), np.uint8)
        for image, place in zip(images, places.tolist(), strict=True):
            start = self.start + place * image.size
            if os.preadv(self.descriptor, [image], start) != image.size:
                raise OSError(f"{self.path} has become shorter")
        return torch.from_numpy(images)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some of the images in a file, in some order. An index chooses, and reads nothing."""

    file: ImageFile
    places: Tensor  # int64 [n]
    device: torch.device = CPU  # where they go once they are read

    ndim = 4

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.places), *self.file.image_shape)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Tensor | slice) -> Rows:
        return replace(self, places=self.places[index])

    def read(self) -> Tensor:
        """uint8 [n, channels, height, width]."""
        return self.file.read(self.places)


def rows_of(path: Path) -> Rows:
    """All images of an IDX file."""
    file = ImageFile(path)
    return Rows(file, torch.arange(file.count))
