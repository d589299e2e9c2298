"""Everything that is wrong with a command line, reported at once, before anything is created.

Hydra itself stops at the first problem, and notices a wrong value only when the job uses it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType, RangeSweep
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mnist_exp.errors import did_you_mean, one_line, sanitize
from mnist_exp.experiment.find import find_init
from mnist_exp.experiment.presets import PRESETS, Loader, initialize_hydra, set_overrides
from mnist_exp.experiment.renamed import KEYS
from mnist_exp.experiment.rules import (
    RULES,
    check_characters,
    check_secret,
    check_with_others,
    leaves,
    rule_for,
)
from mnist_exp.experiment.shell import quote
from mnist_exp.experiment.targets import SEVERAL, TARGET, read_options, target_problems
from mnist_exp.paths import expand
from mnist_exp.sweeps.jobs_file import as_typed, read_rows
from mnist_exp.training.options import THREADS
from mnist_exp.training.rules import integer, one_of
from mnist_exp.training.torchrun import is_distributed

if TYPE_CHECKING:
    from mnist_exp.sweeps.records import Chosen

Found = list[tuple[str, str | None]]  # what was typed, and what is wrong with it, if anything

# Keys of the launcher local and the sweeper optuna. The names are those in sweeps/search.py, which
# imports optuna.
SWEEP_RULES = {
    "hydra.launcher.n_jobs": THREADS,
    "hydra.sweeper.n_trials": integer(1),
    "hydra.sweeper.n_jobs": integer(1),
    "hydra.sweeper.sampler": one_of("tpe", "gp", "cmaes", "qmc", "nsgaii", "random", "brute_force"),
    "hydra.sweeper.pruner": one_of(
        "median", "percentile", "successive_halving", "hyperband", "none"
    ),
}
NOT_OF_A_JOB = ("hydra.", "hydra/", "sweep.", "trainer.monitor")  # keys of a sweep as a whole
# Option → the package that it needs, and the extra that installs it.
PLUGINS = {
    "submitit_local": ("submitit", "sweep"),
    "submitit_slurm": ("submitit", "sweep"),
    "optuna": ("optuna", "sweep"),
    "cmaes": ("cmaes", "sweep"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
}
# Values that every machine supports. For others torch is asked, which takes a second to import.
EVERYWHERE = {"trainer.precision": ("float32", "bfloat16"), "trainer.compile": (False,)}


class Setting(NamedTuple):
    """One value for a key or a group."""

    text: str  # as typed, or with the YAML file that has it
    key: str
    value: Any
    changes: bool = True  # false: adds or removes the key


class Argument(NamedTuple):
    """A key=value as it was typed, as Hydra parses it, and each single value in it."""

    text: str
    override: Override
    settings: list[Setting]


class Checked(NamedTuple):
    """What a command line asks for, and what is wrong with it."""

    problems: list[str]  # lines for a person: key, value, what is allowed
    notes: list[str]  # a line for each preset whose keys do not all apply
    arguments: list[Argument]  # in a sweep, those of its files first
    rows: list[Chosen]  # the combinations of sweep.jobs
    words: list[str]  # what was typed, after what a preset of a sweep says of all jobs
    config: DictConfig  # of the run, or of a job of the sweep; only where there is no problem


def problems(words: Sequence[str], multirun: bool = False) -> list[str]:
    """One line for each thing that is wrong with these overrides.

    The YAML files that they choose are checked with them.
    """
    with initialize_hydra() as loader:
        return check(words, multirun, loader).problems


def check(words: Sequence[str], multirun: bool, loader: Loader) -> Checked:
    """Check arguments, of a sweep with `multirun`, and the YAML files that they choose."""
    arguments, lines = parse(words, loader)
    found, choices, settings = sort_arguments(arguments, multirun, loader)
    first = job = compose_job(next(combine(choices)), loader)
    wrong: Found = []
    if first.defaults:
        for text, override, _ in arguments:
            if override.key_or_group.startswith("hydra.") and not override.is_sweep_override():
                wrong.append((text, set_hydra_key(first.config, override, loader)))
        for setting in settings:
            if setting.key in first.defaults:
                with suppress(OmegaConfBaseException):  # check_job says what is wrong
                    OmegaConf.update(first.config, setting.key, setting.value, merge=False)
        set_overrides(first.config, [argument.override for argument in arguments])
    rows: list[Chosen] = []
    if multirun:
        typed = {argument.override.key_or_group for argument in arguments}
        values = {k: v for k, v in read_preset(first.config, loader).items() if k not in typed}
        preset, more = parse([f"{key}={value}" for key, value in values.items()], loader)
        words = [a.text for a in preset if not a.override.is_sweep_override()] + [*words]
        rows, in_file, problems = parse_jobs(first.config, typed | values.keys(), loader)
        arguments, lines = [*in_file, *preset, *arguments], [*problems, *more, *lines]
        found, choices, settings = sort_arguments(arguments, multirun, loader)
        wrong += check_sweep_keys(first.config)
    unknown = [group for group, texts in choices.items() if not texts]
    notes = []
    for options in combine(choices):
        if options != first.options:
            job = compose_job(options, loader)
        wrong += check_job(job, settings, unknown)
        notes += [job.note] if job.note else []
    lines += [sanitize(f"{text}: {problem}") for text, problem in found + wrong if problem]
    lines, notes = list(dict.fromkeys(lines)), list(dict.fromkeys(notes))  # jobs can share them
    return Checked(lines, notes, arguments, rows, [*words], first.config)


def read_preset(config: DictConfig, loader: Loader) -> dict[str, str]:
    """What a preset in conf/sweep/ says about jobs, as it would be typed: key → value or values.

    That is, what to sweep over, and every key that it sets.
    """
    files = [values for file, values in loader.files.items() if file.startswith("sweep/")]
    found = {key: as_typed(value) for values in files for key, value in values.items()}
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    ours = {key: value for key, value in found.items() if not key.startswith(("hydra.", "sweep."))}
    return ours | dict(params)


def parse_jobs(
    config: DictConfig, typed: Collection[str], loader: Loader
) -> tuple[list[Chosen], list[Argument], list[str]]:
    """The combinations in the file of sweep.jobs, their values by key, and what is wrong."""
    file, resume = (OmegaConf.select(config, f"sweep.{key}") for key in ("jobs", "resume"))
    if not isinstance(file, str) or (resume is not None and not expand(file).exists()):
        return [], [], []  # the sweep's record has the jobs
    try:
        rows = read_rows(expand(file))
    except FileNotFoundError:
        return [], [], [f"sweep.jobs={file}: no such file"]
    except Exception as error:  # YAML and CSV raise errors of their own
        reason = f"{one_line(error)}; a CSV file needs keys in its first line, a YAML file a list"
        return [], [], [f"sweep.jobs={file}: {reason} of mappings"]
    arguments, problems = [], []
    for key in rows[0]:
        found, more = parse(dict.fromkeys(f"{key}={row[key]}" for row in rows), loader)
        several = [text for text, override, _ in found if override.is_sweep_override()]
        problems += [*more, *(f"{text}: has several values; a job needs one" for text in several)]
        if found:
            settings = [single for argument in found for single in argument.settings]
            arguments.append(found[0]._replace(settings=settings))
            key = found[0].override.key_or_group
        if key in typed:
            problems.append(f"{key}: is in sweep.jobs={file}, too; remove it from one of them")
        elif key.startswith(NOT_OF_A_JOB):
            problems.append(f"{key}: cannot differ between jobs; remove it from sweep.jobs={file}")
    return rows, arguments, problems


def sort_arguments(
    arguments: Sequence[Argument], multirun: bool, loader: Loader
) -> tuple[Found, dict[str, list[str]], list[Setting]]:
    """What is wrong with each argument alone, the valid options of each group, and our keys."""
    found: Found = []
    choices: dict[str, list[str]] = {}  # group → its valid overrides, several in a sweep
    settings: list[Setting] = []
    for text, override, singles in arguments:
        found.append((text, check_mode(override, multirun)))
        found.append((text, check_sweep(override, singles, multirun)))
        if options := loader.get_group_options(override.key_or_group):
            wrong = {single.text: check_option(single, options) for single in singles}
            found += wrong.items()
            choices[override.key_or_group] = [text for text in wrong if not wrong[text]]
        elif not override.is_hydra_override():
            settings += singles
    return found, choices, settings


def combine(choices: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Group overrides into as few jobs as cover each option.

    Not all combinations, which can be many: which keys exist depends on single options.
    """
    several = [texts for texts in choices.values() if texts]
    for number in range(max(map(len, several), default=1)):
        yield [texts[number % len(texts)] for texts in several]


