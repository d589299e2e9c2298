"""What is wrong with a command line, all of it at once, before anything is made.

Hydra itself stops at the first problem, and a wrong value shows only when the job uses it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NamedTuple
from warnings import catch_warnings, simplefilter

from hydra import compose
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType, RangeSweep
from hydra.errors import HydraException, MissingConfigException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mnist_exp.errors import one_line, sanitize
from mnist_exp.experiment.rules import RULES, leaves, rule_for, wrong_secret
from mnist_exp.experiment.targets import SEVERAL, TARGET, initialize_hydra, target_problems
from mnist_exp.training.rules import did_you_mean, one_of
from mnist_exp.training.torchrun import is_distributed


class Plugin(NamedTuple):
    """What an option needs, and the extra that brings it."""

    package: str
    extra: str


PLUGINS = {
    "joblib": Plugin("joblib", "sweep"),
    "submitit_local": Plugin("submitit", "sweep"),
    "submitit_slurm": Plugin("submitit", "sweep"),
    "optuna": Plugin("optuna", "sweep"),
    "tensorboard": Plugin("tensorboard", "tensorboard"),
}
# Values that each machine can do. Of others its torch is asked, which takes a second to import.
EVERYWHERE = {"trainer.precision": ("float32", "bfloat16"), "trainer.compile": (False,)}
if is_distributed():  # it is split among the processes
    EVERYWHERE["batch_size"] = ()
PRESETS = "experiment"  # the group whose options are laid over all others


class Setting(NamedTuple):
    """A value for a key or group, and how a person knows it: as typed, or with its YAML file."""

    line: str
    key: str
    value: Any
    changes: bool = True  # rather than adds or removes


class Job(NamedTuple):
    """A config, the option of each of its groups, and what its keys are without the preset."""

    config: DictConfig
    choices: dict[str, str]
    defaults: dict[str, Any]  # every key that can be set
    in_files: list[Setting]


def problems(arguments: Sequence[str], multirun: bool = False) -> list[str]:
    """One line for each thing that is wrong with these overrides: key, value, what is allowed.

    The YAML files that they choose are checked with them.
    """
    found: list[tuple[str, str | None]] = []
    choices: dict[str, list[str]] = {}  # group → its valid overrides, several in a sweep
    settings: list[Setting] = []  # of keys
    with initialize_hydra() as loader:
        for argument in arguments:
            try:
                override, singles = parse(argument, loader)
            except Exception as error:  # Hydra's functions raise what Python raises: range(1,9,0)
                found.append((argument, not_understood(error)))
                continue
            found.append((argument, wrong_mode(override, multirun)))
            found.append((argument, wrong_sweep(override, singles, multirun)))
            options = loader.get_group_options(override.key_or_group)
            if not options:
                settings += singles
                continue
            wrong = {single.line: wrong_option(single, options) for single in singles}
            found += wrong.items()
            choices[override.key_or_group] = [line for line in wrong if not wrong[line]]
        hydra_options = [lines[0] for group, lines in choices.items() if lines and "/" in group]
        found += [(s.line, wrong_hydra_key(s, hydra_options)) for s in settings if is_hydras(s)]
        ours = [s for s in settings if not is_hydras(s)]
        unsure = [group for group, lines in choices.items() if not lines]
        for options in jobs(choices):
            found += wrong_in_job(options, ours, unsure)
    lines = [sanitize(f"{line}: {problem}") for line, problem in found if problem]
    return list(dict.fromkeys(lines))  # several jobs can have the same problem


# --- what can be said of one argument ---


def parse(argument: str, loader: ConfigLoader) -> tuple[Override, list[Setting]]:
    """An argument as Hydra reads it, and each single value in it.

    Raises HydraException, or what a function in it raises: ValueError, TypeError and others.
    """
    parser = OverridesParser.create()
    override = parser.parse_override(argument)
    if not override.key_or_group:
        raise HydraException("no key")
    singles = [override]
    if override.is_sweep_override():
        override.config_loader = loader  # glob(*) asks it for the options
        key, space = override.get_key_element(), override.value()
        if isinstance(space, IntervalSweep):
            values = [str(space.start), str(space.end)]
        else:
            values = list(override.sweep_string_iterator())
        if isinstance(space, RangeSweep) and not space.shuffle:
            values = [*values[:1], *values[1:][-1:]]  # what its ends may be, all between may be
        singles = [parser.parse_override(f"{key}={value}") for value in values]
    changes = override.type is OverrideType.CHANGE and override.package is None
    key = override.key_or_group
    return override, [Setting(str(o.input_line), key, o.value(), changes) for o in singles]


def not_understood(error: Exception) -> str:
    what = str(error).partition("\n")[0].partition(" expecting ")[0]
    return f"not understood ({what}); write key=value, or 'key=\"value\"' for special characters"


def wrong_mode(override: Override, multirun: bool) -> str | None:
    """Says what is only for a sweep or only for a single run."""
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


def wrong_sweep(override: Override, singles: Sequence[Setting], multirun: bool) -> str | None:
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


def wrong_option(setting: Setting, options: Sequence[str]) -> str | None:
    if not setting.changes:
        return f"groups cannot be added or removed; write {setting.key}=<option>"
    several = isinstance(setting.value, list) and setting.key in SEVERAL
    chosen = setting.value if several else [setting.value]
    if several and len(set(map(str, chosen))) != max(1, len(chosen)):
        return "has an option more than once, or none"
    for option in chosen:
        if wrong := one_of(*options).wrong(option):
            return wrong
        if option in PLUGINS and find_spec(PLUGINS[option].package) is None:
            return f"is not installed; pip install -e '.[{PLUGINS[option].extra}]'"
    return None


def is_hydras(setting: Setting) -> bool:
    return setting.key.startswith(("hydra.", "hydra/"))


def wrong_hydra_key(setting: Setting, options: Sequence[str]) -> str | None:
    """What Hydra says of a key of its own. Asked about one at a time, it tells of all."""
    if setting.key == "hydra.searchpath":
        return "not supported; --config-dir FOLDER adds a folder of options"
    if TARGET in setting.line:
        return f"a {TARGET} cannot be typed; name it in a YAML file"
    if problem := wrong_secret(setting.key, setting.value):
        return problem
    try:
        compose("config", [*options, setting.line])
    except Exception as error:  # of more kinds than Hydra's own
        keys = leaves(OmegaConf.structured(HydraConf), resolve=False)
        known = [f"hydra.{key}" for key, _ in keys]
        near = "" if setting.key in known else did_you_mean(setting.key, known)
        return reason(error) + near
    return None


# --- what can be said only of a whole job ---


def jobs(choices: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Group overrides of so many jobs that each option is in one.

    Not all combinations, which can be many: what keys there are depends on single options.
    """
    several = [lines for lines in choices.values() if lines]
    for number in range(max(map(len, several), default=1)):
        yield [lines[number % len(lines)] for lines in several]


