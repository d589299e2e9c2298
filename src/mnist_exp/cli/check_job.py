"""What is wrong with a job: with its keys and values, where its options are known."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple
from warnings import catch_warnings, simplefilter

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mnist_exp.cli.arguments import Setting
from mnist_exp.errors import one_line
from mnist_exp.experiment.presets import PRESETS, Loader
from mnist_exp.experiment.renamed import KEYS
from mnist_exp.experiment.rules import RULES, check_secret, check_with_others, leaves, rule_for
from mnist_exp.experiment.targets import target_problems
from mnist_exp.training.rules import did_you_mean, one_of
from mnist_exp.training.torchrun import is_distributed

# Values that every machine supports. For others torch is asked, which takes a second to import.
EVERYWHERE = {"trainer.precision": ("float32", "bfloat16"), "trainer.compile": (False,)}

NONE: Mapping[str, Any] = MappingProxyType({})


class Job(NamedTuple):
    """A job as the YAML files have it."""

    options: Sequence[str]
    config: DictConfig  # with Hydra's part
    choices: Mapping[str, str] = NONE  # group → option
    defaults: Mapping[str, Any] = NONE  # of every key that can be set, below a preset
    in_files: Sequence[Setting] = ()
    unknown: Sequence[str] = ()  # groups whose keys are not known
    problem: str | None = None  # why its options cannot be composed
    note: str | None = None  # which keys of the preset do not apply


def compose_job(options: Sequence[str], loader: Loader) -> Job:
    """The job with these options; without any, and with a problem, if they cannot be composed."""
    try:
        config = compose("config", list(options), return_hydra_config=True)
    except Exception as error:  # YAML files can make Hydra raise anything
        plain = compose_job([], loader) if options else Job([], OmegaConf.create())
        groups = [option.partition("=")[0] for option in options]
        return plain._replace(options=options, unknown=groups, problem=explain(error))
    choices = dict(config.hydra.runtime.choices)
    choices |= dict(o.split("=", 1) for o in options if "=[" in o)  # Hydra leaves lists out
    ours = {group: name for group, name in choices.items() if name and "hydra/" not in group}
    files = {key: file for file, values in loader.files.items() for key in values}
    below: dict[str, Any] = {}
    for file, values in loader.files.items():
        below |= {} if file.startswith(f"{PRESETS}/") else values
    defaults, in_files = {}, []
    for key, value in iterate_settable(config):
        text = f"{key}={json.dumps(value, default=str)} (conf/{files.get(key)})"
        in_files.append(Setting(text, key, value))
        if key in below:
            defaults[key] = below[key]
            if "${" in str(below[key]):
                without = copy.deepcopy(config) if value != below[key] else config
                OmegaConf.update(without, key, below[key], merge=False)
                defaults[key] = resolve_or_none(without, key)
    note = None
    if keys := [key for keys in loader.dropped.values() for key in keys]:
        instead = [option for option in options if option.partition("=")[0] in loader.dropped]
        preset = f"{PRESETS}={ours[PRESETS]}"
        note = f"{preset}: its {', '.join(keys)} do not apply to {' '.join(instead)}"
    return Job(options, config, ours, defaults, in_files, note=note)


def check_job(
    job: Job, typed: Sequence[Setting], unknown: Sequence[str]
) -> Iterator[tuple[str, str | None]]:
    """What is wrong with a job: with what was typed for our keys, or in the YAML files.

    unknown: groups without a valid option, so that their keys are not known either.
    """
    if job.problem:
        yield " ".join(job.options) or "conf/config.yaml", job.problem
    if not job.defaults:
        return
    unknown = [*unknown, *job.unknown]
    for key, rule in RULES.items():
        yield key, None if key in job.defaults else f"in no YAML file; must be {rule.allowed}"
    typed = [s for s in typed if s.key in job.defaults or s.key.partition(".")[0] not in unknown]
    in_force = {setting.key: setting for setting in [*job.in_files, *typed]}
    for setting in [*typed, *in_force.values()]:
        yield setting.text, check_setting(setting, job)
    for setting in [*typed, *in_force.values()]:  # now that all are set
        yield setting.text, check_support(setting, job.config)
        key, value, is_typed = setting.key, setting.value, setting in typed
        yield setting.text, check_with_others(key, value, job.config, is_typed)
    ours = [str(key) for key in job.config if key != "hydra"]
    yield from target_problems(OmegaConf.to_container(OmegaConf.masked_copy(job.config, ours)))


def check_setting(setting: Setting, job: Job) -> str | None:
    """What is wrong with this setting; sets it in the job's config: others may refer to it."""
    key, value = setting.key, setting.value
    if key not in job.defaults:
        return describe_unknown_key(key, job)
    if not setting.changes:
        return f"keys cannot be added or removed; write {key}=<value>"
    if "${hydra:" in str(value):  # has a value only in a running job
        return None
    try:
        OmegaConf.update(job.config, key, value, merge=False)
        found = resolve(job.config, key)
    except MissingMandatoryValue:
        return f"has no default; write {key}=<value>"
    except OmegaConfBaseException as error:
        return explain(error)
    problem = check_secret(key, found) or rule_for(key, job.defaults[key]).wrong(found)
    if problem is None and key == "trainer.device" and found not in ("auto", "cpu"):
        from mnist_exp.experiment.environment import list_devices  # imports torch: a second

        present = list_devices()
        if found not in present:
            return f"not on this machine, which has {', '.join(present)}"
    return problem


