"""Scores of a model's predictions, from its logits and the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

Z = 1.959963984540054  # 95 % of the normal distribution lie within this many standard deviations
BINS = 15  # of confidence, as in Guo et al.


class Scores(NamedTuple):
    """Scores of one class; None if the denominator is zero."""

    images: int
    precision: float | None  # fraction of the predictions of this class that are correct
    recall: float | None  # fraction of its images that are found
    f1: float | None  # the harmonic mean of both


class Bin(NamedTuple):
    """Predictions of similar confidence; the means of an empty bin are None."""

    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of a model on a split, on the CPU."""

    labels: Tensor  # int64 [n]
    classes: Tensor  # predicted, int64 [n]
    probabilities: Tensor  # float32 [n, classes]

    @classmethod
    def from_logits(cls, logits: Sequence[Tensor], labels: Tensor) -> Predictions:
        """logits: of each batch, as `evaluate` passes them to `on_logits`."""
        logits_of_all = torch.cat([batch.detach().float().cpu() for batch in logits])
        return cls(labels.cpu(), logits_of_all.argmax(1), logits_of_all.softmax(1))

    @cached_property
    def confidences(self) -> Tensor:
        """The probability of each predicted class, float32 [n]."""
        return self.probability_of(self.classes)

    @cached_property
    def correct(self) -> Tensor:
        return self.classes == self.labels

    def probability_of(self, classes: Tensor) -> Tensor:
        """The probability of the given class of each image; both [n]."""
        return self.probabilities.gather(1, classes[:, None])[:, 0]

    def confusion_matrix(self) -> Tensor:
        """Counts by true class (row) and predicted class (column), int64 [classes, classes]."""
        count = self.probabilities.shape[1]
        pairs = self.labels * count + self.classes
        return torch.bincount(pairs, minlength=count**2).view(count, count)

    def score_classes(self) -> list[Scores]:
        confusion = self.confusion_matrix()
        sums = confusion.diag(), confusion.sum(0), confusion.sum(1)
        return [
            Scores(
                images, divide(hits, said), divide(hits, images), divide(2 * hits, said + images)
            )
            for hits, said, images in zip(*(counts.tolist() for counts in sums), strict=True)
        ]

    def bin_confidences(self) -> list[Bin]:
        """BINS of equal width; each includes its upper end."""
        confidences = self.confidences.double()
        place = (confidences * BINS).ceil().long().clamp(1, BINS) - 1
        counts, sums, hits = (
            torch.bincount(place, weights, minlength=BINS).tolist()
            for weights in (None, confidences, self.correct.double())
        )
        return [
            Bin(int(count), divide(confidence, count), divide(right, count))
            for count, confidence, right in zip(counts, sums, hits, strict=True)
        ]

    def calibration_error(self) -> float:
        """Expected calibration error, 0..1: mean of |accuracy - confidence| (Guo et al., 2017)."""
        distances = [
            bin.images * abs(bin.accuracy - bin.confidence)
            for bin in self.bin_confidences()
            if bin.accuracy is not None and bin.confidence is not None
        ]
        return sum(distances) / len(self.labels)

    def find_worst(self, count: int) -> Tensor:
        """Indices of the most confident errors, the worst first; int64 [at most count]."""
        wrong = (~self.correct).nonzero().flatten()
        worst = self.confidences[wrong].sort(descending=True, stable=True).indices
        return wrong[worst[:count]]


def divide(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def wilson_interval(accuracy: float, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of an accuracy 0..1 over `count` images (Wilson, 1927)."""
    squared = Z**2 / count
    middle = (accuracy + squared / 2) / (1 + squared)
    half = Z / (1 + squared) * math.sqrt(accuracy * (1 - accuracy) / count + squared / 4 / count)
    return middle - half, middle + half
