"""Measure commands in turn, round after round, and render the results as Markdown tables."""

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
    """What a process used, and its metrics by the names in metrics.jsonl."""

    wall: float  # seconds
    cpu: float  # seconds, user and system, including its children
    memory: float  # MB, peak
    metrics: Sequence[Mapping[str, float]]  # one per line
    refusal: str  # the error message of exit code 2, or empty

    def values(self, name: str) -> list[float]:
        return [line[name] for line in self.metrics if name in line]

    def epoch(self, name: str) -> float:
        """The median over the epochs after the first, which includes the warm-up."""
        values = self.values(name)
        return median(values[1:] or values)

    def last(self, name: str) -> float:
        """The last value, or nan if there is none."""
        return (self.values(name) or [math.nan])[-1]


class Column(NamedTuple):
    header: str
    value: Callable[[Run], float]
    format: str  # for format()
    relative: bool = False  # to the value of the first command


class Bar(NamedTuple):
    """A number computed from a round, and the limit for its median over all rounds."""

    text: str
    value: Callable[[Mapping[str, Run]], float]  # from command name → run
    limit: str  # "≤ 1.5"; empty for none


class Section(NamedTuple):
    """Commands to compare with each other."""

    title: str
    text: str
    commands: Mapping[str, str]  # name → what follows `python`
    columns: Sequence[Column] = ()
    bars: Sequence[Bar] = ()
    max_rounds: int = sys.maxsize


def measure_section(section: Section, rounds: int, data: str) -> str:
    """Run all rounds of the section; return it as Markdown."""
    rounds = min(rounds, section.max_rounds)
    runs: list[dict[str, Run]] = []
    for number in range(1, rounds + 1):
        runs.append({})
        for name, command in section.commands.items():
            print(f"round {number} of {rounds}: {name}", end="", flush=True)
            runs[-1][name] = run(command, data)
            print(f", {runs[-1][name].wall:.1f} s", flush=True)
    return render_section(section, runs)


def run(command: str, data: str = "") -> Run:
    """Run `python <command>`, with DATA replaced by `data` and OUT by a temporary folder.

    Exit code 2 is a refusal; any other failure ends the benchmark.
    """
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryFile("w+") as screen:
        words = [word.replace("DATA", data).replace("OUT", out) for word in shlex.split(command)]
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words], cwd=REPOSITORY, stdout=screen, stderr=subprocess.STDOUT
        )
        try:
            _, status, used = os.wait4(process.pid, 0)  # the usage of this process alone
            wall = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            process.wait()  # Ctrl-C reached it, too
        screen.seek(0)
        printed = screen.read()
        if process.returncode not in (0, 2):
            sys.exit(f"\npython {command} ended with {process.returncode}:\n{printed}")
        file = Path(out, "metrics.jsonl")
        return Run(
            wall=wall,
            cpu=used.ru_utime + used.ru_stime,
            memory=used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6,
            metrics=parse_metrics(file.read_text() if file.exists() else printed),
            refusal=printed.strip() if process.returncode else "",
        )


def parse_metrics(text: str) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, or the same from the output of a program without one."""
    if text.startswith("{"):
        return [json.loads(line) for line in text.splitlines()]
    epochs = re.findall(r"^epoch .* ([\d.]+) s +([\d,]+) images/s$", text, re.MULTILINE)
    tests = re.findall(r"^test .*accuracy +([\d.]+)$", text, re.MULTILINE)
    lines = [
        {
            "speed/epoch_seconds": float(seconds),
            "speed/images_per_second": float(speed.replace(",", "")),
        }
        for seconds, speed in epochs
    ]
    return [*lines, *({"test/accuracy": float(accuracy)} for accuracy in tests)]


def render_section(section: Section, rounds: Sequence[Mapping[str, Run]]) -> str:
    parts = [f"## {section.title}", f"{section.text} Rounds: {len(rounds)}."]
    if section.columns:
        rows, refusals = [["", *(column.header for column in section.columns)]], []
        for name, run in rounds[0].items():
            if run.refusal:
                rows.append([name, *["refused"] * len(section.columns)])
                refusals.append(f"`{name}`: {run.refusal}")
            else:
                rows.append(
                    [name, *(format_cell(column, name, rounds) for column in section.columns)]
                )
        parts += [format_table(rows), *refusals]
    if section.bars:
        rows = [["", "measured", "bar", ""]]
        for text, value, limit in section.bars:
            values = [value(runs) for runs in rounds]
            rows.append([text, format_spread(values, ".2f"), limit, judge(median(values), limit)])
        parts.append(format_table(rows))
    return "\n\n".join(parts) + "\n"


def format_cell(column: Column, name: str, rounds: Sequence[Mapping[str, Run]]) -> str:
    values = [column.value(runs[name]) for runs in rounds]
    if any(map(math.isnan, values)):
        return ""
    if column.relative:
        firsts = [column.value(next(iter(runs.values()))) for runs in rounds]
        values = [value / first for value, first in zip(values, firsts, strict=True)]
    return format_spread(values, column.format)


def format_spread(values: Sequence[float], spec: str) -> str:
    """The median, with minimum and maximum if they differ."""
    middle, low, high = (format(function(values), spec) for function in (median, min, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def judge(value: float, limit: str) -> str:
    if not limit:
        return ""
    sign, _, bar = limit.partition(" ")
    met = value >= float(bar) if sign == "≥" else value <= float(bar)
    return "met" if met else "**missed**"


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned Markdown; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    return "\n".join([lines[0], f"| {' | '.join('-' * width for width in widths)} |", *lines[1:]])


def name_processor() -> str:
    """The name of the CPU, or its architecture if the name cannot be read."""
    with suppress(OSError):
        if names := re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()):
            return names[0]
    return platform.machine()
