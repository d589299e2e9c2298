"""What a terminal shows; what a pipe gets is in test_train.py."""

from __future__ import annotations

import io
import logging

import pytest
import torch
from rich.console import Console

from mnist_exp.experiment import screen
from mnist_exp.models import MLP
from mnist_exp.training.metrics import Epoch
from mnist_exp.training.state import Progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, highlight=False)
    monkeypatch.setattr(screen, "console", console)
    monkeypatch.setattr(screen, "REDRAW_SECONDS", 0.0)
    return shown


def record(message: str, **extra: object) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": message, "levelno": logging.INFO, **extra})


def test_the_bar_shows_epoch_loss_and_speed(terminal: io.StringIO) -> None:
    training = Progress(MLP((1, 2, 2), 2))
    training.losses = [torch.tensor(2.0)] * 2
    with screen.progress_bar(epochs=5, images=16, batch_size=4) as step:
        step(training)
    shown = terminal.getvalue()
    assert "epoch 1/5" in shown
    assert "loss 0.5000" in shown
    assert "images/s" in shown


def test_the_running_loss_is_of_the_last_hundred_batches() -> None:
    training = Progress(MLP((1, 2, 2), 2))
    training.losses = [torch.tensor(36.0)] * 50 + [torch.tensor(4.0)] * 100
    assert screen.format_loss(training, batch_size=4) == "loss 1.0000  "


def test_on_a_gpu_the_bar_shows_the_last_epoch_and_reads_no_tensor() -> None:
    training = Progress(MLP((1, 2, 2), 2))
    training.losses = [torch.empty((), device="meta")]  # reading it would raise
    assert screen.format_loss(training, batch_size=4) == ""
    metrics = {"loss": 0.25, "accuracy": 0.5}
    training.epochs = [Epoch(1, metrics, metrics, 0.1, 1.0, 1.0, 0.0)]
    assert screen.format_loss(training, batch_size=4) == "loss 0.2500  "


def test_a_table_is_drawn_on_a_terminal_and_aligned_lines_elsewhere(
    terminal: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        screen.show_table("Title", ("split", "loss"), [("train", "0.1"), ("val", "10.25")])
    (table,) = caplog.records
    assert table.getMessage() == "Title\nsplit  loss\ntrain  0.1\nval    10.25"
    screen.ScreenHandler().emit(table)
    assert "│ train │ 0.1" in terminal.getvalue()


def test_names_in_a_table_are_neither_markup_nor_control_codes(
    terminal: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        screen.show_table("100 %", ("class",), [("[/b]:cat:",), ("\x1b]0;title\x07\n",)])
    (table,) = caplog.records
    assert table.getMessage() == "100 %\nclass\n[/b]:cat:\n\\x1b]0;title\\x07\\n"
    screen.ScreenHandler().emit(table)
    assert "│ [/b]:cat: " in terminal.getvalue()
    assert "│ \\x1b]0;title\\x07\\n │" in terminal.getvalue()


def test_a_line_logged_during_training_appears_above_the_bar(terminal: io.StringIO) -> None:
    training = Progress(MLP((1, 2, 2), 2))
    training.losses = [torch.tensor(2.0)]
    with screen.progress_bar(epochs=5, images=16, batch_size=4) as step:
        step(training)
        screen.ScreenHandler().emit(record("epoch 0/5 is done"))
    before, _, after = terminal.getvalue().partition("epoch 0/5 is done\n")
    assert before.endswith("\x1b[2K")  # the bar is erased, then drawn again below the line
    assert "epoch 1/5" in after


def test_lines_in_a_pipe_are_neither_wrapped_nor_marked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(screen, "console", Console(file=pipe, highlight=False))
    line = "a [bold]name[/bold] " + "x" * 300
    screen.ScreenHandler().emit(record(line))
    assert pipe.getvalue() == line + "\n"
