"""The benchmark's commands and tables."""

from __future__ import annotations

import shlex

import bench
import pytest
from measure import Bar, Column, Run, Section, parse_metrics, render_section, run

from mnist_exp.cli.check import problems
from mnist_exp.paths import REPOSITORY

# Where a refusal is an answer: a mistake is typed, or the CPU has no such precision.
REFUSED = {"answers", "precision"}


def test_nothing_is_wrong_with_a_command() -> None:
    words: dict[bool, list[str]] = {True: [], False: []}  # tracked or not
    for name in bench.SECTIONS.keys() - REFUSED:
        for command in bench.SECTIONS[name].commands.values():
            program, *arguments = shlex.split(command)
            assert (REPOSITORY / program).is_file()
            if program == "train.py":
                words["tracking=none" not in arguments] += arguments
    for arguments in words.values():  # all at once: a look at each takes seconds
        assert problems(sorted({*arguments} - {"-m"}), multirun=True) == []


def test_exit_code_2_is_a_refusal_and_any_other_ends_the_benchmark() -> None:
    done = run("-c 'print(1)'")
    assert (done.metrics, done.refusal) == ([], "")
    assert min(done.wall, done.cpu, done.memory) > 0
    assert run("-c 'print(\"not so\"); exit(2)'").refusal == "not so"
    with pytest.raises(SystemExit, match="ended with 1"):
        run("-c 1/0")


def test_what_a_program_printed_is_read_as_metrics_jsonl_is() -> None:
    printed = (
        "epoch 1  train 0.2841 0.9169  val 0.1678 0.9504  9.415 s  6,309 images/s\n"
        "test   loss 0.0903  accuracy 0.9747\n"
    )
    speed = '{"speed/epoch_seconds": 9.415, "speed/images_per_second": 6309}'
    file = speed + '\n{"test/accuracy": 0.9747}\n'
    assert parse_metrics(printed) == parse_metrics(file)


def test_a_section_shows_medians_with_minimum_and_maximum() -> None:
    def took(wall: float, found: float | None = None, refused: str = "") -> Run:
        return Run(wall, 0, 0, [] if found is None else [{"val/accuracy": found}], refused)

    seconds = Column("wall, s", lambda run: run.wall, ".1f")
    times = Column("relative", lambda run: run.wall, ".2f", relative=True)
    accuracy = Column("val accuracy", lambda run: run.last("val/accuracy"), ".2f")

    def ratio(limit: str) -> Bar:
        return Bar("b / a", lambda runs: runs["b"].wall / runs["a"].wall, limit)

    section = Section(
        "Title",
        "Text.",
        dict.fromkeys("abc", "train.py"),
        [seconds, times, accuracy],
        [ratio("≤ 2"), ratio("≥ 2.5"), ratio("")],
    )
    rounds = [
        {"a": took(a), "b": took(b, found=0.97), "c": took(0, refused="no")}
        for a, b in ((1, 2), (2, 3), (1, 9))
    ]
    assert render_section(section, rounds) == (
        "## Title\n\nText. Rounds: 3.\n\n"
        "|   | wall, s          | relative            | val accuracy |\n"
        "| - | ---------------- | ------------------- | ------------ |\n"
        "| a | 1.0 (1.0 to 2.0) | 1.00                |              |\n"
        "| b | 3.0 (2.0 to 9.0) | 2.00 (1.50 to 9.00) | 0.97         |\n"
        "| c | refused          | refused             | refused      |\n\n"
        "`c`: no\n\n"
        "|       | measured            | bar   |            |\n"
        "| ----- | ------------------- | ----- | ---------- |\n"
        "| b / a | 2.00 (1.50 to 9.00) | ≤ 2   | met        |\n"
        "| b / a | 2.00 (1.50 to 9.00) | ≥ 2.5 | **missed** |\n"
        "| b / a | 2.00 (1.50 to 9.00) |       |            |\n"
    )
