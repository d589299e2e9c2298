"""The leaderboard: groups, ranks, names, and rows of jobs that did not finish."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from mnist_exp.experiment.record import shorten
from mnist_exp.sweeps.leaderboard import (
    abbreviate,
    format_table,
    list_metrics,
    name_job,
    rank,
    write_csv,
)
from mnist_exp.sweeps.records import Outcome, read_outcomes

JOB = Outcome(0, {}, [], Path("0"), "abc", "FINISHED", epoch=2, seconds=4.0)


def job(
    number: int, accuracy: float, status: str = "FINISHED", loss: float = 0.3, **chosen: str
) -> Outcome:
    folder = Path(str(number))
    metrics = {"val/loss": loss, "val/accuracy": accuracy}
    new = {"chosen": chosen, "status": status, "metrics": metrics, "score": accuracy}
    return replace(JOB, job=number, folder=folder, **new)


def test_the_best_row_is_first_and_failed_rows_are_last() -> None:
    jobs = [
        job(0, 0.7, lr="1"),
        job(1, 0.0, "FAILED", lr="2"),
        job(2, 0.9, lr="3"),
        job(3, 0.9, lr="4", loss=0.2),
    ]
    assert [row.chosen["lr"] for row in rank(jobs)] == ["4", "3", "1", "2"]


def test_seeds_are_one_row_with_mean_and_sample_standard_deviation() -> None:
    jobs = [job(n, accuracy, seed=str(n), lr="1") for n, accuracy in enumerate((0.1, 0.2, 0.6))]
    (row,) = rank(jobs)
    assert row.chosen == {"lr": "1"}
    assert row.score == pytest.approx(0.3)
    assert row.cells(1, list_metrics([row]))["val_accuracy_sd"] == pytest.approx(0.2645751)
    header, (cells,) = format_table([row], shorten(["lr"]))
    assert header == [
        *("rank", "lr", "val accuracy", "val loss", "best epoch", "seconds", "status", "outputs")
    ]
    assert cells == ["1", "1", "0.3000 ± 0.2646 (n=3)", "0.3000", "2", "4.0", "FINISHED", "0 1 2"]


def test_a_second_job_with_the_same_seed_does_not_count() -> None:
    jobs = [job(0, 0.8, lr="1"), job(1, 0.8, lr="1"), job(2, 0.7, lr="2", seed="1")]
    jobs += [job(3, 0.5, lr="2", seed="2"), job(4, 0.5, lr="2", seed="2")]
    assert [(len(row.finished), row.score) for row in rank(jobs)] == [(1, 0.8), (2, 0.6)]


def test_jobs_of_other_code_are_other_rows() -> None:
    jobs = [job(0, 0.8, lr="1", seed="1"), job(1, 0.6, lr="1", seed="2")]
    jobs[1] = replace(jobs[1], code="def")
    assert [(row.chosen, row.score) for row in rank(jobs)] == [
        ({"lr": "1"}, 0.8),
        ({"lr": "1"}, 0.6),
    ]


def test_a_failed_seed_is_left_out_of_the_mean_and_reported() -> None:
    failed = replace(job(1, 0.0, "FAILED", seed="1"), reason="out of memory")
    (row,) = rank([job(0, 0.8, seed="0"), failed])
    assert row.score == 0.8
    assert row.cells(1, ["val/accuracy"])["status"] == "FAILED: out of memory"
    assert row.cells(1, ["val/accuracy"])["n"] == 1


def test_a_row_without_a_finished_job_has_no_metrics(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", rank([job(0, 0.0, "KILLED", lr="1")]))
    (row,) = csv.DictReader((tmp_path / "a.csv").read_text().splitlines())
    assert [row[key] for key in ("val_accuracy", "val_loss", "seconds")] == ["", "", ""]
    assert (row["status"], row["n"]) == ("KILLED", "0")


def test_rows_of_other_metrics_and_failed_ones_share_the_columns(tmp_path: Path) -> None:
    more = {"metrics": {"val/loss": 0.1, "val/f1": 0.5}, "monitor": "val/loss", "score": -0.1}
    jobs = [
        replace(JOB, status="FAILED", chosen={"lr": "1"}),
        replace(job(1, 0.7, lr="2"), monitor="val/loss", score=-0.3),
        replace(job(2, 0.9, lr="3"), **more),
    ]
    rows = rank(jobs)
    header, lines = format_table(rows, {})
    assert header[2:5] == ["val loss", "val f1", "val accuracy"]
    assert [line[2:5] for line in lines] == [
        *(["0.1000", "0.5000", ""], ["0.3000", "", "0.7000"], ["", "", ""])
    ]
    write_csv(tmp_path / "a.csv", rows)
    *_, failed = csv.DictReader((tmp_path / "a.csv").read_text().splitlines())
    assert (failed["lr"], failed["val_f1"], failed["val_loss_sd"]) == ("1", "", "")


def test_an_outcome_is_read_as_written_after_its_folder_has_moved(tmp_path: Path) -> None:
    for number in (10, 9):
        folder = tmp_path / "sweep" / str(number)
        folder.mkdir(parents=True)
        replace(job(number, 0.5, lr="1"), folder=folder).write()
    (tmp_path / "sweep").rename(tmp_path / "moved")
    found = read_outcomes(tmp_path / "moved")
    assert [outcome.job for outcome in found] == [9, 10]
    assert found[0] == replace(job(9, 0.5, lr="1"), folder=tmp_path / "moved" / "9")


def test_a_job_is_named_by_the_last_parts_of_its_keys_unless_they_are_equal() -> None:
    assert name_job({"optimizer.lr": "0.001", "batch_size": "64"}) == "lr=0.001, batch_size=64"
    assert name_job({"a.lr": "1", "b.lr": "2"}) == "a.lr=1, b.lr=2"


def test_a_long_number_is_shown_with_four_digits_and_a_word_in_full() -> None:
    assert [abbreviate(v) for v in ("0.0012345678", "0.0001", "1e-05", "resnet1000")] == [
        *("0.001235", "0.0001", "1e-05", "resnet1000")
    ]
