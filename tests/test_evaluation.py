"""An evaluation has the metrics of the training to the last bit; tables and refusals."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Clone, Like, compose_config, is_refused
from PIL import Image

from mnist_exp.cli.evaluate import parse_data
from mnist_exp.data import Streamed, digits
from mnist_exp.errors import BadInput
from mnist_exp.experiment.run import train
from mnist_exp.inference.evaluation import evaluate_checkpoint
from mnist_exp.paths import LAST
from mnist_exp.tracking.store import clean_name


@pytest.fixture(scope="module")
def train_run(digits_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains on the digits, and returns the checkpoint."""

    def make(*typed: str) -> Path:
        folder = tmp_path_factory.mktemp("run")
        quick = ["data=digits", f"data.cache={digits_cache}", "tracking=none", "trainer.epochs=2"]
        train(compose_config(*quick, *typed), folder)
        return folder / LAST

    return make


@pytest.fixture(scope="module")
def checkpoint(train_run: Callable[..., Path]) -> Path:
    return train_run()


@pytest.mark.parametrize(
    "typed",
    [
        ["model=mlp"],
        ["model=cnn"],
        ["model=mlp", "trainer.precision=bfloat16"],
        ["model=cnn", "trainer.precision=bfloat16"],
        ["model=cnn", "trainer.precision=float64", "trainer.ema_decay=0.5"],
        ["model=mlp", "trainer=debug", "batch_size=16"],  # validates on 80 of 216
    ],
    ids=" ".join,
)
def test_loss_and_accuracy_are_those_of_the_training_to_the_last_bit(
    typed: list[str], train_run: Callable[..., Path]
) -> None:
    path = train_run(*typed)
    for split in ("test", "val"):
        found = evaluate_checkpoint(path, split)
        assert found.logged_metrics is not None
        assert found.metrics == found.logged_metrics
        assert found.compare_with_log() == Like("equal…bit")
        right = int(found.predictions.correct.sum())
        assert right / len(found.split) == found.metrics["accuracy"]
    assert len(found.split) == (80 if "trainer=debug" in typed else 216)


def test_a_model_is_loaded_without_torchs_compiler_and_computes_deterministically(
    checkpoint: Path,
) -> None:
    code = (
        "import sys; from mnist_exp import load; load(sys.argv[1]); import torch; "
        "print('torch._dynamo' in sys.modules, torch.are_deterministic_algorithms_enabled())"
    )
    command = [sys.executable, "-c", code, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"


def test_of_a_set_that_stays_on_disk_it_is_the_same_with_pictures(
    train_run: Callable[..., Path], checkpoint: Path, tmp_path: Path
) -> None:
    found = evaluate_checkpoint(train_run("data.memory_limit=1e-6"), "test")
    assert isinstance(found.split, Streamed)
    assert found.metrics == found.logged_metrics == evaluate_checkpoint(checkpoint, "test").metrics
    folder, files = found.draw(tmp_path / "here")
    assert folder == tmp_path / "here"
    assert {name: [path.stem for path in paths] for name, paths in files.items()} == {
        "figures": ["curves", "filters"],
        "figures/test": ["confusion", "most_wrong", "reliability"],
    }


def test_json_has_everything_by_its_name(checkpoint: Path) -> None:
    evaluation = evaluate_checkpoint(checkpoint, "test")
    found = json.loads(evaluation.to_json())
    assert found["images"] == 359
    assert (found["loss"], found["accuracy"]) == tuple(evaluation.metrics.values())
    assert found["logged"] == evaluation.metrics
    low, high = found["accuracy_interval"]
    assert low < found["accuracy"] < high
    assert sum(map(sum, found["confusion"])) == 359
    ones = found["classes"]["1"]
    assert ones["recall"] == found["confusion"][1][1] / ones["images"]
    assert list(found["classes"]) == list("0123456789")


def digit_files(root: Path, side: int, names: str, cache: Path) -> list[str]:
    """The test digits as files, of each class so many; returns the overrides that name them."""
    test = digits(cache=str(cache), mean=0.3, std=0.4).test
    for number, name in enumerate(names):
        folder = root / name
        folder.mkdir(parents=True)
        for n, image in enumerate(test.images[test.labels == number][:10]):
            Image.fromarray(image[0].numpy()).resize((side, side)).save(folder / f"{n}.png")
    return ["data=image_folder", f"data.root={root}", f"data.cache={root.parent / 'cache'}"]


def test_another_set_of_the_same_kind_is_prepared_as_the_runs_own(
    checkpoint: Path, digits_cache: Path, tmp_path: Path
) -> None:
    data = digit_files(tmp_path / "photos", 8, "0123456789", digits_cache)
    found = evaluate_checkpoint(checkpoint, "test", data)
    assert (found.kind.name, len(found.split)) == ("photos", 20)
    assert found.logged_metrics is None
    own = evaluate_checkpoint(checkpoint, "test")
    labels = own.predictions.labels
    for digit in range(10):  # of ten files, every fifth is of the test set
        mine = found.predictions.probabilities[found.predictions.labels == digit]
        theirs = own.predictions.probabilities[labels == digit][:10]
        assert all(torch.isclose(theirs, one, atol=1e-6).all(1).any() for one in mine)
    assert set(found.named_metrics()) >= {"photos/test/loss", "photos/test/accuracy"}


def test_the_runs_own_set_by_its_name_is_its_own(checkpoint: Path, digits_cache: Path) -> None:
    found = evaluate_checkpoint(checkpoint, "val", ["data=digits", f"data.cache={digits_cache}"])
    assert found.metrics == found.logged_metrics
    other = ["data=digits", f"data.cache={digits_cache}", "data.split_seed=1"]
    assert evaluate_checkpoint(checkpoint, "val", other).logged_metrics is None


@pytest.mark.parametrize(
    ("side", "names", "problem"),
    [
        (9, "0123456789", "…1×9×9…1×8×8"),
        (8, "abc", "…a, b, c…0, 1, 2 and 7 more"),
    ],
)
def test_a_set_of_another_kind_is_one_line(
    side: int, names: str, problem: str, checkpoint: Path, digits_cache: Path, tmp_path: Path
) -> None:
    data = digit_files(tmp_path / "photos", side, names, digits_cache)
    with pytest.raises(BadInput) as caught:
        evaluate_checkpoint(checkpoint, "test", data)
    assert str(caught.value) == Like(f"--data data=image_folder: {problem}")


def test_a_run_without_validation_has_no_such_split(train_run: Callable[..., Path]) -> None:
    path = train_run("data.val_fraction=0")
    with pytest.raises(BadInput, match=r"^--split val: .*data.val_fraction=0"):
        evaluate_checkpoint(path, "val")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["digits", "data.cache=x"], None),
        (["digit"], "--data data=digit: …; did you mean digits?"),
        (["digits", "data.root=x"], "--data data.root=x: no such key…data=digits…"),
        (["digits", "batch_size=3"], "--data batch_size=3: …data.<key>=…"),
        (["data.cache=x"], "--data data.cache=x: …name…data.<key>=…"),
        (["image_folder"], "--data data.root=…no default…data.root=<value>"),
    ],
)
def test_the_data_option_is_checked_like_the_command_line_of_train(
    typed: list[str], said: str | None
) -> None:
    if said is None:
        assert parse_data(typed) == ["data=digits", "data.cache=x"]
    else:
        with pytest.raises(BadInput) as caught:
            parse_data(typed)
        assert str(caught.value) == Like(said)


