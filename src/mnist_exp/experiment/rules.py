"""The values that each config key accepts.

Only Hydra, omegaconf and the standard library are imported here: a bad value is reported before
torch is imported.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterator
from types import NoneType
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from mnist_exp.errors import did_you_mean, redact
from mnist_exp.experiment.versions import HYDRA_1_3, register_resolver
from mnist_exp.paths import HOME, is_name
from mnist_exp.tracking.addresses import REMEDY, tracking_uri
from mnist_exp.training.options import DataOptions, TrainerOptions
from mnist_exp.training.rules import (
    Rule,
    finite,
    flag,
    flag_or,
    fraction,
    integer,
    is_count,
    list_of,
    not_negative,
    number,
    one_of,
    optional,
    or_word,
    per_channel,
    positive,
    rules_of,
    seed,
    text,
)

for name in ("home", "repository"):  # the second in YAML files from before 0.4.0
    register_resolver(name, lambda: str(HOME))
register_resolver("unique", lambda: secrets.token_hex(3), use_cache=True)
register_resolver("tracking_uri", tracking_uri)


def is_class_weights(value: Any) -> bool:
    words = value is None or value == "balanced"
    return words or (isinstance(value, list) and all(map(positive.admits, value)))


def is_size(value: Any) -> bool:
    """Whether this is the side of a square image, or a height and a width."""
    sides = value if isinstance(value, list) else [value, value]
    return len(sides) == 2 and all(map(is_count, sides))


def is_group(value: Any) -> bool:
    """Whether this is a shell pattern of parameters, with options of an optimizer."""
    if not isinstance(value, dict) or not text.admits(value.get("match")) or len(value) < 2:
        return False
    rules = ((OPTION_RULES.get(f"optimizer.{key}"), option) for key, option in value.items())
    return all(rule is None or rule.admits(option) for rule, option in rules)


def are_tags(tags: dict[Any, Any] | None) -> bool:
    """Whether MLflow takes them; names that begin with mlflow. or mnist_exp. have a meaning."""
    return all(
        re.fullmatch(r"(?!mlflow\.|mnist_exp\.)[\w./-]{1,250}", str(name), re.ASCII)
        and isinstance(value, str | int | float)
        for name, value in (tags or {}).items()
    )


# The keys that this code reads itself.
RULES = {
    "batch_size": integer(1),
    "seed": seed,
    "init": optional(text),
    "resume": optional(text),
    "reproduce": optional(text),
    "sweep.combine": one_of("product", "zip"),
    "sweep.jobs": optional(text),
    "sweep.test": one_of("winner", "all"),
    "sweep.resume": optional(text),
    "sweep.join": optional(text),
    "sweep.max_jobs": integer(1),
    **{f"trainer.{name}": rule for name, rule in rules_of(TrainerOptions).items()},
    **{f"data.{name}": rule for name, rule in rules_of(DataOptions).items()},
    "tracking.figures": flag,
}

# Keys that are arguments of a `_target_`. Another class may use the same name for something else:
# then, as for every other key, a value has to have the type of its YAML default.
OPTION_RULES = {
    "data.root": text,
    "data.cache": text,
    "data.mirrors": optional(list_of(text)),
    "data.mean": optional(per_channel(finite, "imagenet")),
    "data.std": optional(per_channel(positive, "imagenet")),
    "data.size": optional(
        Rule("an integer >= 1 or a list of two, [height, width]", (int, list), is_size)
    ),
    "data.fit": one_of("stretch", "pad", "crop"),
    "data.labels": optional(text),
    "data.stratified": flag,
    "data.skip_bad": flag,
    "data.val_fraction": fraction,
    "data.split_seed": seed,
    "data.memory_limit": positive,
    "model.hidden_sizes": list_of(integer(1)),
    "model.channels": list_of(integer(1)),
    "model.hidden_size": integer(1),
    "model.blocks": integer(1),
    "model.patch": integer(1),
    "model.dropout": fraction,
    "loss.class_weights": Rule(
        "null, balanced, or a list with a number > 0 for each class",
        (NoneType, str, list),
        is_class_weights,
        ("balanced",),
    ),
    "loss.label_smoothing": fraction,
    "loss.gamma": not_negative,
    "metrics.top5.k": integer(1),
    "callbacks.step_loss.every": integer(1),
    "augment.shift": integer(0),
    "augment.rotate": not_negative,
    "augment.scale": fraction,
    "augment.shear": number("a number from 0 up to 45", lambda value: 0 <= value <= 45),
    "augment.flip": flag_or("alternate"),
    "augment.padding": one_of("border", "reflection", "zeros"),
    "augment.erase": or_word(integer(0), "random"),
    "optimizer.lr": positive,
    "optimizer.adamw_lr": positive,
    "optimizer.betas": Rule(
        "a list of two numbers from 0 up to but not including 1",
        (list,),
        lambda value: len(value) == 2 and all(map(fraction.admits, value)),
    ),
    "optimizer.eps": positive,
    "optimizer.momentum": fraction,
    "optimizer.weight_decay": not_negative,
    "optimizer.groups": Rule(
        "null or a list such as [{match: head.*, lr: 0.01}], with the optimizer's options",
        (NoneType, list),
        lambda value: value is None or all(map(is_group, value)),
    ),
    "optimizer.options": Rule("null or a mapping such as {momentum: 0.9}", (NoneType, dict)),
    "data.options": Rule("null or a mapping such as {split: letters}", (NoneType, dict)),
    "data.name": text,
    "scheduler.warmup_epochs": not_negative,
    "scheduler.cooldown_epochs": not_negative,
    "scheduler.every_epochs": positive,
    "scheduler.factor": fraction,
    "scheduler.patience": integer(0),
    "scheduler.gamma": positive,
    "scheduler.final_factor": number("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "scheduler.pct_start": fraction,
    "scheduler.div_factor": positive,
    "scheduler.final_div_factor": positive,
    "tracking.experiment": Rule("a name without / and \\, not . or ..", (str,), is_name),
    "tracking.uri": optional(text),
    "tracking.run_name": optional(text),
    "tracking.note": optional(text),
    "tracking.tags": Rule(
        "null or a mapping such as {study: x}, no name beginning with mlflow. or mnist_exp.",
        (NoneType, dict),
        are_tags,
    ),
    "tracking.logdir": text,
    "tracking.log_checkpoints": flag,
    "tracking.upload_every": optional(integer(1)),
    "tracking.log_model": flag,
    "tracking.register": Rule(
        "null or a name without /, \\ and :, not . or ..",
        (NoneType, str),
        lambda value: value is None or (is_name(value) and ":" not in value),
    ),
}

# Keys whose value is a mapping with arbitrary keys.
MAPPINGS = {"optimizer.options", "data.options", "tracking.tags"}


def rule_for(key: str, default: Any) -> Rule:
    """The key's own rule; without one, a rule that asks for the type of the default.

    default: the value in the YAML file that has the key; ??? if a person has to give it.
    """
    if key in RULES:
        return RULES[key]
    if key in OPTION_RULES and (default == MISSING or type(default) in OPTION_RULES[key].types):
        return OPTION_RULES[key]
    return same_type(default)


def check_with_others(key: str, value: Any, config: DictConfig, typed: bool) -> str | None:
    """What is wrong with a value that is valid by itself, given the others in the config.

    typed: rather than in a YAML file, whose monitor may have no validation to look at.
    """
    folds = OmegaConf.select(config, "data.folds")
    if key == "trainer.monitor" and RULES[key].admits(value):
        split, _, metric = value.partition("/")
        metrics = ["loss", *config.metrics]
        if metric not in metrics:
            near = did_you_mean(metric, metrics)
            return f"not computed; there are {', '.join(metrics)}, and any that metrics adds{near}"
        if typed and split == "val" and OmegaConf.select(config, "data.val_fraction") == 0:
            return None if folds else "data.val_fraction=0 leaves no validation"
    if key == "data.fold" and RULES["data.folds"].admits(folds) and RULES[key].admits(value):
        allowed = (
            f"from 0 to {folds - 1} with data.folds={folds}" if folds else "0 without data.folds"
        )
        return None if value < (folds or 1) else f"must be {allowed}"
    return None


def same_type(default: Any) -> Rule:
    """Admits values of the default's type; for null and ???, any value."""
    match default:
        case "???":
            return Rule("anything")
        case bool():
            return flag
        case int():
            return Rule("an integer", (int,))
        case float():
            return finite if math.isfinite(default) else Rule("a number", (int, float))
        case str():
            return Rule("text", (str,))
        case [first, *_] if (rule := list_of(same_type(first))).admits(default):
            return rule
        case list():
            return Rule("a list", (list,))
        case _:
            return Rule("anything")


