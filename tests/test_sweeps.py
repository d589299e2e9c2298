"""Sweeps through the command: the parent run, the leaderboard, failures, and resuming."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import (
    Clone,
    Like,
    find_sweep,
    find_table,
    find_writer,
    is_refused,
    list_sweep_runs,
    read_files,
    read_leaderboard,
    read_sweep_metrics,
    signal_after,
    wait_for_end,
    without_flock,
)
from omegaconf import OmegaConf

from mnist_exp.cli.check import check, problems
from mnist_exp.errors import BadInput
from mnist_exp.experiment.presets import initialize_hydra
from mnist_exp.files import lock_folder
from mnist_exp.paths import LAST, SWEEP
from mnist_exp.sweeps.jobs_file import read_rows
from mnist_exp.sweeps.local import explain_exit
from mnist_exp.sweeps.plan import check_new
from mnist_exp.sweeps.records import Damaged, read_outcome, read_outcomes, read_sweep

GRID = ("-m", "data=digits", "trainer.epochs=2", "optimizer.lr=1e-3,1e-2", "batch_size=32,64")
LONG = ("-m", "data=digits", "trainer.epochs=12", "batch_size=32", "seed=1,2,3")
IN_TURN = ("hydra.launcher.n_jobs=1",)
QUICK = ("-m", "data=digits", "model=linear", "trainer.epochs=1", "tracking=none")
SMALL = (*QUICK, "batch_size=16,64", "seed=1,2")


@pytest.fixture(scope="module")
def grid(new_clone: Callable[[], Clone]) -> tuple[Clone, str]:
    """A clone with a finished sweep over two numbers, and what the sweep printed."""
    clone = new_clone()
    done = clone.run("train.py", *GRID)
    assert (done.returncode, done.stderr) == (0, "")
    return clone, done.stdout


def test_jobs_are_nested_under_one_parent_and_named_by_their_overrides(
    grid: tuple[Clone, str],
) -> None:
    parent, children = list_sweep_runs(grid[0])
    assert parent.info.run_name == "sweep of lr × batch_size"
    assert parent.data.params == {"optimizer.lr": "1e-3,1e-2", "batch_size": "32,64"}
    assert [run.info.run_name for run in children] == [
        "lr=0.001, batch_size=32",
        "lr=0.001, batch_size=64",
        "lr=0.01, batch_size=32",
        "lr=0.01, batch_size=64",
    ]
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert {run.data.tags["mnist_exp.sweep"] for run in (parent, *children)} == {
        find_sweep(grid[0]).name
    }


def test_only_the_best_job_on_validation_is_tested_and_only_the_parent_logs_it(
    grid: tuple[Clone, str],
) -> None:
    clone, printed = grid
    parent, children = list_sweep_runs(clone)
    assert [key for run in children for key in run.data.metrics if key.startswith("test/")] == []
    best = max(children, key=lambda run: run.data.metrics["val/accuracy"])
    alone = re.search(r"winner   python train.py (.*)", printed)
    assert alone is not None
    done = clone.run("train.py", *shlex.split(alone[1]), "tracking=none")
    assert done.returncode == 0
    lines = (clone.folders()[-1] / "metrics.jsonl").read_text().splitlines()
    (tested,) = (line for line in map(json.loads, lines) if "test/loss" in line)
    for key in ("test/loss", "test/accuracy"):
        assert parent.data.metrics[key] == tested[key]
    assert parent.data.metrics["val/accuracy"] == best.data.metrics["val/accuracy"]


def test_the_leaderboard_is_ranked_by_validation_on_the_screen_and_in_the_artifacts(
    grid: tuple[Clone, str],
) -> None:
    clone, printed = grid
    parent, children = list_sweep_runs(clone)
    client = clone.client
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert names == {"leaderboard.csv", "leaderboard.png", "sweep.log"}
    rows = read_leaderboard(find_sweep(clone))
    assert list(rows[0]) == [
        *("rank", "optimizer.lr", "batch_size", "val_accuracy", "val_accuracy_sd", "val_loss"),
        *("best_epoch", "seconds", "n", "status", "code", "outputs"),
    ]
    accuracies = [float(row["val_accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    by_job = {row["outputs"]: float(row["val_accuracy"]) for row in rows}
    for run in children:
        assert by_job[run.data.tags["mnist_exp.job"]] == run.data.metrics["val/accuracy"]
    assert re.search(r"^rank  lr +batch_size  val accuracy  val loss", printed, re.MULTILINE)
    assert (find_sweep(clone) / "leaderboard.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_sweep_that_is_resumed_trains_nothing_and_says_the_same(
    grid: tuple[Clone, str],
) -> None:
    clone, printed = grid
    before = read_sweep_metrics(clone)
    done = clone.run("train.py", "-m", "sweep.resume=latest")
    assert (done.returncode, done.stderr) == (0, "")
    assert "job " not in done.stdout
    assert (
        done.stdout[done.stdout.index("Leaderboard") :] == printed[printed.index("Leaderboard") :]
    )
    assert read_sweep_metrics(clone) == before
    other = clone.run("train.py", "-m", "data=digits", "batch_size=8,16", "sweep.resume=latest")
    assert other.returncode == 2
    assert other.stderr == Like("…other arguments…python train.py -m sweep.resume=outputs/…\n")


# --- what a folder holds, and whose it is ---


@pytest.fixture(scope="module")
def small_clone(new_clone: Callable[[], Clone]) -> tuple[Clone, str]:
    """A clone with a finished sweep of two seeds for two values, and what the sweep printed."""
    clone = new_clone()
    done = clone.run("train.py", *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    return clone, done.stdout


@pytest.fixture
def small(small_clone: tuple[Clone, str], tmp_path: Path) -> tuple[Clone, Path, str]:
    """A copy of that clone for one test, the sweep's folder in it, and what the sweep printed."""
    shutil.copytree(small_clone[0].root, tmp_path / "clone")
    clone = Clone(tmp_path / "clone")
    return clone, find_sweep(clone), small_clone[1]


