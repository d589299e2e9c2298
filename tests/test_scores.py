"""Scores of predictions, compared with scikit-learn, SciPy and paper and pencil."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor

from mnist_exp.inference.scores import Bin, Predictions, wilson_interval


def random_predictions() -> Predictions:
    """500 predictions of five classes; the last class has neither image nor prediction."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (500,), generator=generator)
    logits = torch.randn(500, 5, generator=generator)
    logits[torch.arange(500), labels] += 1
    logits[:, 4] = -9
    return Predictions.from_logits(logits.split(200), labels)


def test_confusion_and_scores_by_class_are_those_of_scikit_learn() -> None:
    found = random_predictions()
    labels, classes = found.labels.numpy(), found.classes.numpy()
    assert (
        found.confusion_matrix().tolist()
        == confusion_matrix(labels, classes, labels=range(5)).tolist()
    )
    *scored, empty = found.score_classes()
    expected = zip(*precision_recall_fscore_support(labels, classes), strict=True)
    for (images, *mine), (*theirs, count) in zip(scored, expected, strict=True):
        assert (images, mine) == (count, pytest.approx(theirs, abs=1e-12))
    assert empty == (0, None, None, None)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (1, 2), (9_812, 10_000), (360, 360)])
def test_the_interval_of_an_accuracy_is_scipys_wilson(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right / count, count) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def of_confidences(confidences: list[float], right: list[int]) -> Predictions:
    first = torch.tensor(confidences)
    probabilities = torch.stack([first, 1 - first], dim=1)
    return Predictions(1 - torch.tensor(right), torch.zeros(len(right)).long(), probabilities)


def test_the_calibration_error_is_the_mean_distance_of_accuracy_and_confidence() -> None:
    found = of_confidences([1.0, 0.95, 0.75, 0.75, 0.51], [1, 0, 1, 0, 0])
    bins = found.bin_confidences()
    assert [bin.images for bin in bins] == [0] * 7 + [1, 0, 0, 0, 2, 0, 0, 2]
    assert bins[0] == Bin(0, None, None)
    assert bins[14] == Bin(2, pytest.approx(0.975), 0.5)
    expected = (1 * 0.51 + 2 * (0.75 - 0.5) + 2 * (0.975 - 0.5)) / 5
    assert found.calibration_error() == pytest.approx(expected, abs=1e-7)


def test_a_confidence_on_the_edge_of_two_bins_belongs_to_the_lower() -> None:
    found = of_confidences([0.6, 0.8], [1, 1])
    exact = Predictions(found.labels, found.classes, found.probabilities.double().round(decimals=6))
    assert [n for n, bin in enumerate(exact.bin_confidences()) if bin.images] == [8, 11]


def test_the_most_wrong_are_the_most_confident_errors_first() -> None:
    found = of_confidences([0.99, 0.6, 0.9, 0.7], [1, 0, 0, 0])
    assert found.find_worst(2).tolist() == [2, 3]
    assert found.find_worst(9).tolist() == [2, 3, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_logits_count_as_in_evaluation_the_first_is_taken(dtype: torch.dtype) -> None:
    logits: Tensor = torch.tensor([[1.0, 1.0, 0.0], [0.0, 200.0, 200.0]], dtype=dtype)
    found = Predictions.from_logits([logits], torch.tensor([0, 2]))
    assert found.classes.tolist() == [0, 1]
    assert found.correct.tolist() == [True, False]