def check_mode(override: Override, multirun: bool) -> str | None:
    """What is only for a sweep, or only for a single run."""
    key = override.key_or_group
    if key.partition(".")[0] == "sweep" and not multirun:
        return "is only for a sweep, which needs -m"
    if key in ("resume", "reproduce") and multirun:
        return "is only for a single run; leave out -m"
    if key == "reproduce" and is_distributed():
        return "works in a single process only; leave out torchrun"
    if key == "hydra.mode":
        return "cannot be set; a sweep needs -m"
    return None


def check_sweep(override: Override, singles: Sequence[Setting], multirun: bool) -> str | None:
    if not override.is_sweep_override():
        return None
    if not multirun:
        return "several values; a sweep over them needs -m"
    if f"{override.key_or_group}.".startswith(NOT_OF_A_JOB):
        return "several values; all jobs of a sweep share this key"
    values = [repr(single.value) for single in singles]
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        return f"has {twice} more than once"
    return None if values else "gives no value"


def check_option(setting: Setting, options: Sequence[str]) -> str | None:
    if not setting.changes:
        return f"groups cannot be added or removed; write {setting.key}=<option>"
    if setting.key == "hydra/sweeper":  # Hydra's own knows neither pairs nor files
        options = [option for option in options if option != "basic"]
    names = [setting.value]
    if setting.key in SEVERAL and isinstance(setting.value, list):
        names = setting.value
        if len(set(map(str, names))) < len(names):
            return "has an option more than once"
        if not names and setting.key != "callbacks":
            return "at least one option is needed"
    for name in names:
        if wrong := check_plugin(name) or one_of(*options).wrong(name):
            return wrong
    return None


