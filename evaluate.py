"""Evaluate a trained model: `python evaluate.py --help` shows how."""

import sys
from pathlib import Path

# The code of this checkout, even where another one is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from mnist_exp.cli.evaluate import evaluate

if __name__ == "__main__":
    evaluate()
