"""Learning rate schedules, step by step."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Like, compose_config, read_metrics
from torch.optim.lr_scheduler import LRScheduler

from mnist_exp.errors import BadInput
from mnist_exp.experiment.run import resume, train
from mnist_exp.paths import CONF
from mnist_exp.training import schedules


def learning_rates(schedule: Callable[..., LRScheduler], **options: object) -> list[float]:
    """The learning rates of the eight steps of two epochs, from 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = schedule(optimizer, epochs=2, epoch_steps=4, **options)
    found = []
    for _ in range(8):
        found.append(round(optimizer.param_groups[0]["lr"], 4))
        optimizer.step()
        scheduler.step()
    return found


def test_each_schedule_is_the_table_that_it_promises() -> None:
    assert learning_rates(schedules.constant) == [1, 1, 1, 1, 1, 1, 1, 1]
    halves = learning_rates(schedules.step, every_epochs=0.75, gamma=0.5)
    assert halves == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    plain = learning_rates(schedules.cosine, warmup_epochs=0.0, final_factor=0.0)
    assert plain == [1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]
    warmed = learning_rates(schedules.cosine, warmup_epochs=0.5, final_factor=0.1)
    assert warmed == [0.5, 1, 1, 0.9397, 0.775, 0.55, 0.325, 0.1603]
    level = learning_rates(schedules.trapezoid, warmup_epochs=0.5, cooldown_epochs=1.0)
    assert level == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    cycle = {"pct_start": 0.5, "div_factor": 10.0, "final_div_factor": 10.0}
    once = learning_rates(schedules.onecycle, **cycle, cycle_momentum=True)
    assert once == [0.1, 0.325, 0.775, 1, 0.855, 0.505, 0.155, 0.01]


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("scheduler/*.yaml")))
def test_each_schedule_steps_every_batch_and_resumes(
    quick: list[str], tmp_path: Path, name: str
) -> None:
    typed = ["trainer.epochs=4", f"scheduler={name}", "optimizer=sgd", "trainer.max_batches=10"]
    config, again = compose_config(*quick, *typed), compose_config("resume=latest")
    more = compose_config("trainer.epochs=5")
    train(config, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rates = [float(rate) for line in lines for rate in re.findall(r'"lr": ([\d.e-]+)', line)]
    open_ended = name in ("constant", "plateau")  # epochs can be added
    assert (len(set(rates)) == 1) == open_ended
    resume(again, tmp_path)
    if open_ended:
        resume(more, tmp_path, ["trainer.epochs=5"])
    else:
        with pytest.raises(BadInput, match=r"trainer\.epochs=5: .*4"):
            resume(more, tmp_path, ["trainer.epochs=5"])


def test_plateau_follows_the_monitor_down_and_up(quick: list[str], tmp_path: Path) -> None:
    typed = ["scheduler=plateau", "scheduler.patience=1", "optimizer.lr=1e-9", "trainer.epochs=6"]
    train(compose_config(*quick, *typed, "trainer.monitor=val/accuracy"), tmp_path)
    rates = [line["lr"] for line in read_metrics(tmp_path) if "lr" in line]
    assert rates == pytest.approx([1e-9] * 3 + [1e-10] * 2 + [1e-11])  # nothing is learned


def test_a_schedule_longer_than_the_training_is_one_line(quick: list[str], tmp_path: Path) -> None:
    config = compose_config(*quick, "scheduler=cosine", "scheduler.warmup_epochs=9")
    with pytest.raises(BadInput) as caught:
        train(config, tmp_path)
    assert str(caught.value) == Like("scheduler=…cosine: warmup_epochs=9 …2 epochs")
