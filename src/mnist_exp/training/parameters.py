"""Parameters chosen by shell patterns of their names: frozen ones, and those with other options."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from mnist_exp.errors import did_you_mean
from mnist_exp.training.optimizers import UNFIT_OPTIONS
from mnist_exp.training.state import number_or_type

MATCH = "match"  # the key of a group that has its pattern


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Train no parameter whose name matches a pattern, such as "features.*".

    Frozen ones stay in the optimizer, which skips every parameter without a gradient. Raises
    ValueError for a pattern that matches nothing, and if no parameter is left to train.
    """
    for pattern in patterns:
        for parameter in match(pattern, model).values():
            parameter.requires_grad_(False)
    if patterns and not any(p.requires_grad for p in model.parameters()):
        raise ValueError("no parameter is left to train")


def set_train_mode(model: nn.Module) -> None:
    """model.train(), but a layer whose parameters are all frozen keeps its running statistics."""
    model.train()
    for module in model.modules():
        trained = [p.requires_grad for p in module.parameters(recurse=False)]
        if trained and not any(trained) and dict(module.named_buffers(recurse=False)):
            module.eval()


def set_groups(optimizer: Optimizer, model: nn.Module, groups: Sequence[Mapping[str, Any]]) -> None:
    """Give parameters options of their own, such as {"match": "head.*", "lr": 0.01}.

    A parameter gets the options of the first group that matches its name; the others keep those of
    the optimizer. A schedule that is built afterwards scales the learning rate of each group.

    Raises ValueError for a group that gets no parameter, and for an option that the optimizer does
    not have, or that has a value of another type.
    """
    rest: list[dict[str, Any]] = optimizer.param_groups
    own: list[dict[str, Any]] = []
    for group in groups:
        pattern = group[MATCH]
        options = {key: value for key, value in group.items() if key != MATCH}
        ids = {id(p) for p in match(pattern, model).values() if p.requires_grad}
        taken = [part for g in rest if (part := select(g, ids, True))["params"]]
        if not taken:
            raise ValueError(f"{pattern}: all that it matches is frozen, or in a group before it")
        check_options(pattern, options, taken)
        own += [{**g, **{key: options[key] for key in options if key in g}} for g in taken]
        rest = [part for g in rest if (part := select(g, ids, False))["params"]]
    optimizer.param_groups = rest + own


def select(group: dict[str, Any], ids: Collection[int], inside: bool) -> dict[str, Any]:
    """A group of an optimizer with only those of its parameters that are, or are not, in `ids`."""
    return {**group, "params": [p for p in group["params"] if (id(p) in ids) is inside]}


def check_options(
    pattern: str, options: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> None:
    """Raises ValueError for an option that none of these groups of an optimizer has."""
    known = {key: value for group in groups for key, value in group.items()}
    known = {key: known[key] for key in known if key not in ("params", *UNFIT_OPTIONS)}
    for key, value in options.items():
        if key not in known:
            names = f"{', '.join(known)}{did_you_mean(key, known)}"
            raise ValueError(f"{pattern}: the optimizer has no {key}; it has {names}")
        default = list(known[key]) if isinstance(known[key], tuple) else known[key]
        if default is not None and number_or_type(value) is not number_or_type(default):
            raise ValueError(f"{pattern}: {key}={value} is of another type than {known[key]}")


def match(pattern: str, model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters whose names match a shell pattern. Raises ValueError if there is none."""
    parameters = dict(model.named_parameters())
    found = {name: p for name, p in parameters.items() if fnmatchcase(name, pattern)}
    if not found:
        near = get_close_matches(pattern, parameters, 3, cutoff=0)
        raise ValueError(f"{pattern} matches no parameter; the nearest are {', '.join(near)}")
    return found