# What to do instead of writing a password into these keys.
REMEDIES = {"tracking.uri": REMEDY, "data.mirrors": "put the files into data.root"}


def check_secret(key: str, value: Any) -> str | None:
    """What is wrong with an address that has a password in it: runs save their configs."""
    values = value if isinstance(value, list) else [value]
    if all(redact(text) == text for text in map(str, values)):
        return None
    return f"has a password in it, which would be saved; {REMEDIES.get(key, 'leave it out')}"


def check_characters(value: Any) -> str | None:
    """What is wrong with the name of a file that OmegaConf 2.4 cannot write into a YAML file."""
    values = value if isinstance(value, list) else [value]
    if HYDRA_1_3 or not any("\ud800" <= letter <= "\udfff" for letter in "".join(map(str, values))):
        return None
    return "not UTF-8, which Hydra cannot save on Python 3.14; rename the file or folder"


def leaves(config: DictConfig, resolve: bool = True) -> Iterator[tuple[str, Any]]:
    """Every dotted key with its plain value; lists and MAPPINGS count as values.

    Raises OmegaConfBaseException for a value that cannot be resolved.
    """

    def below(prefix: str, values: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict) and key not in MAPPINGS:
                yield from below(f"{key}.", value)
            else:
                yield key, value

    container = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(container, dict)
    yield from below("", container)
