"""From verified files to splits: every data set becomes a `Dataset` of uint8 tensors.

From a notebook:

    dataset = digits(cache="data/cache", mean=0.3059, std=0.3763)
    train = dataset.prepare(dataset.train, torch.device("cpu"))  # float32, normalized
"""

from mnist_exp.data.cache import DataError
from mnist_exp.data.dataset import Dataset, Kind
from mnist_exp.data.folders import image_folder
from mnist_exp.data.sets import cifar10, digits, fashion_mnist, kmnist, mnist
from mnist_exp.data.splits import Split, Streamed
from mnist_exp.data.torchvision_sets import torchvision_set

__all__ = [
    "DataError",
    "Dataset",
    "Kind",
    "Split",
    "Streamed",
    "cifar10",
    "digits",
    "fashion_mnist",
    "image_folder",
    "kmnist",
    "mnist",
    "torchvision_set",
]
