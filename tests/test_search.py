"""Search with Optuna: its space, its trials, and how it resumes."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import (
    Clone,
    Like,
    find_sweep,
    find_table,
    is_refused,
    list_sweep_runs,
    read_files,
    read_leaderboard,
    signal_after,
)
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from test_sweeps import QUICK

from mnist_exp.cli import check
from mnist_exp.sweeps.records import Damaged, Outcome
from mnist_exp.sweeps.search import (
    STUDY,
    check_study,
    find_same_trial,
    get_pruner,
    is_exhausted,
    list_unfinished,
    open_study,
    to_distribution,
)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("a=interval(0,0.5)", FloatDistribution(0.0, 0.5)),
        ("a=tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("a=int(interval(16,128))", IntDistribution(16, 128)),
        ("a=tag(log,int(interval(16,128)))", IntDistribution(16, 128, log=True)),
        ("a=range(1,5)", IntDistribution(1, 4)),
        ("a=range(16,65,16)", IntDistribution(16, 64, step=16)),
        ("a=tag(log,range(1,101))", IntDistribution(1, 100, log=True)),
        ("a=range(0,1,0.25)", CategoricalDistribution([0.0, 0.25, 0.5, 0.75])),
        ("a=mlp,linear", CategoricalDistribution(["mlp", "linear"])),
        ("a=[1,2],[3]", CategoricalDistribution(["[1,2]", "[3]"])),
    ],
)
def test_a_range_in_hydras_syntax_is_a_distribution(typed: str, expected: BaseDistribution) -> None:
    assert to_distribution(OverridesParser.create().parse_override(typed)) == expected


def test_a_trial_below_the_median_is_pruned_and_one_that_was_killed_is_found_again(
    tmp_path: Path,
) -> None:
    study = open_study(tmp_path)
    for number in range(4):
        study.ask({"x": FloatDistribution(0, 1)})
        should_prune = get_pruner(open_study(tmp_path), number)
        assert [should_prune(epoch, 0.9) for epoch in (1, 2, 3)] == [False, False, False]
        study.tell(number, 0.9)
    study.ask({"x": FloatDistribution(0, 1)})
    should_prune = get_pruner(open_study(tmp_path), 4)
    assert [should_prune(epoch, 0.5) for epoch in (1, 2)] == [False, True]
    assert [trial.number for trial in list_unfinished(open_study(tmp_path), [])] == [4]


def test_a_trial_is_known_by_its_values_and_a_space_by_its_combinations(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    space = {"a": CategoricalDistribution(["x", "y"]), "b": IntDistribution(2, 6, step=2)}
    for a in ("x", "y"):
        for b in (2, 4, 6):
            assert not is_exhausted(study, space)
            study.enqueue_trial({"a": a, "b": b})
            study.tell(study.ask(space), b / 10)
    assert is_exhausted(study, space)
    assert not is_exhausted(study, {"a": FloatDistribution(0, 1)})
    again = find_same_trial(study, study.ask(space))
    assert again is not None
    assert again.value == again.params["b"] / 10
    assert find_same_trial(study, study.trials[0]) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: b"",
        lambda lines: b"".join(lines)[:-5],
        lambda lines: b"".join([*lines[:3], b"{]\n", *lines[3:]]),
        lambda lines: b"".join([*lines[:3], b"[1]\n", *lines[3:]]),
        lambda lines: b"".join(lines[: len(lines) // 2]),
    ],
)
def test_a_damaged_study_is_one_line_that_says_what_is_left(
    tmp_path: Path, damage: Callable[[list[bytes]], bytes]
) -> None:
    study, outcomes = open_study(tmp_path), []
    for number in range(3):
        trial = study.ask({"x": FloatDistribution(0, 1)})
        study.tell(trial, 0.9)
        chosen = {key: str(value) for key, value in trial.params.items()}
        outcomes.append(Outcome(number, chosen, [], tmp_path / str(number)))
    check_study(tmp_path, outcomes)
    journal = tmp_path / STUDY
    journal.write_bytes(damage(journal.read_bytes().splitlines(keepends=True)))
    with pytest.raises(Damaged) as caught:
        check_study(tmp_path, outcomes)
    said = str(caught.value)
    assert said.startswith(f"{journal}: damaged")
    assert "\n" not in said
    assert "start it again" in said


# --- through the command ---

SEARCH = (*QUICK, "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=3", "batch_size=16,64")


@pytest.fixture(scope="module")
def search(new_clone: Callable[[], Clone]) -> tuple[Clone, str]:
    """A clone with a finished search over two values, and what the search printed."""
    clone = new_clone()
    done = clone.run("train.py", *SEARCH)
    assert (done.returncode, done.stderr) == (0, "")
    return clone, done.stdout


def test_a_search_trains_each_configuration_once_and_ends_when_there_is_no_other(
    search: tuple[Clone, str],
) -> None:
    clone, printed = search
    assert len(re.findall(r"^job \d  .* s$", printed, re.MULTILINE)) == 2
    assert "every combination" in printed
    rows = read_leaderboard(find_sweep(clone))
    assert {(row["batch_size"], row["n"]) for row in rows} == {("16", "1"), ("64", "1")}
    assert "±" not in printed
    listed = clone.run("train.py", "-m", "--cfg", "job", "sweep.resume=latest")
    assert [line.split("  ")[0] for line in listed.stdout.splitlines()[:2]] == ["0", "1"]
    assert "batch_size=16,64" in listed.stdout


@pytest.mark.slow
def test_a_damaged_outcome_or_study_of_a_search(search: tuple[Clone, str], tmp_path: Path) -> None:
    shutil.copytree(search[0].root, tmp_path / "clone")
    clone = Clone(tmp_path / "clone")
    folder = find_sweep(clone)
    next(folder.glob("*/outcome.json")).write_text("{")
    done = clone.run("train.py", "-m", "sweep.resume=latest")
    assert (done.returncode, done.stderr) == (0, "")
    assert "outcome.json: damaged" in done.stdout
    assert find_table(done.stdout) == find_table(search[1])
    journal = folder / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-9])
    before = read_files(folder)
    done = clone.run("train.py", *SEARCH, "sweep.resume=latest")
    assert is_refused(done, 1, f"{journal}: damaged", "cannot be resumed", "still there")
    assert read_files(folder) == before


def test_cfg_job_shows_what_a_search_chooses_from(clone: Clone) -> None:
    search = ("hydra/sweeper=optuna", "optimizer.lr=interval(0.1,1)", "hydra.sweeper.n_trials=7")
    done = clone.run("train.py", "-m", "--cfg", "job", *search)
    first, *space = done.stdout.splitlines()
    assert (done.returncode, space) == (0, ["optimizer.lr=interval(0.1,1)"])
    assert "7 jobs" in first
    assert list((clone.root / "outputs").iterdir()) == []


def test_a_search_without_optuna_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    assert check.problems(["hydra/sweeper=optuna"], multirun=True) == [
        Like("hydra/sweeper=optuna: …not installed…pip install -e '.[sweep]'")
    ]


def test_a_search_over_seeds_is_refused(clone: Clone) -> None:
    done = clone.run("train.py", "-m", "seed=1,2", "hydra/sweeper=optuna")
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        [Like("…seed=1,2: …search…one value…")],
    )
    assert list((clone.root / "outputs").iterdir()) == []


@pytest.mark.slow
def test_a_search_prunes_and_resumes_after_an_interruption(clone: Clone) -> None:
    ranges = ("optimizer.lr=tag(log,interval(1e-5,1e-1))", "batch_size=int(interval(16,128))")
    search = ("-m", "hydra/sweeper=optuna", "data=digits", "trainer.epochs=6", *ranges)
    process = clone.start("train.py", *search)
    begun = "*/*/7/checkpoints/last.pt"
    out = signal_after(process, lambda: any((clone.root / "outputs").glob(begun)), signal.SIGINT)
    assert process.returncode == 130
    done = clone.run(*shlex.split(out.splitlines()[-1])[1:])
    assert (done.returncode, done.stderr) == (0, "")
    parent, children = list_sweep_runs(clone)
    assert parent.info.status == "FINISHED"
    assert [run.data.tags["mnist_exp.job"] for run in children] == [
        str(number) for number in range(20)
    ]
    ends = [row["status"] for row in read_leaderboard(find_sweep(clone))]
    assert ends.count("FINISHED") + ends.count("PRUNED") == 20
    assert ends.count("PRUNED") >= 3
    assert {len(row["optimizer.lr"]) > 6 for row in read_leaderboard(find_sweep(clone))} == {True}
    for run in children:
        pruned = len(run.data.metrics) and run.info.status == "KILLED"
        epochs = clone.client.get_metric_history(run.info.run_id, "val/accuracy")
        assert [point.step for point in epochs] == list(range(1, len(epochs) + 1))
        assert (len(epochs) < 6) == bool(pruned)
