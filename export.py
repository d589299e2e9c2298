"""Export: `python export.py --help` shows the formats."""

from mnist_exp.cli.export import export

if __name__ == "__main__":
    export()
