"""A page to draw a digit on: `python demo.py --help` shows what can be set."""

from mnist_exp.cli.demo import demo

if __name__ == "__main__":
    demo()
