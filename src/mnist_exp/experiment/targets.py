"""What a config may name by `_target_`, and how the name becomes a class or a function.

A `_target_` is only followed if a YAML file of this repository has it at the same place: at the top
of a group, or of a named entry in a group that takes several options. So a checkpoint or a config
from elsewhere can only choose among what the owner of the repository wrote down.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.basecontainer import get_yaml_loader  # type: ignore[attr-defined]  # 2.3 and 2.4

from mnist_exp.errors import BadInput, one_line
from mnist_exp.experiment.bugs import find_place
from mnist_exp.experiment.renamed import find_new_name, rename
from mnist_exp.experiment.rules import leaves, rule_for
from mnist_exp.paths import config_dirs, restore_home

# Groups that take a list of options, each of which is a named entry.
SEVERAL = ("tracking", "metrics", "callbacks")
TARGET = "_target_"
MOST_VALUES = 100_000  # in a saved config

Place = tuple[str, ...]  # the keys that lead to a value


def find_target(name: str) -> Any:
    """The class or function with this dotted name. Raises ImportError."""
    try:
        return pkgutil.resolve_name(name)
    except Exception as error:  # a user's own module can raise anything
        text = f"{type(error).__name__}: {one_line(error)}"
        if place := find_place(error, caller=__file__):
            text = f"{text} ({place})"
        if new := find_new_name(name, error):
            text = f"{text}; it is now {new}"
        raise ImportError(text) from error


def target_problems(config: Any) -> Iterator[tuple[str, str]]:
    """The dotted key of each `_target_` that must not be followed, and the reason.

    config: plain containers. Hydra's other directives (`_args_`, `_partial_` and so on) are never
    allowed.
    """
    for group in ("metrics", "callbacks"):
        for name, entry in (config.get(group) or {}).items():
            if isinstance(entry, Mapping) and TARGET not in entry:
                yield f"{group}.{name}", f"has no {TARGET}"
            if (group, name) == ("metrics", "loss"):
                yield "metrics.loss", "loss is the name of the loss; choose another name"
    for place, value in find_directives(config):
        key, group = ".".join(place), place[0]
        if place[-1] != TARGET:
            yield key, f"not supported; write {TARGET} and plain values"
        elif len(place) != (3 if group in SEVERAL else 2) or not group.isidentifier():
            where = (
                f"below a name, as in {group}.NAME"
                if group in SEVERAL
                else "at the top of its group"
            )
            yield key, f"a {TARGET} must be {where}"
        elif not any(
            (place, value) in find_directives(options, (group,))
            for _, options in read_options(group, value)
        ):
            folders = " or ".join(f"{folder}/{group}/" for folder in ("conf", *config_dirs[1:]))
            yield key, f"{value!r} is not in any YAML file of {folders}; --config-dir adds a folder"


def walk(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value in these containers, the outer ones first, and the keys that lead to it."""
    yield place, node
    if isinstance(node, Mapping):
        items: Iterable[tuple[Any, Any]] = node.items()
    else:
        items = enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        yield from walk(value, (*place, str(key)))


def find_directives(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every key that Hydra's `instantiate` would act on, such as `_target_`, and its value."""
    for inner, value in walk(node, place):
        if inner and re.fullmatch("_.+_", inner[-1]):
            yield inner, value


def read_options(group: str, target: Any) -> Iterator[tuple[str, dict[Any, Any]]]:
    """The name and the content of each YAML file of the group that has this `_target_`."""
    for path in (path for folder in config_dirs for path in (folder / group).glob("*.yaml")):
        try:
            text = path.read_text("utf-8")
            if str(target) in text:  # reading YAML is slow, and most targets are in one file
                options = OmegaConf.to_container(OmegaConf.create(text))
                if isinstance(options, dict):
                    yield path.stem, options
        except Exception:  # YAML raises errors of its own
            continue  # Hydra reports the file if an option chooses it


def value_problems(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Each value that could not be typed, with its dotted key, and what it must be.

    A key of a `_target_` is checked by its default in the YAML files that have the target.
    """
    groups: Any = OmegaConf.to_container(config)
    files = {
        group: [options for _, options in read_options(group, node[TARGET])]
        for group, node in groups.items()
        if isinstance(node, dict) and TARGET in node
    }
    for key, value in leaves(config):
        group, _, name = key.partition(".")
        defaults = (options.get(name, MISSING) for options in files.get(group, [{}]))
        wrong = [rule_for(key, default).wrong(value) for default in defaults]
        if wrong and all(wrong):
            yield f"{key}={value}", str(wrong[0])


def check_saved_config(saved: Any, source: object) -> DictConfig:
    """A saved config, from YAML or plain containers, if it could have been typed.

    That is, if it names only targets of this repository and has values that their keys may have.
    Raises BadInput, which names the source.
    """
    try:
        plain = yaml.load(saved, get_yaml_loader()) if isinstance(saved, str) else saved
        if len(list(islice(walk(plain), MOST_VALUES))) == MOST_VALUES:  # aliases can repeat them
            raise ValueError(f"at least {MOST_VALUES} values")
        config = OmegaConf.create(restore_home(rename(plain)))
        plain = OmegaConf.to_container(config)
    except Exception as error:  # YAML raises errors of its own
        raise BadInput(f"{source}: the saved config cannot be read ({one_line(error)})") from None
    if not isinstance(config, DictConfig) or not isinstance(plain, dict):
        raise BadInput(f"{source}: the saved config is not a mapping")
    for place, value in walk(plain):
        for text in (*place[-1:], value):
            if isinstance(text, str) and "${" in text:
                raise BadInput(f"{source}: the saved config has {text!r}; runs save plain values")
    for key in ("defaults", "hydra"):
        if key in plain:
            raise BadInput(f"{source}: the saved config has {key}: this key is Hydra's own")
    for key, problem in chain(target_problems(plain), value_problems(config)):
        raise BadInput(f"{source}: the saved config has {key}: {problem}")
    return config
