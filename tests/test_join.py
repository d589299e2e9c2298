"""Several processes that share the study of a search: sweep.join."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from conftest import Clone, Like, find_table, is_refused, read_leaderboard
from optuna.distributions import FloatDistribution, IntDistribution
from test_sweeps import QUICK

from mnist_exp.cli.check import problems
from mnist_exp.sweeps import join
from mnist_exp.sweeps.join import SharedStudy
from mnist_exp.sweeps.records import Outcome, Sweep, read_outcomes
from mnist_exp.sweeps.search import PRUNERS, SAMPLERS, AnyTrial, Search, ask, open_study, tell

SPACE = {"x": FloatDistribution(0, 1)}
SEARCH = (*QUICK, "hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(1e-3,1e-1))")
# Three seconds are enough to tell that a process is dead, as long as nothing else is slow.
SHORT = """
import runpy, sys
from mnist_exp.sweeps import join
join.GRACE, join.RENEW, join.POLL = 3, 0.5, 0.2
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def finish(trial: AnyTrial, score: float, folder: Path) -> Outcome:
    chosen = {key: str(value) for key, value in trial.params.items()}
    path = folder / str(trial.number)
    return Outcome(trial.number, chosen, [], path, status="FINISHED", score=score)


@pytest.fixture(params=["folder", "database"])
def new_member(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], SharedStudy]:
    """Makes what each of several processes has of one study."""
    numbers = count()

    def make() -> SharedStudy:
        is_folder = request.param == "folder"
        database = None if is_folder else f"sqlite:///{tmp_path}/study.db"
        folder = tmp_path / ("all" if is_folder else str(next(numbers)))
        folder.mkdir(exist_ok=True)
        return SharedStudy(folder, Sweep([], ["x"], "winner", True, database=database))

    return make


def test_each_trial_is_given_once_and_the_results_are_everybodys(
    new_member: Callable[[], SharedStudy],
) -> None:
    members, search = [new_member(), new_member()], Search(SPACE, n_trials=5, n_jobs=2)
    assert len({member.share(Sweep([], ["x"], "winner", True)).key for member in members}) == 1
    taken: list[int] = []
    values = set()
    for turn in (0, 1, 0):
        batch = members[turn].next_batch(search)
        for trial in batch:
            tell(members[turn].study, trial, finish(trial, trial.number / 10, members[turn].folder))
            values.add(trial.params["x"])
        taken += [trial.number for trial in batch]
    assert (taken, len(values)) == ([0, 1, 2, 3, 4], 5)
    for member in members:
        assert member.next_batch(search) == []
        outcomes = read_outcomes(member.folder)
        assert [(outcome.job, outcome.score) for outcome in outcomes] == [
            (number, number / 10) for number in range(5)
        ]


