"""What older versions called by another name: configs that they saved are read by the new one."""

from __future__ import annotations

import copy
import re
from dataclasses import MISSING, fields
from typing import Any

from mnist_exp.training.options import DataOptions, TrainerOptions

# Old `_target_`, or name that a module of a person's own imports → new. A module stands for
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


# Groups that are younger than some saved configs, which get the option that changes nothing.
GROUPS: dict[str, dict[str, Any]] = {
    # 0.3.0
    "loss": {"_target_": "mnist_exp.training.losses.CrossEntropy", "class_weights": None},
    "metrics": {"accuracy": {"_target_": "mnist_exp.training.metrics.Accuracy"}},
    "callbacks": {},
}

# `_target_` → keys that are younger than some configs, with the value that changes nothing.
YOUNGER: dict[str, dict[str, Any]] = {
    "mnist_exp.data.image_folder": {"labels": None, "fit": "stretch", "stratified": False},
    "mnist_exp.models.torchvision_model": {"pretrained": False},
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


def rename(config: Any) -> Any:
    """A copy of a saved config, in plain containers, with today's targets and keys.

    An option that is younger than the config gets the value that changes nothing.
    """
    renamed = rename_targets(config)
    if isinstance(renamed, dict):
        renamed = copy.deepcopy(GROUPS) | renamed
    for old, new in KEYS.items():
        *groups, key = old.split(".")
        node = find_node(renamed, groups)
        if isinstance(node, dict) and key in node:
            value = node.pop(key)
            if new is not None:
                *groups, key = new.split(".")
                find_node(renamed, groups, create=True)[key] = value
    for group, options in (("trainer", TrainerOptions), ("data", DataOptions)):
        if isinstance(saved := find_node(renamed, [group]), dict):
            defaults = {f.name: f.default for f in fields(options) if f.default is not MISSING}
            renamed[group] = defaults | saved
    for group in ("data", "model"):
        if isinstance(saved := find_node(renamed, [group]), dict):
            renamed[group] = YOUNGER.get(str(saved.get("_target_")), {}) | saved
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


def find_node(config: Any, groups: list[str], create: bool = False) -> Any:
    """The mapping below these keys, or None."""
    for group in groups:
        if not isinstance(config, dict):
            return None
        config = config.setdefault(group, {}) if create else config.get(group)
    return config
