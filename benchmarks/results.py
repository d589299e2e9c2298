"""Measure what the presets reach, and write RESULTS.md.

    python benchmarks/results.py [--only PRESET ...] [--set [PRESET:]KEY=VALUE ...]

Each preset trains over its seeds by the command that a person types, and its row is read from the
files that the runs leave. The rows are kept in benchmarks/results.json, and the page is written
from all of them: `--only` measures these presets again, and without a name it measures none. The
runs stay in outputs/. They are not tracked, so that no other process runs next to them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import recipe
from hydra import compose
from hydra.errors import HydraException
from measure import name_processor
from omegaconf import DictConfig, OmegaConf
from page import Row, Run, render_page
from sklearn.metrics import confusion_matrix

from mnist_exp.errors import Failure, first_line
from mnist_exp.experiment.build import load_dataset
from mnist_exp.experiment.load import load_model
from mnist_exp.experiment.presets import initialize_hydra
from mnist_exp.figures import draw
from mnist_exp.files import replace_file
from mnist_exp.paths import LAST, REPOSITORY
from mnist_exp.sweeps.records import Outcome, read_outcomes
from mnist_exp.training.loop import predict

PAGE = REPOSITORY / "RESULTS.md"
ROWS = REPOSITORY / "benchmarks" / "results.json"
WRITTEN = ("RESULTS.md", "benchmarks/results.json", "docs/*.png")  # by this program
PLACES = (
    "data.root=",
    "data.cache=",
    "data.mirrors=",
)  # depend on the machine and change no result


class Preset(NamedTuple):
    seeds: int  # from 1 to this one
    recipe_seeds: int = 0  # of the recipe, each before an equal part of the preset's
    picture: str = ""  # of its errors
    note: str = ""


PRESETS = {
    "baseline": Preset(seeds=5),
    "speedrun": Preset(seeds=20, recipe_seeds=5),
    "accurate": Preset(seeds=3, picture="docs/accurate-confusion.png"),
    "fashion": Preset(seeds=3),
    "cifar10": Preset(
        seeds=1,
        note="CIFAR-10 from a folder of images after JPEG re-encoding: not the published pixels",
    ),
}


def measure_preset(name: str, overrides: Sequence[str]) -> Row:
    """Train a preset over all its seeds. The row lists failures."""
    preset = PRESETS[name]
    row = start_row(preset.note)
    placed = [word for word in overrides if word.startswith(PLACES)]
    row.placed = [word.partition("=")[0] for word in placed]
    try:
        config = download_data([f"experiment={name}", *overrides])
    except (Failure, HydraException) as error:
        row.failures.append(first_line(error))
        return row
    jobs: list[Outcome] = []
    for number, seeds in enumerate(split_seeds(preset)):
        if preset.recipe_seeds:
            row.recipe.append(run_recipe(number, Path(config.data.cache, "mnist")))
        words = ["train.py", "-m", f"experiment={name}", f"seed={','.join(map(str, seeds))}"]
        words += ["sweep.test=all", "tracking=none", "hydra/launcher=basic"]  # one has all cores
        words += [word for word in overrides if word not in placed]
        row.commands.append(shlex.join(["python", *words]))
        jobs += run_sweep(row, number, [*words, *placed])
    try:
        load_weights(row, jobs, preset.picture)
    except Exception as error:  # keep the row, which may have taken hours
        row.failures.append(f"the weights: {type(error).__name__}: {first_line(error)}")
    return row


def split_seeds(preset: Preset) -> list[range]:
    """The seeds of each sweep of the preset."""
    share = preset.seeds // (preset.recipe_seeds or 1)
    return [range(first, first + share) for first in range(1, preset.seeds + 1, share)]


def download_data(words: Sequence[str]) -> DictConfig:
    """Compose the config, then download and decode its data, which must not be timed.

    Raises Failure and HydraException.
    """
    with initialize_hydra():
        config = compose("config", list(words))
    load_dataset(OmegaConf.to_yaml(config.data, resolve=True))
    return config


def run_recipe(number: int, folder: Path) -> Run:
    seconds, accuracy = recipe.run(number + 1, str(folder))
    print(f"recipe, seed {number + 1}: {seconds:.2f} s, {accuracy:.4f}", flush=True)
    return Run(number, number + 1, accuracy, seconds)


def run_sweep(row: Row, number: int, words: Sequence[str]) -> list[Outcome]:
    """Run one sweep and add its results to the row; return the jobs that finished."""
    started = time.perf_counter()
    code, printed = run_command([sys.executable, *words])
    row.wall += time.perf_counter() - started
    folders = re.findall(r"^outputs +(.+)$", printed, re.MULTILINE)
    if not folders:
        last = (printed.strip().splitlines() or ["no output"])[-1]
        row.failures.append(f"exit code {code}: {last}")
        return []
    jobs = read_outcomes(REPOSITORY / folders[-1])
    for job in jobs:
        if job.finished:
            row.runs.append(read_run(job, number))
        else:
            row.failures.append(f"seed {read_seed(job)}: {job.status} {job.reason}".strip())
    if means := re.findall(r"^(?:seed=|job )\d+ on (.+): [\d,]+ parameters", printed, re.MULTILINE):
        row.device = means[0]
    return [job for job in jobs if job.finished]


def run_command(command: Sequence[str]) -> tuple[int, str]:
    """Run the command and show its output; return its exit code and its output."""
    lines = []
    process = subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    finally:
        process.wait()  # Ctrl-C reached it, too
    return process.returncode, "".join(lines)


def read_run(job: Outcome, number: int) -> Run:
    metrics = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    (accuracy,) = (line["test/accuracy"] for line in metrics if "test/accuracy" in line)
    return Run(number, read_seed(job), accuracy, job.seconds)


def read_seed(job: Outcome) -> int:
    """The seed from the overrides, because a failed job may have no config."""
    values = dict(override.split("=", 1) for override in job.overrides)
    return int(values["seed"])


def load_weights(row: Row, jobs: Sequence[Outcome], picture: str) -> None:
    """Count the parameters; if a picture is wanted, draw the errors of all seeds.

    The picture opens the test set again, and checks that the accuracy is that of the run.
    """
    labels: list[int] = []
    predictions: list[int] = []
    for job, run in zip(jobs, row.runs, strict=True):
        trained = load_model(job.folder / LAST)
        row.parameters = sum(parameter.numel() for parameter in trained.model.parameters())
        if not picture:
            return
        test = trained.test_split()
        predicted = predict(trained.model, test, trained.precision)
        correct = (predicted == test.labels).sum().item()
        if abs(correct - run.accuracy * len(test)) > 2:  # near a tie the last bits decide
            row.failures.append(f"seed {run.seed}: its weights now give {correct / len(test):.4f}")
        labels += test.labels.tolist()
        predictions += predicted.tolist()
    if labels:
        names = trained.kind.class_names
        counts = confusion_matrix(labels, predictions, labels=range(len(names)))
        draw.confusion(REPOSITORY / picture, names, counts)
        row.picture = picture


def start_row(note: str) -> Row:
    """An empty row, with the time, the machine, and the versions of its measurement."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ("torch", "torchvision", "numpy", "hydra-core")
    return Row(
        began=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        commit=describe_commit(),
        machine=f"{name_processor()}, {cores} cores, load before {os.getloadavg()[0]:.1f}",
        versions=", ".join(
            [f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]
        ),
        note=note,
    )


