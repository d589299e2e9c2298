"""The order and the random numbers of an epoch: pure functions of the seed and the epoch.

So a run that is resumed in the middle of an epoch continues with the same images.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from mnist_exp.training.augmentation import DRAWS, OWN


def draw_order(labels: Tensor, sampling: str, seed: int, epoch: int) -> Tensor:
    """The images of an epoch in their order, int64 [n].

    labels: int64 [n], of the training images. sampling: "shuffled", each image once; or "balanced",
    drawn with replacement, each class equally often or once more.
    """
    if sampling != "balanced":
        return shuffle(len(labels), seed, epoch)
    labels, generator = labels.cpu(), make_generator(f"{seed}/{epoch}")
    counts = labels.bincount()
    by_class, starts = labels.argsort(stable=True), counts.cumsum(0) - counts
    present = counts.nonzero()[:, 0]
    places = torch.randperm(len(labels), generator=generator)
    classes = present[torch.randperm(len(present), generator=generator)][places % len(present)]
    drawn = torch.rand(len(labels), generator=generator, dtype=torch.float64)  # from 0 to below 1
    return by_class[starts[classes] + (drawn * counts[classes]).long()]


def shuffle(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation, int64 [count]."""
    return torch.randperm(count, generator=make_generator(f"{seed}/{epoch}"))


def draw_uniform(order: Tensor, images: int, seed: int, epoch: int) -> Tensor:
    """Uniform random numbers for the augmentation of an epoch, float32 [n, DRAWS].

    order: the images of the epoch, int64 [n]. images: how many the training set has. The number
    in place OWN is an image's own: x in one epoch, 1 - x in the next, and so on. What comes after
    it has a generator of its own, so that older runs resume with the numbers they had.
    """
    drawn = torch.rand(len(order), OWN, generator=make_generator(f"{seed}/{epoch}/augmentation"))
    own = torch.rand(images, generator=make_generator(f"{seed}/images"))[order]
    own = (own if epoch % 2 else 1 - own)[:, None]
    later = make_generator(f"{seed}/{epoch}/erasing")
    return torch.cat((drawn, own, torch.rand(len(order), DRAWS - OWN - 1, generator=later)), 1)


def make_generator(seed: str) -> torch.Generator:
    return torch.Generator().manual_seed(random.Random(seed).getrandbits(32))