def wrong_in_job(
    options: Sequence[str], typed: Sequence[Setting], unsure: Collection[str]
) -> Iterator[tuple[str, str | None]]:
    """What is wrong in a job with these options: with what was typed, or in the YAML files.

    unsure: groups whose option is not known, so that neither are their keys.
    """
    try:
        job = compose_job(options)
    except Exception as error:  # YAML files can make Hydra raise anything
        yield " ".join(options) or "conf/config.yaml", reason(error)
        if options:  # what was typed can be checked without them, but for their own keys
            yield from wrong_in_job([], typed, [option.partition("=")[0] for option in options])
        return
    for key, rule in RULES.items():
        yield key, None if key in job.defaults else f"in no YAML file; must be {rule.allowed}"
    typed = [s for s in typed if s.key in job.defaults or s.key.partition(".")[0] not in unsure]
    in_force = {setting.key: setting for setting in [*job.in_files, *typed]}
    for setting in [*typed, *in_force.values()]:
        yield setting.line, wrong_setting(setting, job)
    for setting in [*typed, *in_force.values()]:  # on the device that is now known
        yield setting.line, lacking(setting, job.config)
    yield from target_problems(OmegaConf.to_container(job.config))


def wrong_setting(setting: Setting, job: Job) -> str | None:
    """What is wrong with this setting; sets it in the job's config, for others may refer to it."""
    key, value = setting.key, setting.value
    if key not in job.defaults:
        return no_such_key(key, job)
    if not setting.changes:
        return f"keys cannot be added or removed; write {key}=<value>"
    if "${hydra:" in str(value):  # has a value only in a running job
        return None
    try:
        OmegaConf.update(job.config, key, value, merge=False)
        found = resolved(job.config, key)
    except MissingMandatoryValue:
        return f"has no default; write {key}=<value>"
    except OmegaConfBaseException as error:
        return reason(error)
    problem = wrong_secret(key, found) or rule_for(key, job.defaults[key]).wrong(found)
    if problem is None and key == "trainer.device" and found not in ("auto", "cpu"):
        return absent_device(found)
    return problem


