"""Find runs and checkpoints by what a person types: a path, a run id, latest, or best.

Torch and MLflow are imported only where they are needed.
"""

from __future__ import annotations

import re
from pathlib import Path

from mnist_exp.errors import BadInput
from mnist_exp.experiment.shell import quote_path
from mnist_exp.paths import LAST, METRICS, REPOSITORY
from mnist_exp.tracking import EXPERIMENT
from mnist_exp.training.rules import did_you_mean


def find_run(word: str, tracking_uri: str | None, option: str = "resume=") -> Path:
    """The output folder that "latest", a folder's path, or an MLflow run id stands for.

    "latest" is the run that wrote a checkpoint last. option: what was typed before the word, for
    messages. Raises BadInput if there is no such folder with a checkpoint, TrackerError for an
    unknown run id.
    """
    if word == "latest":
        checkpoints = (REPOSITORY / "outputs").rglob(str(LAST))
        newest = max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            raise BadInput(f"{option}latest: no run in outputs/ has a checkpoint")
        return newest.parents[1]
    folder = find_folder(word)
    if folder is None and is_run_id(word):
        from mnist_exp.tracking.store import find_output_folder  # two seconds to import

        folder = find_output_folder(word, tracking_uri)
    if folder is None:
        raise BadInput(f"{option}{word}: neither a folder, nor an MLflow run id, nor latest")
    if not (folder / LAST).is_file():
        raise BadInput(f"{option}{word}: there is no {folder / LAST}")
    return folder


def find_checkpoint(word: str, uri: str | None = None, experiment: str = EXPERIMENT) -> Path:
    """The checkpoint that a word stands for: "best", "best:NAME", "latest", a checkpoint's path, an
    output folder, or an MLflow run id.

    "best" is explained at `ranking.find_best_run`; "latest" wrote a checkpoint last. uri: of
    MLflow, None for the repository's own. Raises BadInput if there is no such checkpoint,
    TrackerError.
    """
    if Path(word).is_file():
        return Path(word)
    if re.fullmatch("best(:.+)?", word):
        from mnist_exp.experiment.ranking import find_best_run  # imports torch

        word = find_best_run(word, experiment, uri).reference
    folder = find_folder(word)
    if is_run_id(word) and not folder:
        from mnist_exp.tracking.store import find_output_file  # two seconds to import

        return find_output_file(word, LAST, uri)
    if word != "latest" and not folder:
        near = did_you_mean(word, ["best", "latest"])
        raise BadInput(f"--run {word}: no file, no folder, no MLflow run id{near}")
    return find_run(word, uri, "--run ") / LAST


def find_folder(word: str) -> Path | None:
    """The folder with this path, relative to the current folder or to the repository."""
    return next((f for f in (Path(word).absolute(), REPOSITORY / word) if f.is_dir()), None)


def is_run_id(word: str) -> bool:
    """Whether the word looks like MLflow's id of a run."""
    return len(word) == 32 and set(word) <= set("0123456789abcdef")


def check_new(folder: Path) -> None:
    """Raises BadInput if a run left its last checkpoint or its metrics in the folder."""
    if any((folder / name).exists() for name in (LAST, METRICS)):
        advice = f"resume={quote_path(folder)} resumes it, another folder takes a new run"
        raise BadInput(f"hydra.run.dir={quote_path(folder)}: holds a run already; {advice}")
