"""`python predict.py IMAGE...`: the class of each image, by a trained model."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from mnist_exp.cli.options import Parser, choose_checkpoint
from mnist_exp.cli.process import run_and_exit
from mnist_exp.errors import BadInput, print_line, sanitize

DESCRIPTION = """\
Classify image files of any size, dark on light or light on dark, photographed or drawn.

  python predict.py five.png
  python predict.py --run latest --top 1 --json scans/*.jpg
  python predict.py --show seen.png five.png
"""
PICTURES = (".png", ".pdf", ".svg")
MOST_SHOWN = 50  # images in one picture; more would be too small to see


def predict() -> None:
    """What `python predict.py` does. An unreadable image does not stop the others."""
    parser = Parser(DESCRIPTION)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument(
        "--top", type=int, default=3, metavar="N", help="how many classes to print; default 3"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--show",
        type=Path,
        metavar="FILE",
        help="draw what the model sees beside its probabilities, as png, pdf or svg",
    )
    options = parser.parse_args()
    if options.top < 1:
        parser.error(f"--top {options.top}: must be an integer >= 1")
    if options.show and options.show.suffix not in PICTURES:
        parser.error(f"--show {options.show}: must end in {', '.join(PICTURES)}")
    if options.show and not options.show.parent.is_dir():
        parser.error(f"--show {options.show}: there is no folder {options.show.parent}")
    if options.show and len(options.images) > MOST_SHOWN:
        parser.error(f"--show {options.show}: {len(options.images)} images, at most {MOST_SHOWN}")
    run_and_exit(lambda: classify_files(options))


def classify_files(options: Namespace) -> int:
    """Print the class of each image, and draw them for --show; returns the exit code."""
    from mnist_exp.experiment.load import load_model
    from mnist_exp.inference.preprocess import UnreadableImage, preprocess

    trained = load_model(choose_checkpoint(options), options.device)
    names, code = trained.kind.class_names, 0
    shown = []
    print_line(f"{trained.source}, trained on {trained.kind.name}", sys.stderr)
    width = max(len(sanitize(str(path))) for path in options.images)
    for path in options.images:
        try:
            image = preprocess(path, trained.kind)
        except UnreadableImage as error:
            print_line(f"error: {path}: {error}", sys.stderr)
            code = BadInput.exit_code
            continue
        probabilities = trained.logits(image[None]).softmax(dim=1)[0].tolist()
        ranked = sorted(zip(names, probabilities, strict=True), key=lambda pair: -pair[1])
        top = dict(ranked[: options.top])
        if options.json:
            result = {"image": str(path), "label": next(iter(top)), "probabilities": top}
            print(json.dumps(result), flush=True)
        else:
            columns = [f"{name} {100 * probability:5.1f} %" for name, probability in top.items()]
            print_line(f"{sanitize(str(path)):{width}}  {'   '.join(columns)}")
        shown.append((sanitize(path.name), image.permute(1, 2, 0).tolist(), probabilities))
    if options.show and shown:
        from mnist_exp.figures import draw

        draw.predictions(options.show, names, shown)
    return code