def resume(clone: Clone, *more: str) -> subprocess.CompletedProcess[str]:
    return clone.run("train.py", *SMALL, "sweep.resume=latest", *more)


def test_axes_in_another_order_are_refused(small: tuple[Clone, Path, str]) -> None:
    clone, folder, _ = small
    before = read_files(folder)
    done = clone.run("train.py", *QUICK, "seed=1,2", "batch_size=16,64", "sweep.resume=latest")
    assert is_refused(done, 2, "another order", "train.py -m sweep.resume=outputs/")
    assert read_files(folder) == before


def test_a_folder_of_another_job_is_not_taken_for_this_one(small: tuple[Clone, Path, str]) -> None:
    clone, folder, _ = small
    (folder / "0").rename(folder / "moved")
    (folder / "1").rename(folder / "0")
    (folder / "moved").rename(folder / "1")
    done = resume(clone)
    assert done.returncode == 1
    said = Like("…0: …batch_size=16…seed=2…batch_size=16…seed=1…")
    assert done.stderr.splitlines()[-1] == said
    assert json.loads((folder / "0" / "outcome.json").read_text())["chosen"]["seed"] == "2"


def test_a_checkpoint_of_other_values_is_not_resumed(small: tuple[Clone, Path, str]) -> None:
    clone, folder, _ = small
    (folder / "3" / "outcome.json").unlink()
    shutil.copy(folder / "0" / "checkpoints" / "last.pt", folder / "3" / "checkpoints")
    done = resume(clone)
    assert done.returncode == 1
    (row,) = (row for row in read_leaderboard(folder) if row["outputs"] == "2 3")
    assert (row["n"], row["status"]) == (
        "1",
        Like("FAILED: batch_size=64: …16… seed=2: …1…"),
    )


def test_a_new_sweep_does_not_take_an_old_folder(small: tuple[Clone, Path, str]) -> None:
    clone, folder, _ = small
    before = read_files(folder)
    done = clone.run("train.py", *QUICK, "seed=7,8", f"hydra.sweep.dir={folder}")
    name = folder.relative_to(clone.root)
    assert is_refused(done, 2, f"hydra.sweep.dir={name}: ", f"sweep.resume={name}")
    assert read_files(folder) == before


@pytest.mark.parametrize("left", [SWEEP, "0/outcome.json", "3/checkpoints/last.pt", str(LAST)])
def test_a_folder_with_files_of_a_run_or_a_sweep_is_not_new(left: str, tmp_path: Path) -> None:
    (tmp_path / "0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "0" / "notes.txt").touch()
    check_new(tmp_path)
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).touch()
    with pytest.raises(BadInput, match=r"(sweep|run).* already"):
        check_new(tmp_path)


