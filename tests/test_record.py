"""What MLflow shows of a run: its name, description, tags, and uncommitted changes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import Clone, Like, find_sweep, is_refused, list_sweep_runs, only_run
from mlflow.entities import Run

from mnist_exp.experiment.record import name_values
from mnist_exp.tracking import RunRecord
from mnist_exp.tracking.mlflow import MLflowTracker

QUICK = ("data=digits", "trainer=debug")


def commit_all(root: Path) -> None:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b")
    for command in (["init", "-q"], ["add", "src", "conf", "train.py"], ["commit", "-qm", "all"]):
        subprocess.run(["git", *settings, *command], cwd=root, check=True)


@pytest.fixture(scope="module")
def dirty(new_clone) -> tuple[Clone, Run, Path]:
    """A run with uncommitted changes, a note, and tags."""
    clone = new_clone()
    (clone.root / ".gitignore").write_text("*.db\noutputs\nmlruns\ndata\n__pycache__\n")
    commit_all(clone.root)
    (clone.root / "conf" / "model" / "own.yaml").write_text("# http://ann:pw-1@host\n")
    mlp = clone.root / "conf" / "model" / "mlp.yaml"
    mlp.write_text(mlp.read_text() + "# changed\n")
    (clone.root / "src" / "secret.txt").write_text("pw-2")
    (clone.root / "secret.yaml").write_text("pw-3")
    (clone.root / "conf" / "link.yaml").symlink_to(clone.root / "secret.yaml")
    typed = ("tracking.note=my *note*", "tracking.tags={study: ablation, n: 3}")
    env = {"MLFLOW_RUN_NAME": "mine", "MLFLOW_EXPERIMENT_NAME": "other"}
    done = clone.run("train.py", *QUICK, *typed, env=env)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    (folder,) = clone.folders()
    return clone, only_run(clone.client, "other"), folder


def test_mlflow_variables_name_the_run_and_its_experiment(dirty: tuple[Clone, Run, Path]) -> None:
    clone, run, _ = dirty
    assert run.info.run_name == "mine"
    typed = ("tracking.run_name=typed", "tracking.experiment=third")
    env = {"MLFLOW_RUN_NAME": "mine", "MLFLOW_EXPERIMENT_NAME": "other"}
    assert clone.run("train.py", *QUICK, *typed, env=env).returncode == 0
    assert only_run(clone.client, "third").info.run_name == "typed"


def test_the_description_has_note_command_and_outcome(dirty: tuple[Clone, Run, Path]) -> None:
    _, run, _ = dirty
    lines = run.data.tags["mlflow.note.content"].splitlines()
    assert (lines[0], lines[2], lines[5]) == ("my *note*", "### Outcome", "### Command")
    for name in ("val/accuracy", "test/loss"):
        assert f"{name} {run.data.metrics[name]:.4f}" in lines[3]
    assert lines[7].startswith("python train.py data=digits trainer=debug")


def test_our_tags_have_a_prefix_and_a_persons_own_do_not(dirty: tuple[Clone, Run, Path]) -> None:
    clone, run, folder = dirty
    tags = run.data.tags
    assert (tags["study"], tags["n"]) == ("ablation", "3")
    assert clone.root / tags["mnist_exp.output_folder"] == folder
    ours = [tag for tag in tags if not tag.startswith(("mlflow.", "mnist_exp."))]
    assert sorted(ours) == ["n", "study"]


def test_uncommitted_changes_are_kept_and_named_by_reproduce(
    dirty: tuple[Clone, Run, Path],
) -> None:
    clone, run, folder = dirty
    kept = {p.relative_to(folder).as_posix() for p in folder.glob("changes*/**/*") if p.is_file()}
    assert kept == {"changes/conf/model/own.yaml"}
    assert "+# changed" in (folder / "changes.patch").read_text()
    assert "pw-" not in "".join(p.read_text() for p in folder.glob("change*/**/*.*"))
    names = [file.path for file in clone.client.list_artifacts(run.info.run_id)]
    assert {"changes", "changes.patch"} <= set(names)
    done = clone.run("train.py", f"reproduce={run.info.run_id}")
    assert done.returncode == 0, done.stderr
    assert "changes.patch, changes/conf/model/own.yaml" in done.stdout


def test_a_parent_shows_the_leaderboard_and_what_a_run_shows(clone: Clone) -> None:
    typed = ("optimizer.lr=1e-3,1e-2", "tracking.note=why", "tracking.run_name=rates")
    done = clone.run("train.py", "-m", "data=digits", "trainer.epochs=1", *typed)
    assert done.returncode == 0, done.stderr
    parent, children = list_sweep_runs(clone)
    text = parent.data.tags["mlflow.note.content"]
    (winner,) = (line for line in done.stdout.splitlines() if line.startswith("winner"))
    assert winner.removeprefix("winner   ") in text
    assert text.startswith("why\n\n### Outcome\n| rank | lr |")
    assert "### Command\n```\npython train.py -m data=digits" in text
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")][2:] == [
        "| 1",
        "| 2",
    ]
    assert parent.info.run_name == "rates"
    assert {run.info.run_name for run in children} == {"lr=0.001", "lr=0.01"}
    for tag in ("mlflow.source.git.commit", "mlflow.user", "mnist_exp.torch"):
        assert parent.data.tags[tag] == children[0].data.tags[tag]
    (data,), (of_child,) = parent.inputs.dataset_inputs, children[0].inputs.dataset_inputs
    assert data.dataset == of_child.dataset
    assert parent.info.start_time <= min(run.info.start_time for run in children)
    best = clone.run("export.py", "--run", "best:digits", "--format", "pt2", "--unchecked")
    assert f"{find_sweep(clone).name}/1/" in best.stdout  # a job, not the parent


def test_runs_of_one_name_are_numbered_and_a_persons_words_stay(
    empty_store: Path, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    names = []
    for number in range(3):
        tracker = MLflowTracker("mnist_exp", uri, note="a note")
        viewer = tracker.start(RunRecord(f"{number}", "lr='1' %", {}, {}, started=1000.0))
        run = tracker.client.get_run(tracker.run_id)
        names.append(run.info.run_name)
        assert run.info.start_time == 1000 * 1000
    assert names == ["lr='1' %", "lr='1' % #2", "lr='1' % #3"]
    tracker.describe("### Outcome\nbefore")
    client, run_id = tracker.client, tracker.run_id
    written = client.get_run(run_id).data.tags["mlflow.note.content"]
    client.set_tag(run_id, "mlflow.note.content", f"By hand.\n\n{written}")
    tracker.describe("### Outcome\nafter")
    text = client.get_run(run_id).data.tags["mlflow.note.content"]
    assert text == "By hand.\n\na note\n\n### Outcome\nafter"
    experiment = client.get_experiment_by_name("mnist_exp")
    assert viewer == Like(f"mlflow ui --backend-store-uri {uri}, then http…workflowType=machine_…")
    assert "val/accuracy" in experiment.tags["mlflow.sharedViewState.mnist_exp"]


def test_a_path_in_a_name_is_its_last_part() -> None:
    values = {"init": "outputs/a/b", "data.root": "'/x y/z'", "model.hidden_sizes": "[1,2]"}
    assert name_values(values) == ["init=b", "root=z", "hidden_sizes=[1,2]"]


@pytest.mark.parametrize("tags", ["{mlflow.user: me}", "{a: [1]}", "text", "{'': 1}"])
def test_tags_that_mlflow_would_refuse_are_bad_input(tags: str, clone: Clone) -> None:
    assert is_refused(clone.run("train.py", f"tracking.tags={tags}"), 2, "tracking.tags=")