def check_support(setting: Setting, config: DictConfig) -> str | None:
    """What the config's device, or the number of processes, lacks for this setting."""
    key, value = setting.key, setting.value
    supported = () if key == "batch_size" and is_distributed() else EVERYWHERE.get(key, [value])
    if value in supported or not RULES[key].admits(value):
        return None
    from mnist_exp.experiment import environment

    device = resolve_or_none(config, "trainer.device")
    if device not in ("auto", *environment.list_devices()):
        return None  # check_setting has reported it
    return environment.check_support(key, value, environment.choose_device(device))


def describe_unknown_key(key: str, job: Job) -> str:
    """Which keys there are instead, and the nearest: one of the same name, or a similar one."""
    if new := KEYS.get(key):
        return f"it is {new} now"
    group, _, name = key.partition(".")
    if group in job.choices:
        names = [k.removeprefix(f"{group}.") for k in job.defaults if k.startswith(f"{group}.")]
        there_are = f"{group}={job.choices[group]} has {', '.join(names) or 'none'}"
    else:
        name, names = key, [*job.defaults, *job.choices]
        top = sorted({*map(str, job.config), *job.choices} - {"hydra"})
        there_are = f"there are {', '.join(top)}"
    elsewhere = [k for k in job.defaults if f".{k}".endswith(f".{key.rpartition('.')[2]}")]
    near = did_you_mean(key, elsewhere, cutoff=0) or did_you_mean(name, names)
    return f"no such key; {there_are}{near or find_in_other_options(key, group)}"


def find_in_other_options(key: str, group: str) -> str:
    """Which options of the group have the key; empty where none has."""
    having = []
    for option in GlobalHydra.instance().config_loader().get_group_options(group):
        with catch_warnings(), suppress(Exception):
            simplefilter("ignore")  # Hydra's, about a file composed on its own
            if key in dict(iterate_settable(compose(f"{group}/{option}"))):
                having.append(option)
    return f"; {key} is there with {group}={' | '.join(having)}" if having else ""


def iterate_settable(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Each of our keys that can be set, with its value as it is written; `_target_` cannot."""
    for key, value in leaves(config, resolve=False):
        if not key.startswith("hydra.") and not key.rpartition(".")[2].startswith("_"):
            yield key, value


def resolve(config: DictConfig, key: str) -> Any:
    """Raises OmegaConfBaseException where the value is missing, or refers to nothing."""
    value = OmegaConf.select(config, key, throw_on_missing=True)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def resolve_or_none(config: DictConfig, key: str) -> Any:
    """The key's value, or None where it has none yet."""
    with suppress(OmegaConfBaseException):
        return resolve(config, key)
    return None


def explain(error: BaseException) -> str:
    """The first cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option} {one_of(*error.options).wrong(option)}"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        lines = str(error).splitlines()  # all but the first are about how Hydra works
        line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        return line.partition(". Did you mean: ")[0]  # Hydra 1.4's, about a part of the key
    return one_line(error)
