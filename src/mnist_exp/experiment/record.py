"""What a run's record shows about it: a name, a description, and changes that no commit has."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import PurePosixPath

from omegaconf import DictConfig

from mnist_exp.errors import redact, sanitize
from mnist_exp.experiment.environment import run_git
from mnist_exp.experiment.folder import CHANGES, PATCH
from mnist_exp.experiment.metrics import Entry
from mnist_exp.experiment.resume import FREE, get_key
from mnist_exp.paths import REPOSITORY
from mnist_exp.tracking import DESCRIPTION

log = logging.getLogger(__name__)

NAME_LETTERS = 60  # at most, of a run's name
CHANGES_BYTES = 1_000_000  # at most, of the changes that are kept with a run
# In every name, or in none because they do not change the results.
NOT_NAMED = ("model", "model.name", "optimizer", "optimizer.name", "optimizer.lr", "batch_size")


def name_run(config: DictConfig, overrides: Sequence[str]) -> str:
    """tracking.run_name; by default model, optimizer, lr, batch size, and what else was typed."""
    if chosen := config.tracking.get("run_name"):
        return str(chosen)

    def short(node: DictConfig) -> str:
        return str(node.get("name") or node._target_.rpartition(".")[2]).lower()

    typed = {get_key(override): override.partition("=")[2] for override in overrides}
    more = {k: v for k, v in typed.items() if k not in NOT_NAMED and not k.startswith(FREE)}
    parts = [short(config.model), short(config.optimizer), f"lr{config.optimizer.lr:g}"]
    return cut_name("-".join([*parts, f"bs{config.batch_size}", *name_values(more)]))


def name_values(values: Mapping[str, str]) -> list[str]:
    """name=value for each key; of a path, its last part."""
    names = shorten(values)
    lasts = {key: re.split(r"[/\\]", value.strip("'\"/"))[-1] for key, value in values.items()}
    return [f"{names[key]}={last}" for key, last in lasts.items()]


def shorten(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key → its last part, or the whole key if two have the same last part."""
    lasts = {key: key.rpartition(".")[2] for key in keys}
    return {
        key: key if list(lasts.values()).count(last) > 1 else last for key, last in lasts.items()
    }


def cut_name(name: str) -> str:
    return name if len(name) <= NAME_LETTERS else f"{name[: NAME_LETTERS - 1]}…"


def describe(outcome: str, **commands: str) -> str:
    """A description in Markdown: the outcome first, because MLflow folds it, then commands."""
    shown = [f"### {name}\n```\n{sanitize(text)}\n```" for name, text in commands.items() if text]
    return "\n\n".join([f"{DESCRIPTION}\n{outcome}", *shown])


def describe_metrics(entries: Sequence[Entry]) -> str:
    """The metrics of the kept weights in one line; each entry has their epoch."""
    found = {name: value for entry in entries for name, value in entry.metrics.items()}
    texts = [f"{k} {v:.4f}" for k, v in found.items() if k.startswith(("train/", "val/", "test/"))]
    return f"{', '.join(texts)}; weights of epoch {entries[-1].epoch}"


def find_changes() -> dict[str, bytes]:
    """What the working tree has but its commit does not: names in the run's folder → contents.

    changes.patch has the changes of tracked files; untracked .py and .yaml files below src/ and
    conf/ are copied. Other files may hold secrets. Nothing is kept if it is too large.
    """
    patch = run_git("diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color")
    listed = run_git("ls-files", "-z", "--others", "--exclude-standard", "--", "src", "conf")
    found = {PATCH: patch} if patch else {}
    for name in (listed or b"").decode("utf-8", "surrogateescape").split("\0"):
        path = REPOSITORY / name
        if PurePosixPath(name).suffix in (".py", ".yaml") and not path.is_symlink():
            found[f"{CHANGES}/{name}"] = path.read_bytes()
    if (size := sum(map(len, found.values()))) > CHANGES_BYTES:
        log.warning("%d bytes of uncommitted changes are too many to be kept with the run", size)
        return {}
    return {
        name: redact(content.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        for name, content in found.items()
    }


def name_changes(changes: Mapping[str, bytes]) -> str:
    """The names of changed files, after a digest of their contents."""
    digest = sha256(b"".join(sha256(content).digest() for content in changes.values()))
    return f"{digest.hexdigest()[:12]}: {', '.join(changes)}" if changes else ""
