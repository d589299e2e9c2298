"""The file of sweep.jobs: a list of combinations, as CSV or YAML."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from mnist_exp.sweeps.records import Chosen


def read_rows(path: Path) -> list[Chosen]:
    """Key → value, in each row of a CSV file or each mapping of a YAML file, as in an argument.

    Raises ValueError for rows of different keys and for equal rows, and what the readers raise.
    """
    text = path.read_text("utf-8-sig")
    if path.suffix.lower() == ".csv":
        rows = list(csv.DictReader(text.splitlines(), strict=True, skipinitialspace=True))
    else:
        rows = yaml.load(text, yaml.BaseLoader)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("not a list of mappings")
    jobs: list[Chosen] = []
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():  # how DictReader says it
            raise ValueError(f"combination {number} does not have as many values as keys")
        job = {str(key): as_typed(value) for key, value in row.items()}
        if jobs and job.keys() != jobs[0].keys():
            raise ValueError(f"combination {number} has other keys than the first")
        if job in jobs:
            raise ValueError(f"combination {number} appears twice")
        jobs.append(job)
    return jobs


def as_typed(value: Any) -> str:
    """A value of a YAML file as a person would type it."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{as_typed(item)}' for key, item in value.items())}}}"
    return f"[{','.join(map(as_typed, value))}]" if isinstance(value, list) else str(value)
