"""The published sets, each a function from plain arguments to a `Dataset`: what `data=` chooses.

Each is found or fetched as `sources.fetch` says, decoded once, and kept in a folder of `cache`. Its
`mean` and `std` are of the training pixels, scaled to 0..1: for all channels, or for each; None has
them computed. With more than `memory_limit` GB it stays on disk, see `cache.load`.
All raise DataError for bytes that are not the published ones, or nowhere to be had.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnist_exp.data.cache import (
    Arrays,
    Files,
    idx_encode,
    load_cached,
    load_recorded,
    unzip,
    verify,
)
from mnist_exp.data.dataset import Channels, Dataset, divided
from mnist_exp.data.pickles import ArraysOnly
from mnist_exp.data.published import CIFAR10, DIGITS, FASHION_MNIST, KMNIST, MNIST
from mnist_exp.data.rows import Rows
from mnist_exp.data.sources import RawSet, fetch
from mnist_exp.data.splits import Split, as_split


def mnist(
    root: str,
    cache: str,
    mean: Channels,
    std: Channels,
    mirrors: Sequence[str] | None = None,
    val_fraction: float = 0.15,
    split_seed: int = 0,
    memory_limit: float = 8.0,
) -> Dataset:
    """MNIST (LeCun, Cortes and Burges, 1998): 60,000 + 10,000 grey images of 28×28, ten digits."""
    arrays = load_cached(
        Path(cache) / "mnist",
        MNIST.sums,
        lambda: fetch(MNIST, Path(root), mirrors),
        memory_limit,
    )
    train, test = _train_and_test(arrays)
    about = ("mnist", MNIST.classes, digest(MNIST))
    return divided(train, test, *about, mean, std, val_fraction, split_seed)


def fashion_mnist(
    root: str,
    cache: str,
    mean: Channels,
    std: Channels,
    mirrors: Sequence[str] | None = None,
    val_fraction: float = 0.15,
    split_seed: int = 0,
    memory_limit: float = 8.0,
) -> Dataset:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): clothes of ten kinds, in MNIST's form."""
    arrays = load_cached(
        Path(cache) / "fashion_mnist",
        FASHION_MNIST.sums,
        lambda: fetch(FASHION_MNIST, Path(root), mirrors),
        memory_limit,
    )
    train, test = _train_and_test(arrays)
    about = ("fashion_mnist", FASHION_MNIST.classes, digest(FASHION_MNIST))
    return divided(train, test, *about, mean, std, val_fraction, split_seed)


def kmnist(
    root: str,
    cache: str,
    mean: Channels,
    std: Channels,
    mirrors: Sequence[str] | None = None,
    val_fraction: float = 0.15,
    split_seed: int = 0,
    memory_limit: float = 8.0,
) -> Dataset:
    """Kuzushiji-MNIST (Clanuwat et al., 2018): ten cursive Japanese letters, in MNIST's form."""

    def unpacked() -> Files:
        packed = fetch(KMNIST, Path(root), mirrors)
        return {name.removesuffix(".gz"): unzip(raw) for name, raw in packed.items()}

    arrays = load_recorded(Path(cache) / "kmnist", digest(KMNIST), unpacked, memory_limit)
    train, test = _train_and_test(arrays)
    about = ("kmnist", KMNIST.classes, digest(KMNIST))
    return divided(train, test, *about, mean, std, val_fraction, split_seed)


def cifar10(
    root: str,
    cache: str,
    mean: Channels,
    std: Channels,
    mirrors: Sequence[str] | None = None,
    val_fraction: float = 0.15,
    split_seed: int = 0,
    memory_limit: float = 8.0,
) -> Dataset:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 32×32, ten kinds of things.

    From its version for Python, the batches or the archive of them.
    """

    def decoded() -> Files:
        *train, test = fetch(CIFAR10, Path(root), mirrors).values()
        return {
            **_decode_batches("train", train),
            **_decode_batches("test", [test]),
        }

    arrays = load_recorded(Path(cache) / "cifar10", digest(CIFAR10), decoded, memory_limit)
    train, test = _train_and_test(arrays)
    about = ("cifar10", CIFAR10.classes, digest(CIFAR10))
    return divided(train, test, *about, mean, std, val_fraction, split_seed)


def digits(
    cache: str,
    mean: Channels,
    std: Channels,
    val_fraction: float = 0.15,
    split_seed: int = 0,
    memory_limit: float = 8.0,
) -> Dataset:
    """scikit-learn's 1,797 digits of 8×8 (Alpaydin and Kaynak, 1998), scaled to bytes.

    The set has no official test part: every fifth image is one here.
    """
    arrays = load_cached(Path(cache) / "digits", DIGITS.sums, _read_digits, memory_limit)
    whole = _split(arrays["images"], arrays["labels"])
    is_test = torch.arange(len(whole)) % 5 == 4
    about = ("digits", DIGITS.classes, digest(DIGITS))
    return divided(whole[~is_test], whole[is_test], *about, mean, std, val_fraction, split_seed)


def _read_digits() -> Files:
    from sklearn.datasets import load_digits  # a second to import: only until the cache is there

    raw = load_digits()
    images = (raw.images * (255 / 16)).round().astype(np.uint8)
    files = {"images": idx_encode(images), "labels": idx_encode(raw.target.astype(np.uint8))}
    for name, raw_bytes in files.items():
        verify(raw_bytes, DIGITS.sums[name], f"scikit-learn's digits: {name}")
    return files


def _decode_batches(part: str, batches: Sequence[bytes]) -> Files:
    """CIFAR's pickles, rows of red, green and blue planes, as IDX files; no code in them runs."""
    loaded = [ArraysOnly(io.BytesIO(batch)).load() for batch in batches]
    images = np.concatenate([batch[b"data"].array for batch in loaded]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([batch[b"labels"] for batch in loaded]).astype(np.uint8)
    return {f"{part}-images": idx_encode(images), f"{part}-labels": idx_encode(labels)}


def _train_and_test(arrays: Arrays) -> tuple[Split, Split]:
    """From images and labels to train on, then those to test with."""
    images, labels, test_images, test_labels = arrays.values()
    return _split(images, labels), _split(test_images, test_labels)


def _split(images: Tensor | Rows, labels: Tensor | Rows) -> Split:
    """uint8 [n, height, width], or with channels after n, and uint8 [n], as a split."""
    assert isinstance(labels, Tensor)
    if isinstance(images, Tensor) and images.ndim == 3:
        images = images.unsqueeze(1)
    return as_split(images, labels.long())


def digest(raw_set: RawSet) -> str:
    """SHA-256 over the sums of its files."""
    return hashlib.sha256("".join(raw_set.sums.values()).encode()).hexdigest()
