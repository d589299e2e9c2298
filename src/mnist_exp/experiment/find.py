"""Find runs and checkpoints by what a person types: a path, a run id, latest, or best.

Torch and MLflow are imported only where they are needed. Finished runs are ranked by the monitored
metric of their kept weights.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_exp.errors import BadInput, did_you_mean, print_line
from mnist_exp.experiment.shell import quote_path, show_path, train_command
from mnist_exp.files import is_occupied, link_file, lock_folder, replace_file
from mnist_exp.paths import BEST, CONF, HOME, LAST, METRICS, SWEEP, shorten_path
from mnist_exp.tracking import DIGEST_LETTERS, EXPERIMENT, FinishedRun, Score
from mnist_exp.tracking.addresses import tracking_uri

# Of checkpoints that are older than trainer.monitor.
OLD_MONITOR = {"name": "val/accuracy", "higher_is_better": True}
RUN_ID = re.compile("[0-9a-f]{32}")  # in MLflow


def find_run(
    word: str, tracking_uri: str | None, option: str = "resume=", new: Path | None = None
) -> Path:
    """The output folder that "latest", a folder's path, or an MLflow run id stands for.

    "latest" is the run that wrote a checkpoint last, not counting the jobs of sweeps, nor for
    `resume=` a run that is still at work, nor for `reproduce=` one that has not ended.
    option: what was typed before the word, for messages.
    new: a folder for the last checkpoint in MLflow if the run's own folder is not on this machine.
    Raises BadInput if there is no such folder with a checkpoint, TrackerError for an unknown run
    id.
    """
    if word == "latest":
        checkpoints = (HOME / "outputs").rglob(str(LAST))
        for path in sorted(checkpoints, key=lambda path: path.stat().st_mtime, reverse=True):
            left_out = option == "resume=" and is_occupied(path.parents[1])
            left_out = left_out or (option == "reproduce=" and not has_ended(path))
            if not left_out and find_sweep_above(path) is None:
                return path.parents[1]
        runs = "that have not ended" if option == "reproduce=" else "that are at work"
        left = f"runs {runs} and jobs of sweeps"
        raise BadInput(f"{option}latest: outputs/ has no checkpoint, not counting {left}")
    folder = find_folder(word)
    if folder is None and RUN_ID.fullmatch(word):
        from mnist_exp.tracking.store import copy_file  # two seconds to import

        folder, is_here = find_run_by_id(word, tracking_uri)
        if new and not is_here:
            check_new(new)
            copy = copy_file(word, LAST, tracking_uri)
            (new / LAST).parent.mkdir(parents=True, exist_ok=True)
            with replace_file(new / LAST) as temporary:
                shutil.copyfile(copy, temporary)
            print_line(f"{folder} is not here; its last checkpoint was copied from MLflow to {new}")
            folder = new
    if folder is None:
        words = ["auto", "latest"] if option == "resume=" else ["best", "latest"]
        near = did_you_mean(word, words)
        known = " or ".join(words)
        raise BadInput(f"{option}{word}: neither a path, nor an MLflow run id, nor {known}{near}")
    if not (folder / LAST).is_file():
        raise BadInput(f"{option}{word}: there is no {folder / LAST}")
    return folder


def has_ended(path: Path) -> bool:
    """Whether the run with this checkpoint has ended; false if it cannot be read."""
    from mnist_exp.experiment import checkpoint  # imports torch

    with suppress(checkpoint.CheckpointError):
        return bool(checkpoint.peek(path).get("ended"))
    return False


def find_checkpoint(
    word: str, uri: str | None = None, experiment: str = EXPERIMENT, option: str = "--run "
) -> Path:
    """The checkpoint that a word stands for: "best", "best:NAME", a file, or as for `find_run`.

    uri: of MLflow, None for the one in HOME. Raises what `find_best_run` and `find_run` do.
    """
    if Path(word).is_file():
        return Path(word)
    if re.fullmatch("best(:.+)?", word):
        word = find_best_run(word, experiment, uri, option).reference
    if RUN_ID.fullmatch(word) and not find_folder(word):
        from mnist_exp.tracking.store import copy_file  # two seconds to import

        folder, is_here = find_run_by_id(word, uri)
        return folder / LAST if is_here else copy_file(word, LAST, uri)
    return find_run(word, uri, option) / LAST


def find_run_by_id(run_id: str, uri: str | None) -> tuple[Path, bool]:
    """The folder that an MLflow run was written to, and whether it is here and has this run."""
    from mnist_exp.experiment import checkpoint  # imports torch
    from mnist_exp.tracking.store import find_output_folder  # two seconds to import

    folder, key = find_output_folder(run_id, uri)
    with suppress(checkpoint.CheckpointError):  # whoever loads it says what is wrong
        return folder, checkpoint.peek(folder / LAST).get("key") == key
    return folder, (folder / LAST).is_file()


def find_init(word: str, config: DictConfig) -> tuple[str, Path]:
    """A path or a run id that stays valid later, and the file that `init=` stands for.

    Raises what `find_checkpoint` does.
    """
    uri = config.tracking.uri if "uri" in config.tracking else tracking_uri()
    experiment = config.tracking.get("experiment", EXPERIMENT)
    path = find_checkpoint(word, uri, experiment, "init=").absolute()
    return word if RUN_ID.fullmatch(word) and not Path(word).exists() else str(path), path


def find_outputs(checkpoint: Path) -> Path:
    """The output folder of a checkpoint's run; outputs/ for a checkpoint from elsewhere."""
    folder = checkpoint.absolute().parent.parent
    return folder if (folder / "config.yaml").is_file() else HOME / "outputs"


