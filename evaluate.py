"""Evaluate a trained model: `python evaluate.py --help` shows how."""

from mnist_exp.scripts.evaluate import evaluate

if __name__ == "__main__":
    evaluate()
