"""`mnist-exp` and `python -m mnist_exp`: what the scripts do, from an installed package."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from mnist_exp.errors import print_line
from mnist_exp.paths import PACKAGE

MODULES = {  # of cli, by command
    "train": "main",
    "predict": "predict",
    "evaluate": "evaluate",
    "export": "export",
    "demo": "demo",
}


def main() -> None:
    """Do what the script with the name of the first word does; without one, train."""
    here = Path.cwd()
    for checkout in (here, *here.parents):
        other = (checkout / "src" / PACKAGE.name).resolve()
        if other.is_dir() and other != PACKAGE:
            text = f"note: this runs {PACKAGE}, not {other}; {checkout}/train.py runs that"
            print_line(text, sys.stderr)
    words = sys.argv[1:]
    command = words.pop(0) if words and words[0] in MODULES else "train"
    sys.argv = [f"mnist-exp {command}", *words]
    getattr(import_module(f"mnist_exp.cli.{MODULES[command]}"), command)()


if __name__ == "__main__":
    main()
