"""What was measured of the presets: read, merged, replaced, and written as results.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median, stdev

from scipy.stats import t

from mnist_exp.files import replace_file

SHARE = 4  # seeds of a preset after each one of the recipe


@dataclass(frozen=True)
class Run:
    """One training and its result."""

    seed: int
    accuracy: float  # 0..1, on the test set
    seconds: float  # of all epochs, or of the loop of the recipe
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)  # split → accuracy by epoch
    errors: Sequence[Sequence[int]] = ()  # of test images: number, true and predicted class


@dataclass
class Part:
    """Runs of a preset, measured in one go or more, with the same command, code, and machine."""

    preset: str
    digest: str  # of its config and the code that trains it; empty from before there were digests
    machine: str  # processor and cores
    began: str  # date, time and time zone
    commit: str
    load: float  # of the machine before
    versions: str
    command: str  # N stands for a seed, FOLDER for where the data are
    note: str = ""
    wall: float = 0.0  # seconds, of all commands
    device: str = ""  # with torch's threads, as the runs print it
    parameters: int = 0
    classes: dict[str, int] = field(default_factory=dict)  # name → test images
    runs: list[Run] = field(default_factory=list)
    recipe: list[Run] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)  # seed → reason


@dataclass(frozen=True)
class Row:
    """The parts of a preset with the same digest and machine: one result."""

    parts: Sequence[Part]

    @property
    def preset(self) -> str:
        return self.parts[0].preset

    @property
    def digest(self) -> str:
        return self.parts[0].digest

    @property
    def machine(self) -> str:
        return self.parts[0].machine

    @property
    def runs(self) -> list[Run]:
        return sorted((run for part in self.parts for run in part.runs), key=lambda run: run.seed)

    @property
    def recipe(self) -> list[Run]:
        return [run for part in self.parts for run in part.recipe]

    @property
    def failures(self) -> dict[str, str]:
        return {seed: reason for part in self.parts for seed, reason in part.failures.items()}

    @property
    def parameters(self) -> int:
        return max(part.parameters for part in self.parts)

    @property
    def classes(self) -> dict[str, int]:
        return next((part.classes for part in self.parts if part.classes), {})

    @property
    def seeds(self) -> set[int]:
        """Those that ran, whether they finished or failed."""
        return {run.seed for run in self.runs} | {int(seed) for seed in self.failures}

    @property
    def commits(self) -> str:
        return ", ".join(dict.fromkeys(part.commit for part in self.parts))

    @property
    def accuracies(self) -> list[float]:
        """In percent."""
        return [100 * run.accuracy for run in self.runs]

    @property
    def headline(self) -> str:
        """The result in one line, as the preset's file and the README have it."""
        training = median(run.seconds for run in self.runs)
        accuracy = f"{format_mean(self.accuracies)} % (n = {len(self.runs)})"
        digits = 0 if training >= 10 else 1
        return f"{accuracy}, {training:.{digits}f} s of training on {self.machine}"


@dataclass(frozen=True)
class Entry:
    """A row that was replaced."""

    preset: str
    date: str
    commit: str
    figure: str


@dataclass
class Records:
    """All measurements, the latest last."""

    parts: list[Part] = field(default_factory=list)
    history: list[Entry] = field(default_factory=list)

    def rows(self, preset: str) -> list[Row]:
        """The rows of a preset, the one with the newest part last."""
        merged: dict[tuple[str, str], list[Part]] = {}
        for part in self.parts:
            if part.preset == preset:
                key = part.digest, part.machine
                merged[key] = [*merged.pop(key, []), part]
        return [Row(parts) for parts in merged.values()]

    def best(self, preset: str) -> Row | None:
        """The row with the most runs, and of those the newest."""
        rows = [row for row in reversed(self.rows(preset)) if row.runs]
        return max(rows, key=lambda row: len(row.runs), default=None)

    def add(self, part: Part) -> Part:
        """The part that this one continues, or this one; it becomes the latest."""
        same = ("preset", "digest", "machine", "commit", "versions", "command")
        for known in self.parts:
            if all(getattr(known, name) == getattr(part, name) for name in same):
                part = known
        self.parts = [*(known for known in self.parts if known is not part), part]
        return part

    def replace_rows(self, planned: Mapping[str, int]) -> None:
        """Move the rows of older code that newer code has measured again into the history.

        planned: preset → seeds. A row is measured again when the newest code has all seeds of the
        plan, or as many as the older row.
        """
        for preset, seeds in planned.items():
            if not (rows := self.rows(preset)):
                continue
            newest = [row for row in rows if row.digest == rows[-1].digest]
            count = max(len(row.runs) for row in newest)
            for row in rows:
                if row not in newest and count >= min(seeds, len(row.runs)):
                    self.parts = [part for part in self.parts if part not in row.parts]
                    if row.runs:
                        self.history.append(make_entry(row))


def make_entry(row: Row) -> Entry:
    return Entry(row.preset, row.parts[-1].began[: len("2026-01-01")], row.commits, row.headline)


def format_mean(values: Sequence[float]) -> str:
    """The mean and the sample standard deviation."""
    mean = f"{fmean(values):.2f}"
    return f"{mean} ± {stdev(values):.2f}" if len(values) > 1 else mean


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t; for a single value, the value itself."""
    mean, n = fmean(values), len(values)
    half = float(t.ppf(0.975, n - 1)) * stdev(values) / n**0.5 if n > 1 else 0.0
    return mean - half, mean + half


def read_records(path: Path) -> Records:
    if not path.exists():
        return Records()
    values = json.loads(path.read_text("utf-8"))
    for part in values["parts"]:
        for several in ("runs", "recipe"):
            part[several] = [Run(**run) for run in part[several]]
    parts = [Part(**part) for part in values["parts"]]
    return Records(parts, [Entry(**entry) for entry in values["history"]])


def write_records(path: Path, records: Records) -> None:
    """One run per line, so that a commit shows which were added."""
    kept = [asdict(part) for part in records.parts if part.runs or part.failures or part.recipe]
    for part in kept:
        for several in ("runs", "recipe"):
            part[several] = [drop_empty(run) for run in part[several]]
    history = [asdict(entry) for entry in records.history]
    text = json.dumps({"parts": kept, "history": history}, indent=1, ensure_ascii=False)
    text = re.sub(r"\n {5,}", " ", text).replace("\n    }", " }")
    with replace_file(path) as temporary:
        temporary.write_text(text + "\n", "utf-8")


def drop_empty(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if value not in ({}, [], ())}
