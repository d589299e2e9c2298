"""Frozen parameters, and parameters with options of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Like, compose_config
from torch import Tensor

from mnist_exp.errors import BadInput
from mnist_exp.experiment import checkpoint
from mnist_exp.experiment.run import Run
from mnist_exp.models import ResNet
from mnist_exp.paths import LAST
from mnist_exp.training.optimizers import Muon
from mnist_exp.training.parameters import set_groups

SMALL = ("model=resnet", "model.channels=[4,8]", "model.blocks=1", "trainer.max_batches=5")
SMALL = (*SMALL, "trainer.keep=last")


def train(folder: Path, *overrides: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a run before its first step, and those that it keeps."""
    folder.mkdir()
    run = Run(compose_config(*overrides), folder, "run")
    before = {name: tensor.clone() for name, tensor in run.state.model.state_dict().items()}
    run.train(show=False)
    return before, checkpoint.load(folder / LAST)["state"]["progress"]["kept"]


@pytest.mark.parametrize(
    "more",
    [
        ["optimizer=adamw"],
        ["optimizer=sgd", "trainer.ema_decay=0.9"],
        ["optimizer=muon"],
        ["optimizer=torch", "optimizer.name=Adagrad"],
    ],
)
def test_frozen_layers_change_neither_weights_nor_running_statistics(
    more: list[str], quick: list[str], tmp_path: Path
) -> None:
    frozen = ("stem.", "blocks.0.")
    pattern = "trainer.freeze=[stem.*,blocks.0.*]"
    before, after = train(tmp_path / "run", *quick, *SMALL, pattern, *more)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if name.startswith(frozen)}


def test_each_group_has_its_own_options_and_one_schedule(quick: list[str], tmp_path: Path) -> None:
    groups = "[{match: head.*, lr: 0.5}, {match: '*norm*', weight_decay: 0, momentum: 0}]"
    run = Run(
        compose_config(
            *(*quick, *SMALL, "optimizer=sgd", "optimizer.weight_decay=0.1", "scheduler=cosine"),
            *("scheduler.final_factor=0.1", f"optimizer.groups={groups}"),
        ),
        tmp_path,
        "run",
    )
    options = [
        (group["lr"], group["weight_decay"], group["momentum"], len(group["params"]))
        for group in run.state.optimizer.param_groups
    ]
    assert options == [(0.1, 0.1, 0.9, 6), (0.5, 0.1, 0.9, 2), (0.1, 0, 0, 10)]
    run.train(show=False)
    rates = [group["lr"] for group in run.state.optimizer.param_groups]
    assert rates == pytest.approx([0.01, 0.05, 0.01])


def test_muons_groups_keep_the_parameters_that_are_its_own() -> None:
    model = ResNet((1, 8, 8), 10, channels=(4, 8), blocks=1)
    options = {"adamw_lr": 0.003, "momentum": 0.9, "weight_decay": 0.1, "betas": (0.8, 0.99)}
    optimizer = Muon(model.parameters(), 0.02, **options)
    set_groups(optimizer, model, [{"match": "blocks.1.*", "lr": 0.0, "weight_decay": 0}])
    before = {name: p.clone() for name, p in model.named_parameters()}
    for _ in range(2):
        model(torch.rand(4, 1, 8, 8)).square().sum().backward()
        optimizer.step()
    same = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert same == {name for name in before if name.startswith("blocks.1.")}
    assert [group["lr"] for group in optimizer.muon.param_groups] == [0.02, 0.0]
    assert [group["lr"] for group in optimizer.adamw.param_groups] == [0.003, 0.0]


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("trainer.freeze=[layer.0.*]", "…: layer.0.* matches no parameter…layers.0.weight…"),
        ("trainer.freeze=['*']", "…no parameter is left…"),
        ("optimizer.groups=[{match: head, lr: 1}]", "…head matches no parameter…layers.…"),
        ("optimizer.groups=[{match: layers.*, lrr: 1}]", "…no lrr…did you mean lr?"),
        ("optimizer.groups=[{match: layers.*, amsgrad: abc}]", "…amsgrad=abc…type…False"),
        (
            "optimizer.groups=[{match: '*', lr: 1}, {match: layers.0.*, lr: 1}]",
            "…layers.0.*: all that it matches…in a group before it",
        ),
    ],
)
def test_a_pattern_or_an_option_that_has_no_effect_is_refused(
    typed: str, line: str, quick: list[str], tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        Run(compose_config(*quick, typed), tmp_path, "run")
    assert str(caught.value) == Like(f"{typed.partition('=')[0]}{line}")
    assert list(tmp_path.iterdir()) == []
