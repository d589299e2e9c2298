"""Evaluate a trained model: `python evaluate.py --help` shows how."""

from mnist_exp.cli.evaluate import evaluate

if __name__ == "__main__":
    evaluate()