def test_a_sweep_that_version_0_1_wrote_resumes(clone: Clone) -> None:
    folder, typed = clone.root / "outputs" / "old", [*QUICK[1:], "optimizer.lr=1e-3,1e-2"]
    begun = {"typed": typed, "swept": ["optimizer.lr"], "test": "winner", "search": False}
    begun |= {"begun": 1795659079.9, "key": "0" * 32, "tested": {}}
    first = {"job": 0, "chosen": {"optimizer.lr": "0.001"}, "overrides": [*QUICK[1:]]}
    first |= {"code": "0a864bbd12f1", "status": "FINISHED", "reason": "", "epoch": 1}
    first |= {"accuracy": 0.125, "loss": 2.5, "seconds": 0.5}
    second = {**first, "job": 1, "chosen": {"optimizer.lr": "0.01"}, "status": "KILLED", "epoch": 0}
    second |= {"accuracy": None, "loss": None, "seconds": 0.0}
    for name, record in (("0", first), ("1", second)):
        (folder / name).mkdir(parents=True)
        (folder / name / "outcome.json").write_text(json.dumps(record))
    (folder / SWEEP).write_text(json.dumps(begun))
    done = clone.run("train.py", "-m", *typed, "sweep.resume=outputs/old")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((folder / "0" / "outcome.json").read_text()) == first
    best, other = read_leaderboard(folder)
    assert (best["outputs"], best["status"], best["optimizer.lr"]) == ("1", "FINISHED", "0.01")
    assert (other["outputs"], other["val_accuracy"], other["code"]) == ("0", "0.125", first["code"])
    after = json.loads((folder / SWEEP).read_text())
    assert after.pop("tested").keys() == {"1"}
    assert after.pop("jobs") == [first["chosen"], second["chosen"]]
    del begun["tested"]
    assert begun.items() <= after.items()


def test_only_one_process_runs_a_sweep(small: tuple[Clone, Path, str]) -> None:
    clone, folder, _ = small
    before = read_files(folder)
    with lock_folder(folder):
        assert is_refused(resume(clone), 1, "another process")
    assert read_files(folder) == before


def test_a_job_that_another_process_runs_is_left_alone(
    small: tuple[Clone, Path, str],
) -> None:
    clone, folder, _ = small
    outcome = folder / "0" / "outcome.json"
    running = {**json.loads(outcome.read_text()), "status": "UNFINISHED"}
    outcome.write_text(json.dumps(running))
    (folder / "0" / LAST).unlink()
    half_written = folder / "0" / "checkpoints" / ".last.pt.new.1"
    half_written.touch()
    with lock_folder(folder / "0", "nothing"):
        done = resume(clone)
    assert done.returncode == 1
    assert "job 0: " in done.stdout
    assert json.loads(outcome.read_text())["status"] == "UNFINISHED"
    assert half_written.exists()


# --- code that changed between jobs, and a winner that cannot be tested ---


def test_jobs_of_other_code_are_averaged_separately(small: tuple[Clone, Path, str]) -> None:
    clone, folder, _ = small
    shutil.rmtree(folder / "1")
    outcome = folder / "3" / "outcome.json"  # as one from before the code was recorded
    old = {key: value for key, value in json.loads(outcome.read_text()).items() if key != "code"}
    outcome.write_text(json.dumps(old))
    with (clone.root / "conf" / "config.yaml").open("a") as file:
        file.write("# a comment\n")
    done = resume(clone)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row["outputs"]: (row["n"], row["code"]) for row in read_leaderboard(folder)}
    assert rows.keys() == {"0", "1", "2", "3"}
    assert {n for n, _ in rows.values()} == {"1"}
    old_code, new_code = rows["0"][1], rows["1"][1]
    assert len({old_code, new_code, "unknown"}) == 3
    assert f"0 2 by {old_code}; 1 by {new_code}; 3 by unknown" in done.stdout


def forget_the_test(folder: Path) -> None:
    sweep = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({**sweep, "tested": {}}))


