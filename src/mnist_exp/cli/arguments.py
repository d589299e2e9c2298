"""Arguments: every key=value of a command line, and the rows of sweep.jobs, parsed once."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig

from mnist_exp.errors import one_line, sanitize
from mnist_exp.experiment.find import find_init
from mnist_exp.experiment.shell import quote
from mnist_exp.paths import expand

if TYPE_CHECKING:
    from mnist_exp.sweeps.records import Chosen


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


def parse(words: Iterable[str], loader: ConfigLoader) -> tuple[list[Argument], list[str]]:
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


def parse_word(word: str, loader: ConfigLoader) -> Argument:
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
    """Each `init=` as it was typed, and with paths: "latest" is another run once this one exists.

    Raises BadInput if there is nothing of that name.
    """
    pinned = {}
    for text, override, settings in arguments:
        if override.key_or_group == "init":
            found = [s.value and find_init(str(s.value), config)[0] for s in settings]
            pinned[text] = f"init={','.join(quote(word) if word else 'null' for word in found)}"
    return pinned


def parse_rows(file: str, loader: ConfigLoader) -> tuple[list[Chosen], list[Argument], list[str]]:
    """The combinations in a file, their values as an argument for each key, and what is wrong."""
    arguments: list[Argument] = []
    try:
        rows = read_rows(expand(file))
    except FileNotFoundError:
        return [], [], [f"sweep.jobs={file}: no such file"]
    except Exception as error:  # YAML and CSV have their own kinds
        reason = f"{one_line(error)}; a CSV file has keys in its first line, a YAML file a list"
        return [], [], [f"sweep.jobs={file}: {reason} of mappings"]
    problems = []
    for key in rows[0]:
        values, more = parse(dict.fromkeys(f"{key}={row[key]}" for row in rows), loader)
        several = [text for text, override, _ in values if override.is_sweep_override()]
        problems += [*more, *(f"{text}: has several values, in one job" for text in several)]
        if values:
            settings = [single for value in values for single in value.settings]
            arguments.append(values[0]._replace(settings=settings))
    return rows, arguments, problems


def read_rows(path: Path) -> list[Chosen]:
    """Key → value, in each row of a CSV file or each mapping of a YAML file, as in an argument.

    Raises ValueError for rows of different keys and for equal rows, and what the readers raise.
    """
    text = path.read_text("utf-8-sig")
    if path.suffix.lower() == ".csv":
        rows = list(csv.DictReader(text.splitlines(), strict=True, skipinitialspace=True))
    else:
        rows = yaml.load(text, yaml.BaseLoader)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("no list of mappings")
    jobs: list[Chosen] = []
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():  # how DictReader says it
            raise ValueError(f"combination {number} has not as many values as there are keys")
        job = {str(key): as_typed(value) for key, value in row.items()}
        if jobs and job.keys() != jobs[0].keys():
            raise ValueError(f"combination {number} has other keys than the first")
        if job in jobs:
            raise ValueError(f"combination {number} is there twice")
        jobs.append(job)
    return jobs


def as_typed(value: Any) -> str:
    """A value of a YAML file as a person would type it."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{as_typed(item)}' for key, item in value.items())}}}"
    return f"[{','.join(map(as_typed, value))}]" if isinstance(value, list) else str(value)
