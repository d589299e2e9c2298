"""Bytes to verified splits: every set ends as a `Dataset` of uint8 tensors.

From a notebook:

    dataset = digits(cache="data/cache", mean=0.3059, std=0.3763)
    train = dataset.prepare(dataset.train, torch.device("cpu"))  # float32, normalised
"""

from mnist_exp.data.sets import digits, mnist
from mnist_exp.data.sources import DataError
from mnist_exp.data.splits import Dataset, Split

__all__ = ["DataError", "Dataset", "Split", "digits", "mnist"]
