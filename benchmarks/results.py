"""What the presets reach, told in RESULTS.md.

    python benchmarks/results.py [--only PRESET ...] [--set [PRESET:]KEY=VALUE ...]

A preset is trained over its seeds by the command that a person types, and its row is read from what
the runs left. The rows are kept in benchmarks/results.json and the page is written from all of
them: `--only` measures these presets anew, and without a name none. The runs stay in outputs/; they
are not tracked, so that no other process is at work beside them.
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
from hydra.errors import HydraException
from measure import processor
from omegaconf import DictConfig, OmegaConf
from page import Row, Run, told

from mnist_exp import figures
from mnist_exp.cli.arguments import plan_sweep
from mnist_exp.errors import Failure, first_line
from mnist_exp.experiment.build import load_dataset
from mnist_exp.experiment.load import load
from mnist_exp.files import replacing
from mnist_exp.paths import LAST, REPOSITORY
from mnist_exp.sweeps import leaderboard
from mnist_exp.sweeps.leaderboard import Outcome
from mnist_exp.training.loop import predict

PAGE = REPOSITORY / "RESULTS.md"
ROWS = REPOSITORY / "benchmarks" / "results.json"
WRITTEN = ("RESULTS.md", "benchmarks/results.json", "docs/*.png")  # by this program: no other code
PLACES = ("data.root=", "data.cache=", "data.mirrors=")  # of this machine; they change no figure


class Preset(NamedTuple):
    seeds: int  # 1 to this
    recipe_seeds: int = 0  # of the recipe, each before its share of the preset's
    picture: str = ""  # of what it gets wrong
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


def measured(name: str, overrides: Sequence[str]) -> Row:
    """A preset over all its seeds. What fails is told by the row."""
    preset = PRESETS[name]
    row = begun(preset.note)
    placed = [word for word in overrides if word.startswith(PLACES)]
    row.placed = [word.partition("=")[0] for word in placed]
    try:
        config = fetched([f"experiment={name}", *overrides])
    except (Failure, HydraException) as error:
        row.failures.append(first_line(error))
        return row
    jobs: list[Outcome] = []
    for number, seeds in enumerate(rounds(preset)):
        if preset.recipe_seeds:
            row.recipe.append(run_of_recipe(number, Path(config.data.cache, "mnist")))
        words = ["train.py", "-m", f"experiment={name}", f"seed={','.join(map(str, seeds))}"]
        words += ["sweep.test=all", "tracking=none"]
        words += [word for word in overrides if word not in placed]
        row.commands.append(shlex.join(["python", *words]))
        jobs += swept(row, number, [*words, *placed])
    try:
        look_at_weights(row, jobs, preset.picture)
    except Exception as error:  # the row is not to be lost, which may have taken hours
        row.failures.append(f"the weights: {type(error).__name__}: {first_line(error)}")
    return row


def rounds(preset: Preset) -> list[range]:
    """The seeds of each of its sweeps."""
    share = preset.seeds // (preset.recipe_seeds or 1)
    return [range(first, first + share) for first in range(1, preset.seeds + 1, share)]


def fetched(words: Sequence[str]) -> DictConfig:
    """The config that these words make, its data fetched and decoded: a clock is not to see that.

    Raises Failure and HydraException.
    """
    config = plan_sweep(words).config
    load_dataset(OmegaConf.to_yaml(config.data, resolve=True))
    return config


def run_of_recipe(number: int, folder: Path) -> Run:
    seconds, accuracy = recipe.run(number + 1, str(folder))
    print(f"recipe, seed {number + 1}: {seconds:.2f} s, {accuracy:.4f}", flush=True)
    return Run(number, number + 1, accuracy, seconds)


def swept(row: Row, number: int, words: Sequence[str]) -> list[Outcome]:
    """Run one sweep and add to the row what it left; returns the jobs that finished."""
    started = time.perf_counter()
    code, printed = ended([sys.executable, *words])
    row.wall += time.perf_counter() - started
    folders = re.findall(r"^outputs +(.+)$", printed, re.MULTILINE)
    if not folders:
        last = (printed.strip().splitlines() or ["nothing was said"])[-1]
        row.failures.append(f"exit code {code}: {last}")
        return []
    jobs = leaderboard.read(REPOSITORY / folders[-1])
    for job in jobs:
        if job.finished:
            row.runs.append(run_of(job, number))
        else:
            row.failures.append(f"seed {seed_of(job)}: {job.status} {job.reason}".strip())
    if means := re.findall(r"^(?:seed=|job )\d+ on (.+): [\d,]+ parameters", printed, re.MULTILINE):
        row.device = means[0]
    return [job for job in jobs if job.finished]


def ended(command: Sequence[str]) -> tuple[int, str]:
    """The command's exit code, and what it printed, passed on to the screen as it came."""
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
        process.wait()  # Ctrl-C has reached it, too
    return process.returncode, "".join(lines)


