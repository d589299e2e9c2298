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
from mnist_exp.errors import BadInput, sanitize

Channels = float | Sequence[float] | None  # for all channels, for each; or still to be found


@dataclass(frozen=True)
class Kind:
    """What a model has to know about the images of a set, without any of them."""

    name: str
    image_shape: tuple[int, int, int]  # channels, height and width
    class_names: tuple[str, ...]  # by label
    mean: tuple[float, ...]  # of the training pixels, scaled to 0..1, by channel
    std: tuple[float, ...]
    digest: str  # SHA-256 over the raw data's own sums

    def __post_init__(self) -> None:
        """Folders may be called anything: pictures and MLflow get names that can be printed."""
        object.__setattr__(self, "name", sanitize(self.name))
        object.__setattr__(self, "class_names", tuple(map(sanitize, self.class_names)))

    @property
    def classes(self) -> int:
        return len(self.class_names)

    def check_digest(self, trained_on: str) -> None:
        """Raises BadInput where a run has trained on other images, whose digest this is."""
        if trained_on != self.digest:
            raise BadInput(
                f"data={self.name}: not the images that the run has trained on "
                f"(SHA-256 {trained_on[:12]}…, now {self.digest[:12]}…)"
            )

    def normalised(
        self,
        images: Tensor,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """uint8 images [n, channels, height, width] as floats, by ToTensor + Normalize.

        The same operations in the same order as torchvision's, so the values are equal bit for bit.
        """
        by_channel = torch.tensor([self.mean, self.std], dtype=dtype, device=device)
        mean, std = by_channel.view(2, 1, -1, 1, 1)
        floats = images.to(device).to(dtype, memory_format=memory_format)
        return floats.div_(255).sub_(mean).div_(std)


@dataclass(frozen=True)
class Dataset:
    """Three splits of raw uint8 images of one kind."""

    kind: Kind
    train: Split
    val: Split
    test: Split

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
        """The split on the device as floats, normalised once and for all.

        Costs four bytes a pixel instead of one (MNIST's training images: 160 MB), eight as float64,
        and saves three operations from every step. A split that is on disk is normalised part by
        part, when each is read.
        """

        def normalised(split: Split) -> Split:
            images = self.kind.normalised(split.images, device, dtype, memory_format)
            return Split(images, split.labels.to(device))

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
    channels, height, width = train.images.shape[1:]
    means, stds = _for_each("mean", mean, channels), _for_each("std", std, channels)
    rest, val = split_off(train, val_fraction, split_seed)
    kind = Kind(name, (channels, height, width), class_names, means, stds, digest)
    return Dataset(kind, rest, val, test)


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
