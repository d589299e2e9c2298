"""What a run costs, compared with the minimum and with the usual cost of the same work.

    python benchmarks/bench.py [--rounds 5] [--only SECTION ...] [--out FILE]

The commands of a section run in turn, round after round, so that other load on the machine affects
all of them alike. Ratios are taken within a round. The report has the median of the rounds, with
minimum and maximum. Tracked runs stay in MLflow's experiment "bench"; nothing else remains.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

import numpy as np
from measure import Bar, Column, Section, measure_section, name_processor, run

from mnist_exp.data.cache import idx_encode
from mnist_exp.files import replace_file
from mnist_exp.paths import CONF, REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "RESULTS.md"

WALL = Column("wall, s", lambda run: run.wall, ".2f")
CPU = Column("CPU, s", lambda run: run.cpu, ".2f")
MEMORY = Column("peak memory, MB", lambda run: run.memory, ",.0f")
SECONDS, IMAGES = "speed/epoch_seconds", "speed/images_per_second"  # in metrics.jsonl
EPOCH = Column("epoch, s", lambda run: run.epoch(SECONDS), ".3f")
EPOCHS = Column("all epochs, s", lambda run: sum(run.values(SECONDS)), ".2f")
SPEED = Column("images/s", lambda run: run.epoch(IMAGES), ",.0f")
VAL = Column("val accuracy", lambda run: run.last("val/accuracy"), ".4f")
TEST = Column("test accuracy", lambda run: run.last("test/accuracy"), ".4f")
PER_EPOCH = Column("an epoch", lambda run: fmean(run.values(SECONDS)), ".2f", relative=True)
PER_IMAGE = Column("an image", lambda run: 1 / run.epoch(IMAGES), ".2f", relative=True)

TUTORIAL = "benchmarks/tutorial.py DATA"
TRACKED = "hydra.run.dir=OUT hydra.sweep.dir=OUT tracking.experiment=bench"
UNTRACKED = "train.py hydra.run.dir=OUT tracking=none"
SHORT = f"{UNTRACKED} trainer.epochs=3"
MODELS = sorted(path.stem for path in CONF.glob("model/*.yaml"))
PRECISIONS = [f"trainer.precision={name}" for name in ("float64", "float32", "bfloat16", "float16")]

GRID = "optimizer.lr=1e-4,1e-3,1e-2 batch_size=32,64,128"
SWEEPS = {
    "3×3 grid, 5 epochs": GRID,
    "3×3 grid, 1 epoch": f"{GRID} trainer.epochs=1",
    "2×2 grid of CNNs, 2 epochs": "model=cnn optimizer.lr=1e-3,3e-3 batch_size=64,128 "
    "trainer.epochs=2",
}


def append_each(start: str, words: Iterable[str]) -> dict[str, str]:
    """Commands that differ in their last words, by these words."""
    return {word: f"{start} {word}" for word in words}


def compare_wall(one: str, other: str, limit: str = "", times: int = 1) -> Bar:
    """The wall time of `one`, multiplied by `times`, divided by that of `other`."""
    text = f"{times} × {one} / {other}" if times > 1 else f"{one} / {other}"
    return Bar(text, lambda runs: times * runs[one].wall / runs[other].wall, limit)


def limit_wall(words: str) -> Bar:
    """The wall time of a command that trains nothing, in seconds."""
    return Bar(words, lambda runs: runs[words].wall, "≤ 0.6")


SECTIONS = {
    "processes": Section(
        "Whole processes, the same work",
        "MNIST, 784-128-64-10, Adam at 1e-3, batches of 64, five epochs. The tutorial has a "
        "DataLoader and per-sample transforms; the bare loop has tensors in memory, one thread, no "
        "validation, no metrics, and no files. An epoch is the median of those after the first: "
        "51,000 images, and except in the bare loop 9,000 to validate on. images/s count training.",
        {
            "tutorial": TUTORIAL,
            "bare loop": "benchmarks/bare.py DATA",
            "train.py": f"train.py {TRACKED}",
            "train.py tracking=none": UNTRACKED,
        },
        [WALL, CPU, MEMORY, EPOCH, SPEED, TEST],
        [
            compare_wall("tutorial", "train.py", "≥ 4.5"),
            compare_wall("train.py", "bare loop", "≤ 1.5"),
            compare_wall("train.py tracking=none", "bare loop", "≤ 1.2"),
            Bar(
                "epoch of train.py / epoch of the bare loop × 60,000 / 51,000",
                lambda runs: (
                    EPOCH.value(runs["train.py"]) / (EPOCH.value(runs["bare loop"]) * 60 / 51)
                ),
                "≤ 1.1",
            ),
        ],
    ),
    "answers": Section(
        "Answers without training",
        "`train.py` with these arguments: wall seconds of the process.",
        answers := append_each("train.py", ["--help", "--cfg job", "optimizer.lrr=1"]),
        bars=[limit_wall(words) for words in answers],
    ),
    "batch": Section(
        "An epoch by batch size",
        "`train.py tracking=none trainer.epochs=3`: the median of the epochs after the first.",
        append_each(SHORT, (f"batch_size={2**power}" for power in range(4, 13))),
        [EPOCH, SPEED],
    ),
    "model": Section(
        "An epoch by model",
        "`train.py tracking=none trainer.epochs=3 trainer.max_batches=100`: the median of the "
        "epochs after the first.",
        append_each(f"{SHORT} trainer.max_batches=100", (f"model={model}" for model in MODELS)),
        [EPOCH, SPEED, VAL],
        max_rounds=3,
    ),
    "epochs": Section(
        "The cost of more epochs",
        "`train.py tracking=none`: the mean of the epochs, relative to the first row. The first "
        "epoch of a run includes the warm-up.",
        append_each(UNTRACKED, (f"trainer.epochs={number}" for number in (1, 2, 4, 8))),
        [EPOCHS, PER_EPOCH],
    ),
    "images": Section(
        "The cost of more images",
        "`train.py tracking=none`, batches of 64: training time per image after the first epoch, "
        "relative to the first row.",
        append_each(
            UNTRACKED, (f"trainer.max_batches={number}" for number in (100, 200, 400, 800))
        ),
        [EPOCHS, PER_IMAGE],
    ),
    "sweep": Section(
        "Nine trainings",
        "A sweep over nine seeds, and the tutorial, run once and counted nine times.",
        {"tutorial": TUTORIAL, "sweep": f"train.py -m seed=1,2,3,4,5,6,7,8,9 {TRACKED}"},
        [WALL, CPU, MEMORY],
        [compare_wall("tutorial", "sweep", "≥ 9", times=9)],
        max_rounds=3,
    ),
    "parallel": Section(
        "Sweeps side by side",
        "Each sweep with the default launcher, and with one job after the other.",
        {
            f"{name}, {how}": f"train.py -m {words} {launcher} {TRACKED}"
            for name, words in SWEEPS.items()
            for how, launcher in (("serial", "hydra/launcher=basic"), ("default", ""))
        },
        bars=[
            compare_wall(f"{name}, default", f"{name}, serial", limit)
            for name, limit in zip(SWEEPS, ("≤ 0.60", "≤ 0.75", "≤ 0.75"), strict=True)
        ],
        max_rounds=3,
    ),
    "precision": Section(
        "Precision and compilation",
        "`train.py tracking=none trainer.epochs=3 trainer.max_batches=200`: the median of the "
        "epochs after the first, which compiles the model. The wall time includes compilation.",
        append_each(
            f"{SHORT} trainer.max_batches=200",
            (
                f"model={model} {words}"
                for model in ("mlp", "cnn")
                for words in (*PRECISIONS, "trainer.compile=true")
            ),
        ),
        [WALL, EPOCH, VAL],
    ),
}


@contextmanager
def provide_mnist() -> Iterator[str]:
    """A folder with MNIST as torchvision arranges it, after a run that has downloaded it."""
    run(f"train.py {TRACKED} trainer=debug")
    with tempfile.TemporaryDirectory() as data:
        raw = Path(data, "MNIST", "raw")
        raw.mkdir(parents=True)
        for path in (REPOSITORY / "data" / "cache" / "mnist").glob("*.npy"):
            (raw / path.stem).write_bytes(idx_encode(np.load(path)))
        yield data


def describe_environment() -> str:
    """What was measured, when, and where."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(describe, cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
    cpu, memory = name_processor(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    packages = ("torch", "torchvision", "mlflow", "hydra-core")
    lines = [
        "# Measured",
        "",
        f"- `{shlex.join(['python', 'benchmarks/bench.py', *sys.argv[1:]])}`",
        f"- {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}, commit {commit}",
        f"- {cpu}, {os.cpu_count()} cores, {memory:.0f} GB, load before {os.getloadavg()[0]:.1f}",
        f"- Python {platform.python_version()}, {', '.join(f'{p} {version(p)}' for p in packages)}",
        "- numbers: median of the rounds (minimum to maximum); ratios are taken within a round",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of {', '.join(SECTIONS)}"
    )
    parser.add_argument(
        "--out", type=Path, help="default benchmarks/RESULTS.md, or none with --only"
    )
    options = parser.parse_args()
    out = options.out or (None if options.only else RESULTS)

    parts = [describe_environment()]
    print(parts[0])
    with provide_mnist() as data:
        for name in options.only or SECTIONS:
            parts.append(measure_section(SECTIONS[name], options.rounds, data))
            print(f"\n{parts[-1]}")
    if out:
        with replace_file(out) as temporary:
            temporary.write_text("\n".join(parts))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; nothing was written")
