"""Train: `python train.py --help` shows what can be set."""

from mnist_exp.cli.main import train

if __name__ == "__main__":
    train()
