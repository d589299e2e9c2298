"""`python evaluate.py`: what a trained model is worth on a whole split."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from mnist_exp.cli.options import Parser, answer, chosen
from mnist_exp.errors import BadInput
from mnist_exp.tracking.addresses import tracking_uri

DESCRIPTION = """\
What a trained model is worth on a whole split: loss, accuracy with its 95 % interval, precision,
recall and F1 of each class, confusion, calibration error; pictures of them.

  python evaluate.py                                    the best run, on its test set
  python evaluate.py --run latest --split val --json
  python evaluate.py --data image_folder data.root=photos data.size=28
"""


def evaluate() -> None:
    """What `python evaluate.py` does."""
    parser = Parser(DESCRIPTION)
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar=("DATASET", "data.KEY=VALUE"),
        help="another set of the same kind of images, or the run's own where it lies elsewhere; "
        "options as of train.py",
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON, and nothing else")
    parser.add_argument(
        "--figures",
        metavar="FOLDER",
        type=Path,
        help="for the pictures; by default figures/ in the run's output folder",
    )
    parser.add_argument("--log", action="store_true", help="figures and pictures to the MLflow run")
    options = parser.parse_args()
    answer(lambda: evaluated(options))


def evaluated(options: Namespace) -> int:
    """Tell, draw and log what the model is worth; returns the exit code."""
    data = overrides(options.data)
    checkpoint = chosen(options)
    from mnist_exp.inference import evaluation

    found = evaluation.evaluated(checkpoint, options.split, data, options.device)
    folder, files = found.draw(options.figures)
    if options.json:
        print(found.json())
    else:
        found.show(folder)
    if options.log:
        found.log(tracking_uri(), files)
    return 0


def overrides(typed: list[str]) -> list[str]:
    """What `--data` says, as train.py is told it. Raises BadInput with a line for each mistake."""
    if not typed:
        return []
    dataset, *more = typed
    if "=" in dataset:
        raise BadInput(f"--data {dataset}: first the data set's name, then data.<key>=<value>")
    if foreign := [word for word in more if not word.startswith("data.")]:
        raise BadInput(f"--data {foreign[0]}: not of the data set; write data.<key>=<value>")
    from mnist_exp.cli.check import problems  # a quarter of a second to import

    found = [f"data={dataset}", *more]
    if lines := problems(found):
        raise BadInput(*(f"--data {line}" for line in lines))
    return found
