"""Classify image files: `python predict.py --help` shows what can be asked."""

from mnist_exp.cli.predict import predict

if __name__ == "__main__":
    predict()
