"""What a config may name by `_target_`, and how the name becomes a class or a function.

A `_target_` is only followed if a YAML file of this repository has it at the same place: at the top
of a group, or of a named entry in a group that takes several options. So a checkpoint or a config
from elsewhere can choose among what the owner of the repository wrote down, and
nothing else.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from mnist_exp.errors import BadInput, one_line
from mnist_exp.experiment.renamed import find_new_name, rename
from mnist_exp.experiment.versions import VERSION_BASE
from mnist_exp.paths import config_dirs

SEVERAL = ("tracking",)  # groups that take a list of options, each of which is a named entry
TARGET = "_target_"
MOST_VALUES = 100_000  # in a saved config

Place = tuple[str, ...]  # the keys that lead to a value


@contextmanager
def initialize_hydra() -> Iterator[ConfigLoader]:
    """Let `hydra.compose` read conf/; our search path plugin adds the folder of --config-dir."""
    with initialize_config_dir(str(config_dirs[0]), **VERSION_BASE):
        yield GlobalHydra.instance().config_loader()


def find_target(name: str) -> Any:
    """The class or function with this dotted name. Raises ImportError."""
    try:
        return pkgutil.resolve_name(name)
    except Exception as error:  # a user's own module can raise anything
        text = f"{type(error).__name__}: {one_line(error)}"
        if new := find_new_name(name, error):
            text = f"{text}; it is now {new}"
        raise ImportError(text) from error


def target_problems(config: Any) -> Iterator[tuple[str, str]]:
    """The dotted key of each `_target_` that must not be followed, and the reason.

    config: plain containers. Hydra's other directives (`_args_`, `_partial_` and so on) are never
    allowed.
    """
    for place, value in find_directives(config):
        key, group = ".".join(place), place[0]
        if place[-1] != TARGET:
            yield key, f"not supported; write {TARGET} and plain values"
        elif len(place) != (3 if group in SEVERAL else 2) or not group.isidentifier():
            yield key, f"a {TARGET} must be at the top of its group"
        elif not is_in_yaml_file(place, value):
            places = f"{group}/ in {list_config_dirs()}"
            yield key, f"{value!r} is in no YAML file of {places}; --config-dir adds a folder"


def find_directives(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every key that Hydra's `instantiate` would act on, such as `_target_`, and its value."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if isinstance(key, str) and len(key) > 2 and key[0] == key[-1] == "_":
                yield (*place, key), value
            yield from find_directives(value, (*place, str(key)))
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from find_directives(value, (*place, str(number)))


def is_in_yaml_file(place: Place, target: Any) -> bool:
    """Whether a YAML file of the group has this `_target_` at this place."""
    group = place[0]
    for path in (path for folder in config_dirs for path in (folder / group).glob("*.yaml")):
        try:
            text = path.read_text("utf-8")
            if str(target) in text:  # reading YAML is slow, and most targets are in one file
                options = OmegaConf.to_container(OmegaConf.create(text))
                if (place, target) in find_directives(options, (group,)):
                    return True
        except Exception:  # YAML has its own kinds
            continue  # Hydra reports the file if an option chooses it
    return False


def list_config_dirs() -> str:
    return " or ".join(f"{folder}/" for folder in ("conf", *map(str, config_dirs[1:])))


def check_saved_config(saved: Any, source: object) -> DictConfig:
    """A saved config, from YAML or plain containers, if it names only targets of this repository.

    Raises BadInput, which names the source.
    """
    try:
        check_size(saved)
        config = OmegaConf.create(rename(OmegaConf.to_container(OmegaConf.create(saved))))
        plain = OmegaConf.to_container(config)
    except Exception as error:  # YAML has its own kinds
        raise BadInput(f"{source}: the saved config cannot be read ({one_line(error)})") from None
    if not isinstance(config, DictConfig) or not isinstance(plain, dict):
        raise BadInput(f"{source}: the saved config is not a mapping")
    for value in iterate_strings(plain):
        if "${" in value:
            raise BadInput(f"{source}: the saved config has {value!r}; runs save plain values")
    for key in ("defaults", "hydra"):
        if key in plain:
            raise BadInput(f"{source}: the saved config has {key}: it is Hydra's own")
    for key, problem in target_problems(plain):
        raise BadInput(f"{source}: the saved config has {key}: {problem}")
    return config


def check_size(saved: Any) -> None:
    """Raises ValueError for nested lists, which a small YAML file can make endless by aliases."""
    left, nodes = MOST_VALUES, [saved]
    while nodes:
        node = nodes.pop()
        inner = node.values() if isinstance(node, Mapping) else node
        if isinstance(inner, str) or not isinstance(inner, Collection):
            continue
        left -= len(inner)
        if left < 0:
            raise ValueError(f"more than {MOST_VALUES} values")
        nodes += inner


def iterate_strings(node: Any) -> Iterator[str]:
    """Every string in these containers, keys too."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from iterate_strings(key)
            yield from iterate_strings(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from iterate_strings(value)
