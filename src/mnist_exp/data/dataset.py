"""A data set: three splits of raw images, and what a model must know about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mnist_exp.data.splits import Split, Streamed, join, split_fold, split_off
from mnist_exp.errors import BadInput, sanitize

# For all channels, per channel, "imagenet", or None: computed.
Channels = float | Sequence[float] | str | None
Size = int | Sequence[int] | None  # of square images, [height, width], or None: as they are
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # red, green, blue


@dataclass(frozen=True)
class Kind:
    """What a model must know about the images of a set; it holds no images."""

    name: str
    image_shape: tuple[int, int, int]  # channels, height, width
    class_names: tuple[str, ...]  # by label
    mean: tuple[float, ...]  # of the training pixels, scaled to 0..1, by channel
    std: tuple[float, ...]
    digest: str  # SHA-256 of the checksums of the raw data
    fit: str = "stretch"  # or pad, crop: how files of another shape become such an image
    white: float | None = None  # in files of more than 8 bits; None: found from each

    def __post_init__(self) -> None:
        """Folders may have any name; pictures and MLflow need names that can be printed."""
        object.__setattr__(self, "name", sanitize(self.name))
        object.__setattr__(self, "class_names", tuple(map(sanitize, self.class_names)))

    @property
    def classes(self) -> int:
        return len(self.class_names)

    def check_digest(self, trained_on: str) -> None:
        """Raises BadInput if a run was trained on images of another digest."""
        if trained_on != self.digest:
            raise BadInput(
                f"data={self.name}: not the images that the run was trained on "
                f"(SHA-256 {trained_on[:12]}…, now {self.digest[:12]}…)"
            )

    def normalize(
        self,
        images: Tensor,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """uint8 images [n, channels, height, width] to normalized floats on the device.

        The operations and their order are those of torchvision's ToTensor and Normalize, so the
        values are equal bit for bit.
        """
        per_channel = torch.tensor([self.mean, self.std], dtype=dtype, device=device)
        mean, std = per_channel.view(2, 1, -1, 1, 1)
        floats = images.to(device).to(dtype, memory_format=memory_format)
        return floats.div_(255).sub_(mean).div_(std)


@dataclass(frozen=True)
class Dataset:
    """Three splits of raw uint8 images of one kind."""

    kind: Kind
    train: Split
    val: Split
    test: Split
    files: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)  # by part

    @property
    def sizes(self) -> dict[str, int]:
        """Images in each split."""
        return {"train": len(self.train), "val": len(self.val), "test": len(self.test)}

    def name_images(self, split: Split, part: str) -> tuple[str, list[str]]:
        """What each image of a raw split is called: by its "file", or its "index" in the part.

        part: "train" or "test"; validation images are from "train".
        """
        places = range(len(split)) if split.places is None else split.places.tolist()
        if part not in self.files:
            return "index", [*map(str, places)]
        return "file", [self.files[part][place] for place in places]

    def prepare(
        self,
        split: Split,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Split:
        """The split on the device as floats, normalized once instead of in every step.

        Costs four bytes per pixel instead of one (MNIST's training images: 160 MB), eight as
        float64, and saves three operations per step. Images on disk are normalized as they are
        read.
        """

        def normalize(split: Split) -> Split:
            images = self.kind.normalize(split.images, device, dtype, memory_format)
            return Split(images, split.labels.to(device))

        if isinstance(split, Streamed):
            return replace(split, labels=split.labels.to(device), finish=normalize)
        return normalize(split)


def width_and_height(size: Size) -> tuple[int, int] | None:
    """The size as Pillow has it."""
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return width, height


def take_fold(dataset: Dataset, folds: int, fold: int, seed: int) -> Dataset:
    """The data set, with one of `folds` parts of its non-test images for validation.

    Raises BadInput as `split_fold` does.
    """
    whole = join(dataset.train, dataset.val) if len(dataset.val) else dataset.train
    train, val = split_fold(whole, folds, fold, seed)
    return replace(dataset, train=train, val=val)


def split_dataset(
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
    """The data set, with a validation split taken from its training images.

    mean, std: computed from the training images if None; "imagenet" is ImageNet's. Raises
    ValueError if one does not have as many channels as the images.
    """
    if mean is None or std is None:
        found_mean, found_std = compute_mean_and_std(train)
        mean = found_mean if mean is None else mean
        std = found_std if std is None else std
    if train.places is None:
        train = replace(train, places=torch.arange(len(train)))
    channels, height, width = train.images.shape[1:]
    means, stds = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
    rest, val = split_off(train, val_fraction, split_seed)
    kind = Kind(name, (channels, height, width), class_names, means, stds, digest)
    return Dataset(kind, rest, val, test)


def _per_channel(
    name: str, value: float | Sequence[float] | str, channels: int
) -> tuple[float, ...]:
    if isinstance(value, str):  # "imagenet"; for gray images the mean of the three colors
        colors = IMAGENET[name]
        return colors if channels == 3 else (sum(colors) / 3,) * channels
    values = (value,) * channels if isinstance(value, int | float) else tuple(value)
    if len(values) != channels:
        raise ValueError(f"{name} has {len(values)} numbers, the images have {channels} channels")
    return values


def compute_mean_and_std(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images, scaled to 0..1.

    The sums are exact integers, from how often each byte occurs in a channel, so the result is the
    same on every machine. A channel with a single value gets the deviation 1, which is safe to
    divide by.
    """
    counts = np.zeros((split.images.shape[1], 256), np.int64)
    for batch in split.batches(slice(n, n + 256) for n in range(0, len(split), 256)):
        for channel, pixels in zip(counts, batch.images.numpy().swapaxes(0, 1), strict=True):
            channel += np.bincount(pixels.reshape(-1), minlength=256)
    means, stds = [], []
    for times in counts.tolist():
        count = sum(times)
        total = sum(byte * n for byte, n in enumerate(times))
        squares = sum(byte**2 * n for byte, n in enumerate(times))
        means.append(total / count / 255)
        stds.append(math.sqrt(count * squares - total**2) / count / 255 or 1.0)
    return tuple(means), tuple(stds)
