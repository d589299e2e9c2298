"""Finding a run to go on with, and what of its config may change on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from mnist_exp.config import leaves
from mnist_exp.errors import BadInput, one_line
from mnist_exp.paths import LAST, REPOSITORY

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

# What a saved config may name: what the YAML files name, and no function that starts a process or
# writes where it is told to.
TRUSTED = (
    "mnist_exp.augmentation.",
    "mnist_exp.data.",
    "mnist_exp.models.",
    "mnist_exp.optimizers.",
    "mnist_exp.schedules.",
    "mnist_exp.tracking.",
    "torch.nn.",
    "torch.optim.",
    "torchvision.models.",
)
UNTRUSTED = ("mnist_exp.data.sources.", "mnist_exp.data.cache.")


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
        from mnist_exp.tracking.store import output_folder  # two seconds to import

        folder = output_folder(word, tracking_uri)
    if folder is None:
        raise BadInput(f"{asked}{word}: neither a folder, nor an MLflow run id, nor latest")
    if not (folder / LAST).is_file():
        raise BadInput(f"{asked}{word}: there is no {folder / LAST}")
    return folder


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
    config = saved.copy()
    was, now = dict(leaves(config)), dict(leaves(composed))
    typed = set(typed_keys(overrides, now))
    scheduled = not str(config.scheduler._target_).endswith(".constant")  # over all epochs
    problems = []
    for key in sorted(key for key in typed if not key.startswith(FREE)):
        growing = further and key == "trainer.epochs" and not scheduled
        if was.get(key) != now[key] and not (growing and now[key] > was[key]):
            verdict = "can only be raised" if growing else "cannot change"
            problems.append(f"{key}={now[key]}: the run has {was.get(key)}, which {verdict}")
    if problems:
        raise BadInput("\n".join(problems))
    if any(key.startswith("tracking.") and key.endswith("._target_") for key in typed):
        config.tracking = {}  # other trackers have other keys
    for key in typed - {"resume", "reproduce"}:
        OmegaConf.update(config, key, now[key])
    return config


def typed_keys(overrides: Sequence[str], config: dict[str, Any]) -> Iterator[str]:
    """The leaves that these overrides set: one key, all of a group, all there are by a preset."""
    for override in overrides:
        name = override.lstrip("+").partition("=")[0]
        for key in config:
            if name in (key, "experiment") or key.startswith(f"{name}."):
                yield key


def trusted(saved: Any, source: object) -> DictConfig:
    """A saved config, YAML or plain, that is known to build nothing but what is TRUSTED.

    Raises BadInput, which names the source.
    """
    try:
        config = OmegaConf.create(saved)
        plain = OmegaConf.to_container(config)
    except Exception as error:  # YAML has its own kinds
        raise BadInput(f"{source}: the saved config cannot be read ({one_line(error)})") from None
    if plain is None or not isinstance(config, DictConfig):
        raise BadInput(f"{source}: the saved config is no mapping")
    try:
        refuse_foreign_targets(plain)
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from error
    return config


def refuse_foreign_targets(node: Any) -> None:
    """Raise BadInput for a `_target_` anywhere in a saved config that is not from TRUSTED.

    By its name, and by where the named thing really comes from: a trusted module's imports are
    not part of it. A string that only becomes something when it is resolved is refused, too.
    """
    if isinstance(node, str) and "${" in node:
        raise BadInput(f"the saved config has {node!r}; our runs save values")
    if isinstance(node, dict):
        if "_target_" in node and not is_trusted(node["_target_"]):
            only = f"only {', '.join(TRUSTED)}* are trusted"
            raise BadInput(f"the saved config asks for {node['_target_']}; {only}")
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            refuse_foreign_targets(item)


def is_trusted(target: Any) -> bool:
    """Raises BadInput for a name that would be trusted but names nothing."""
    if not isinstance(target, str) or not target.startswith(TRUSTED):
        return False
    try:
        origin = f"{getattr(get_object(target), '__module__', None)}."
    except Exception as error:  # of whatever is imported on the way
        raise BadInput(f"the saved config asks for {target}, which is not there") from error
    return origin.startswith(TRUSTED) and not origin.startswith(UNTRUSTED)
