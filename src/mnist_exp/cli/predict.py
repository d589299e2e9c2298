"""`python predict.py IMAGE...`: the class of each image, or its digits, by a trained model."""

from __future__ import annotations

import csv
import ctypes
import io
import json
import math
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_exp.cli.options import Parser, choose_checkpoint
from mnist_exp.cli.process import run_and_exit
from mnist_exp.errors import BadInput, print_line, sanitize

if TYPE_CHECKING:
    from mnist_exp.inference.preprocess import Found

DESCRIPTION = """\
Classify image files of any size, dark on light or light on dark, photographed or drawn. Several
digits on a picture are read in reading order.

  python predict.py five.png
  python predict.py --run latest --top 1 --json scans/*.jpg
  python predict.py --csv scans > digits.csv
  python predict.py --show seen.png five.png
"""
PICTURES = (".png", ".pdf", ".svg")
MOST_SHOWN = 50  # images in one picture; more would be too small to see
BATCH = 64  # images that are prepared, then classified together
M_MMAP_THRESHOLD = -3  # of malloc.h
CSV_HEADER = ("image", "label", "probability", "left", "top", "right", "bottom")

Answer = tuple["Found", dict[str, float]]  # and the probabilities by class, the highest first


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
    form.add_argument("--json", action="store_true", help="one JSON object a line")
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
        parser.error(f"--show {options.show}: {len(options.images)} images, at most {MOST_SHOWN}")
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
    import warnings
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from rich.console import Console
    from rich.progress import Progress

    from mnist_exp.experiment.load import load_model
    from mnist_exp.inference.preprocess import UnreadableImage, preprocess

    trained = load_model(choose_checkpoint(options), options.device)
    paths, names, code = options.images, trained.kind.class_names, 0
    shown: list[tuple[Path, list[Answer]]] = []
    width = max(len(sanitize(str(path))) for path in paths)

    def prepare(path: Path) -> list[Found] | UnreadableImage:
        try:
            return preprocess(path, trained.kind)
        except UnreadableImage as error:
            return error

    return_large_blocks()
    print_line(f"{trained.source}, trained on {trained.kind.name}", sys.stderr)
    if options.csv:
        print(format_row(CSV_HEADER), flush=True)
    screen = Console(stderr=True, soft_wrap=True)
    with (
        warnings.catch_warnings(),  # here, because a thread would change them for the others
        ThreadPoolExecutor(os.cpu_count()) as pool,
        Progress(
            console=screen,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            disable=not screen.is_terminal or len(paths) <= BATCH,
        ) as bar,
    ):
        warnings.simplefilter("ignore")
        for start in bar.track(range(0, len(paths), BATCH)):
            some = paths[start : start + BATCH]
            prepared = list(pool.map(prepare, some))
            found = [one for each in prepared if isinstance(each, list) for one in each]
            if found:
                logits = trained.logits(torch.stack([one.image for one in found]))
                rows = iter(logits.softmax(dim=1).tolist())
            for path, each in zip(some, prepared, strict=True):
                if isinstance(each, UnreadableImage):
                    print_line(f"error: {path}: {each}", sys.stderr)
                    code = BadInput.exit_code
                    continue
                answers = [(one, rank(names, next(rows))) for one in each]
                if options.json:
                    print(json.dumps(describe(path, answers, options.top)), flush=True)
                elif options.csv:
                    print(*map(format_row, tabulate(path, answers)), sep="\n", flush=True)
                else:
                    text = format_answers(answers, options.top)
                    print_line(f"{sanitize(str(path)):{width}}  {text}")
                if options.show:
                    shown.append((path, answers))
    if shown:
        draw_pictures(options.show, shown)
    return code


def return_large_blocks() -> None:
    """Let the C library give memory of more than 1 MB back at once: what a large image took.

    It would keep up to 32 MB a block, for each thread; so much more would each large image take.
    """
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def rank(names: Sequence[str], probabilities: list[float]) -> dict[str, float]:
    """The probabilities by class, the highest first."""
    return dict(sorted(zip(names, probabilities, strict=True), key=lambda pair: -pair[1]))


def top_of(probabilities: dict[str, float], count: int) -> dict[str, float]:
    return dict(list(probabilities.items())[:count])


def read(answers: list[Answer]) -> tuple[str, float]:
    """What a picture says: the labels of its digits, and the product of their probabilities."""
    best = [next(iter(probabilities.items())) for _, probabilities in answers]
    return "".join(label for label, _ in best), math.prod(value for _, value in best)


def describe(path: Path, answers: list[Answer], top: int) -> dict[str, object]:
    """The JSON object of an image; with its digits, if they have boxes."""
    label, probability = read(answers)
    probabilities = top_of(answers[0][1], top) if len(answers) == 1 else {label: probability}
    result: dict[str, object] = {"image": str(path), "label": label, "probabilities": probabilities}
    if answers[0][0].box:
        result["digits"] = [
            {"box": found.box, "label": next(iter(each)), "probabilities": top_of(each, top)}
            for found, each in answers
        ]
    return result


def tabulate(path: Path, answers: list[Answer]) -> list[tuple[object, ...]]:
    """The rows of an image, as CSV_HEADER names them; without a box for all of a picture."""
    return [
        (sanitize(str(path)), *next(iter(each.items())), *(found.box or ("",) * 4))
        for found, each in answers
    ]


def format_row(cells: tuple[object, ...]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def format_answers(answers: list[Answer], top: int) -> str:
    """The most probable classes of an image; or its digits, each with its probability."""
    if len(answers) == 1:
        return format_probabilities(top_of(answers[0][1], top).items())
    best = [next(iter(each.items())) for _, each in answers]
    return f"{read(answers)[0]}   {format_probabilities(best)}"


def format_probabilities(pairs: Iterable[tuple[str, float]]) -> str:
    return "   ".join(f"{name} {100 * value:5.1f} %" for name, value in pairs)


def draw_pictures(path: Path, shown: list[tuple[Path, list[Answer]]]) -> None:
    from mnist_exp.data.decoding import read_colors
    from mnist_exp.figures import draw
    from mnist_exp.inference.preprocess import ENOUGH

    pictures = []
    for file, answers in shown:
        colors, scale = read_colors(file, ENOUGH)
        digits = [
            (found.box, found.image.permute(1, 2, 0).numpy(), each) for found, each in answers
        ]
        pictures.append((sanitize(file.name), colors, scale, digits))
    draw.predictions(path, pictures)
