"""Everything that is wrong with a command line, reported at once, before anything is created.

Hydra itself stops at the first problem, and notices a wrong value only when the job uses it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from hydra.conf import HydraConf
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.cli.arguments import Argument, Setting, as_typed, parse, parse_rows
from mnist_exp.cli.check_job import Job, check_job, compose_job, explain
from mnist_exp.errors import sanitize
from mnist_exp.experiment.presets import Loader, initialize_hydra, set_overrides
from mnist_exp.experiment.rules import check_secret, leaves
from mnist_exp.experiment.targets import SEVERAL, TARGET
from mnist_exp.paths import expand
from mnist_exp.training.rules import did_you_mean, one_of
from mnist_exp.training.torchrun import is_distributed

if TYPE_CHECKING:
    from mnist_exp.sweeps.records import Chosen

Found = list[tuple[str, str | None]]  # what was typed, and what is wrong with it, if anything

NOT_OF_A_JOB = ("hydra.", "hydra/", "sweep.", "trainer.monitor")  # keys of a sweep as a whole
# Option → the package that it needs, and the extra that installs it.
PLUGINS = {
    "joblib": ("joblib", "sweep"),
    "submitit_local": ("submitit", "sweep"),
    "submitit_slurm": ("submitit", "sweep"),
    "optuna": ("optuna", "sweep"),
    "tensorboard": ("tensorboard", "tensorboard"),
}


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
    wrong = set_typed(first, arguments, settings, loader) if first.defaults else []
    rows: list[Chosen] = []
    if multirun:
        typed = {argument.override.key_or_group for argument in arguments}
        values = {k: v for k, v in read_preset(first.config, loader).items() if k not in typed}
        preset, more = parse([f"{key}={value}" for key, value in values.items()], loader)
        words = [a.text for a in preset if not a.override.is_sweep_override()] + [*words]
        rows, in_file, problems = parse_jobs(first.config, typed | values.keys(), loader)
        arguments, lines = [*in_file, *preset, *arguments], [*problems, *more, *lines]
        found, choices, settings = sort_arguments(arguments, multirun, loader)
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
    """What a preset in conf/sweep/ says of the jobs, as it would be typed: key → value or values.

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
    """What `parse_rows` finds in the file of sweep.jobs, with what is wrong with its keys."""
    file, resume = (OmegaConf.select(config, f"sweep.{key}") for key in ("jobs", "resume"))
    if not isinstance(file, str) or (resume is not None and not expand(file).exists()):
        return [], [], []  # the sweep's record has the jobs
    rows, arguments, problems = parse_rows(file, loader)
    for argument in arguments:
        key = argument.override.key_or_group
        if key in typed:
            problems.append(f"{key}: is in sweep.jobs={file}, too; leave it out of one of them")
        elif key.startswith(NOT_OF_A_JOB):
            problems.append(f"{key}: cannot differ between jobs, as sweep.jobs={file} has it")
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
        return "is only for a sweep, which needs -m"
    if key in ("resume", "reproduce") and multirun:
        return "is only for a single run; leave out -m"
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
        if wrong := one_of(*options).wrong(name):
            return wrong
        if name in PLUGINS and find_spec(PLUGINS[name][0]) is None:
            return f"is not installed; pip install -e '.[{PLUGINS[name][1]}]'"
    return None


def set_typed(
    job: Job, arguments: Sequence[Argument], settings: Sequence[Setting], loader: Loader
) -> Found:
    """Set what was typed; return what is wrong with Hydra's own keys."""
    found: Found = []
    for text, override, _ in arguments:
        if override.key_or_group.startswith("hydra.") and not override.is_sweep_override():
            found.append((text, set_hydra_key(job.config, override, loader)))
    for setting in settings:
        if setting.key in job.defaults:
            with suppress(OmegaConfBaseException):  # check_job says what is wrong
                OmegaConf.update(job.config, setting.key, setting.value, merge=False)
    set_overrides(job.config, [argument.override for argument in arguments])
    return found


def set_hydra_key(config: DictConfig, override: Override, loader: Loader) -> str | None:
    """Set what was typed for one of Hydra's own keys; return what is wrong with it."""
    key = override.key_or_group
    if key == "hydra.searchpath":
        return "not supported; --config-dir FOLDER adds a folder of options"
    if TARGET in str(override.input_line):
        return f"a {TARGET} cannot be typed; name it in a YAML file"
    try:
        if problem := check_secret(key, override.value()):
            return problem
        loader._apply_overrides_to_config([override], config)
    except Exception as error:  # of more kinds than Hydra's own
        keys = leaves(OmegaConf.structured(HydraConf), resolve=False)
        known = [f"hydra.{name}" for name, _ in keys]
        near = "" if key in known else did_you_mean(key, known)
        return explain(error) + near
    return None