def test_a_winner_that_cannot_be_loaded_is_one_line_and_ends_the_parent(
    grid: tuple[Clone, str], tmp_path: Path
) -> None:
    shutil.copytree(grid[0].root, tmp_path / "clone")
    clone = Clone(tmp_path / "clone")
    forget_the_test(find_sweep(clone))
    for last in find_sweep(clone).glob(f"*/{LAST}"):
        last.write_bytes(b"damaged")
    done = clone.run("train.py", "-m", "sweep.resume=latest")
    assert is_refused(done, 1, "before_move")  # a copied checkout
    assert find_table(done.stdout) == find_table(grid[1])
    said = r"^.*winner.*not.* tested.*last\.pt: .*checkpoint.*$"
    assert re.search(said, done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stdout
    assert list_sweep_runs(clone)[0].info.status == "FAILED"


def test_a_winner_whose_checkpoint_has_other_weights_is_not_tested(
    small: tuple[Clone, Path, str],
) -> None:
    clone, folder, _ = small
    forget_the_test(folder)
    outcome = folder / "2" / "outcome.json"
    outcome.write_text(json.dumps({**json.loads(outcome.read_text()), "score": 2.0}))
    done = resume(clone)
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(r"2: .*checkpoint.*leaderboard", done.stdout)


# --- damaged files ---


def test_a_damaged_outcome_is_an_unfinished_job(small: tuple[Clone, Path, str]) -> None:
    clone, folder, printed = small
    first = (folder / "0" / "outcome.json").read_text()
    damages = (
        first[:-20],
        "[]",
        '{"job": 2}',
        re.sub('"score": [^,]*', '"score": NaN', (folder / "3" / "outcome.json").read_text()),
    )
    for number, damage in enumerate(damages):
        (folder / str(number) / "outcome.json").write_text(damage)
    done = resume(clone)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("outcome.json: damaged") == 4
    assert (folder / "0" / "train.log").read_text().count("epoch 1/1") == 1  # checkpoints know
    assert find_table(done.stdout) == find_table(printed)


@pytest.mark.parametrize("damage", ["", '{"typed": [', "[]", '{"typed": []}', '{"typed": 3}'])
def test_a_damaged_sweep_is_one_line_that_says_what_is_left(
    damage: str, tmp_path: Path, small_clone: tuple[Clone, str]
) -> None:
    whole = json.loads((find_sweep(small_clone[0]) / "sweep.json").read_text())
    if damage == '{"typed": 3}':
        damage = json.dumps({**whole, "typed": 3})
    (tmp_path / "sweep.json").write_text(damage)
    words = (f"{tmp_path}/sweep.json: damaged", "cannot be resumed", f"resume={tmp_path}/0")
    with pytest.raises(Damaged) as raised:
        read_sweep(tmp_path)
    assert all(word in str(raised.value) for word in words)
    assert "\n" not in str(raised.value)


def test_a_sweep_with_other_axes_in_its_record_is_damaged(small: tuple[Clone, Path, str]) -> None:
    clone, folder, _ = small
    record = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({**record, "swept": ["nope"]}))
    assert is_refused(resume(clone), 1, f"{folder}/sweep.json: damaged")


def test_the_latest_sweep_is_named_where_it_is_damaged(small: tuple[Clone, Path, str]) -> None:
    clone, folder, _ = small
    (folder / "sweep.json").write_text("{")
    assert is_refused(resume(clone), 1, f"{folder}/sweep.json: damaged")


