"""Losses, metrics, and what the monitored one decides."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from conftest import Clone, Like, compose_config, read_metrics
from sklearn.metrics import f1_score, top_k_accuracy_score
from torch.nn import functional as F

from mnist_exp.errors import BadInput
from mnist_exp.experiment.run import train
from mnist_exp.training.losses import CrossEntropy, Focal, scale_weights
from mnist_exp.training.metrics import Accuracy, Epoch, MacroF1, Monitor

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(60, 7, generator=GENERATOR)
LABELS = torch.randint(5, (60,), generator=GENERATOR)  # of classes 5 and 6 there is no image


@pytest.mark.parametrize("metric", [Accuracy(), Accuracy(5), Accuracy(50), MacroF1()])
def test_sums_of_batches_give_the_metric_of_all_images(metric: Accuracy | MacroF1) -> None:
    parts = zip(LOGITS.split(16), LABELS.split(16), strict=True)
    sums = sum(metric.update(*part) for part in parts)
    assert metric.compute(sums) == metric.compute(metric.update(LOGITS, LABELS))


def test_metrics_are_those_of_scikit_learn() -> None:
    predicted = LOGITS.argmax(1)
    found = MacroF1().compute(MacroF1().update(LOGITS, LABELS))
    assert found == pytest.approx(f1_score(LABELS, predicted, average="macro"))
    top5 = top_k_accuracy_score(LABELS, LOGITS, k=5, labels=range(7))
    assert Accuracy(5).compute(Accuracy(5).update(LOGITS, LABELS)) == pytest.approx(top5)


def test_focal_loss_is_cross_entropy_times_a_power_of_the_error() -> None:
    each = F.cross_entropy(LOGITS, LABELS, reduction="none")
    expected = ((1 - (-each).exp()) ** 3 * each).sum()
    assert Focal(gamma=3)(LOGITS, LABELS).item() == pytest.approx(expected.item())
    assert Focal(gamma=0)(LOGITS, LABELS).item() == pytest.approx(each.sum().item())
    certain = torch.tensor([[200.0, 0.0]], requires_grad=True)  # the probability rounds to 1
    Focal(gamma=0.5)(certain, torch.tensor([0])).backward()
    assert certain.grad.isfinite().all()


@pytest.mark.parametrize("loss", [CrossEntropy, Focal])
def test_class_weights_count_in_training_only(loss: type[CrossEntropy] | type[Focal]) -> None:
    weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    plain, weighted = loss(), loss(class_weights=weights)
    expected = sum(
        weights[y] * plain(x[None], y[None]) for x, y in zip(LOGITS, LABELS, strict=True)
    )
    assert weighted(LOGITS, LABELS).item() == pytest.approx(expected.item(), rel=1e-5)
    assert weighted.eval()(LOGITS, LABELS) == plain(LOGITS, LABELS)


def test_balanced_weights_make_classes_count_the_same_with_a_mean_of_1() -> None:
    counts = torch.tensor([200, 5, 3, 0])
    weights = torch.tensor(scale_weights("balanced", counts))
    assert (weights * counts)[:3].tolist() == pytest.approx([208 / 3] * 3)
    assert weights[3] == 0
    typed = torch.tensor(scale_weights([1, 2, 4, 9], counts))
    assert (typed * counts).sum() == pytest.approx(208)
    assert (typed / typed[0]).tolist() == pytest.approx([1, 2, 4, 9])
    with pytest.raises(ValueError, match="3 weights for 4 classes"):
        scale_weights([1, 2, 3], counts)


def test_of_equal_epochs_the_one_with_the_lower_validation_loss_is_the_best() -> None:
    values = [(0.9, 0.3), (0.9, 0.2), (0.8, 0.1), (math.nan, 0.0)]
    found = [{"loss": loss, "accuracy": accuracy} for accuracy, loss in values]
    epochs = [Epoch(n, value, value, 0.1, 1.0, 1.0, 0.0) for n, value in enumerate(found, 1)]
    assert Monitor().find_best(epochs).number == 2
    assert Monitor().find_best(epochs, first_of_equals=True).number == 1
    assert Monitor("val/loss", False).find_best(epochs[:3]).number == 3


def test_a_monitored_loss_decides_about_weights_and_patience(
    quick: list[str], tmp_path: Path
) -> None:
    typed = ["optimizer.lr=0.03", "trainer.epochs=30", "trainer.patience=2"]
    result = train(compose_config(*quick, *typed, "trainer.monitor=val/loss"), tmp_path)
    losses = [line["val/loss"] for line in read_metrics(tmp_path) if "val/loss" in line]
    assert result.epoch.number == losses.index(min(losses)) + 1 == len(losses) - 2 < 28


@pytest.mark.slow
def test_a_leaderboard_ranks_by_the_monitored_metric(clone: Clone) -> None:
    grid = ("optimizer.lr=1e-4,1e-2", "trainer.epochs=1", "data=digits", "tracking=none")
    monitor = ("metrics=[accuracy,macro_f1]", "trainer.monitor=val/loss")
    done = clone.run("train.py", "-m", *grid, *monitor)
    assert (done.returncode, done.stderr) == (0, "")
    (path,) = clone.root.glob("outputs/*/*/leaderboard.csv")
    first, second = csv.DictReader(path.read_text().splitlines())
    assert float(first["val_loss"]) < float(second["val_loss"])
    assert (first["lr"] if "lr" in first else first["optimizer.lr"]) == "0.01"
    assert {"val_accuracy", "val_macro_f1", "val_loss_sd"} <= first.keys()


def test_class_weights_of_another_number_are_one_line(quick: list[str], tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        train(compose_config(*quick, "loss.class_weights=[1,2]"), tmp_path)
    assert str(caught.value) == Like("loss.class_weights=…2…10 classes")
