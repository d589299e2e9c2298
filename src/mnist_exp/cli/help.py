"""What `python train.py --help` prints: groups, options, defaults and comments of conf/.

Hydra's own help composes the config and asks for every group's options twice: half a second more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mnist_exp.experiment.shell import name_commands
from mnist_exp.paths import HOME_WORD, config_dirs

TEXT = """\
Train a classifier of handwritten digits, log it to MLflow, keep its weights.

  python train.py [group=option ...] [key=value ...]
  python train.py -m key=value,value,... [...]        a sweep: one run per combination

Groups and their options:

{groups}

Common keys, with their defaults:

{keys}

Examples:

  python train.py optimizer.lr=1e-3
  python train.py -m batch_size=32,64,128
  python train.py data=digits model=linear tracking=none

The whole config:  python train.py --cfg job
A sweep's jobs:    python train.py -m --cfg job [...]
Compare runs:      mlflow ui                          in the repository's root
Hydra's own flags: python train.py --hydra-help
The trained model: python predict.py --help       likewise evaluate, export, demo
"""
COMMON = (
    *("optimizer.lr", "batch_size", "seed", "trainer.epochs", "trainer.device", "trainer.keep"),
    *("data.val_fraction", "data.root", "init", "resume", "sweep.resume", "reproduce"),
)


def help_text() -> str:
    """The text, with every group and its options, those of --config-dir after those of conf/."""
    groups: dict[str, list[str]] = {}
    for folder in config_dirs:
        for path in sorted(folder.glob("*/*.yaml")):
            groups.setdefault(path.parent.name, []).append(path.stem)
    keys = [(f"{key}={value}", comment) for key, value, comment in common_keys()]
    width = max(len(key) for key, _ in keys)
    return name_commands(TEXT).format(
        groups="\n".join(f"{group}: {', '.join(options)}" for group, options in groups.items()),
        keys="\n".join(f"  {key:{width}}  {comment}" for key, comment in keys),
    )


def common_keys() -> Iterator[tuple[str, str, str]]:
    """Each of the COMMON keys that conf/ has, its default, and the comment on its line."""
    config = config_dirs[0] / "config.yaml"
    values = read_values(config)
    for group, option in re.findall(r"^  - (\w+): (\w+)", config.read_text("utf-8"), re.MULTILINE):
        path = config_dirs[0] / group / f"{option}.yaml"
        if path.exists():
            values |= {f"{group}.{key}": found for key, found in read_values(path).items()}
    for key in COMMON:
        if key in values:
            value, comment = values[key]
            yield key, value.removeprefix(f"{HOME_WORD}/"), comment


def read_values(path: Path) -> dict[str, tuple[str, str]]:
    """Each key of a YAML file, two levels deep, with its value and comment as they are written."""
    found, section = {}, ""
    line = re.compile(r"^( *)(\w+):(?: +([^#\n]*?))?(?: *# *(.*))?$", re.MULTILINE)
    for indent, key, value, comment in line.findall(path.read_text("utf-8")):
        section = section if indent else key
        found[f"{section}.{key}" if indent else key] = (value, comment)
    return found