def test_a_class_may_be_called_what_mlflow_does_not_admit_in_a_name() -> None:
    assert clean_name("test/f1/$100, or きつね") == "test/f1/_100_ or きつね"


@pytest.mark.slow
def test_an_evaluation_is_logged_once_to_each_of_two_trackers(clone: Clone) -> None:
    typed = ("data=digits", "trainer.epochs=1", "tracking=[mlflow,tensorboard]")
    done = clone.run("train.py", *typed, "tracking.figures=true")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\ncompare  tensorboard --logdir runs\n")
    assert len(list((clone.root / "runs").glob("mlp-adam-*/events.out.tfevents.*"))) == 1
    client = clone.client
    (run,) = client.search_runs([client.get_experiment_by_name("mnist_exp").experiment_id])

    done = clone.run("evaluate.py", "--log", "--run", "best:digits")
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = clone.folders()
    path = (folder / LAST).relative_to(clone.root)
    assert done.stdout.splitlines()[0] == Like(f"run      {path}…digits")
    figures = folder / "figures"
    accuracy = run.data.metrics["test/accuracy"]
    assert re.search(
        rf"^accuracy +{accuracy:.4f}  [(]95 %: 0[.]\d+ to 0[.]\d+[)]$", done.stdout, re.M
    )
    assert re.search(r"^class +images +precision +recall +F1\n0 +\d+ ", done.stdout, re.M)
    assert Like("logged   equal…bit") in done.stdout.splitlines()
    assert f"figures  {figures.relative_to(clone.root)}\n" in done.stdout
    told = client.get_run(run.info.run_id)
    assert told.info.status == "FINISHED"
    assert told.data.metrics.items() >= run.data.metrics.items()
    assert told.data.metrics.keys() - run.data.metrics.keys() >= {
        "test/calibration_error",
        "test/accuracy_low",
        "test/f1/9",
    }
    assert len(client.get_metric_history(run.info.run_id, "test/loss")) == 1
    logged = {file.path for file in client.list_artifacts(run.info.run_id, "figures/test")}
    names = ("confusion", "most_wrong", "reliability")
    assert logged == {f"figures/test/{name}.png" for name in names}
    assert {path.stem for path in (figures / "test").iterdir()} == set(names)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_and_an_export_of_a_run(trained: Clone) -> None:
    done = trained.run("evaluate.py", *("--run", "latest"), "--split=val", "--predictions=p.csv")
    assert (done.returncode, done.stderr) == (0, "")
    lines = read_csv(trained.root / "p.csv")
    (accuracy,) = re.findall(r"accuracy +([\d.]+) ", done.stdout)
    right = [line["label"] == line["predicted"] for line in lines]
    assert f"{sum(right) / len(lines):.4f}" == accuracy
    for line in lines[:3]:
        probabilities = {name: float(line[f"p({name})"]) for name in "0123456789"}
        assert max(probabilities, key=probabilities.get) == line["predicted"]
        assert sum(probabilities.values()) == pytest.approx(1)
    whole = digits(str(trained.root / "data" / "cache"), 0.3, 0.4, val_fraction=0)
    labels = dict(zip(whole.train.places.tolist(), whole.train.labels.tolist(), strict=True))
    assert {int(line["index"]): int(line["label"]) for line in lines}.items() <= labels.items()

    done = trained.run("export.py", "--run", "latest", "--format=pt2", "--unchecked")
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = trained.folders()
    assert (folder / "mnist_model.pt2").is_file()


@pytest.mark.parametrize("path", ["src", "absent/p.csv"])
def test_a_file_for_predictions_that_cannot_be_is_refused_at_once(
    path: str, trained: Clone
) -> None:
    done = trained.run("evaluate.py", "--predictions", path)
    assert is_refused(done, 2, f"--predictions {path}: ")