@pytest.mark.slow
def test_a_seed_is_not_a_hyperparameter(clone: Clone) -> None:
    arguments = ("data=digits", "trainer.epochs=2", "model=linear,mlp", "seed=1,2,3")
    done = clone.run("train.py", "-m", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    rows = read_leaderboard(find_sweep(clone))
    assert [row["n"] for row in rows] == ["3", "3"]
    _, children = list_sweep_runs(clone)
    values = [run.data.metrics["val/accuracy"] for run in children if "mlp" in run.info.run_name]
    (mlp,) = (row for row in rows if row["model"] == "mlp")
    assert float(mlp["val_accuracy"]) == pytest.approx(sum(values) / 3)
    mean = sum(values) / 3
    assert float(mlp["val_accuracy_sd"]) == pytest.approx(
        (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    )
    assert re.search(r"test     accuracy 0\.\d{4} ± 0\.\d{4} \(n=3\)", done.stdout)
    parent, _ = list_sweep_runs(clone)
    assert parent.data.metrics["test/accuracy_sd"] > 0


@pytest.mark.slow
def test_a_job_that_fails_fails_alone(clone: Clone) -> None:
    sweep = clone.root / "outputs" / "mine"
    (sweep / "1" / "config.yaml").mkdir(parents=True)  # where the second job has to write a file
    done = clone.run("train.py", *GRID, f"hydra.sweep.dir={sweep}")
    assert done.returncode == 1
    rows = read_leaderboard(sweep)
    assert [row["status"] == "FINISHED" for row in rows] == [True, True, True, False]
    assert rows[-1]["outputs"] == "1"
    assert "Is a directory" in rows[-1]["status"]
    assert "Traceback" in (sweep / "1" / "train.log").read_text()
    assert "Traceback" not in done.stdout + done.stderr
    parent, children = list_sweep_runs(clone)
    assert parent.info.status == "FAILED"
    assert sorted(run.info.status for run in children) == ["FAILED", *["FINISHED"] * 3]
    assert "test/accuracy" in parent.data.metrics


@pytest.mark.slow
@pytest.mark.parametrize("flock", [True, False])
def test_a_killed_sweep_resumes_where_it_was(
    clone: Clone, new_clone: Callable[[], Clone], tmp_path: Path, flock: bool
) -> None:
    whole, env = new_clone(), {} if flock else without_flock(tmp_path)
    assert whole.run("train.py", *LONG, *IN_TURN).returncode == 0
    process = clone.start("train.py", *LONG, *IN_TURN, env=env)
    second = "*/*/1/checkpoints/last.pt"
    signal_after(process, lambda: any((clone.root / "outputs").glob(second)), signal.SIGKILL)
    assert {*wait_for_end(clone)} == {"FINISHED", "KILLED"}
    assert flock != any(find_sweep(clone).glob("**/.lock.pid"))
    done = clone.run("train.py", *LONG, "sweep.resume=latest", env=env, fork=flock)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_sweep_metrics(clone) == read_sweep_metrics(whole)
    assert len(list(clone.root.glob("outputs/*/*/sweep.json"))) == 1
    columns = ("seed", "val_accuracy", "val_accuracy_sd", "n", "status", "outputs")
    ours, theirs = read_leaderboard(find_sweep(clone)), read_leaderboard(find_sweep(whole))
    assert [[row.get(c) for c in columns] for row in ours] == [
        [row.get(c) for c in columns] for row in theirs
    ]


@pytest.mark.slow
def test_ctrl_c_leaves_a_leaderboard_and_the_command_that_resumes(clone: Clone) -> None:
    process = clone.start("train.py", *LONG, *IN_TURN)
    second = "*/*/1/checkpoints/last.pt"
    out = signal_after(process, lambda: any((clone.root / "outputs").glob(second)), signal.SIGINT)
    assert process.returncode == 130
    assert "Leaderboard" in out
    parent, children = list_sweep_runs(clone)
    assert parent.info.status == "KILLED"
    assert [run.info.status for run in children] == ["FINISHED", "KILLED"]
    assert "test/accuracy" not in parent.data.metrics
    command = shlex.split(out.splitlines()[-1])
    assert command[:2] == ["python", "train.py"]
    done = clone.run(*command[1:])
    assert (done.returncode, done.stderr) == (0, "")
    parent, children = list_sweep_runs(clone)
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 4
    assert "test/accuracy" in parent.data.metrics


def test_sweep_test_all_tests_every_job(clone: Clone) -> None:
    arguments = ("data=digits", "trainer=debug", "batch_size=32,64", "sweep.test=all")
    done = clone.run("train.py", "-m", *arguments, "tracking=none")
    assert done.returncode == 0
    assert "biased" in done.stdout
    journals = [path.read_text() for path in clone.root.glob("outputs/*/*/*/metrics.jsonl")]
    assert ["test/accuracy" in journal for journal in journals] == [True, True]


def test_a_typed_value_overrides_a_swept_preset(clone: Clone) -> None:
    arguments = ("data=digits", "trainer=debug", "sweep=lr_batch", "batch_size=32")
    done = clone.run("train.py", "-m", *arguments, "tracking=none")
    assert (done.returncode, done.stderr) == (0, "")
    rows = read_leaderboard(find_sweep(clone))
    assert {row["optimizer.lr"] for row in rows} == {"0.0001", "0.001", "0.01"}
    assert "3 jobs" in done.stdout


def test_cfg_job_lists_the_jobs_that_the_sweep_then_runs(clone: Clone) -> None:
    arguments = ("data=digits", "trainer=debug", "sweep=lr_batch", "batch_size=32,64")
    arguments += ("tracking=none", "hydra.sweep.dir=outputs/a/b")
    listed = clone.run("train.py", "-m", "--cfg", "job", *arguments)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert list((clone.root / "outputs").iterdir()) == []
    assert clone.run("train.py", "-m", *arguments).returncode == 0
    outcomes = [read_outcome(clone.root / "outputs/a/b" / str(number)) for number in range(6)]
    for line, outcome in zip(listed.stdout.splitlines(), outcomes, strict=True):
        number, folder, overrides = line.split("  ")
        assert (int(number), clone.root / folder) == (outcome.job, outcome.folder)
        assert [o for o in overrides.split() if not o.startswith("sweep")] == outcome.overrides


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("seed=range(0,10000)",), "10,000 jobs…sweep.max_jobs=10000"),
        (("sweep.resume=latest",), "no sweep in outputs/"),
        (
            ("sweep.combine=zip", "optimizer.lr=1,2,3", "batch_size=32,64"),
            "sweep.combine=zip: …3 of optimizer.lr, 2 of batch_size",
        ),
        (("seed=1,2", "sweep.resume=conf"), "sweep.resume=conf: …folder…latest"),
        (("optimizer.lr=interval(0.1,1)",), "optimizer.lr=interval(0.1,1): …hydra/sweeper=optuna"),
        (("--cfg", "hydra", "seed=1,2"), "-m --cfg job"),
        (("--info", "config", "seed=1,2"), "-m --cfg job"),
        (("seed=1,2", "resume=latest"), "resume=latest: …-m"),
        (("trainer.monitor=val/loss,val/accuracy",), "trainer.monitor=…share this key"),
        (("seed=1,2", "hydra.launcher.n_jobs=0"), "hydra.launcher.n_jobs=0: …integer >= 1"),
    ],
)
def test_an_impossible_sweep_is_refused_before_anything_is_created(
    clone: Clone, arguments: tuple[str, ...], said: str
) -> None:
    (clone.root / "mlflow.db").unlink()
    done = clone.run("train.py", "-m", *arguments)
    assert done.returncode == 2
    assert done.stderr == Like(f"…{said}…\n")
    assert list((clone.root / "outputs").iterdir()) == []
    assert not (clone.root / "mlflow.db").exists()


