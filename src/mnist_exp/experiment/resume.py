"""Finding a run to resume, and what of its config may change on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_exp.errors import BadInput, redact
from mnist_exp.experiment.rules import leaves
from mnist_exp.experiment.shell import quote_path
from mnist_exp.paths import LAST, REPOSITORY
from mnist_exp.tracking.addresses import strip_user, tracking_uri

# What does not change the numbers that training finds.
FREE = (
    "resume",
    "reproduce",
    "tracking",
    "trainer.device",
    "trainer.threads",
    "trainer.checkpoint_every_steps",
    "data.root",
    "data.cache",
    "data.mirrors",
    "data.memory_limit",
)


def find_run(word: str, tracking_uri: str | None, asked: str = "resume=") -> Path:
    """The output folder that "latest", a folder's path, or an MLflow run id stands for.

    "latest" is the run that has written a checkpoint last. Raises BadInput for a word that stands
    for no folder with a checkpoint, as what was `asked`, TrackerError for an unknown run id.
    """
    if word == "latest":
        written = (REPOSITORY / "outputs").rglob(str(LAST))
        found = max(written, key=lambda path: path.stat().st_mtime, default=None)
        if found is None:
            raise BadInput(f"{asked}latest: no run in outputs/ has a checkpoint")
        return found.parents[1]
    folder = folder_named(word)
    if folder is None and is_run_id(word):
        from mnist_exp.tracking.store import find_output_folder  # two seconds to import

        folder = find_output_folder(word, tracking_uri)
    if folder is None:
        raise BadInput(f"{asked}{word}: neither a folder, nor an MLflow run id, nor latest")
    if not (folder / LAST).is_file():
        raise BadInput(f"{asked}{word}: there is no {folder / LAST}")
    return folder


def check_new(folder: Path) -> None:
    """Raises BadInput where a run has left its last checkpoint or its metrics in the folder."""
    if any((folder / name).exists() for name in (LAST, "metrics.jsonl")):
        advice = f"resume={quote_path(folder)} resumes it, another folder takes a new run"
        raise BadInput(f"hydra.run.dir={quote_path(folder)}: holds a run already; {advice}")


def folder_named(word: str) -> Path | None:
    """The folder of that path, from here or from the repository."""
    return next((f for f in (Path(word).absolute(), REPOSITORY / word) if f.is_dir()), None)


def is_run_id(word: str) -> bool:
    """Whether MLflow would give a run this name."""
    return len(word) == 32 and set(word) <= set("0123456789abcdef")


def resumed_config(
    saved: DictConfig, composed: DictConfig, overrides: Sequence[str], further: bool = True
) -> DictConfig:
    """The saved config with what was typed now, where that leaves the training what it was.

    composed: the defaults with `overrides`; further: whether there may be more epochs.

    Raises BadInput for a changed value that would make it another training.
    """
    config = OmegaConf.create(redact(OmegaConf.to_yaml(saved)))  # older ones hold passwords
    assert isinstance(config, DictConfig)
    was, now = dict(leaves(config)), dict(leaves(composed))
    typed = set(typed_keys(overrides, now))
    scheduled = not str(config.scheduler._target_).endswith(".constant")  # over all epochs
    problems = []
    for key in sorted(key for key in typed if not key.startswith(FREE)):
        growing = further and key == "trainer.epochs" and not scheduled
        if was.get(key) != now[key] and not (growing and now[key] > was[key]):
            verdict = "can only be raised" if growing else "cannot change"
            problems.append(f"{key}={now[key]}: the run has {was.get(key)}, which {verdict}")
    says_where = "tracking.uri" in typed or chooses_trackers(overrides)
    if further and not says_where and is_elsewhere(uri := was.get("tracking.uri")):
        # Its owner would get this machine's MLflow password, and says where MLflow writes files.
        problems.append(
            f"tracking.uri={uri}: the checkpoint names it, MLFLOW_TRACKING_URI does not; set that "
            "or type tracking.uri=ADDRESS to log there, or type tracking=none"
        )
    if problems:
        raise BadInput(*problems)
    if chooses_trackers(overrides):
        config.tracking = {}  # other trackers have other keys
    for key in typed - {"resume", "reproduce"}:
        OmegaConf.update(config, key, now[key])
    return config


def chooses_trackers(overrides: Sequence[str]) -> bool:
    """Whether an override, or a preset, names an option of the group tracking."""
    return any(name_of(override) in ("tracking", "experiment") for override in overrides)


def name_of(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def is_elsewhere(uri: str | None) -> bool:
    """Whether MLflow is somewhere else than this process's environment says."""
    return bool(uri) and strip_user(str(uri)) != strip_user(tracking_uri() or "")


def typed_keys(overrides: Sequence[str], config: dict[str, Any]) -> Iterator[str]:
    """The leaves that these overrides set: one key, all of a group, all there are by a preset."""
    for override in overrides:
        name = name_of(override)
        for key in config:
            if name in (key, "experiment") or key.startswith(f"{name}."):
                yield key
