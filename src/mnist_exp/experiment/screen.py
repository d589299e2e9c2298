"""The screen of a run: log lines and tables, and on a terminal a progress bar below them.

Permanent lines are log records, so that the screen and the log file show the same. In a pipe there
are only these lines, without control codes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from mnist_exp.errors import Formatter, format_message, sanitize
from mnist_exp.training.metrics import Epoch
from mnist_exp.training.state import Progress as Training

log = logging.getLogger(__name__)
console = Console(highlight=False)
relay: Callable[..., None] | None = None  # of a job beside others, without a screen of its own

REDRAW_SECONDS = 0.2
WINDOW = 100  # batches of which the progress bar shows the loss


def can_draw() -> bool:
    """Whether the screen is a terminal, or a notebook with ipywidgets, which rich draws with."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


class ScreenHandler(logging.Handler):
    """Prints records above the progress bar; on a terminal, a table in place of its message.

    rich's own handler would wrap lines in a pipe and print tracebacks, which are for the log file
    and for hydra.verbose=true.
    """

    def emit(self, record: logging.LogRecord) -> None:
        table = getattr(record, "table", None)
        if relay:
            if record.levelno >= logging.WARNING:
                relay("log", level=record.levelno, text=format_message(record))
        elif table is not None and can_draw():
            console.print(table)
        else:
            style = "red" if record.levelno >= logging.ERROR else None
            is_verbose = logging.getLogger(record.name).isEnabledFor(logging.DEBUG)
            text = Formatter().format(record) if is_verbose else format_message(record)
            console.print(Text(text), soft_wrap=True, style=style)


def show_on_screen() -> None:
    """Show log records on the screen alone."""
    logging.basicConfig(level=logging.INFO, handlers=[ScreenHandler()], force=True)


def log_to(path: Path) -> None:
    """Log to the screen and to this file, as Hydra does for a run."""
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[ScreenHandler(), file], force=True)


@contextmanager
def show_bars() -> Iterator[Progress]:
    """Bars of trainings below the log, on a terminal."""
    columns = ("{task.description}", BarColumn(), "{task.fields[metrics]}", TimeRemainingColumn())
    hidden = relay is not None or not can_draw()
    bars = Progress(*columns, console=console, auto_refresh=False, transient=True, disable=hidden)
    with bars:
        yield bars


@contextmanager
def progress_bar(epochs: int, images: int, batch_size: int) -> Iterator[Callable[[Training], None]]:
    """A bar for a whole training; yields the function that moves it, to be called at each step."""
    if not can_draw():
        yield lambda training: None
        return
    with show_bars() as bars:
        task = bars.add_task("", total=epochs * images, metrics="")
        update = partial(relay, "progress") if relay else partial(bars.update, task, refresh=True)
        drawn_at, drawn = time.perf_counter(), 0

        def step(training: Training) -> None:
            nonlocal drawn_at, drawn
            now = time.perf_counter()
            if now - drawn_at < REDRAW_SECONDS:
                return
            done = len(training.epochs) * images + len(training.losses) * batch_size
            speed = (done - drawn) / (now - drawn_at)
            update(
                total=epochs * images,
                completed=done,
                description=f"epoch {len(training.epochs) + 1}/{epochs}",
                metrics=f"{format_loss(training, batch_size)}{speed:,.0f} images/s",
            )
            drawn_at, drawn = now, done

        yield step


def format_loss(training: Training, batch_size: int) -> str:
    """The loss over the last batches; on a GPU, which that would stall, the last epoch's."""
    if training.losses[-1].device.type == "cpu":
        losses = training.losses[-WINDOW:]
        return f"loss {torch.stack(losses).sum().item() / (len(losses) * batch_size):.4f}  "
    return f"loss {training.epochs[-1].train['loss']:.4f}  " if training.epochs else ""


def format_epoch(epoch: Epoch, epochs: int) -> str:
    """A finished epoch in one line."""
    parts = [f"epoch {epoch.number}/{epochs}"]
    for split, metrics in (("train", epoch.train), ("val", epoch.val)):
        if metrics:
            values = (f"{name} {value:.4f}" for name, value in metrics.items())
            parts.append(" ".join([split, *values]))
    return "  ".join([*parts, f"{epoch.seconds:.1f} s", f"{epoch.images_per_second:,.0f} images/s"])


def show_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Show a table: drawn on a terminal, as aligned lines in a pipe and in the log file."""
    title = sanitize(title)
    lines = [[*map(sanitize, row)] for row in (header, *rows)]
    head, *body = ([*map(Text, line)] for line in lines)  # names are not markup
    table = Table(*map(Column, head), title=Text(title, "table.title"), title_justify="left")
    for cells in body:
        table.add_row(*cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    log.info("\n".join([title, *aligned]), extra={"table": table})
