"""A data set: three splits of raw images, and what a model has to know about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnist_exp.data.rows import Rows
from mnist_exp.data.splits import Split, Streamed, split_off

Channels = float | Sequence[float] | None  # for all channels, for each; or still to be found


@dataclass(frozen=True)
class Dataset:
    """Three splits of raw uint8 images, and what a model has to know about them."""

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]  # by label
    mean: tuple[float, ...]  # of the training pixels, scaled to 0..1, by channel
    std: tuple[float, ...]
    digest: str  # SHA-256 over the raw data's own sums

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def sizes(self) -> dict[str, int]:
        """Images in each split."""
        return {"train": len(self.train), "val": len(self.val), "test": len(self.test)}

    def prepare(
        self,
        split: Split,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Split:
        """The split on the device as floats, with ToTensor + Normalize applied once to all of it.

        The same operations in the same order as torchvision's, so the values are equal bit for
        bit. Costs four bytes a pixel instead of one (MNIST's training images: 160 MB), eight as
        float64, and saves the three operations from every step. Of a split that is on disk, it is
        applied to each part when that is read.
        """
        by_channel = torch.tensor([self.mean, self.std], dtype=dtype, device=device)
        mean, std = by_channel.view(2, 1, -1, 1, 1)

        def normalised(split: Split) -> Split:
            images = split.images.to(device).to(dtype, memory_format=memory_format).div_(255)
            return Split(images.sub_(mean).div_(std), split.labels.to(device))

        if isinstance(split, Streamed):
            rows = replace(split.images, device=device)
            return Streamed(rows, split.labels.to(device), normalised)
        return normalised(split)


def divided(
    train: Split,
    test: Split,
    name: str,
    class_names: tuple[str, ...],
    digest: str,
    mean: Channels,
    std: Channels,
    val_fraction: float,
    split_seed: int,
) -> Dataset:
    """The whole set, with a validation split taken from its training images.

    Raises ValueError where mean or std has another number of channels than the images.
    """
    if mean is None or std is None:
        found_mean, found_std = mean_and_std(histograms(train.images))
        mean = found_mean if mean is None else mean
        std = found_std if std is None else std
    channels = train.images.shape[1]
    means, stds = _for_each("mean", mean, channels), _for_each("std", std, channels)
    rest, val = split_off(train, val_fraction, split_seed)
    return Dataset(name, rest, val, test, class_names, means, stds, digest)


def _for_each(name: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * channels
    if len(values) != channels:
        raise ValueError(f"{name} has {len(values)} numbers, the images have {channels} channels")
    return values


def histograms(images: Tensor | Rows) -> NDArray[np.int64]:
    """How often each byte is in each channel of uint8 images, [channels, 256].

    By numpy, because torch's threads wait for each other where others decode.
    """
    counts = np.zeros((images.shape[1], 256), np.int64)
    for start in range(0, len(images), 256):
        some = images[start : start + 256]
        read = some.read() if isinstance(some, Rows) else some
        for channel, pixels in zip(counts, read.numpy().swapaxes(0, 1), strict=True):
            channel += np.bincount(pixels.reshape(-1), minlength=256)
    return counts


def mean_and_std(histograms: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of bytes scaled to 0..1, from how often each is in each channel.

    From exact integer sums, so the same on every machine. The deviation of a channel that has one
    value only is 1, so that there is nothing to divide by.
    """
    means, stds = [], []
    for counts in histograms.tolist():
        count = sum(counts)
        total = sum(byte * times for byte, times in enumerate(counts))
        squares = sum(byte**2 * times for byte, times in enumerate(counts))
        means.append(total / count / 255)
        stds.append(math.sqrt(count * squares - total**2) / count / 255 or 1.0)
    return tuple(means), tuple(stds)