def find_folder(word: str) -> Path | None:
    """The folder with this path, relative to the current folder or to HOME."""
    return next((f for f in (Path(word).absolute(), HOME / word) if f.is_dir()), None)


def find_newest(files: Iterable[Path]) -> Path | None:
    return max(files, key=lambda path: path.stat().st_mtime, default=None)


def find_sweep(word: str, option: str = "sweep.resume=") -> Path:
    """The sweep's folder that "latest" or a path stands for. Raises BadInput.

    option: what was typed before the word, for messages.
    """
    if word == "latest":
        newest = find_newest((HOME / "outputs").glob(f"*/*/{SWEEP}"))
        if newest is None:
            raise BadInput(f"{option}latest: there is no sweep in outputs/")
        return newest.parent
    folder = find_folder(word)
    if folder is None or not (folder / SWEEP).is_file():
        raise BadInput(f"{option}{word}: neither a sweep's folder nor latest")
    return folder


def find_sweep_above(path: Path) -> Path | None:
    """The folder of the sweep that a path lies in; None outside of one."""
    return next((folder for folder in path.parents if (folder / SWEEP).exists()), None)


def check_new(folder: Path) -> None:
    """Raises BadInput for a folder that has a run, belongs to a sweep, or cannot be written."""
    check_writable(folder)
    if any((folder / name).exists() for name in (LAST, METRICS)):
        advice = "choose another folder for a new run"
        if (folder / LAST).exists():
            advice = f"resume={quote_path(folder)} resumes it, or {advice}"
        raise BadInput(f"hydra.run.dir={quote_path(folder)}: already contains a run; {advice}")
    if sweep := find_sweep_above(folder / SWEEP):
        advice = "choose a folder outside it"
        raise BadInput(f"hydra.run.dir={quote_path(folder)}: {sweep} belongs to a sweep; {advice}")


def replace_lost_checkpoint(folder: Path) -> None:
    """If a run's last.pt is lost, resume from best.pt, or else make way for a new one.

    The files that a new run would find are then renamed. Raises Occupied, and CheckpointError
    for a last.pt that cannot be read for another reason.
    """
    files = [folder / name for name in (LAST, BEST, METRICS)]
    if not any(path.exists() for path in files):
        return
    from mnist_exp.experiment import checkpoint  # imports torch

    last, best, _ = files
    with suppress(checkpoint.LostCheckpoint):
        checkpoint.load(last)
        return
    with lock_folder(folder):
        try:
            checkpoint.load(best)
            link_file(best, last)
            text = f"damaged; the run resumes from {best.name}"
        except checkpoint.LostCheckpoint:
            for path in files:
                if path.exists():
                    path.replace(f"{path}.damaged")
            text = "no readable checkpoint; the run starts again; its old files are now *.damaged"
    print_line(f"{show_path(last)}: {text}", sys.stderr)


def check_writable(folder: Path) -> None:
    """Raises BadInput for a folder that this process cannot make, or cannot write to."""
    exists = next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))
    if not (exists.is_dir() and os.access(exists, os.W_OK)):
        reason = "cannot be written" if exists.is_dir() else "not a folder"
        raise BadInput(f"{exists}: {reason}; set MNIST_EXP_HOME=FOLDER to write elsewhere")