@pytest.mark.slow
def test_parallel_jobs_find_the_same_as_serial_jobs(
    clone: Clone, new_clone: Callable[[], Clone]
) -> None:
    serial = new_clone()
    basic = ("hydra/launcher=basic", "trainer.threads=1")
    assert serial.run("train.py", *GRID, *basic).returncode == 0
    done = clone.run("train.py", *GRID, "hydra.launcher.n_jobs=3", fork=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_sweep_metrics(clone) == read_sweep_metrics(serial)
    parent, children = list_sweep_runs(clone)
    other, _ = list_sweep_runs(serial)
    for key in ("test/loss", "test/accuracy", "val/accuracy"):
        assert parent.data.metrics[key] == other.data.metrics[key]
    (winner,) = re.findall("winner   (.*)", done.stdout)
    assert "trainer.threads=1" in winner
    assert winner in [run.data.tags["mnist_exp.command"] for run in children]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (3, "exit code 3"),
        (-signal.SIGTERM, "SIGTERM"),
        (-signal.SIGKILL, "out of memory?"),
        (-100, "signal 100"),
    ],
)
def test_the_end_of_a_process_has_a_reason(code: int, said: str) -> None:
    assert said in explain_exit(code)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process of a job in /proc")
def test_a_killed_job_fails_alone(clone: Clone) -> None:
    folder = clone.root / "outputs" / "mine"
    parallel = ("hydra.launcher.n_jobs=3", f"hydra.sweep.dir={folder}")
    work = [word.replace("epochs=12", "epochs=60") for word in LONG]
    out = signal_after(
        clone.start("train.py", *work, *parallel),
        lambda: len(list(folder.glob("*/metrics.jsonl"))) == 3,  # so MLflow has all runs
        signal.SIGKILL,
        lambda: find_writer(folder / "1" / "train.log"),
    )
    (row,) = read_leaderboard(folder)
    assert row["status"] == "FAILED: ended by SIGKILL (out of memory?)"
    assert row["n"] == "2"
    assert sorted(re.findall(r"^job (\d)  seed=\d  ", out, re.MULTILINE)) == ["0", "1", "2"]
    parent, children = list_sweep_runs(clone)
    assert parent.info.status == "FAILED"
    assert parent.data.metrics["val/loss"] == float(row["val_loss"])
    assert [run.info.status for run in children] == ["FINISHED", "KILLED", "FINISHED"]
    done = clone.run("train.py", "-m", f"sweep.resume={folder}")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^job (\d)  seed=\d  ", done.stdout, re.MULTILINE) == ["1"]
    parent, children = list_sweep_runs(clone)
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    (row,) = read_leaderboard(folder)  # of three seeds, no longer of two
    for name in ("accuracy", "loss"):
        assert parent.data.metrics[f"val/{name}"] == float(row[f"val_{name}"])
        history = clone.client.get_metric_history(parent.info.run_id, f"val/{name}")
        assert [point.step for point in history] == [2, 3]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process of a job in /proc")
