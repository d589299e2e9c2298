"""Names that have changed since older versions, so that configs saved by those can be read."""

from __future__ import annotations

import copy
import os
import re
from dataclasses import MISSING, fields
from typing import Any

from mnist_exp.training.options import DataOptions, TrainerOptions

# Old `_target_`, or name that a user's own module imports → new. A module stands for
# everything in it.
TARGETS = {
    # 0.2.0
    "mnist_exp.augmentation": "mnist_exp.training.augmentation",
    "mnist_exp.data.dataset.divided": "mnist_exp.data.dataset.split_dataset",
    "mnist_exp.optimizers": "mnist_exp.training.optimizers",
    "mnist_exp.schedules": "mnist_exp.training.schedules",
}
# Old dotted key → new; None: it is dropped.
KEYS: dict[str, str | None] = {
    # 0.2.0
    "tracking.none": None,  # it named a tracker that did nothing
    # 0.3.0
    "trainer.label_smoothing": "loss.label_smoothing",
}

# Groups that are newer than some saved configs, which get the option that changes nothing.
GROUPS: dict[str, dict[str, Any]] = {
    # 0.3.0
    "loss": {"_target_": "mnist_exp.training.losses.CrossEntropy", "class_weights": None},
    "metrics": {"accuracy": {"_target_": "mnist_exp.training.metrics.Accuracy"}},
    "callbacks": {},
}

# `_target_` → keys that are newer than some configs, with the value that changes nothing.
NEWER: dict[str, dict[str, Any]] = {
    "mnist_exp.data.image_folder": {"labels": None, "fit": "stretch", "stratified": False},
    "mnist_exp.models.torchvision_model": {"pretrained": False},
}
# Groups whose options have these defaults, which change nothing either.
OPTIONS: dict[str, type[TrainerOptions | DataOptions]] = {
    "trainer": TrainerOptions,
    "data": DataOptions,
}


def new_target(name: str) -> str:
    """The name that this `_target_` has now, which is the same one for most."""
    for old, new in TARGETS.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def find_new_name(target: str, error: Exception) -> str | None:
    """The new name of a target that cannot be imported, or of what its module tried to import."""
    module = getattr(error, "name", None) or ""
    attributes = [f"{module}.{word}" for word in re.findall(r"'(\w+)'", str(error))]
    names = [target, module, *attributes]
    return next((new_target(name) for name in names if new_target(name) != name), None)


def find_old_home(config: Any) -> str | None:
    """The folder that a config from before 0.4.0 wrote to, if it was another checkout or is gone.

    Such configs have absolute paths, among them that of the cache.
    """
    data = config.get("data") if isinstance(config, dict) else None
    cache = data.get("cache") if isinstance(data, dict) else None
    old, default, _ = str(cache).rpartition("/data/cache")
    chosen = os.access(old, os.F_OK) and not os.access(f"{old}/conf", os.F_OK)
    return old if default and old.startswith("/") and not chosen else None


def rename(config: Any) -> Any:
    """A copy of a saved config, in plain containers, with today's targets and keys.

    An option that is newer than the config gets the value that changes nothing.
    """
    renamed = rename_targets(config)
    if not isinstance(renamed, dict):
        return renamed
    renamed = copy.deepcopy(GROUPS) | renamed
    groups = {name: node for name, node in renamed.items() if isinstance(node, dict)}
    for old, new in KEYS.items():
        group, _, key = old.partition(".")
        if key in groups.get(group, {}):
            value = groups[group].pop(key)
            if new is not None:
                group, _, key = new.partition(".")
                groups[group][key] = value
    for name, node in groups.items():
        options = OPTIONS.get(name)
        defaults = {f.name: f.default for f in fields(options)} if options else {}
        newer = defaults | NEWER.get(str(node.get("_target_")), {})
        renamed[name] = {k: v for k, v in newer.items() if v is not MISSING} | node
    return renamed


def rename_targets(node: Any) -> Any:
    if isinstance(node, list):
        return [rename_targets(value) for value in node]
    if not isinstance(node, dict):
        return node
    return {
        key: new_target(value)
        if key == "_target_" and isinstance(value, str)
        else rename_targets(value)
        for key, value in node.items()
    }