def describe_commit() -> str:
    """The commit, with "-dirty" if files have changed other than those this program writes."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", ".", *(f":!{path}" for path in WRITTEN))
    return (git("rev-parse", "--short", "HEAD") or "unknown") + "-dirty" * bool(changed)


def read_rows() -> dict[str, Row]:
    if not ROWS.exists():
        return {}
    rows = {}
    for name, values in json.loads(ROWS.read_text()).items():
        for several in ("runs", "recipe"):
            values[several] = [Run(**run) for run in values[several]]
        rows[name] = Row(**values)
    return rows


def write(rows: dict[str, Row]) -> None:
    """Write the rows, in the order of PRESETS, and the page."""
    rows = {name: rows[name] for name in PRESETS if name in rows}
    text = json.dumps({name: asdict(row) for name, row in rows.items()}, indent=1)
    for path, written in ((ROWS, text + "\n"), (PAGE, render_page(rows))):
        with replace_file(path) as temporary:
            temporary.write_text(written, "utf-8")


def parse_override(word: str) -> tuple[str, str]:
    """The preset, or "" for all of them, and the override for it."""
    prefix = re.match(r"(\w+):", word)
    preset, word = (prefix[1], word[prefix.end() :]) if prefix else ("", word)
    if preset and preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise argparse.ArgumentTypeError(f"{preset} is not a preset; there are {known}")
    return preset, word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    choice = f"from {', '.join(PRESETS)}"
    parser.add_argument("--only", nargs="*", choices=PRESETS, metavar="PRESET", help=choice)
    parser.add_argument(
        "--set",
        nargs="+",
        type=parse_override,
        default=[],
        metavar="[PRESET:]KEY=VALUE",
        help="more overrides for train.py, such as data.root=FOLDER",
    )
    options = parser.parse_args()
    names = list(PRESETS) if options.only is None else options.only
    rows = read_rows()
    for name in names:
        overrides = [word for preset, word in options.set if preset in ("", name)]
        rows[name] = measure_preset(name, overrides)
        write(rows)  # after each: a later one may be interrupted
    write(rows)
    print(render_page(rows))
    if any(rows[name].failures for name in names):
        sys.exit("something failed; see RESULTS.md")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; RESULTS.md has the finished presets")
