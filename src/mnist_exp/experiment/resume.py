"""What may change in a run's config when the run is resumed."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from mnist_exp.errors import BadInput, redact
from mnist_exp.experiment.rules import leaves
from mnist_exp.tracking.addresses import strip_user, tracking_uri

FILES = ("data.root", "data.labels", "data.mirrors")  # where this machine has a data set's files
# Beginnings of keys that do not change the results of a training.
FREE = (
    *(*FILES, "data.cache", "data.memory_limit", "tracking", "resume", "reproduce"),
    *("trainer.device", "trainer.threads", "trainer.checkpoint_every_steps", "trainer.keep_state"),
)


def apply_overrides(
    saved: DictConfig, composed: DictConfig, overrides: Sequence[str], further: bool = True
) -> DictConfig:
    """The saved config with what was typed now, as long as the training stays the same.

    composed: the defaults with `overrides`; further: whether epochs may be added.

    Raises BadInput for a value that would make it another training.
    """
    config = OmegaConf.create(redact(OmegaConf.to_yaml(saved)))  # older ones hold passwords
    assert isinstance(config, DictConfig)
    was, now = dict(leaves(config)), dict(leaves(composed))
    listed = {key for key in was if key.startswith(("metrics.", "callbacks."))}
    groups = tuple(f"{get_key(override)}." for override in overrides)  # or keys
    settable = listed | now.keys()
    typed = {key for key in settable if "experiment." in groups or f"{key}.".startswith(groups)}
    problems = []
    free = FREE if further else (*FREE, "init")  # whose weights are compared
    for key in sorted(key for key in typed if not key.startswith(free)):
        growing = further and key == "trainer.epochs" and takes_more_epochs(config)
        if was.get(key) != now.get(key) and not (growing and now[key] > was[key]):
            verdict = "can only be raised" if growing else "cannot change"
            problems.append(f"{key}={now.get(key)}: the run has {was.get(key)}, which {verdict}")
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
    as_before = {"trainer.threads"} if now.get("trainer.threads") == "auto" else set[str]()
    for key in typed - {"resume", "reproduce", *listed} - as_before:
        OmegaConf.update(config, key, now[key])
    return config


def takes_more_epochs(config: DictConfig) -> bool:
    """Whether the schedule is not stretched over all epochs, so that more can follow."""
    return str(config.scheduler._target_).endswith((".constant", ".plateau"))


def chooses_trackers(overrides: Sequence[str]) -> bool:
    """Whether an override, or a preset, names an option of the group tracking."""
    return any(get_key(override) in ("tracking", "experiment") for override in overrides)


def get_key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def is_elsewhere(uri: str | None) -> bool:
    """Whether MLflow is somewhere other than this process's environment says."""
    return bool(uri) and strip_user(str(uri)) != strip_user(tracking_uri() or "")
