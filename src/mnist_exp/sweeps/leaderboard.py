"""The leaderboard of a sweep: its jobs ranked, for the screen, a CSV file and a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from mnist_exp.experiment.record import name_values
from mnist_exp.files import replace_csv
from mnist_exp.sweeps.records import REPEATS, Outcome

MARKDOWN_ROWS = 40
MOST_CELLS = 400  # of a heat map, which has a number in each
MAX_WIDTH = 8  # of a number on the screen, in characters


@dataclass(frozen=True)
class Row:
    """Jobs of the same code that differ in nothing but seed, split and fold."""

    chosen: Mapping[str, str]  # swept key → value, without these
    jobs: Sequence[Outcome]

    @property
    def finished(self) -> list[Outcome]:
        """One job for each seed: a second job with the same seed is not an independent run."""
        by_seed: dict[object, Outcome] = {}
        for job in self.jobs:
            if job.finished:
                by_seed.setdefault(job.repeat, job)
        return list(by_seed.values())

    @property
    def score(self) -> float | None:
        """The mean; None if no job finished, or without validation."""
        return mean(job.score for job in self.finished)

    def mean(self, name: str) -> float | None:
        """The mean of a metric over the finished jobs; None if there are none."""
        return mean(job.metrics.get(name) for job in self.finished)

    def cells(self, rank: int, metrics: Sequence[str]) -> dict[str, object]:
        """Column of the CSV file → value, a mean over the finished jobs; None if there is none."""
        done, (monitor, *others) = self.finished, metrics
        statuses = dict.fromkeys(
            f"{job.status}: {job.reason}" if job.reason else job.status
            for job in self.jobs
            if not job.finished
        )
        return {
            "rank": rank,
            **self.chosen,
            to_column(monitor): self.mean(monitor),
            f"{to_column(monitor)}_sd": spread(job.metrics.get(monitor) for job in done),
            **{to_column(name): self.mean(name) for name in others},
            "best_epoch": mean(job.epoch for job in done),
            "seconds": mean(job.seconds for job in done),
            "n": len(done),
            "status": "; ".join(statuses) or "FINISHED",
            "code": " ".join(dict.fromkeys(job.code for job in self.jobs)),
            "outputs": " ".join(job.folder.name for job in self.jobs),
        }


def list_metrics(rows: Sequence[Row]) -> list[str]:
    """The monitored metric of these ranked rows, and those of the validation, in any of them."""
    names = (name for row in rows for job in row.finished for name in job.metrics)
    val = [name for name in names if name.startswith("val/")]
    return list(dict.fromkeys([rows[0].jobs[0].monitor, *val, "val/loss"]))


def mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are there; None if there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def spread(values: Iterable[float | None]) -> float | None:
    """Sample standard deviation of the values that are there; 0 for a single one."""
    known = [value for value in values if value is not None]
    return stdev(known) if len(known) > 1 else 0.0 if known else None


def rank(outcomes: Iterable[Outcome]) -> list[Row]:
    """The best mean score first, among ties the lowest validation loss; failed jobs at the end.

    Without validation, all keep their order.
    """
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Outcome]] = {}
    for outcome in outcomes:
        chosen = tuple((key, value) for key, value in outcome.chosen.items() if key not in REPEATS)
        groups.setdefault((outcome.code, chosen), []).append(outcome)
    rows = [Row(dict(chosen), jobs) for (_, chosen), jobs in groups.items()]

    def key(row: Row) -> tuple[bool, float, float]:
        loss = row.mean("val/loss")
        return not row.finished, -(row.score or 0.0), math.inf if loss is None else loss

    return sorted(rows, key=key)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    metrics = list_metrics(rows)
    lines = [row.cells(number, metrics) for number, row in enumerate(rows, start=1)]
    with replace_csv(path) as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def format_table(
    rows: Sequence[Row], names: Mapping[str, str]
) -> tuple[list[str], list[list[str]]]:
    """Header and cells for the screen. names: the short name of each swept key."""
    metrics = list_metrics(rows)
    lines = [format_row(row, number, metrics) for number, row in enumerate(rows, start=1)]
    header = [names.get(column, column.replace("_", " ")) for column in lines[0]]
    return header, [list(texts.values()) for texts in lines]


def format_row(row: Row, number: int, metrics: Sequence[str]) -> dict[str, str]:
    """Column → text."""
    cells = row.cells(number, metrics)
    texts = {"rank": str(number)} | {key: abbreviate(value) for key, value in row.chosen.items()}
    columns = [to_column(name) for name in metrics]
    forms = dict.fromkeys(columns, ".4f") | {"best_epoch": "g", "seconds": ".1f"}
    for column, form in forms.items():
        texts[column] = "" if cells[column] is None else format(cells[column], form)
    if texts[columns[0]] and len({job.repeat for job in row.jobs}) > 1:
        texts[columns[0]] += f" ± {cells[f'{columns[0]}_sd']:.4f} (n={cells['n']})"
    return texts | {column: str(cells[column]) for column in ("status", "outputs")}


def format_markdown(rows: Sequence[Row], names: Mapping[str, str]) -> str:
    """The same as a table in Markdown; only the first of many rows."""
    header, lines = format_table(rows[:MARKDOWN_ROWS], names)
    table = [header, ["---"] * len(header), *lines]
    escaped = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in table]
    more = f"\n\nand {len(rows) - len(lines)} more" if len(rows) > len(lines) else ""
    return "\n".join(f"| {line} |" for line in escaped) + more


def to_column(metric: str) -> str:
    return metric.replace("/", "_")


def abbreviate(value: str) -> str:
    """A long number in four digits; anything else unchanged."""
    try:
        return value if len(value) <= MAX_WIDTH else f"{float(value):.4g}"
    except ValueError:
        return value


def name_job(chosen: Mapping[str, str]) -> str:
    """A job by its overrides: lr=0.001, batch_size=64."""
    return ", ".join(name_values({key: abbreviate(value) for key, value in chosen.items()}))


def draw(path: Path, rows: Sequence[Row], names: Mapping[str, str]) -> None:
    """Draw the monitored metric over one number (a curve) or two (a heat map or dots), if possible.

    names: the short name of each swept key.
    """
    monitor = list_metrics(rows)[0]
    means = [(row, row.mean(monitor)) for row in rows]
    validated = [(row, value) for row, value in means if value is not None]
    try:
        points = [[float(value) for value in row.chosen.values()] for row, _ in validated]
    except ValueError:  # a word
        return
    if len(points) < 2 or len(points[0]) not in (1, 2):
        return
    from mnist_exp.figures.draw import curve, heat_map, scatter  # imports matplotlib

    labels = [names[key] for key in rows[0].chosen]
    values = [value for _, value in validated]
    if len(labels) == 2:
        cells = math.prod(len(set(axis)) for axis in zip(*points, strict=True))
        picture = heat_map if cells / 2 < len(points) <= MOST_CELLS else scatter
        picture(path, labels, points, values, monitor)
    else:
        known = ((job.metrics.get(monitor) for job in row.finished) for row, _ in validated)
        spreads = [spread(values) or 0.0 for values in known]
        curve(path, labels[0], [x for (x,) in points], values, spreads, monitor)