def run_of(job: Outcome, number: int) -> Run:
    found = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    (accuracy,) = (line["test/accuracy"] for line in found if "test/accuracy" in line)
    seconds = sum(line.get("epoch_seconds", 0.0) for line in found)
    return Run(number, seed_of(job), accuracy, seconds)


def seed_of(job: Outcome) -> int:
    """The config of a job that failed may not be there."""
    values = dict(override.split("=", 1) for override in job.overrides)
    return int(values["seed"])


def look_at_weights(row: Row, jobs: Sequence[Outcome], picture: str) -> None:
    """Count the parameters, and where there is to be a picture, what each seed's weights get wrong.

    The test set is opened for it once more; that the answers are those of the run is checked.
    """
    labels: list[int] = []
    predictions: list[int] = []
    for job, run in zip(jobs, row.runs, strict=True):
        trained = load(job.folder / LAST)
        row.parameters = sum(parameter.numel() for parameter in trained.model.parameters())
        if not picture:
            return
        test = trained.prepared_test()
        found = predict(trained.model, test, trained.precision)
        right = (found == test.labels).sum().item()
        if abs(right - run.accuracy * len(test)) > 2:  # near a tie the last bits decide
            row.failures.append(f"seed {run.seed}: its weights now give {right / len(test):.4f}")
        labels += test.labels.tolist()
        predictions += found.tolist()
    if labels:
        (REPOSITORY / picture).parent.mkdir(exist_ok=True)
        figures.confusion(REPOSITORY / picture, trained.kind.class_names, labels, predictions)
        row.picture = picture


def begun(note: str) -> Row:
    """A row of which nothing is known but when, where and with what it begins to be measured."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ("torch", "torchvision", "numpy", "hydra-core")
    return Row(
        began=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        commit=commit(),
        machine=f"{processor()}, {cores} cores, load before {os.getloadavg()[0]:.1f}",
        versions=", ".join(
            [f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]
        ),
        note=note,
    )


def commit() -> str:
    """With "-dirty" where any file of it has changed but those that this program writes."""

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
    """The rows, in the order of PRESETS, and the page."""
    rows = {name: rows[name] for name in PRESETS if name in rows}
    text = json.dumps({name: asdict(row) for name, row in rows.items()}, indent=1)
    for path, written in ((ROWS, text + "\n"), (PAGE, told(rows))):
        with replacing(path) as temporary:
            temporary.write_text(written, "utf-8")


def addressed(word: str) -> tuple[str, str]:
    """A word for train.py, and the preset that it is for, or "" where it is for all."""
    prefix = re.match(r"(\w+):", word)
    whose, word = (prefix[1], word[prefix.end() :]) if prefix else ("", word)
    if whose and whose not in PRESETS:
        raise argparse.ArgumentTypeError(f"{whose} is no preset; there are {', '.join(PRESETS)}")
    return whose, word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    choice = f"of {', '.join(PRESETS)}"
    parser.add_argument("--only", nargs="*", choices=PRESETS, metavar="PRESET", help=choice)
    parser.add_argument(
        "--set",
        nargs="+",
        type=addressed,
        default=[],
        metavar="[PRESET:]KEY=VALUE",
        help="more words for train.py, such as data.root=FOLDER",
    )
    options = parser.parse_args()
    names = list(PRESETS) if options.only is None else options.only
    rows = read_rows()
    for name in names:
        rows[name] = measured(name, [word for whose, word in options.set if whose in ("", name)])
        write(rows)  # after each: a later one may be interrupted
    write(rows)
    print(told(rows))
    if any(rows[name].failures for name in names):
        sys.exit("something failed; RESULTS.md says what")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; RESULTS.md has the presets that were done")
