"""Commands measured in turn, round after round, and told as tables in Markdown."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from mnist_exp.paths import REPOSITORY


@dataclass(frozen=True)
class Run:
    """What a process used, and what it found, by the names of metrics.jsonl."""

    wall: float  # seconds
    cpu: float  # seconds, user and system, of its children too
    memory: float  # MB, at the peak
    found: Sequence[Mapping[str, float]]
    refused: str  # why, or empty

    def values(self, name: str) -> list[float]:
        return [line[name] for line in self.found if name in line]

    def epoch(self, name: str) -> float:
        """Of an epoch: the median of those after the first, which warms up as well."""
        values = self.values(name)
        return median(values[1:] or values)

    def last(self, name: str) -> float:
        """Not a number where there is none."""
        return (self.values(name) or [math.nan])[-1]


class Column(NamedTuple):
    header: str
    of: Callable[[Run], float]
    form: str  # as format() takes it
    relative: bool = False  # to the first command's


class Bar(NamedTuple):
    """A figure of a round, by its commands' names, and what the median of all is held to."""

    text: str
    of: Callable[[Mapping[str, Run]], float]
    limit: str  # "≤ 1.5"; empty for none


class Section(NamedTuple):
    """Commands that are compared with each other."""

    title: str
    text: str
    commands: Mapping[str, str]  # name → what follows `python`
    columns: Sequence[Column] = ()
    bars: Sequence[Bar] = ()
    most_rounds: int = sys.maxsize


def measured(section: Section, rounds: int, data: str) -> str:
    """The section as it is told, after all its rounds."""
    rounds = min(rounds, section.most_rounds)
    runs: list[dict[str, Run]] = []
    for number in range(1, rounds + 1):
        runs.append({})
        for name, command in section.commands.items():
            print(f"round {number} of {rounds}: {name}", end="", flush=True)
            runs[-1][name] = run(command, data)
            print(f", {runs[-1][name].wall:.1f} s", flush=True)
    return told(section, runs)


def run(command: str, data: str = "") -> Run:
    """`python <command>`: DATA in it stands for that folder, OUT for one that is then removed.

    Ends the benchmark where it fails with anything but 2, which is a refusal.
    """
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryFile("w+") as screen:
        words = [word.replace("DATA", data).replace("OUT", out) for word in shlex.split(command)]
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words], cwd=REPOSITORY, stdout=screen, stderr=subprocess.STDOUT
        )
        try:
            _, status, used = os.wait4(process.pid, 0)  # what this process used, and no other
            wall = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            process.wait()  # Ctrl-C has reached it, too
        screen.seek(0)
        printed = screen.read()
        if process.returncode not in (0, 2):
            sys.exit(f"\npython {command} ended with {process.returncode}:\n{printed}")
        journal = Path(out, "metrics.jsonl")
        return Run(
            wall=wall,
            cpu=used.ru_utime + used.ru_stime,
            memory=used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6,
            found=parsed(journal.read_text() if journal.exists() else printed),
            refused=printed.strip() if process.returncode else "",
        )


def parsed(text: str) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, or the same from what a program printed that leaves none."""
    if text.startswith("{"):
        return [json.loads(line) for line in text.splitlines()]
    epochs = re.findall(r"^epoch .* ([\d.]+) s +([\d,]+) images/s$", text, re.MULTILINE)
    tests = re.findall(r"^test .*accuracy +([\d.]+)$", text, re.MULTILINE)
    found = [
        {"epoch_seconds": float(seconds), "images_per_second": float(speed.replace(",", ""))}
        for seconds, speed in epochs
    ]
    return [*found, *({"test/accuracy": float(accuracy)} for accuracy in tests)]


def told(section: Section, rounds: Sequence[Mapping[str, Run]]) -> str:
    parts = [f"## {section.title}", f"{section.text} Rounds: {len(rounds)}."]
    if section.columns:
        rows, refusals = [["", *(column.header for column in section.columns)]], []
        for name, run in rounds[0].items():
            if run.refused:
                rows.append([name, *["refused"] * len(section.columns)])
                refusals.append(f"`{name}`: {run.refused}")
            else:
                rows.append([name, *(cell(column, name, rounds) for column in section.columns)])
        parts += [table(rows), *refusals]
    if section.bars:
        rows = [["", "measured", "bar", ""]]
        for text, of, limit in section.bars:
            values = [of(runs) for runs in rounds]
            rows.append([text, spread(values, ".2f"), limit, verdict(median(values), limit)])
        parts.append(table(rows))
    return "\n\n".join(parts) + "\n"


def cell(column: Column, name: str, rounds: Sequence[Mapping[str, Run]]) -> str:
    values = [column.of(runs[name]) for runs in rounds]
    if any(map(math.isnan, values)):
        return ""
    if column.relative:
        firsts = [column.of(next(iter(runs.values()))) for runs in rounds]
        values = [value / first for value, first in zip(values, firsts, strict=True)]
    return spread(values, column.form)


def spread(values: Sequence[float], form: str) -> str:
    """Their median, and the least and the most where they differ."""
    middle, least, most = (format(of(values), form) for of in (median, min, max))
    return middle if least == most else f"{middle} ({least} to {most})"


def verdict(value: float, limit: str) -> str:
    if not limit:
        return ""
    sign, _, bar = limit.partition(" ")
    met = value >= float(bar) if sign == "≥" else value <= float(bar)
    return "met" if met else "**missed**"


def table(rows: Sequence[Sequence[str]]) -> str:
    """In Markdown, aligned so that it can be read as it is; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    return "\n".join([lines[0], f"| {' | '.join('-' * width for width in widths)} |", *lines[1:]])


def processor() -> str:
    """The CPU by its maker's name, or where that cannot be read by its kind."""
    with suppress(OSError):
        if names := re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()):
            return names[0]
    return platform.machine()
