"""The objects that a config names, and the checks of a model before training."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Clone, Like, compose_config
from omegaconf import DictConfig
from torch import Tensor, nn

from mnist_exp.errors import BadInput
from mnist_exp.experiment.build import build_model, dry_run, load_checked_dataset
from mnist_exp.experiment.run import Run
from mnist_exp.training.losses import CrossEntropy

CPU = torch.device("cpu")


class Mine(nn.Module):
    """A user's model: for images of 8×8 of one channel in ten classes."""

    def __init__(self, input_shape: object, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        random.random(), np.random.rand(), torch.rand(1)
        return self.head(self.norm(images).flatten(1))


class WantsMorePixels(Mine):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(images[:, :, :7].flatten(1))


class OtherClasses(Mine):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, :7]


class KeepsPositions(Mine):
    def forward(self, images: Tensor) -> Tensor:
        return images


class TwoHeads(Mine):
    def forward(self, images: Tensor) -> object:
        logits = super().forward(images)
        return (logits, logits) if self.training else logits


class NormalizesOnePixel(Mine):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(
            self.norm(images.mean((2, 3), keepdim=True)).expand(-1, 1, 8, 8).flatten(1)
        )


class Unpools(Mine):
    def forward(self, images: Tensor) -> Tensor:
        pooled, index = nn.functional.max_pool2d(images, 2, return_indices=True)
        return self.head(nn.functional.max_unpool2d(pooled, index, 2).flatten(1))


def compose_with(model: type[nn.Module], *overrides: str) -> DictConfig:
    config = compose_config(*overrides)
    config.model = {"_target_": f"{__name__}.{model.__name__}"}
    return config


UNFIT = "…1×8×8…10 classes…"


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (
            WantsMorePixels,
            f"{UNFIT}1x56 and 64x10…model=resnet…",
        ),
        (
            OtherClasses,
            f"{UNFIT}[n, 7]…[n, 10]…model=resnet…",
        ),
        (
            KeepsPositions,
            f"{UNFIT}[n, 1, 8, 8]…[n, 10]…model=resnet…",
        ),
        (
            TwoHeads,
            "…training step of 2 images…[n, 10]…batch_size…",
        ),
        (
            Unpools,
            f"{UNFIT}max_unpooling2d…trainer.deterministic=false…",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused_before_training(
    model: type[nn.Module], line: str, quick: list[str], tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        Run(compose_with(model, *quick), tmp_path, "unfit")
    assert str(caught.value) == Like(f"model={__name__}.{model.__name__}: {line}")
    assert list(tmp_path.iterdir()) == []


def test_a_last_batch_too_small_for_batch_normalization_is_refused(
    quick: list[str], tmp_path: Path
) -> None:
    config = compose_with(NormalizesOnePixel, *quick, "batch_size=11")  # 1,222 images: one is left
    with pytest.raises(BadInput) as caught:
        Run(config, tmp_path, "unfit")
    assert str(caught.value) == Like(
        f"model={__name__}.NormalizesOnePixel: …training step of 1 image…[1, 1, 1, 1]…batch_size…"
    )
    config.trainer.max_batches = 111  # leaves it out
    assert Run(config, tmp_path, "fit").smallest_micro_batch == 11
    config.trainer.accumulate = 5  # 3, 3, 3, 2
    assert Run(config, tmp_path, "fit").smallest_micro_batch == 2
    config.trainer.accumulate = 11
    with pytest.raises(BadInput, match="training step of 1 image"):
        Run(config, tmp_path, "unfit")


def test_trying_a_model_leaves_it_and_all_random_states_as_they_were(quick: list[str]) -> None:
    config = compose_with(Mine, *quick)
    parts = build_model(config, load_checked_dataset(config, CPU).kind, CPU)
    before, training = copy.deepcopy(parts.model.state_dict()), parts.model.training
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    summary = dry_run(config, parts, CrossEntropy(), 2)
    assert (summary.total.parameters, summary.total.flops) == (652, 1280)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == states
    assert parts.model.training == training
    assert parts.model.head.weight.grad is None
    assert all(map(torch.equal, parts.model.state_dict().values(), before.values()))


@pytest.mark.parametrize(("reduction", "told"), [("none", "a tensor [2]"), ("mean", "a mean")])
def test_a_loss_that_is_no_sum_is_bad_input(quick: list[str], reduction: str, told: str) -> None:
    config = compose_config(*quick)
    parts = build_model(config, load_checked_dataset(config, CPU).kind, CPU)
    with pytest.raises(BadInput) as caught:
        dry_run(config, parts, nn.CrossEntropyLoss(reduction=reduction), 2)
    assert str(caught.value) == Like(f"loss=cross_entropy: …sum…{told}…losses.sum()")


def test_a_models_own_option_that_torch_refuses_is_bad_input(quick: list[str]) -> None:
    config = compose_config(*quick, "model=cnn")
    config.model.hidden_size = -1
    with pytest.raises(BadInput, match=r"^model=cnn: .*negative dimension -1"):
        build_model(config, load_checked_dataset(config, CPU).kind, CPU)


MODEL = """
import torch

class Mine(torch.nn.Module):
    def __init__(self, input_shape, classes, side=28):
        super().__init__()
        self.head = torch.nn.Linear(side * side, classes)

    def forward(self, images):
        return self.head(images.flatten(1))
"""


def test_an_error_in_a_users_model_is_one_line_and_leaves_no_run(clone: Clone) -> None:
    (clone.root / "mlflow.db").unlink()
    (clone.root / "mine.py").write_text(MODEL)
    (clone.root / "conf" / "model" / "mine.yaml").write_text("_target_: mine.Mine\nside: 28\n")
    done = clone.run("train.py", "data=digits", "model=mine")
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout == Like(f"error: model=mine: {UNFIT}1x64 and 784x10…model=resnet…\n")
    assert not (clone.root / "mlflow.db").exists()
    done = clone.run("train.py", "data=digits", "model=mine", "model.side=8", "tracking=none")
    assert (done.returncode, done.stderr) == (0, "")
    first = done.stdout.splitlines()[0]
    name = "mine-adam-lr0.001-bs64-data=digits-side=8"
    assert first == Like(f"{name} on cpu, 1 thread, …: 650 parameters, 1,280 FLOP…")


@pytest.mark.slow
def test_models_of_torchvision_train_or_say_why_not(clone: Clone) -> None:
    done = clone.run(
        *("train.py", "-m", "data=digits", "tracking=none", "trainer=debug", "model=torchvision"),
        "model.name=shufflenet_v2_x0_5,resnet81,squeezenet1_1",
    )
    lines = sorted(done.stdout.splitlines())
    failed = [line.partition(": failed: ")[2] for line in lines if ": failed: " in line]
    assert failed == [
        Like("model.name=resnet81: …torchvision…; did you mean resnet18?"),
        Like(f"model.name=squeezenet1_1: {UNFIT}128x0x0…model=resnet…"),
    ]
    (folder,) = clone.root.glob("outputs/*/*/0")
    *_, total = (folder / "model.txt").read_text("utf-8").splitlines()
    assert total.split() == ["total", "ShuffleNetV2", "10", "351,610", "697,232"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
