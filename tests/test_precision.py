"""Precisions: types in a step, accuracy of the metrics, what a device does not support."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from conftest import Like, compose_config
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ConstantLR

import mnist_exp.cli.check  # noqa: F401  registers the resolvers that the YAML files use
from mnist_exp.data import digits
from mnist_exp.errors import BadInput
from mnist_exp.experiment import checkpoint, environment
from mnist_exp.experiment.load import load_model
from mnist_exp.experiment.run import Run, load_run, train
from mnist_exp.experiment.signals import Interrupted
from mnist_exp.models import MLP
from mnist_exp.paths import LAST
from mnist_exp.training.loop import evaluate, fit
from mnist_exp.training.metrics import Epoch
from mnist_exp.training.options import TrainerOptions
from mnist_exp.training.precision import Precision
from mnist_exp.training.state import TrainState

CPU = torch.device("cpu")


class Spied(nn.Module):
    """An MLP that notes the types of its weights, images and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP((1, 8, 8), 10)
        self.seen: set[tuple[torch.dtype, ...]] = set()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.mlp(images)
        self.seen.add((next(self.parameters()).dtype, images.dtype, logits.dtype))
        return logits


def train_epoch(name: str, cache: Path) -> tuple[Epoch, Spied]:
    """One epoch on the digits."""
    torch.manual_seed(0)
    precision = Precision(name, CPU)
    dataset = digits(str(cache), mean=0.3059, std=0.3763)
    train, val = (dataset.prepare(s, CPU, precision.dtype) for s in (dataset.train, dataset.val))
    model = Spied().to(precision.dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    state = TrainState(model, optimizer, ConstantLR(optimizer, 1.0, 0), precision=precision)
    (epoch,) = fit(state, train, val, TrainerOptions(epochs=1), batch_size=32, seed=1)
    return epoch, model


@pytest.mark.parametrize(
    ("name", "stored", "computed", "tolerance"),
    [
        ("float64", torch.float64, torch.float64, 1e-6),
        ("bfloat16", torch.float32, torch.bfloat16, 1e-2),
        ("float16", torch.float32, torch.float16, 1e-3),
    ],
)
def test_the_metrics_of_an_epoch_are_near_those_of_float32(
    name: str,
    stored: torch.dtype,
    computed: torch.dtype,
    tolerance: float,
    digits_cache: Path,
) -> None:
    expected, _ = train_epoch("float32", digits_cache)
    found, model = train_epoch(name, digits_cache)
    assert model.seen == {(stored, stored, computed)}
    assert found.train["loss"] == pytest.approx(expected.train["loss"], rel=tolerance)
    assert found.val["loss"] == pytest.approx(expected.val["loss"], rel=tolerance)
    assert found.val["accuracy"] == pytest.approx(expected.val["accuracy"], abs=0.02)


def test_an_evaluation_is_in_the_precision_asked_for(digits_cache: Path) -> None:
    dataset = digits(str(digits_cache), mean=0.3059, std=0.3763)
    split = dataset.prepare(dataset.val, CPU)
    model = MLP((1, 8, 8), 10)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        losses = F.cross_entropy(model(split.images), split.labels, reduction="sum")
    expected = losses.item() / len(split)
    assert evaluate(model, split, Precision("bfloat16", CPU))["loss"] == expected
    assert evaluate(model, split)["loss"] != expected


# --- through an experiment ---


def test_a_float16_run_resumes_with_its_scale_bit_for_bit(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cpu_supports_float16", lambda: True)
    options = ("trainer.precision=float16", "trainer.epochs=2", "model.dropout=0.2")
    config = compose_config(*quick, "batch_size=16", *options)

    def experiment(name: str) -> Run:
        (tmp_path / name).mkdir()
        made = Run(config, tmp_path / name, name)
        made.state.scaler.set_growth_interval(10)  # grows in the test, too
        made.log.start(made.record(), [])
        return made

    whole, first = experiment("whole"), experiment("first")
    torch.manual_seed(5)
    whole.fit(lambda *agree: None)

    def interrupt(*agree: object) -> None:
        if len(first.state.progress.epochs) == 1 and len(first.state.progress.losses) == 45:
            raise Interrupted(signal.SIGTERM)

    torch.manual_seed(5)
    with pytest.raises(Interrupted):
        first.fit(interrupt)
    second = load_run(config, first.folder.path)
    saved = first.state.scaler.state_dict()
    assert second.state.scaler.state_dict() == saved
    assert saved["_growth_tracker"] > 0, "a new scaler would have 0"
    second.log.start(second.record(), [])
    second.fit(lambda *agree: None)

    for part in ("model", "optimizer", "scaler"):
        ours, theirs = second.state.state_dict()[part], whole.state.state_dict()[part]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    metrics = [(epoch.train, epoch.val) for epoch in second.state.progress.epochs]
    assert metrics == [(epoch.train, epoch.val) for epoch in whole.state.progress.epochs]


def test_float64_reaches_weights_images_and_the_file(quick: list[str], tmp_path: Path) -> None:
    config = compose_config(*quick, "trainer.precision=float64", "model=cnn", "trainer.epochs=1")
    train(config, tmp_path)
    weights = torch.load(tmp_path / "mnist_model.pth", weights_only=True)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float64}
    tested = checkpoint.load(tmp_path / LAST)["tested"]["metrics"]
    assert load_model(tmp_path / LAST).test() == tested


# --- what a device lacks ---


def test_an_unsupported_precision_is_refused_with_a_supported_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lacking(name: str, device: str) -> str | None:
        return environment.check_support("trainer.precision", name, torch.device(device))

    monkeypatch.setattr(environment, "cpu_supports_float16", lambda: False)
    assert lacking("float16", "cpu") == Like("…CPU…float16…bfloat16")
    assert lacking("float64", "mps") == Like("mps…float64…float32…trainer.device=cpu")
    names = ("float64", "float32", "bfloat16")
    assert [lacking(name, "cpu") for name in names] == [None] * 3
    assert lacking("float16", "mps") is lacking("float16", "cuda") is None
    monkeypatch.setattr(environment, "cpu_supports_float16", lambda: True)
    assert lacking("float16", "cpu") is None


def test_an_experiment_refuses_what_its_device_cannot_do(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cpu_supports_float16", lambda: False)
    config = compose_config(*quick, "trainer.precision=float16")
    with pytest.raises(BadInput) as caught:
        train(config, tmp_path)
    assert str(caught.value) == Like("trainer.precision=float16: …CPU…bfloat16")
    assert list(tmp_path.iterdir()) == []


def test_float32_is_not_rounded_to_tf32(quick: list[str], tmp_path: Path) -> None:
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    Run(compose_config(*quick), tmp_path, "name")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
