"""Which images an epoch takes in which order, and the folds of a cross-validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Clone, read_metrics

from mnist_exp.data import Split
from mnist_exp.data.splits import interleave, split_fold
from mnist_exp.errors import BadInput
from mnist_exp.training.sampling import draw_order

RARE = torch.tensor([0] * 200 + [3] * 5 + [1] * 3)  # of five classes, two of them without images


def test_balanced_draws_each_class_equally_often() -> None:
    order = draw_order(RARE, "balanced", seed=1, epoch=1)
    assert len(order) == len(RARE)
    counts = RARE[order].bincount(minlength=5).tolist()
    assert sorted(counts) == [0, 0, 69, 69, 70]
    assert torch.equal(counts_of(order), counts_of(draw_order(RARE, "balanced", seed=1, epoch=1)))
    assert set(order[RARE[order] != 0].tolist()) == set(range(200, 208))  # every rare one is there


def counts_of(order: torch.Tensor) -> torch.Tensor:
    return order.bincount(minlength=len(RARE))


@pytest.mark.parametrize("sampling", ["shuffled", "balanced"])
def test_the_order_depends_on_seed_and_epoch_alone(sampling: str) -> None:
    first = draw_order(RARE, sampling, seed=3, epoch=1)
    torch.rand(5)
    assert torch.equal(draw_order(RARE, sampling, seed=3, epoch=1), first)
    others = [draw_order(RARE, sampling, seed, epoch) for seed, epoch in ((3, 2), (4, 1), (2, 2))]
    assert all(not torch.equal(first, other) for other in others)


def test_the_balanced_order_is_the_same_on_every_machine_and_version() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 2])
    assert draw_order(labels, "balanced", seed=42, epoch=1).tolist() == [4, 6, 6, 7, 1, 2, 7, 7]


def test_folds_are_disjoint_complete_and_stratified() -> None:
    whole = Split(torch.arange(208).view(-1, 1, 1, 1), RARE)
    parts = [split_fold(whole, 5, fold, seed=7) for fold in range(5)]
    seen = torch.cat([val.images for _, val in parts]).flatten()
    assert seen.sort().values.tolist() == list(range(208))
    for train, val in parts:
        both = torch.cat([train.images, val.images]).flatten()
        assert both.sort().values.tolist() == list(range(208))
        counts = val.labels.bincount(minlength=5).tolist()
        assert (counts[0], counts[3], counts[1] in (0, 1)) == (40, 1, True)
    again, other = split_fold(whole, 5, 0, seed=7)[1], split_fold(whole, 5, 0, seed=8)[1]
    assert torch.equal(again.images, parts[0][1].images)
    assert not torch.equal(other.images, again.images)
    with pytest.raises(BadInput, match=r"data\.folds=209.* 208 "):
        split_fold(whole, 209, 0, seed=7)


def test_any_beginning_of_interleaved_classes_has_its_share_of_each() -> None:
    order = interleave([torch.arange(100), torch.arange(100, 140), torch.arange(140, 143)])
    for count in range(3, 144):
        found = [int(((order[:count] >= a) & (order[:count] < b)).sum()) for a, b in BOUNDS]
        assert all(
            abs(n - count * (b - a) / 143) < 2 for n, (a, b) in zip(found, BOUNDS, strict=True)
        )
        assert all(found)


BOUNDS = ((0, 100), (100, 140), (140, 143))


def test_a_run_validates_on_its_fold_and_resumes_with_balanced_images(
    clone: Clone, quick: list[str], tmp_path: Path
) -> None:
    typed = [*quick, "data.folds=5", "data.fold=3", "data.sampling=balanced"]
    folders = [tmp_path / name for name in ("whole", "stopped")]
    whole, stopped = (f"hydra.run.dir={folder}" for folder in folders)
    assert clone.run("train.py", *typed, whole).returncode == 0
    assert clone.run("train.py", *typed, stopped, "trainer.epochs=1").returncode == 0
    resumed = clone.run("train.py", f"resume={folders[1]}", "trainer.epochs=2")
    assert resumed.returncode == 0, resumed.stderr
    epochs = [[e for e in read_metrics(folder) if e["epoch"] == 2] for folder in folders]
    assert epochs[0][0] == epochs[1][0]


@pytest.mark.slow
def test_the_preset_folds_takes_each_fold_in_turn(clone: Clone) -> None:
    typed = ("-m", "sweep=folds", "data.folds=3", "data=digits", "tracking=none")
    done = clone.run("train.py", *typed, "trainer.epochs=1")
    assert done.returncode == 0, done.stderr
    (sweep,) = (path.parent for path in clone.root.glob("outputs/*/*/sweep.json"))
    losses: set[Any] = {read_metrics(sweep / fold)[0]["val/loss"] for fold in "012"}
    assert len(losses) == 3
