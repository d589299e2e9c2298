"""What TensorBoard's files have of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Clone
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import metadata

from mnist_exp.tracking import RunRecord, TrackerError
from mnist_exp.tracking.tensorboard import TensorBoardTracker

KEY, OTHER = "a" * 32, "b" * 32


def events(folder: Path) -> Iterator[Event]:
    """The events of the only file in the folder."""
    (file,) = folder.glob("events.out.tfevents.*")
    for content in RawEventFileLoader(str(file)).Load():
        yield Event.FromString(content)


def values(folder: Path) -> Iterator[tuple[Event, Any]]:
    for event in events(folder):
        yield from ((event, value) for value in event.summary.value)


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for event, value in values(folder):
        if value.HasField("simple_value"):
            assert event.step not in found.setdefault(value.tag, {}), "logged twice"
            found[value.tag][event.step] = value.simple_value
    return found


def images(folder: Path) -> dict[str, Any]:
    return {value.tag: value.image for _, value in values(folder) if value.HasField("image")}


def log_run(logdir: Path, picture: Path) -> Path:
    """A run of two epochs; returns where it lies."""
    tracker = TensorBoardTracker(str(logdir))
    params = {"lr": 0.5, "model": "mlp", "flag": True, "none": None, "sizes": [1, 2]}
    tracker.start(RunRecord(KEY, "mlp adam/lr=0.5", params, {}))
    tracker.log({"val/loss": 0.25}, 1, 1000.0)
    tracker.log({"val/loss": 0.125}, 2, 2000.0)
    tracker.upload([picture, Path("absent.txt")], "figures/test")
    tracker.end("FINISHED")
    (folder,) = logdir.iterdir()
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Figure((2, 1)).savefig(tmp_path / "one.png", dpi=100)
    return tmp_path / "one.png"


def test_a_run_is_there_with_metrics_parameters_pictures_and_its_end(
    tmp_path: Path, picture: Path
) -> None:
    folder = log_run(tmp_path / "runs", picture)
    assert folder.name == "mlp_adam_lr=0.5-aaaaaaaa"
    assert scalars(folder) == {"val/loss": {1: 0.25, 2: 0.125}}
    assert [e.wall_time for e, value in values(folder) if value.tag == "val/loss"] == [1000, 2000]
    (image,) = images(folder).items()
    assert image[0] == "figures/test/one"
    assert (image[1].width, image[1].height) == (200, 100)
    assert image[1].encoded_image_string == picture.read_bytes()
    contents = {value.tag: value.metadata.plugin_data.content for _, value in values(folder)}
    begun = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
    assert begun.hparams["lr"].number_value == 0.5
    assert begun.hparams["flag"].bool_value is True
    assert begun.hparams["sizes"].string_value == "[1, 2]"
    assert begun.hparams["model"].string_value == "mlp"
    ended = metadata.parse_session_end_info_plugin_data(contents[metadata.SESSION_END_INFO_TAG])
    assert ended.status == 1  # success


def test_a_run_logged_again_is_there_once(tmp_path: Path, picture: Path) -> None:
    folder = log_run(tmp_path / "runs", picture)
    assert log_run(tmp_path / "runs", picture) == folder
    assert scalars(folder) == {"val/loss": {1: 0.25, 2: 0.125}}


def test_a_job_lies_in_its_sweep(tmp_path: Path) -> None:
    for record in (
        RunRecord(KEY, "sweep of lr × seed", {}, {}),
        RunRecord(OTHER, "lr=1", {}, {}, parent=KEY),
    ):
        TensorBoardTracker(str(tmp_path)).start(record)
    (job,) = tmp_path.glob("*/*/events*")
    assert job.parent.relative_to(tmp_path) == Path("sweep_of_lr_seed-aaaaaaaa/lr=1-bbbbbbbb")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    tracker = TensorBoardTracker(str(tmp_path / "runs"))
    with pytest.raises(TrackerError, match=r"TensorBoard.*/runs"):
        tracker.start(RunRecord(KEY, "run", {}, {}))


@pytest.mark.slow
def test_both_trackers_record_the_same_and_a_resumed_run_once(
    clone: Clone,
) -> None:
    tracking = ("tracking=[mlflow,tensorboard]", "tracking.figures=true")
    done = clone.run("train.py", "data=digits", "trainer.epochs=2", *tracking)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\ncompare  tensorboard --logdir runs\n")
    (folder,) = (clone.root / "runs").iterdir()
    client = clone.client
    (run,) = client.search_runs([client.get_experiment_by_name("mnist_exp").experiment_id])
    found = {name.removeprefix("~"): values for name, values in scalars(folder).items()}
    assert found.keys() == run.data.metrics.keys() >= {"train/loss", "val/accuracy", "test/loss"}
    for key, by_step in found.items():
        history = client.get_metric_history(run.info.run_id, key)
        assert {m.step: pytest.approx(m.value, rel=1e-6) for m in history} == by_step
    pictures = {f"figures/{name}" for name in ("curves", "filters")}
    pictures |= {f"figures/test/{name}" for name in ("confusion", "most_wrong", "reliability")}
    assert images(folder).keys() == pictures
    logged = {
        file.path.removesuffix(".png")
        for place in ("figures", "figures/test")
        for file in client.list_artifacts(run.info.run_id, place)
        if not file.is_dir
    }
    assert logged == pictures
    done = clone.run("train.py", "resume=latest", "trainer.epochs=3")
    assert (done.returncode, done.stderr) == (0, "")
    assert list(scalars(folder)["val/loss"]) == [1, 2, 3]
    assert images(folder).keys() == pictures
