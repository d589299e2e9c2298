"""Reproducing a run from its id: equal, or the first metric that differs."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from conftest import Clone, Like, only_run

from mnist_exp.experiment import checkpoint
from mnist_exp.experiment.reproduce import compare
from mnist_exp.paths import LAST


@pytest.fixture(scope="module")
def further(new_clone: Callable[[], Clone]) -> tuple[Clone, str]:
    """A clone, and the id of its run of two epochs, which was then trained for one more."""
    clone = new_clone()
    assert clone.run("train.py", "data=digits", "trainer.epochs=2").returncode == 0
    assert clone.run("train.py", "resume=latest", "trainer.epochs=3").returncode == 0
    return clone, only_run(clone.client).info.run_id


@pytest.mark.slow
def test_a_run_trained_further_is_reproduced_and_a_changed_model_is_detected(
    further: tuple[Clone, str],
) -> None:
    clone, run_id = further
    client = clone.client
    tests = client.get_metric_history(run_id, "test/loss")
    assert [point.step for point in tests] == [2, 3]  # else the last of them were not chosen

    typed = ("trainer.checkpoint_every_steps=7", "tracking.experiment=again")
    done = clone.run("train.py", f"reproduce={run_id}", *typed)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == Like("reproduced: …bit for bit")
    assert done.stdout.count(" equal\n") == 4  # three epochs and the test
    again = only_run(client, "again")
    assert again.info.status == "FINISHED"
    assert again.data.tags["mnist_exp.reproduces"] == run_id
    assert again.data.params["trainer.checkpoint_every_steps"] == "7"

    model = clone.root / "src" / "mnist_exp" / "models" / "networks.py"
    model.write_text(model.read_text().replace("nn.ReLU", "nn.Tanh"))
    done = clone.run("train.py", f"reproduce={run_id}")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == Like("error: not reproduced…train/loss…epoch 1: …")


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (
            ["reproduce={run_id}", "optimizer.lr=0.5", "trainer.epochs=9"],
            ["optimizer.lr=0.5: …0.01…", "trainer.epochs=9: …8…"],
        ),
        ([f"reproduce={'a' * 32}"], [f"no MLflow run {'a' * 32}…"]),
        (["reproduce=outputs/no"], ["reproduce=outputs/no: not a folder…latest"]),
        (["reproduce=src"], ["reproduce=src: there is no …/src/config.yaml"]),
    ],
)
def test_a_run_that_cannot_be_reproduced_is_bad_input_and_creates_nothing(
    trained: Clone, arguments: list[str], problems: list[str]
) -> None:
    run_id = only_run(trained.client).info.run_id
    before = trained.folders()
    done = trained.run("train.py", *(argument.format(run_id=run_id) for argument in arguments))
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.removeprefix("error: ").splitlines() == [*map(Like, problems)]
    assert trained.folders() == before


@pytest.mark.slow
def test_a_damaged_config_of_a_run_is_one_line_and_trains_nothing(
    further: tuple[Clone, str],
) -> None:
    clone, run_id = further
    before = clone.folders()
    (artifact,) = clone.root.glob(f"mlruns/*/{run_id}/artifacts/config.yaml")
    whole = artifact.read_bytes()
    try:
        for content, problem in (
            (whole.replace(b"lr: 0.001", b"lr: 0.003"), "…config.yaml…damaged…"),
            (whole[: whole.index(b"optimizer:")], "…does not fit…"),
            (whole.replace(b"deterministic: ", b"deterministic:\xa0"), "…saved config…"),
        ):
            assert content != whole
            artifact.write_bytes(content)
            done = clone.run("train.py", f"reproduce={run_id}")
            assert done.returncode in (1, 2)
            (line,) = (done.stdout + done.stderr).splitlines()
            assert line == Like(f"error: reproduce={run_id}: {problem}")
    finally:
        artifact.write_bytes(whole)
    assert clone.folders() == before


@pytest.mark.slow
def test_a_run_is_reproduced_from_its_folder_or_its_config_alone(clone: Clone) -> None:
    settings = ("data=digits", "trainer.epochs=2", "tracking=none", "callbacks=[step_loss]")
    assert clone.run("train.py", *settings).returncode == 0
    (folder,) = clone.folders()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train/lo')  # torn by a power cut
    alone = clone.root / "my.yaml"
    alone.write_text((folder / "config.yaml").read_text())
    for word in (folder, folder / "config.yaml"):
        done = clone.run("train.py", f"reproduce={word}", "tracking=none")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == Like("reproduced: …bit for bit")
        assert done.stdout.count(" equal\n") == 3
    shutil.copytree(folder, clone.root / "outputs" / "unfinished")
    last = clone.root / "outputs" / "unfinished" / LAST
    checkpoint.save(last, {**checkpoint.load(last), "ended": False})
    newest = clone.folders()[-1].relative_to(clone.root)
    done = clone.run("train.py", "reproduce=latest", "tracking=none")
    assert done.stdout.startswith(f"reproducing {newest}\n")
    assert done.stdout.splitlines()[-1] == Like("reproduced: …bit for bit")
    shutil.rmtree(clone.root / "outputs" / "unfinished")
    done = clone.run("train.py", "reproduce=my.yaml", "tracking=none")
    assert done.stdout.splitlines()[-1] == Like("there are no metrics beside my.yaml…")
    weights = [(f / "mnist_model.pth").read_bytes() for f in clone.folders()]
    assert len(weights) == 5
    assert len(set(weights)) == 1


FIRST = {"val/loss": {1: 0.5, 2: 0.25}, "test/loss": {1: 0.75, 2: 0.5}}


@pytest.mark.parametrize(
    ("again", "differing"),
    [
        ({"val/loss": {1: 0.5, 2: 0.25}, "test/loss": {2: 0.5}}, []),
        ({"val/loss": {1: 0.5, 2: 0.25, 3: 0.125}, "test/loss": {2: 0.5, 3: 0.4}}, []),
        (
            {"val/loss": {1: 0.5, 2: 0.2500001}, "test/loss": {1: 0.75}},
            [
                Like("val/loss…epoch 2…0.25…0.2500001"),
                Like("test/loss…epoch 2…0.5…None"),
            ],
        ),
    ],
)
def test_every_metric_and_the_last_test_must_be_equal(
    again: dict[str, dict[int, float]], differing: list[Like]
) -> None:
    assert compare(FIRST, again) == differing