def test_after_a_bug_of_the_sweep_its_jobs_do_not_run_on(clone: Clone) -> None:
    folder = clone.root / "outputs" / "mine"
    bug = "import runpy; from mnist_exp.sweeps import local; local.end_job = None; "
    script = f"{bug}runpy.run_path('train.py', run_name='__main__')"
    work = ("-m", "data=digits", "trainer.epochs=100000", "seed=1,2", "tracking=none")
    where = ("hydra.launcher.n_jobs=2", f"hydra.sweep.dir={folder}")
    process = clone.start("-c", script, *work, *where)
    signal_after(
        process,
        lambda: (folder / "0" / LAST).exists() and (folder / "1" / LAST).exists(),
        signal.SIGKILL,
        lambda: find_writer(folder / "1" / "train.log"),
    )
    assert process.returncode == 1
    with lock_folder(folder / "0"):
        pass  # nobody trains there


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_parallel_jobs_end_with_their_sweep(clone: Clone, number: int) -> None:
    folder = clone.root / "outputs" / "mine"
    parallel = ("hydra.launcher.n_jobs=2", f"hydra.sweep.dir={folder}")
    process = clone.start("train.py", *LONG, *parallel)
    signal_after(process, lambda: (folder / "1" / LAST).exists(), number)
    assert {*wait_for_end(clone)} == {"KILLED"}
    with lock_folder(folder / "0"), lock_folder(folder / "1"):
        pass  # nobody trains there
    done = clone.run("train.py", "-m", f"sweep.resume={folder}")
    assert (done.returncode, done.stderr) == (0, "")
    assert {outcome.status for outcome in read_outcomes(folder)} == {"FINISHED"}


def test_keys_of_a_preset_do_not_apply_to_another_option(clone: Clone) -> None:
    typed = ("experiment=speedrun", "data=digits", "model=linear", "tracking=none")
    chosen = ("optimizer=sgd,adamw", "scheduler=constant", "hydra.sweep.dir=outputs/a/b")
    done = clone.run("train.py", "-m", *typed, *chosen)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        Like(f"experiment=speedrun: …optimizer.lr…scheduler.pct_start…={name} scheduler=constant")
        for name in ("sgd", "adamw")
    ]
    for number, rate in enumerate((0.1, 0.001)):
        folder = f"outputs/a/b/{number}"
        config = OmegaConf.load(clone.root / folder / "config.yaml")
        assert (config.optimizer.lr, config.batch_size, config.trainer.epochs) == (rate, 256, 1)
        overrides = read_outcome(clone.root / folder).overrides
        shown = clone.run("train.py", "--cfg", "job", "--package", "optimizer.lr", *overrides)
        assert shown.stdout == f"{rate}\n"
    resumed = clone.run("train.py", "-m", *typed, *chosen, "sweep.resume=outputs/a/b")
    assert (resumed.returncode, resumed.stderr) == (0, done.stderr)


# --- jobs that are no grid ---

ROWS = {
    "rows.csv": "optimizer.lr, model.hidden_sizes\n1e-2, [64]\n1e-3,[]\n",
    "rows.yaml": "- {optimizer.lr: 1e-2, model.hidden_sizes: [64]}\n"
    "- optimizer.lr: 1e-3\n  model.hidden_sizes: []\n",
}


def test_rows_of_both_kinds_of_file_are_written_as_arguments(tmp_path: Path) -> None:
    for name, text in ROWS.items():
        (tmp_path / name).write_text(text)
        assert read_rows(tmp_path / name) == [
            {"optimizer.lr": "1e-2", "model.hidden_sizes": "[64]"},
            {"optimizer.lr": "1e-3", "model.hidden_sizes": "[]"},
        ]


