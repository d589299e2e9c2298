"""The published sets. `data=` chooses one; call it with plain arguments to get a `Dataset`.

The files come from the sources of `sources.fetch`, are decoded once, and kept in a folder of
`cache`. `mean` and `std` are those of the training pixels, scaled to 0..1: for all channels, or per
channel; None: computed. Above `memory_limit` GB the images stay on disk, see `cache.load`.
All raise DataError for other bytes than the published ones, and when no source has the set.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnist_exp.data.cache import Arrays, Files, load_or_make, unzip, verify
from mnist_exp.data.dataset import Channels, Dataset, split_dataset
from mnist_exp.data.idx import idx_decode, idx_encode
from mnist_exp.data.published import CIFAR10, DIGITS, FASHION_MNIST, KMNIST, MNIST
from mnist_exp.data.rows import Rows
from mnist_exp.data.sources import RawSet, fetch
from mnist_exp.data.splits import Split, make_split


@dataclass(frozen=True)
class Published:
    """A set whose files were published. Call it to get the set, from the cache or its sources.

    decode: from published files to arrays: training images, their labels, test images, their
    labels.
    """

    name: str
    raw_set: RawSet
    decode: Callable[[Files], Arrays]

    def __call__(
        self,
        root: str,
        cache: str,
        mean: Channels,
        std: Channels,
        mirrors: Sequence[str] | None = None,
        val_fraction: float = 0.15,
        split_seed: int = 0,
        memory_limit: float = 8.0,
    ) -> Dataset:
        folder, raw_set = Path(cache) / self.name, self.raw_set

        def make() -> Arrays:
            return self.decode(fetch(raw_set, Path(root), mirrors))

        arrays = load_or_make(folder, hash_sums(raw_set), make, memory_limit)
        images, labels, test_images, test_labels = arrays.values()
        train, test = _split(images, labels), _split(test_images, test_labels)
        about = (self.name, raw_set.classes, hash_sums(raw_set))
        return split_dataset(train, test, *about, mean, std, val_fraction, split_seed)


def _decode_idx(files: Files) -> Arrays:
    return {name: idx_decode(raw) for name, raw in files.items()}


def _decode_gzipped_idx(files: Files) -> Arrays:
    return {name.removesuffix(".gz"): idx_decode(unzip(raw)) for name, raw in files.items()}


def _decode_batches(batches: Files) -> Arrays:
    """CIFAR's pickles, whose images are rows of red, green, and blue planes.

    A pickle can run code. These are known to be the published ones: `fetch` checked their MD5, and
    nobody can make other bytes that have the MD5 of given ones.
    """
    *train, test = (pickle.loads(batch, encoding="bytes") for batch in batches.values())
    arrays: Arrays = {}
    for part, some in (("train", train), ("test", [test])):
        images = np.concatenate([batch[b"data"] for batch in some])
        arrays[f"{part}-images"] = images.reshape(-1, 3, 32, 32)
        labels = np.concatenate([batch[b"labels"] for batch in some])
        arrays[f"{part}-labels"] = labels.astype(np.uint8)
    return arrays


# LeCun, Cortes and Burges, 1998: 60,000 + 10,000 gray images of 28×28, ten digits.
mnist = Published("mnist", MNIST, _decode_idx)

# Xiao, Rasul and Vollgraf, 2017: ten kinds of clothes, in MNIST's format.
fashion_mnist = Published("fashion_mnist", FASHION_MNIST, _decode_idx)

# Clanuwat et al., 2018: ten cursive Japanese letters, in MNIST's format.
kmnist = Published("kmnist", KMNIST, _decode_gzipped_idx)

# Krizhevsky, 2009: 50,000 + 10,000 color images of 32×32, ten kinds of things.
cifar10 = Published("cifar10", CIFAR10, _decode_batches)


def digits(
    cache: str,
    mean: Channels,
    std: Channels,
    val_fraction: float = 0.15,
    split_seed: int = 0,
    memory_limit: float = 8.0,
) -> Dataset:
    """scikit-learn's 1,797 digits of 8×8 (Alpaydin and Kaynak, 1998), scaled to bytes.

    The set has no official test part; every fifth image is a test image here.
    """
    folder, key = Path(cache) / "digits", hash_sums(DIGITS)
    arrays = load_or_make(folder, key, _read_digits, memory_limit)
    whole = _split(arrays["images"], arrays["labels"])
    is_test = torch.arange(len(whole)) % 5 == 4
    about = ("digits", DIGITS.classes, key)
    train, test = whole[~is_test], whole[is_test]
    return split_dataset(train, test, *about, mean, std, val_fraction, split_seed)


def _read_digits() -> Arrays:
    from sklearn.datasets import load_digits  # takes a second, and only without a cache

    raw = load_digits()
    images = (raw.images * (255 / 16)).round().astype(np.uint8)
    arrays = {"images": images, "labels": raw.target.astype(np.uint8)}
    for name, array in arrays.items():
        verify(idx_encode(array), DIGITS.sums[name], f"scikit-learn's digits: {name}")
    return arrays


def _split(images: Tensor | Rows, labels: Tensor | Rows) -> Split:
    """images: uint8 [n, height, width] or [n, channels, height, width]; labels: uint8 [n]."""
    assert isinstance(labels, Tensor)
    if isinstance(images, Tensor) and images.ndim == 3:
        images = images.unsqueeze(1)
    return make_split(images, labels.long())


def hash_sums(raw_set: RawSet) -> str:
    """SHA-256 of the checksums of its files."""
    return hashlib.sha256("".join(raw_set.sums.values()).encode()).hexdigest()
