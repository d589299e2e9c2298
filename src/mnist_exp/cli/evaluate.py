"""`python evaluate.py`: how good a trained model is on a whole split."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
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
  python evaluate.py --compare SWEEP_A SWEEP_B          two sweeps over seeds, from their records
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
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("SWEEP_A", "SWEEP_B"),
        help="instead of evaluating a model, show the difference between two sweeps over seeds: "
        "of the means of each metric, with its 95 %% interval; latest, or a sweep's folder",
    )
    options = parser.parse_args()
    command = compare_sweeps if options.compare else evaluate_split
    run_and_exit(lambda: command(options))


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


def compare_sweeps(options: Namespace) -> int:
    """Print how the runs of two sweeps differ; returns the exit code."""
    from mnist_exp.experiment.screen import log, show_on_screen, show_table
    from mnist_exp.sweeps.compare import HEADER, compare_samples, read_sample

    samples = [read_sample(word) for word in options.compare]
    differences = compare_samples(*samples)
    if options.json:
        found = {"a": samples[0].name, "b": samples[1].name}
        print(json.dumps({**found, "differences": list(map(asdict, differences))}, indent=2))
        return 0
    show_on_screen()
    for letter, sample in zip("AB", samples, strict=True):
        log.info("%s        %s", letter, sample.name)
    rows = [difference.cells() for difference in differences]
    show_table("Difference of the means", HEADER, rows)
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