def test_a_trial_is_given_to_another_process_when_its_lease_is_not_renewed(
    new_member: Callable[[], SharedStudy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "POLL", 0)
    clock = count(step=30)  # seconds between two looks
    monkeypatch.setattr(join.time, "monotonic", lambda: next(clock))
    search = Search(SPACE, n_trials=1)
    alive, other = new_member(), new_member()
    (trial,) = alive.next_batch(search)
    for _ in range(4):
        alive.renew([trial])
        (running,) = other.study.get_trials()
        assert not other.is_abandoned(running)
    (again,) = other.next_batch(search)  # nobody renews it now
    assert (again.number, again.params) == (trial.number, trial.params)
    tell(other.study, again, finish(again, 0.9, other.folder))
    alive.renew([trial])  # was only slow
    tell(alive.study, trial, finish(trial, 0.8, alive.folder))
    assert alive.study.best_value == 0.9


def test_a_process_that_is_interrupted_gives_its_trials_back_at_once(
    new_member: Callable[[], SharedStudy],
) -> None:
    search = Search(SPACE, n_trials=1)
    interrupted, other = new_member(), new_member()
    batch = interrupted.next_batch(search)
    with pytest.raises(KeyboardInterrupt), interrupted.keep(batch):
        raise KeyboardInterrupt
    assert [trial.number for trial in other.next_batch(search)] == [0]


def test_samplers_and_pruners_have_names(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for name in SAMPLERS.keys() - {"cmaes"}:  # a package of its own
        assert (
            1 <= ask(study, Search({"x": IntDistribution(1, 3)}, 9, sampler=name)).params["x"] <= 3
        )
        assert problems(["hydra/sweeper=optuna", f"hydra.sweeper.sampler={name}"], True) == []
    for name in PRUNERS:
        assert open_study(tmp_path, pruner=name).pruner is not None
        assert problems(["hydra/sweeper=optuna", f"hydra.sweeper.pruner={name}"], True) == []


def test_a_wrong_key_of_a_search_is_answered_with_the_nearest() -> None:
    typed = ["pruner=hyperbnd", "sampler=tpee", "n_trials=0", "prunner=none"]
    assert problems(["hydra/sweeper=optuna", *(f"hydra.sweeper.{w}" for w in typed)], True) == [
        Like("hydra.sweeper.prunner=none: …did you mean hydra.sweeper.pruner?"),
        Like("hydra.sweeper.n_trials=0: must be an integer >= 1"),
        Like("hydra.sweeper.sampler=tpee: must be tpe |…did you mean tpe?"),
        Like("hydra.sweeper.pruner=hyperbnd: must be …did you mean hyperband?"),
    ]


# --- through the command ---


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ((*QUICK, "seed=1,2", "sweep.join=study"), ("sweep.join=study", "hydra/sweeper=optuna")),
        ((*SEARCH, "sweep.join=nosuch://here"), ("sweep.join=nosuch://here: ",)),
        ((*SEARCH, "sweep.join=sqlite:////no/such/file.db"), ("sweep.join=", "file.db")),
        ((*SEARCH, "sweep.join=mysql://me:secret@lab/db"), ("sweep.join=", "password")),
        ((*SEARCH, "hydra.sweeper.sampler=brute_force"), ("optimizer.lr=", "interval")),
    ],
)
def test_a_study_that_cannot_be_joined_is_one_line(
    clone: Clone, typed: tuple[str, ...], said: tuple[str, ...]
) -> None:
    assert is_refused(clone.run("train.py", *typed), 2, *said)


@pytest.mark.slow
def test_a_search_of_two_processes_of_which_one_is_killed(clone: Clone) -> None:
    work = ("-m", "data=digits", "model=linear", "trainer.epochs=60", "tracking=none")
    values = (
        "hydra/sweeper=optuna",
        "optimizer.lr=interval(0.001,0.1)",
        "sweep.join=outputs/study",
    )
    command = ("-c", SHORT, *work, *values, "hydra/launcher=basic", "hydra.sweeper.n_trials=4")
    killed, other = (clone.start(*command, start_new_session=True) for _ in range(2))
    study = clone.root / "outputs" / "study"
    ends = time.monotonic() + 120
    while not any(study.glob("1/checkpoints/last.pt")):
        assert time.monotonic() < ends, "the second trial has not started"
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    out, err = other.communicate(timeout=240)
    assert (other.returncode, err) == (0, "")
    rows = read_leaderboard(study)
    assert sorted(row["outputs"] for row in rows) == ["0", "1", "2", "3"]
    assert {row["status"] for row in rows} <= {"FINISHED", "PRUNED"}
    late = clone.run("train.py", *work, *values, "hydra.sweeper.n_trials=4")
    assert (late.returncode, late.stderr) == (0, "")
    assert "epoch 1/" not in late.stdout
    assert find_table(late.stdout) == find_table(out)
    changed = clone.run("train.py", *work, *values, "batch_size=8")
    advice = shlex.join(["python", "train.py", "-m", "sweep.resume=outputs/study"])
    assert is_refused(changed, 2, "sweep.join=outputs/study: ", "other arguments", advice)
