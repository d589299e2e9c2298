"""Everything that is wrong with a command line, reported at once, before anything is created.

Hydra itself stops at the first problem, and notices a wrong value only when the job uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import NamedTuple

from hydra import compose
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from mnist_exp.cli.arguments import Argument, Setting, parse
from mnist_exp.cli.check_job import check_job, explain
from mnist_exp.errors import sanitize
from mnist_exp.experiment.rules import check_secret, leaves
from mnist_exp.experiment.targets import SEVERAL, TARGET, initialize_hydra
from mnist_exp.training.rules import did_you_mean, one_of
from mnist_exp.training.torchrun import is_distributed


class Plugin(NamedTuple):
    """The package that an option needs, and the extra that installs it."""

    package: str
    extra: str


PLUGINS = {
    "joblib": Plugin("joblib", "sweep"),
    "submitit_local": Plugin("submitit", "sweep"),
    "submitit_slurm": Plugin("submitit", "sweep"),
    "optuna": Plugin("optuna", "sweep"),
    "tensorboard": Plugin("tensorboard", "tensorboard"),
}


def problems(words: Sequence[str], multirun: bool = False) -> list[str]:
    """One line for each thing that is wrong with these overrides: key, value, what is allowed.

    The YAML files that they choose are checked with them.
    """
    with initialize_hydra() as loader:
        arguments = parse(words, loader)
        return [*arguments.errors, *check(arguments.parsed, multirun, loader)]


def check(arguments: Sequence[Argument], multirun: bool, loader: ConfigLoader) -> list[str]:
    """What is wrong with arguments that Hydra can parse, as lines for a person."""
    found: list[tuple[str, str | None]] = []
    choices: dict[str, list[str]] = {}  # group → its valid overrides, several in a sweep
    settings: list[Setting] = []  # of keys
    for text, override, singles in arguments:
        found.append((text, check_mode(override, multirun)))
        found.append((text, check_sweep(override, singles, multirun)))
        options = loader.get_group_options(override.key_or_group)
        if options:
            wrong = {single.text: check_option(single, options) for single in singles}
            found += wrong.items()
            choices[override.key_or_group] = [text for text in wrong if not wrong[text]]
        else:
            settings += singles
    hydra_options = [texts[0] for group, texts in choices.items() if texts and "/" in group]
    found += [(s.text, check_hydra_key(s, hydra_options)) for s in settings if is_hydras(s)]
    ours = [s for s in settings if not is_hydras(s)]
    unknown = [group for group, texts in choices.items() if not texts]
    for options in combine(choices):
        found += check_job(options, ours, unknown)
    lines = [sanitize(f"{text}: {problem}") for text, problem in found if problem]
    return list(dict.fromkeys(lines))  # several jobs can have the same problem


def combine(choices: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Group overrides of so many jobs that each option is in one.

    Not all combinations, which can be many: which keys there are depends on single options.
    """
    several = [texts for texts in choices.values() if texts]
    for number in range(max(map(len, several), default=1)):
        yield [texts[number % len(texts)] for texts in several]


def check_mode(override: Override, multirun: bool) -> str | None:
    """What is only for a sweep, or only for a single run."""
    key = override.key_or_group
    if key.partition(".")[0] == "sweep" and not multirun:
        return "is about a sweep, which needs -m"
    if key in ("resume", "reproduce") and multirun:
        return "is about one run; leave out -m"
    if key == "reproduce" and is_distributed():
        return "compares one process with one; leave out torchrun"
    if key == "hydra.mode":
        return "cannot be set; a sweep needs -m"
    return None


def check_sweep(override: Override, singles: Sequence[Setting], multirun: bool) -> str | None:
    if not override.is_sweep_override():
        return None
    if not multirun:
        return "several values; a sweep over them needs -m"
    if override.is_hydra_override():
        return "several values; Hydra cannot sweep over its own keys"
    values = [repr(single.value) for single in singles]
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        return f"has {twice} more than once"
    return None if values else "gives no value"


def check_option(setting: Setting, options: Sequence[str]) -> str | None:
    if not setting.changes:
        return f"groups cannot be added or removed; write {setting.key}=<option>"
    names = [setting.value]
    if setting.key in SEVERAL and isinstance(setting.value, list):
        names = setting.value
        if not names or len(set(map(str, names))) < len(names):
            return "has an option more than once, or none"
    for name in names:
        if wrong := one_of(*options).wrong(name):
            return wrong
        if name in PLUGINS and find_spec(PLUGINS[name].package) is None:
            return f"is not installed; pip install -e '.[{PLUGINS[name].extra}]'"
    return None


def is_hydras(setting: Setting) -> bool:
    return setting.key.startswith(("hydra.", "hydra/"))


def check_hydra_key(setting: Setting, options: Sequence[str]) -> str | None:
    """What Hydra says about one of its own keys; it stops at the first, so ask about each alone."""
    if setting.key == "hydra.searchpath":
        return "not supported; --config-dir FOLDER adds a folder of options"
    if TARGET in setting.text:
        return f"a {TARGET} cannot be typed; name it in a YAML file"
    if problem := check_secret(setting.key, setting.value):
        return problem
    try:
        compose("config", [*options, setting.text])
    except Exception as error:  # of more kinds than Hydra's own
        keys = leaves(OmegaConf.structured(HydraConf), resolve=False)
        known = [f"hydra.{key}" for key, _ in keys]
        near = "" if setting.key in known else did_you_mean(setting.key, known)
        return explain(error) + near
    return None
