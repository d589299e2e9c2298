"""Export: `python export.py --help` shows the formats."""

from mnist_exp.scripts.export import export

if __name__ == "__main__":
    export()
