"""Train: `python train.py --help` shows what can be set."""

import sys
from pathlib import Path

# The code of this checkout, even where another one is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from mnist_exp.cli.main import train

if __name__ == "__main__":
    train()