@pytest.mark.parametrize(
    "typed",
    [
        ["sweep.combine=zip", "optimizer.lr=1e-2,1e-3", "batch_size=32,64"],
        ["sweep.jobs=rows.csv", "seed=1,2"],
    ],
)
def test_pairs_and_rows_of_a_file_resume_without_arguments(clone: Clone, typed: list[str]) -> None:
    file = clone.root / "rows.csv"
    file.write_text("optimizer.lr,batch_size\n1e-2,32\n1e-3,64\n")
    done = clone.run("train.py", *QUICK, *typed)
    assert (done.returncode, done.stderr) == (0, "")
    folder = find_sweep(clone)
    rows = read_leaderboard(folder)
    seeds = 2 if "seed=1,2" in typed else 1
    pairs = {(float(row["optimizer.lr"]), row["batch_size"], row["n"]) for row in rows}
    assert pairs == {(0.01, "32", str(seeds)), (0.001, "64", str(seeds))}
    shutil.rmtree(folder / "1")
    file.write_text("optimizer.lr,batch_size\n1e-2,32\n1e-3,128\n")
    changed = clone.run("train.py", "-m", "--cfg", "job", "sweep.resume=latest")
    assert is_refused(changed, 2, "sweep.jobs=rows.csv") if seeds > 1 else changed.returncode == 0
    file.unlink()
    listed = clone.run("train.py", "-m", "--cfg", "job", "sweep.resume=latest").stdout
    done = clone.run("train.py", "-m", "sweep.resume=latest")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^job (\d)  .* s$", done.stdout, re.MULTILINE) == ["1"]
    assert len(listed.splitlines()) == 2 * seeds
    for line, outcome in zip(listed.splitlines(), read_outcomes(folder), strict=True):
        chosen = [f"{key}={value}" for key, value in outcome.chosen.items()]
        assert line.split("  ")[2].split()[: len(chosen)] == chosen
    for row, again in zip(rows, read_leaderboard(folder), strict=True):
        assert {**again, "seconds": row["seconds"]} == row


BAD_JOBS = {
    "nothing.csv": (None, "sweep.jobs=nothing.csv: no such file"),
    "keys.yaml": ("- {seed: 1}\n- {batch_size: 1}\n", "sweep.jobs=keys.yaml: …2 …other keys…"),
    "short.csv": ("seed,batch_size\n1,2\n2\n", "sweep.jobs=short.csv: …2 …as many values…"),
    "long.csv": ("seed,batch_size\n1,2,3\n", "sweep.jobs=long.csv: …1 …as many values…"),
    "twice.csv": ("seed,batch_size\n1,2\n1,2\n", "sweep.jobs=twice.csv: …2 …twice…"),
    "text.yaml": ("seed", "sweep.jobs=text.yaml: …list…"),
    "value.csv": ("batch_size\n8\n0\n", "batch_size=0: …integer >= 1"),
    "several.csv": ('seed\n"1,2"\n', "seed=1,2: …several…"),
    "typed.csv": ("optimizer.lr\n0.1\n", "optimizer.lr: …sweep.jobs=typed.csv, too…"),
    "sweep.yaml": ("- {sweep.test: all}\n", "sweep.test: …sweep.jobs=sweep.yaml…"),
}


def test_a_file_of_combinations_is_checked_like_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, (text, said) in BAD_JOBS.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        assert problems([f"sweep.jobs={name}", "optimizer.lr=1,2"], multirun=True) == [Like(said)]


def test_seeds_splits_and_folds_are_averaged_and_none_of_them_wins(clone: Clone) -> None:
    done = clone.run("train.py", *QUICK, "sweep=folds", "data.folds=2", "data.split_seed=1,2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "winner" not in done.stdout
    assert re.search(r"^test +accuracy 0\.\d+ ± 0\.\d+ \(n=4\)", done.stdout, re.MULTILINE)
    (row,) = read_leaderboard(find_sweep(clone))
    assert (row["n"], row["outputs"]) == ("4", "0 1 2 3")
    done = clone.run("train.py", *QUICK, "sweep=folds", "data.folds=2", "optimizer.lr=1e-3,1e-2")
    winner = re.search(r"^winner +python train.py (.*)", done.stdout, re.MULTILINE)
    assert winner is not None
    assert {"data.folds=2", "data.fold=0", "optimizer.lr=0.01"} < {*winner[1].split()}
    assert problems(winner[1].split()) == []
    rows = read_leaderboard(find_sweep(clone))
    assert [(row["optimizer.lr"], row["n"]) for row in rows] == [("0.01", "2"), ("0.001", "2")]
    with initialize_hydra() as loader:  # what the preset sets is a part of each job's overrides
        assert "data.folds=5" in check(["sweep=folds"], True, loader).words


def test_what_is_typed_counts_beside_options_in_a_file_of_jobs(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text("model\nlinear\ncnn\n")
    typed = [f"sweep.jobs={tmp_path}/jobs.csv", "sweep.max_jobs=1", "trainer.epochs=7"]
    with initialize_hydra() as loader:
        config = check(typed, True, loader).config
    assert (config.sweep.max_jobs, config.trainer.epochs) == (1, 7)
