"""The command line, parsed once: Hydra's flags, and every key=value."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig

from mnist_exp.errors import BadInput, sanitize
from mnist_exp.experiment.find import find_init
from mnist_exp.experiment.shell import quote
from mnist_exp.paths import add_config_dir

# Flags of Hydra's that the check of the command line does not see, or that unpickle a file.
UNSUPPORTED = {
    "config_path": "--config-dir FOLDER adds options of your own to those of conf/",
    "config_name": "resume= and reproduce= take the config of a run; conf/experiment/ has presets",
    "experimental_rerun": "reproduce= trains a run again",
}


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


def parse_flags() -> Namespace:
    """Hydra's flags in sys.argv, and as `overrides` the rest; adds the folder of --config-dir.

    Raises BadInput for a flag that is unknown or not supported.
    """
    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    flags = parser.parse_args()
    for flag, instead in UNSUPPORTED.items():
        if getattr(flags, flag) is not None:
            name = flag.replace("_", "-")
            raise BadInput(f"--{name} is not supported; {instead}")
    if flags.config_dir is not None:
        add_config_dir(flags.config_dir)
    return flags


def refuse(message: str) -> NoReturn:
    """Report an unknown flag in one line; argparse would print its whole usage."""
    advice = "--help shows the options"
    if message.startswith("unrecognized arguments") and ": -" not in message:
        advice = "write flags such as -m before the first key=value"
    raise BadInput(f"{message}; {advice}")


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
