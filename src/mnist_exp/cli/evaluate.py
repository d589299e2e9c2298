"""`python evaluate.py`: how good a trained model is on a whole split."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from mnist_exp.cli.options import Parser, check_output, choose_checkpoint
from mnist_exp.cli.process import run_and_exit
from mnist_exp.errors import BadInput
from mnist_exp.tracking.addresses import tracking_uri

DESCRIPTION = """\
Evaluate a trained model on a whole split: loss, accuracy with its 95 % interval, precision, recall
and F1 of each class, confusion matrix, calibration error; pictures of them.

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
        help="another data set of the same kind of images, or the run's own data set in another "
        "folder; options as in train.py",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--figures",
        metavar="FOLDER",
        type=Path,
        help="where to draw the pictures; by default figures/ in the run's output folder",
    )
    parser.add_argument(
        "--predictions",
        metavar="FILE.csv",
        type=Path,
        help="write label, prediction and probabilities of each image to this file",
    )
    parser.add_argument(
        "--log", action="store_true", help="log metrics and pictures to the MLflow run"
    )
    options = parser.parse_args()
    run_and_exit(lambda: evaluate_split(options))


def evaluate_split(options: Namespace) -> int:
    """Print, draw and log the evaluation; returns the exit code."""
    data = parse_data(options.data)
    if options.predictions:
        check_output("--predictions", options.predictions)
    checkpoint = choose_checkpoint(options)
    from mnist_exp.inference import evaluation

    found = evaluation.evaluate_checkpoint(checkpoint, options.split, data, options.device)
    folder, files = found.draw(options.figures)
    if options.predictions:
        found.write_predictions(options.predictions)
    if options.json:
        print(found.to_json())
    else:
        found.show(folder)
    if options.log:
        found.log(tracking_uri(), files)
    return 0


def parse_data(typed: list[str]) -> list[str]:
    """The overrides that `--data` stands for. Raises BadInput with a line for each mistake."""
    if not typed:
        return []
    dataset, *more = typed
    if "=" in dataset:
        raise BadInput(f"--data {dataset}: first the data set's name, then data.<key>=<value>")
    if foreign := [word for word in more if not word.startswith("data.")]:
        raise BadInput(f"--data {foreign[0]}: not a key of the data set; write data.<key>=<value>")
    from mnist_exp.cli.check import problems  # a quarter of a second to import

    found = [f"data={dataset}", *more]
    if lines := problems(found):
        raise BadInput(*(f"--data {line}" for line in lines))
    return found