def absent_device(name: str) -> str | None:
    from mnist_exp.experiment.environment import (
        present_devices,  # imports torch: more than a second
    )

    present = present_devices()
    return None if name in present else f"not on this machine, which has {', '.join(present)}"


def lacking(setting: Setting, config: DictConfig) -> str | None:
    """What the config's device lacks for this setting."""
    key, value = setting.key, setting.value
    if value in EVERYWHERE.get(key, [value]) or not RULES[key].admits(value):
        return None
    from mnist_exp.experiment import environment

    device = default(config, "trainer.device")
    if device not in ("auto", *environment.present_devices()):
        return None  # which has been told
    return environment.lacking(key, value, environment.choose_device(device))


def no_such_key(key: str, job: Job) -> str:
    """Says which keys there are instead, and which is nearest: of the same name, or near it."""
    group, _, name = key.partition(".")
    if group in job.choices:
        names = [k.removeprefix(f"{group}.") for k in job.defaults if k.startswith(f"{group}.")]
        there_are = f"{group}={job.choices[group]} has {', '.join(names) or 'none'}"
    else:
        name, names = key, [*job.defaults, *job.choices]
        there_are = f"there are {', '.join(sorted({k.partition('.')[0] for k in names}))}"
    elsewhere = [k for k in job.defaults if f".{k}".endswith(f".{key.rpartition('.')[2]}")]
    near = did_you_mean(key, elsewhere, cutoff=0) or did_you_mean(name, names)
    return f"no such key; {there_are}{near or in_other_options(key, group)}"


def in_other_options(key: str, group: str) -> str:
    """Which options of the group have the key, or nothing where none has."""
    having = []
    for option in GlobalHydra.instance().config_loader().get_group_options(group):
        with catch_warnings(), suppress(Exception):
            simplefilter("ignore")  # Hydra's, of a file out of its place
            if key in dict(settable(compose(f"{group}/{option}"))):
                having.append(option)
    return f"; {key} is there with {group}={' | '.join(having)}" if having else ""


def compose_job(options: Sequence[str]) -> Job:
    """Raises what Hydra raises for YAML files that it cannot read or put together."""
    config, choices = composed(options)
    plain = config
    if PRESETS in choices:
        below = {group: option for group, option in choices.items() if group != PRESETS}
        plain, _ = composed([f"{group}={option}" for group, option in below.items()])
    before = dict(settable(plain))
    in_files = []
    for key, value in settable(config):
        group = key.partition(".")[0] if before.get(key, ...) == value else PRESETS
        file = f"{group}/{choices[group]}" if group in choices else "config"
        line = f"{key}={json.dumps(value, default=str)} (conf/{file}.yaml)"
        in_files.append(Setting(line, key, value))
    defaults = {k: MISSING if v == MISSING else default(plain, k) for k, v in before.items()}
    return Job(config, choices, defaults, in_files)


def composed(options: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """The config with these options, without Hydra's part, and the option of each group in it."""
    config = compose("config", list(options), return_hydra_config=True)
    choices = config.hydra.runtime.choices.items()
    ours = {group: option for group, option in choices if option and "hydra/" not in group}
    lists = (option.partition("=") for option in options if "=[" in option)
    ours |= {group: chosen for group, _, chosen in lists}  # of which Hydra does not tell
    with open_dict(config):
        del config["hydra"]
    return config, ours


def settable(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Every key that can be set, with its value as it is written; `_target_` cannot."""
    for key, value in leaves(config, resolve=False):
        if not key.rpartition(".")[2].startswith("_"):
            yield key, value


def default(config: DictConfig, key: str) -> Any:
    """The key's value, or None where it has none yet."""
    try:
        return resolved(config, key)
    except OmegaConfBaseException:
        return None


def resolved(config: DictConfig, key: str) -> Any:
    """Raises OmegaConfBaseException where the value is missing, or refers to nothing."""
    value = OmegaConf.select(config, key, throw_on_missing=True)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def reason(error: BaseException) -> str:
    """What began it, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option} {one_of(*error.options).wrong(option)}"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        lines = str(error).splitlines()  # all but the first are about how Hydra works
        line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        return line.partition(". Did you mean: ")[0]  # Hydra 1.4's, of a part of the key
    return one_line(error)
