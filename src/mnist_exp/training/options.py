"""The options of the trainer, and those of every data set: what each may be, what it means.

An option has two places: its line in conf/trainer/default.yaml or conf/config.yaml, with today's
default and a comment, and its field here. The default here is the value that changes nothing: what
a checkpoint that is older than the option gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from mnist_exp.training.rules import (
    Rule,
    flag,
    flag_or,
    fraction,
    integer,
    is_count,
    list_of,
    matching,
    one_of,
    optional,
    positive,
    text,
)

DEVICE = matching(
    *("auto | cpu | cuda | cuda:<index> | mps", "auto|cpu|mps|cuda(:[0-9]+)?"),
    words=("auto", "cpu", "cuda", "mps"),
)
THREADS = Rule("auto or an integer >= 1", (str, int), lambda v: v == "auto" or is_count(v))
MONITOR = matching("val/ or train/ and the name of a metric, such as val/loss", "(val|train)/[^/]+")
COMPILE = flag_or("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class DataOptions:
    """Which images to train on, and in which order: what the group `data` has for every set."""

    sampling: Annotated[str, one_of("shuffled", "balanced")] = "shuffled"  # see sampling.draw_order
    folds: Annotated[int | None, optional(integer(2))] = None  # parts of a cross-validation
    fold: Annotated[int, integer(0)] = 0  # the part to validate on


@dataclass(frozen=True)
class TrainerOptions:
    """How to train: the group `trainer` of the config."""

    epochs: Annotated[int, integer(1)]
    device: Annotated[str, DEVICE] = "auto"  # CUDA, then MPS, then CPU
    threads: Annotated[int | str, THREADS] = "auto"  # of torch, on a CPU
    channels_last: Annotated[bool | str, flag_or("auto")] = "auto"  # memory format
    precision: Annotated[str, one_of("float64", "float32", "bfloat16", "float16")] = "float32"
    compile: Annotated[bool | str, COMPILE] = False  # by torch.compile, in one of its modes
    clip_norm: Annotated[float | None, optional(positive)] = None  # Pascanu et al., 2013
    ema_decay: Annotated[float | None, optional(fraction)] = None  # of the weights, per step
    freeze: Annotated[Sequence[str], list_of(text)] = ()  # shell patterns of parameter names
    accumulate: Annotated[int, integer(1)] = 1  # micro-batches that a batch is computed in
    patience: Annotated[int | None, optional(integer(1))] = None  # epochs without a better one
    monitor: Annotated[str, MONITOR] = "val/accuracy"  # decides which epoch and run is the best
    keep: Annotated[str, one_of("best", "last")] = "best"  # weights, by the monitor
    keep_state: Annotated[bool, flag] = True  # of the optimizer, for more epochs
    deterministic: Annotated[bool, flag] = True  # only algorithms that give the same bits
    checkpoint_every_steps: Annotated[int | None, optional(integer(1))] = None
    max_batches: Annotated[int | None, optional(integer(1))] = None  # of training and validation
    test: Annotated[bool, flag] = True  # open the test set once, after training