def check_plugin(name: object) -> str | None:
    """How to install what an option needs, if it is missing."""
    if isinstance(name, str) and name in PLUGINS and find_spec(PLUGINS[name][0]) is None:
        python = "needs Python 3.14, for Hydra 1.4" if name == "ray" else "is not installed"
        return f"{python}; pip install -e '.[{PLUGINS[name][1]}]'"
    return None


def check_sweep_keys(config: DictConfig) -> Found:
    """What is wrong with the keys of sweeper and launcher, typed or in a YAML file."""
    if "JoblibLauncher" in config.hydra.launcher._target_:
        return [("hydra/launcher=joblib", "not supported; hydra/launcher=local has replaced it")]
    found: Found = []
    for key, rule in SWEEP_RULES.items():
        group, _, name = key.rpartition(".")
        options = OmegaConf.select(config, group) or {}
        if name in options:
            value = options[name]
            found.append((f"{key}={value}", rule.wrong(value) or check_plugin(value)))
    return found


def set_hydra_key(config: DictConfig, override: Override, loader: Loader) -> str | None:
    """Set what was typed for one of Hydra's own keys; return what is wrong with it."""
    key = override.key_or_group
    if key == "hydra.searchpath":
        return "not supported; --config-dir FOLDER adds a folder of options"
    if TARGET in str(override.input_line):
        return f"a {TARGET} cannot be set on the command line; put it in a YAML file"
    try:
        if problem := check_secret(key, override.value()):
            return problem
        loader._apply_overrides_to_config([override], config)
    except Exception as error:  # not only Hydra's own
        known = [f"hydra.{name}" for name, _ in leaves(config.hydra, resolve=False)]
        near = "" if key in known else did_you_mean(key, known)
        return explain(error) + near
    return None