def find_best_run(
    word: str, experiment: str, uri: str | None, option: str = "--run "
) -> FinishedRun:
    """The best run of a data set: that in conf/config.yaml for "best", NAME for "best:NAME".

    Only runs on the same images as the last run of that name are compared: the images in a folder
    may change, and two folders may have the same name. Raises BadInput if there is no run, and what
    `rank_runs` raises.
    """
    defaults = OmegaConf.load(CONF / "config.yaml").defaults
    data = word.partition(":")[2] or next(str(d.data) for d in defaults if "data" in d)
    validated = [run for run in rank_runs(experiment, uri) if run.score]
    candidates = [run for run in validated if run.data == data]
    if candidates:
        last = max(candidates, key=lambda run: run.start_time)
        return next(run for run in candidates if is_comparable(run, last))
    names = sorted({run.data for run in validated})
    if names:
        words = [f"best:{name}" for name in names]
        near = did_you_mean(word, words) if ":" in word else ""
        advice = f"there are runs of {', '.join(names)}: {option}{shlex.quote(words[0])}{near}"
    else:
        advice = f"train one: {train_command()}"
    raise BadInput(
        f"{option}{word}: {experiment} has no finished run of {data} with validation and without "
        f"trainer.max_batches; {advice}"
    )


def is_comparable(run: FinishedRun, other: FinishedRun) -> bool:
    """Whether both were validated on the same images by the same metric."""
    same_monitor = run.score and other.score and run.score.monitor == other.score.monitor
    return run.digest == other.digest and bool(same_monitor)


def rank_runs(experiment: str, uri: str | None) -> list[FinishedRun]:
    """All finished runs except those with trainer.max_batches, the best on validation first.

    Among ties the earliest is first; runs without validation are last. The runs are those of the
    MLflow experiment and those in outputs/ that MLflow does not have. Without a server or a
    database, MLflow is not imported. uri: of MLflow, None for the one in HOME. Raises BadInput for
    an unknown experiment, TrackerError.
    """
    runs: list[FinishedRun] = []
    known: Collection[str] = ()
    if uri or (HOME / "mlflow.db").exists():
        from mnist_exp.tracking.store import find_finished_runs  # two seconds to import

        runs, known = find_finished_runs(experiment, uri)
    runs += find_untracked_runs(experiment, known)
    return sorted(
        runs, key=lambda run: (run.score is None, run.score and run.score.rank, run.start_time)
    )


def find_untracked_runs(experiment: str, known: Collection[str]) -> list[FinishedRun]:
    """The runs in outputs/ that have ended, belong to the experiment and are not in MLflow.

    A run without an experiment belongs to the default one. known: keys and output folders of the
    runs in MLflow.
    """
    from mnist_exp.experiment import checkpoint  # imports torch

    runs = []
    for path in (HOME / "outputs").rglob(str(LAST)):
        folder = path.parent.parent
        if shorten_path(folder) in known:
            continue
        with suppress(checkpoint.CheckpointError), checkpoint.raise_misfits(path):
            saved = checkpoint.peek(path)
            trainer, tracking = saved["config"]["trainer"], saved["config"]["tracking"]
            if (
                saved["ended"]
                and saved["key"] not in known
                and trainer.get("max_batches") is None
                and tracking.get("experiment", EXPERIMENT) == experiment
            ):
                runs.append(describe_run(folder, saved))
    return runs


def describe_run(folder: Path, saved: Mapping[str, Any]) -> FinishedRun:
    """The run of a checkpoint. Raises LookupError, TypeError and others for a foreign file."""
    data, progress = saved["data"], saved["state"]["progress"]
    epochs = progress["epochs"]
    if not all(isinstance(text, str) for text in (saved["name"], data["name"], data["digest"])):
        raise TypeError("a name that is not text")
    monitor = progress.get("monitor", OLD_MONITOR)
    split, _, metric = monitor["name"].partition("/")
    metrics = epochs[progress["best"] - 1][split]
    direction = bool(monitor["higher_is_better"])
    return FinishedRun(
        reference=str(folder),
        name=saved["name"],
        data=data["name"],
        digest=data["digest"][:DIGEST_LETTERS],
        start_time=float(epochs[0]["ended"] - epochs[0]["seconds"]),
        score=Score(monitor["name"], float(metrics[metric]), direction) if metrics else None,
    )
