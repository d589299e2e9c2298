"""`python predict.py IMAGE...`: the class of each image, or its digits, by a trained model."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_exp.cli.options import Parser, choose_checkpoint
from mnist_exp.cli.process import run_and_exit
from mnist_exp.errors import BadInput, print_line, sanitize

if TYPE_CHECKING:
    from mnist_exp.inference.classifier import Prediction

DESCRIPTION = """\
Classify image files of any size, dark on light or light on dark, photographed or drawn. Several
digits in a picture are read in reading order.

  python predict.py five.png
  python predict.py --run latest --top 1 --json scans/*.jpg
  python predict.py --csv scans > digits.csv
  python predict.py --show seen.png five.png
"""
PICTURES = (".png", ".pdf", ".svg")
MOST_WORKERS = 8  # processes; each may hold a large image
MOST_SHOWN = 50  # images in one picture; more would be too small to see
CSV_HEADER = ("image", "label", "probability", "left", "top", "right", "bottom")

Answer = list["Prediction"]  # one for each digit of an image, or one for all of it


def predict() -> None:
    """What `python predict.py` does. An unreadable image does not stop the others."""
    parser = Parser(DESCRIPTION)
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="a file, or a folder of files"
    )
    parser.add_argument(
        "--top", type=int, default=3, metavar="N", help="how many classes to print; default 3"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object per line")
    form.add_argument("--csv", action="store_true", help="a table with a row for each digit")
    parser.add_argument(
        "--show",
        type=Path,
        metavar="FILE",
        help="draw the boxes of the digits, what the model sees, and its probabilities, as png, "
        "pdf or svg",
    )
    options = parser.parse_args()
    if options.top < 1:
        parser.error(f"--top {options.top}: must be an integer >= 1")
    if options.show and options.show.suffix not in PICTURES:
        parser.error(f"--show {options.show}: must end in {', '.join(PICTURES)}")
    if options.show and not options.show.parent.is_dir():
        parser.error(f"--show {options.show}: there is no folder {options.show.parent}")
    options.images = [file for path in options.images for file in list_files(path)]
    if options.show and len(options.images) > MOST_SHOWN:
        parser.error(
            f"--show {options.show}: at most {MOST_SHOWN} images, not {len(options.images)}"
        )
    run_and_exit(lambda: classify_files(options))


def list_files(path: Path) -> list[Path]:
    """The image files in a folder and those below it, by name; a path that is no folder itself."""
    from mnist_exp.data.listing import is_image, is_junk

    if not path.is_dir():
        return [path]
    files: list[Path] = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not is_junk(name))
        files += [
            Path(folder, name) for name in sorted(names) if is_image(name) and not is_junk(name)
        ]
    return files or [path]  # which is reported as a folder


def classify_files(options: Namespace) -> int:
    """Print what is on each image, and draw them for --show; returns the exit code."""
    from rich.console import Console
    from rich.progress import Progress

    from mnist_exp.experiment.load import load_model
    from mnist_exp.inference.classifier import BATCH, Classifier
    from mnist_exp.inference.preprocess import UnreadableImage
    from mnist_exp.machine import count_cores, keep_freed_memory

    trained = load_model(choose_checkpoint(options), options.device)
    paths, code = options.images, 0
    shown: list[tuple[Path, Answer]] = []
    width = max(len(sanitize(str(path))) for path in paths)
    # Larger blocks are those of large images: kept, they would add up over the threads.
    keep_freed_memory(largest_block=4 << 20, at_most=32 << 20)
    print_line(f"{trained.source}, trained on {trained.kind.name}", sys.stderr)
    screen = Console(stderr=True, soft_wrap=True)
    with Progress(
        console=screen,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        disable=not screen.is_terminal or len(paths) <= BATCH,
    ) as bar:
        table = csv.writer(sys.stdout, lineterminator="\n")
        if options.csv:
            table.writerow(CSV_HEADER)
        workers = min(count_cores(), MOST_WORKERS) if len(paths) > BATCH else 0
        answers = Classifier(trained).classify([(str(path), path) for path in paths], workers)
        for path, answer in zip(paths, bar.track(answers, len(paths)), strict=True):
            if isinstance(answer, UnreadableImage):
                print_line(f"error: {path}: {answer}", sys.stderr)
                code = BadInput.exit_code
                continue
            if options.json:
                print(json.dumps(describe(path, answer, options.top)))
            elif options.csv:
                table.writerows(tabulate(path, answer))
            else:
                print_line(f"{sanitize(str(path)):{width}}  {format_answer(answer, options.top)}")
            sys.stdout.flush()
            if options.show:
                shown.append((path, answer))
    if shown:
        draw_pictures(options.show, shown, trained.kind.class_names)
    return code


def keep_top(probabilities: dict[str, float], count: int) -> dict[str, float]:
    return dict(list(probabilities.items())[:count])


def list_best(answer: Answer) -> list[tuple[str, float]]:
    """The label of each digit and its probability."""
    return [(each.label, each.probabilities[each.label]) for each in answer]


def describe(path: Path, answer: Answer, top: int) -> dict[str, object]:
    """The JSON object of an image; with its digits, if they have boxes.

    Several digits have one label, and the product of their probabilities.
    """
    labels, values = zip(*list_best(answer), strict=True)
    digits = [
        {
            "box": each.found.box,
            "label": each.label,
            "probabilities": keep_top(each.probabilities, top),
        }
        for each in answer
    ]
    label = "".join(labels)
    whole = digits[0]["probabilities"] if len(digits) == 1 else {label: math.prod(values)}
    result: dict[str, object] = {"image": str(path), "label": label, "probabilities": whole}
    return {**result, "digits": digits} if answer[0].found.box else result


def tabulate(path: Path, answer: Answer) -> list[tuple[object, ...]]:
    """The rows of an image, as CSV_HEADER names them; without a box for a whole picture."""
    boxes = [each.found.box or ("",) * 4 for each in answer]
    pairs = zip(list_best(answer), boxes, strict=True)
    return [(sanitize(str(path)), *best, *box) for best, box in pairs]


def format_answer(answer: Answer, top: int) -> str:
    """The most probable classes of an image; or its digits, each with its probability."""
    best, label = list_best(answer), ""
    if len(answer) == 1:
        best = list(answer[0].probabilities.items())[:top]
    else:
        label = "".join(each.label for each in answer) + "   "
    return label + "   ".join(f"{name} {100 * value:5.1f} %" for name, value in best)


def draw_pictures(path: Path, shown: list[tuple[Path, Answer]], classes: Sequence[str]) -> None:
    from mnist_exp.data.decoding import read_colors
    from mnist_exp.figures import draw
    from mnist_exp.inference.preprocess import ENOUGH

    legible, pictures = dict(zip(classes, draw.make_legible(classes), strict=True)), []
    titles = draw.make_legible([sanitize(file.name) for file, _ in shown])
    for title, (file, answer) in zip(titles, shown, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            colors, scale = read_colors(file, ENOUGH)
        digits = [
            (
                each.found.box,
                each.found.image.transpose(1, 2, 0),
                {legible[name]: value for name, value in each.probabilities.items()},
            )
            for each in answer
        ]
        pictures.append((title, colors, scale, digits))
    draw.predictions(path, pictures)