# --- arguments ---


def parse(words: Iterable[str], loader: Loader) -> tuple[list[Argument], list[str]]:
    """Each key=value, and a line for each word that Hydra cannot parse.

    loader: lists the options of a group, for glob(*).
    """
    arguments, problems = [], []
    for word in words:
        try:
            arguments.append(parse_word(word, loader))
        except Exception as error:  # Hydra's functions raise what Python raises: range(1,9,0)
            what = str(error).partition("\n")[0].partition(" expecting ")[0]
            advice = "write key=value, or 'key=\"value\"' for special characters"
            problems.append(sanitize(f"{word}: not understood ({what}); {advice}"))
    return arguments, problems


def parse_word(word: str, loader: Loader) -> Argument:
    """Raises HydraException, or what a function in the word raises: ValueError and others."""
    parser = OverridesParser.create(loader)
    override = parser.parse_override(word)
    if not override.key_or_group:
        raise HydraException("no key")
    singles: Sequence[Override] = [override]
    if override.is_sweep_override():
        override.config_loader = loader
        key, space = override.get_key_element(), override.value()
        if isinstance(space, IntervalSweep):
            values = [str(space.start), str(space.end)]
        else:
            values = list(override.sweep_string_iterator())
        if isinstance(space, RangeSweep) and not space.shuffle:
            values = [*values[:1], *values[1:][-1:]]  # where its ends are allowed, all of it is
        singles = [parser.parse_override(f"{key}={value}") for value in values]
    changes = override.type is OverrideType.CHANGE and override.package is None
    key = override.key_or_group
    settings = [Setting(str(o.input_line), key, o.value(), changes) for o in singles]
    return Argument(word, override, settings)


def pin_init(arguments: Sequence[Argument], config: DictConfig) -> dict[str, str]:
    """Each `init=` as it was typed → with paths: "latest" is another run once this one exists.

    Raises BadInput if there is nothing by that name.
    """
    pinned = {}
    for text, override, settings in arguments:
        if override.key_or_group == "init":
            found = [s.value and find_init(str(s.value), config)[0] for s in settings]
            pinned[text] = f"init={','.join(quote(word) if word else 'null' for word in found)}"
    return pinned


# --- a job: its keys and values, where its options are known ---


class Job(NamedTuple):
    """A job as the YAML files have it."""

    options: Sequence[str]
    config: DictConfig  # with Hydra's part
    choices: Mapping[str, str]  # group → option
    defaults: Mapping[str, Any]  # of every key that can be set, below a preset
    in_files: Sequence[Setting]
    problem: str | None = None  # why its options cannot be composed; all else is without them
    note: str | None = None  # which keys of the preset do not apply


def compose_job(options: Sequence[str], loader: Loader) -> Job:
    """The job with these options; without any, and with a problem, if they cannot be composed."""
    try:
        config = compose("config", list(options), return_hydra_config=True)
    except Exception as error:  # YAML files can make Hydra raise anything
        plain = compose_job([], loader) if options else Job([], OmegaConf.create(), {}, {}, [])
        return plain._replace(options=options, problem=explain(error))
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
        apply = "does not apply" if len(keys) == 1 else "do not apply"
        preset = f"{PRESETS}={ours[PRESETS]}"
        note = f"{preset}: its {', '.join(keys)} {apply} to {' '.join(instead)}"
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
    if job.problem:
        unknown = [*unknown, *(option.partition("=")[0] for option in job.options)]
    for key, rule in RULES.items():
        yield key, None if key in job.defaults else f"not in any YAML file; must be {rule.allowed}"
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
    problem = check_secret(key, found) or check_characters(found)
    problem = problem or rule_for(key, job.defaults[key]).wrong(found)
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
        return f"it is now {new}"
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
    files = [(o, OmegaConf.create({group: values})) for o, values in read_options(group, "")]
    having = sorted(option for option, file in files if key in dict(iterate_settable(file)))
    return f"; {key} exists with {group}={' | '.join(having)}" if having else ""


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
