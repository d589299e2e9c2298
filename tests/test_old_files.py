"""What version 0.1 wrote is read: other names, another format, fewer options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compose_config, read_metrics

from mnist_exp.experiment import checkpoint
from mnist_exp.experiment.load import load_model
from mnist_exp.experiment.run import resume, train
from mnist_exp.paths import LAST

# What version 0.1 called the targets of a plain run.
OLD_TARGETS = {
    "augment": "mnist_exp.augmentation.none",
    "optimizer": "mnist_exp.optimizers.Muon",
    "scheduler": "mnist_exp.schedules.cosine",
}
YOUNGER = ("ema_decay", "accumulate", "deterministic", "monitor")  # than the checkpoint


def write_as_version_1(path: Path) -> None:
    """Rewrite a checkpoint as version 0.1 wrote it, before it had some of the options."""
    content: dict[str, Any] = checkpoint.load(path)
    del content["version"]
    progress = content["state"]["progress"]
    sums = progress.pop("sums")  # right and wrong answers of the current epoch
    progress["correct"] = [sums[0][0]] if sums else []
    for name in ("first_of_equals", "monitor"):
        del progress[name]
    state = content.pop("state")
    state["average"] = state.pop("ema")
    config = content["config"]
    for group, target in OLD_TARGETS.items():
        config[group]["_target_"] = target
    config["trainer"]["label_smoothing"] = config["loss"]["label_smoothing"]
    for name in ("loss", "metrics", "callbacks"):
        del config[name]
    for name in YOUNGER:
        del config["trainer"][name]
    config["tracking"]["none"] = {"_target_": "mnist_exp.tracking.NoTracker"}
    torch.save({**content, **state, "format": 1}, path)


def test_a_checkpoint_of_version_1_resumes_bit_for_bit(digits_cache: Path, tmp_path: Path) -> None:
    typed = ["data=digits", f"data.cache={digits_cache}", "tracking=none", "optimizer=muon"]
    schedule = ["scheduler=cosine", "scheduler.warmup_epochs=0"]
    config = compose_config(*typed, *schedule, "trainer.epochs=2", "trainer.max_batches=3")
    whole, old = tmp_path / "whole", tmp_path / "old"
    for folder in (whole, old):
        folder.mkdir()
    train(config, whole)

    class Killed(Exception):
        pass

    def kill(*arguments: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mnist_exp.experiment.log.RunLog.add", kill)
        with pytest.raises(Killed):
            train(config, old)
    write_as_version_1(old / LAST)
    resume(config, old)
    assert read_metrics(old) == read_metrics(whole)
    weights = [torch.load(f / "mnist_model.pth", weights_only=True) for f in (old, whole)]
    assert all(map(torch.equal, weights[0].values(), weights[1].values()))
    assert checkpoint.load(old / LAST)["format"] == checkpoint.FORMAT


def test_the_model_of_a_checkpoint_of_version_1_is_loaded(
    digits_cache: Path, tmp_path: Path
) -> None:
    config = compose_config("data=digits", f"data.cache={digits_cache}", "tracking=none")
    config.trainer.epochs = 1
    train(config, tmp_path)
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    expected = load_model(tmp_path / LAST).logits(images)
    content = checkpoint.load(tmp_path / LAST)
    torch.save({**content, **content.pop("state"), "format": 1}, tmp_path / LAST)
    assert torch.equal(load_model(tmp_path / LAST).logits(images), expected)
