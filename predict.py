"""Classify image files: `python predict.py --help` shows what can be asked."""

import sys
from pathlib import Path

# The code of this checkout, even where another one is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from mnist_exp.cli.predict import predict

if __name__ == "__main__":
    predict()
