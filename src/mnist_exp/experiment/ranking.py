"""Finished runs in MLflow and in outputs/, ranked by the validation accuracy of kept weights."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

from omegaconf import OmegaConf

from mnist_exp.errors import BadInput
from mnist_exp.experiment import checkpoint
from mnist_exp.experiment.shell import train_command
from mnist_exp.paths import CONF, LAST, REPOSITORY
from mnist_exp.tracking import DIGEST_LETTERS, EXPERIMENT, FinishedRun
from mnist_exp.training.rules import did_you_mean


def find_best_run(word: str, experiment: str, uri: str | None) -> FinishedRun:
    """The best run of a data set: "best" means the one in conf/config.yaml, "best:NAME" NAME.

    Only runs on the same images as the last run of that name are compared: the images in a folder
    may change, and two folders may have the same name. Raises BadInput if there is no run, and what
    `rank_runs` raises.
    """
    data = word.partition(":")[2] or find_default_data()
    validated = [run for run in rank_runs(experiment, uri) if run.accuracy is not None]
    candidates = [run for run in validated if run.data == data]
    if candidates:
        last = max(candidates, key=lambda run: run.start_time)
        return next(run for run in candidates if run.digest == last.digest)
    names = sorted({run.data for run in validated})
    if names:
        words = [f"best:{name}" for name in names]
        near = did_you_mean(word, words) if ":" in word else ""
        advice = f"there are runs of {', '.join(names)}: --run {shlex.quote(words[0])}{near}"
    else:
        advice = f"train one: {train_command()}"
    raise BadInput(
        f"--run {word}: {experiment} has no finished run of {data} with validation and without "
        f"trainer.max_batches; {advice}"
    )


def find_default_data() -> str:
    """The data set in conf/config.yaml."""
    defaults = OmegaConf.load(CONF / "config.yaml").defaults
    return next(str(group.data) for group in defaults if "data" in group)


def rank_runs(experiment: str, uri: str | None) -> list[FinishedRun]:
    """All finished runs except those with trainer.max_batches, the best on validation first.

    Of equal ones the earliest is first; runs without validation are last. The runs are those of the
    MLflow experiment and those in outputs/ that MLflow does not have. Without a server or a
    database, MLflow is not imported. uri: of MLflow, None for the repository's. Raises BadInput for
    an unknown experiment, TrackerError.
    """
    runs: list[FinishedRun] = []
    known: Collection[str] = ()
    if uri or (REPOSITORY / "mlflow.db").exists():
        from mnist_exp.tracking.store import find_finished_runs  # two seconds to import

        runs, known = find_finished_runs(experiment, uri)
    for path in (REPOSITORY / "outputs").rglob(str(LAST)):
        if str(path.parent.parent) not in known:
            try:
                with checkpoint.raise_misfits(path):
                    runs += find_untracked_run(path, experiment, known)
            except checkpoint.CheckpointError:
                continue  # not a run of this code
    return sorted(
        runs, key=lambda run: (run.accuracy is None, -(run.accuracy or 0), run.start_time)
    )


def find_untracked_run(path: Path, experiment: str, known: Collection[str]) -> list[FinishedRun]:
    """The checkpoint's run, if it has ended, belongs to the experiment and is not in MLflow.

    A run without an experiment belongs to the default one. Raises CheckpointError, and LookupError
    and others for a file of another kind.
    """
    saved = checkpoint.peek(path)
    trainer, tracking = saved["config"]["trainer"], saved["config"]["tracking"]
    if (
        not saved["ended"]
        or saved["key"] in known
        or trainer.get("max_batches") is not None
        or tracking.get("experiment", EXPERIMENT) != experiment
    ):
        return []
    data, progress = saved["data"], saved["state"]["progress"]
    epochs = progress["epochs"]
    if not all(isinstance(text, str) for text in (saved["name"], data["name"], data["digest"])):
        raise TypeError("a name that is not text")
    val = epochs[progress["best"] - 1]["val"]
    return [
        FinishedRun(
            reference=str(path.parent.parent),
            name=saved["name"],
            data=data["name"],
            digest=data["digest"][:DIGEST_LETTERS],
            start_time=float(epochs[0]["ended"] - epochs[0]["seconds"]),
            accuracy=float(val["accuracy"]) if val else None,
        )
    ]
