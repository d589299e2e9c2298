"""`python predict.py IMAGE...`: which class each image is, by a model that was trained."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from mnist_exp.cli.options import Parser, answer, chosen
from mnist_exp.errors import BadInput, print_line, sanitize

DESCRIPTION = """\
Classify image files of any size, dark on light or light on dark, photographed or drawn.

  python predict.py five.png
  python predict.py --run latest --top 1 --json scans/*.jpg
  python predict.py --show seen.png five.png
"""
PICTURES = (".png", ".pdf", ".svg")
MOST_SHOWN = 50  # a picture of more is none that can be looked at


def predict() -> None:
    """What `python predict.py` does. An image that cannot be read does not keep back the others."""
    parser = Parser(DESCRIPTION)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes told; default 3")
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
    answer(lambda: predicted(options))


def predicted(options: Namespace) -> int:
    """Tell, and draw, what each image is; returns the exit code."""
    from mnist_exp.experiment.load import load_model
    from mnist_exp.inference.images import NoImage
    from mnist_exp.inference.preprocess import prepare

    trained = load_model(chosen(options), options.device)
    names, code = trained.kind.class_names, 0
    shown = []
    print_line(f"{trained.source}, trained on {trained.kind.name}", sys.stderr)
    width = max(len(sanitize(str(path))) for path in options.images)
    for path in options.images:
        try:
            image = prepare(path, trained.kind)
        except NoImage as error:
            print_line(f"error: {path}: {error}", sys.stderr)
            code = BadInput.exit_code
            continue
        probabilities = trained.logits(image[None]).softmax(dim=1)[0].tolist()
        told = dict(
            sorted(zip(names, probabilities, strict=True), key=lambda pair: -pair[1])[: options.top]
        )
        if options.json:
            answered = {"image": str(path), "label": next(iter(told)), "probabilities": told}
            print(json.dumps(answered), flush=True)
        else:
            said = [f"{name} {100 * probability:5.1f} %" for name, probability in told.items()]
            print_line(f"{sanitize(str(path)):{width}}  {'   '.join(said)}")
        shown.append((sanitize(path.name), image.permute(1, 2, 0).tolist(), probabilities))
    if options.show and shown:
        from mnist_exp import figures

        figures.predictions(options.show, names, shown)
    return code
