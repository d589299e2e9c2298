"""What the jobs of a sweep found, ranked: rows for the screen and for a CSV file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from mnist_exp.errors import Failure, one_line
from mnist_exp.files import replacing

Record = TypeVar("Record")

OUTCOME = "outcome.json"  # in each job's folder
UNKNOWN = "unknown"  # the code of an outcome from before it was recorded
DAMAGED = f"{OUTCOME} is damaged"
SEED = "seed"  # no hyperparameter: jobs that differ in it alone are one row
MAX_WIDTH = 8  # of a number on the screen, in characters


@dataclass(frozen=True)
class Outcome:
    """How a job of a sweep ended, or that it has begun."""

    job: int
    chosen: Mapping[str, str]  # swept key → this job's value
    overrides: Sequence[str]  # all that make this job
    folder: Path
    code: str = UNKNOWN  # digest of the code that trained it; of several, joined by +
    status: str = "UNFINISHED"  # then FINISHED, PRUNED, FAILED or KILLED
    reason: str = ""  # of a failure, one line
    epoch: int = 0  # of the kept weights, from 1
    accuracy: float | None = None  # validation, 0..1; None without validation
    loss: float | None = None  # validation, nats per image
    seconds: float = 0.0  # of all epochs, training and validation

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED"

    def write(self) -> None:
        written = {key: value for key, value in asdict(self).items() if key != "folder"}
        with replacing(self.folder / OUTCOME) as temporary:
            temporary.write_text(json.dumps(written, indent=2) + "\n")


class Damaged(Failure):
    """A file that a sweep wrote is no longer what it wrote."""


def read_record(kind: type[Record], path: Path, **more: object) -> Record:
    """The dataclass that this JSON file and `more` hold. Raises Damaged."""
    try:
        record = json.loads(path.read_text("utf-8"), parse_constant=refuse_constant)
        return TypeAdapter(kind).validate_python({**record, **more})
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (OSError, RecursionError, TypeError, ValueError) as error:
        reason = one_line(error)
    raise Damaged(f"{path}: damaged ({reason})")


def refuse_constant(name: str) -> NoReturn:
    """Raises ValueError for NaN and Infinity, which no rank can be computed of."""
    raise ValueError(f"{name} in it")


def read_outcome(folder: Path) -> Outcome:
    """What is known of the job in this folder. Raises Damaged."""
    return read_record(Outcome, folder / OUTCOME, folder=folder)


@dataclass(frozen=True)
class Row:
    """Jobs of the same code that differ in nothing but the seed.

    Metrics are means over those that finished.
    """

    chosen: Mapping[str, str]  # swept key → value, without the seed
    jobs: Sequence[Outcome]

    @property
    def finished(self) -> list[Outcome]:
        """One job for each seed: a repetition with the same seed is no independent run."""
        found: dict[str | None, Outcome] = {}
        for job in self.jobs:
            if job.finished:
                found.setdefault(job.chosen.get(SEED), job)
        return list(found.values())

    @property
    def accuracies(self) -> list[float]:
        """On validation, of the jobs that finished with one."""
        return [job.accuracy for job in self.finished if job.accuracy is not None]

    @property
    def accuracy(self) -> float | None:
        """None where no job finished, or without validation."""
        return fmean(self.accuracies) if self.accuracies else None

    @property
    def loss(self) -> float | None:
        losses = [job.loss for job in self.finished if job.loss is not None]
        return fmean(losses) if losses else None

    @property
    def accuracy_sd(self) -> float | None:
        """Sample standard deviation; 0 for one job, of which there is none."""
        return spread(self.accuracies) if self.accuracies else None

    @property
    def status(self) -> str:
        """FINISHED, or how the others ended and why."""
        bad = dict.fromkeys(
            f"{job.status}: {job.reason}" if job.reason else job.status
            for job in self.jobs
            if not job.finished
        )
        return "; ".join(bad) or "FINISHED"

    def csv_fields(self, rank: int) -> dict[str, object]:
        """Metrics are empty where no job finished."""
        done = self.finished
        metrics: dict[str, object] = dict.fromkeys(METRICS, "")
        if done:
            values = (
                self.accuracy,
                self.accuracy_sd,
                self.loss,
                fmean(job.epoch for job in done),
                fmean(job.seconds for job in done),
            )
            metrics = dict(zip(METRICS, values, strict=True))
        folders = " ".join(job.folder.name for job in self.jobs)
        codes = " ".join(dict.fromkeys(job.code for job in self.jobs))
        ends = {"n": len(done), "status": self.status, "code": codes, "outputs": folders}
        return {"rank": rank, **self.chosen, **metrics, **ends}

    def screen_cells(self, rank: int) -> list[str]:
        fields = self.csv_fields(rank)
        accuracy, loss, epoch, seconds = "", "", "", ""
        if self.finished:
            if self.accuracy is not None:
                accuracy, loss = f"{self.accuracy:.4f}", f"{self.loss:.4f}"
                if len({job.chosen.get(SEED) for job in self.jobs}) > 1:
                    accuracy += f" ± {self.accuracy_sd:.4f} (n={len(self.finished)})"
            epoch = f"{fields['best_epoch']:g}"
            seconds = f"{fields['seconds']:.1f}"
        metrics = [accuracy, loss, epoch, seconds]
        return [
            str(rank),
            *map(brief, self.chosen.values()),
            *metrics,
            self.status,
            str(fields["outputs"]),
        ]


METRICS = ("val_accuracy", "val_accuracy_sd", "val_loss", "best_epoch", "seconds")


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def read(sweep: Path, swept: Sequence[str] = ()) -> list[Outcome]:
    """Of all jobs that have begun in a sweep over these keys, by number.

    Of a job whose outcome is damaged, only the number is known, by its folder's name.
    """
    outcomes = []
    for path in sweep.glob(f"*/{OUTCOME}"):
        folder = path.parent
        try:
            outcomes.append(read_outcome(folder))
        except Damaged:
            number = int(folder.name) if folder.name.isdecimal() else -1
            unknown = dict.fromkeys(swept, "?")
            outcomes.append(Outcome(number, unknown, [], folder, reason=DAMAGED))
    return sorted(outcomes, key=lambda outcome: outcome.job)


def ranked(outcomes: Iterable[Outcome]) -> list[Row]:
    """The best mean validation accuracy first, of equals the earliest; the failed at the end.

    Without validation they stay in their order.
    """
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Outcome]] = {}
    for outcome in outcomes:
        chosen = tuple((key, value) for key, value in outcome.chosen.items() if key != SEED)
        groups.setdefault((outcome.code, chosen), []).append(outcome)
    rows = [Row(dict(chosen), jobs) for (_, chosen), jobs in groups.items()]
    return sorted(rows, key=lambda row: (not row.finished, -(row.accuracy or 0.0)))


def short(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key by its last part, or whole where two would be the same."""
    lasts = {key: key.rpartition(".")[2] for key in keys}
    return {
        key: key if list(lasts.values()).count(last) > 1 else last for key, last in lasts.items()
    }


def name(chosen: Mapping[str, str]) -> str:
    """A job by what it overrides: lr=0.001, batch_size=64."""
    names = short(chosen)
    return ", ".join(f"{names[key]}={brief(value)}" for key, value in chosen.items())


def brief(value: str) -> str:
    """A number in at most four digits; anything else as it is."""
    try:
        return value if len(value) <= MAX_WIDTH else f"{float(value):.4g}"
    except ValueError:
        return value


def screen_table(
    rows: Sequence[Row], names: Mapping[str, str]
) -> tuple[list[str], list[list[str]]]:
    """Header and cells. names: what each swept key is called there."""
    metrics = ["val accuracy", "val loss", "best epoch", "seconds", "status", "outputs"]
    header = ["rank", *(names[key] for key in rows[0].chosen), *metrics]
    return header, [row.screen_cells(rank) for rank, row in enumerate(rows, start=1)]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    lines = [row.csv_fields(rank) for rank, row in enumerate(rows, start=1)]
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
