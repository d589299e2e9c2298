"""What a model's predictions are worth: numbers from its logits and the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

Z = 1.959963984540054  # of the normal distribution, 95 % lie within so many deviations
BINS = 15  # of confidence, as many as Guo et al. have


class Scores(NamedTuple):
    """Of one class; None where there is nothing to divide by."""

    images: int
    precision: float | None  # of the predictions of this class, how many are right
    recall: float | None  # of its images, how many are found
    f1: float | None  # the harmonic mean of both


class Bin(NamedTuple):
    """The predictions of about one confidence; means are None where there are none."""

    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of a split, on the CPU."""

    labels: Tensor  # int64 [n]
    classes: Tensor  # that each image is taken for, int64 [n]
    probabilities: Tensor  # float32 [n, classes]

    @classmethod
    def of(cls, logits: Sequence[Tensor], labels: Tensor) -> Predictions:
        """logits: of each batch, as `training.evaluate` tells them."""
        joined = torch.cat([batch.detach().float().cpu() for batch in logits])
        return cls(labels.cpu(), joined.argmax(1), joined.softmax(1))

    @cached_property
    def confidences(self) -> Tensor:
        """The probability of the class that each is taken for, float32 [n]."""
        return self.of_class(self.classes)

    @cached_property
    def right(self) -> Tensor:
        return self.classes == self.labels

    def of_class(self, classes: Tensor) -> Tensor:
        """The probability of one class for each image: both [n]."""
        return self.probabilities.gather(1, classes[:, None])[:, 0]

    def confusion(self) -> Tensor:
        """How often each class (row) was taken for which (column), int64 [classes, classes]."""
        count = self.probabilities.shape[1]
        pairs = self.labels * count + self.classes
        return torch.bincount(pairs, minlength=count**2).view(count, count)

    def by_class(self) -> list[Scores]:
        confusion = self.confusion()
        sums = confusion.diag(), confusion.sum(0), confusion.sum(1)
        return [
            Scores(images, share(hits, said), share(hits, images), share(2 * hits, said + images))
            for hits, said, images in zip(*(counts.tolist() for counts in sums), strict=True)
        ]

    def bins(self) -> list[Bin]:
        """BINS of equal width, of confidences up to and with their upper end."""
        confidences = self.confidences.double()
        place = (confidences * BINS).ceil().long().clamp(1, BINS) - 1
        counts, sums, hits = (
            torch.bincount(place, weights, minlength=BINS).tolist()
            for weights in (None, confidences, self.right.double())
        )
        return [
            Bin(int(count), share(confidence, count), share(right, count))
            for count, confidence, right in zip(counts, sums, hits, strict=True)
        ]

    def calibration_error(self) -> float:
        """Expected, 0..1: the mean distance of accuracy and confidence (Guo et al., 2017)."""
        distances = [
            bin.images * abs(bin.accuracy - bin.confidence)
            for bin in self.bins()
            if bin.accuracy is not None and bin.confidence is not None
        ]
        return sum(distances) / len(self.labels)

    def most_wrong(self, count: int) -> Tensor:
        """The images with the most confident errors, the worst first; int64 [at most count]."""
        wrong = (~self.right).nonzero().flatten()
        worst = self.confidences[wrong].sort(descending=True, stable=True).indices
        return wrong[worst[:count]]


def share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def interval(accuracy: float, count: int) -> tuple[float, float]:
    """Where the accuracy 0..1 over so many images really is, at 95 % (Wilson, 1927)."""
    squared = Z**2 / count
    middle = (accuracy + squared / 2) / (1 + squared)
    half = Z / (1 + squared) * math.sqrt(accuracy * (1 - accuracy) / count + squared / 4 / count)
    return middle - half, middle + half
