"""`python export.py`: a trained model as a file for other programs."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from importlib.util import find_spec
from pathlib import Path

from mnist_exp.cli.options import Parser, check_output, choose_checkpoint
from mnist_exp.cli.process import run_and_exit
from mnist_exp.errors import BadInput, Failure, did_you_mean, print_line
from mnist_exp.experiment.shell import show_path

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2"}
NEEDS = {"onnx": ("onnx", "onnxruntime", "onnxscript")}  # of the extra "export"

DESCRIPTION = """\
Write a trained model to a file that needs none of this code, and compare its outputs on the test
set with those of PyTorch: the labels have to be the same, except for ties, and no logit may differ
by more than 1e-5 of the largest. Otherwise no file is written.

  onnx         for ONNX Runtime and most others (pip install -e ".[export]")
  pt2          torch.export's: for PyTorch, and to be compiled further
  torchscript  for PyTorch from C++; deprecated, and from Python 3.14 on not supported by PyTorch,
               which advises pt2

The file computes in float32, whatever the run was trained in, takes any number of images and gives
logits [n, classes]. It also contains the class names, mean and standard deviation."""


def export() -> None:
    """What `python export.py` does."""
    parser = Parser(DESCRIPTION, device=False)
    parser.add_argument(
        "--format", type=check_format, required=True, help="onnx, pt2 or torchscript"
    )
    where = "by default mnist_model.SUFFIX in the run's output folder"
    parser.add_argument("--output", type=Path, metavar="PATH", help=where)
    parser.add_argument(
        "--preprocessing",
        action="store_true",
        help="the file takes raw uint8 images [n, channels, height, width] and normalizes them",
    )
    parser.add_argument(
        "--unchecked", action="store_true", help="skip the comparison, which needs the test set"
    )
    options = parser.parse_args()
    run_and_exit(lambda: export_model(options))


def check_format(word: str) -> str:
    if word not in SUFFIXES:
        near = did_you_mean(word, SUFFIXES)
        raise ArgumentTypeError(f"{word}: must be {' | '.join(SUFFIXES)}{near}")
    return word


def export_model(options: Namespace) -> int:
    """Returns the exit code. Raises Failure, OSError."""
    if missing := [name for name in NEEDS.get(options.format, ()) if find_spec(name) is None]:
        packages = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        raise BadInput(f"--format {options.format}: {packages}: pip install -e '.[export]'")
    if options.output:
        check_output("--output", options.output)
    source = choose_checkpoint(options)

    from mnist_exp.experiment.find import find_outputs
    from mnist_exp.experiment.load import load_model
    from mnist_exp.inference import export as exporting

    path = options.output or find_outputs(source) / f"mnist_model{SUFFIXES[options.format]}"

    trained = load_model(source, device="cpu")
    test = None
    if not options.unchecked:
        try:
            test = trained.dataset().test
        except Failure as error:
            remedy = "--unchecked skips the comparison"
            raise type(error)(*error.args[:-1], f"{error.args[-1]}; {remedy}") from error
    form = (options.format, path, options.preprocessing)
    try:
        found = exporting.export(trained.model, trained.kind, *form, test)
    except OSError as error:
        raise BadInput(f"--output {path}: {error.strerror}") from error
    print_line(f"from    {source}, trained on {trained.kind.name}")
    kind = "uint8" if options.preprocessing else "float32, normalized"
    shape = ", ".join(map(str, trained.kind.image_shape))
    size = f"{path.stat().st_size / 1e6:.2f} MB"
    print_line(f"to      {show_path(path)}: {size}, images [n, {shape}] {kind}")
    if trained.precision.name != "float32":
        print(f"        float32, where the run computed in {trained.precision.name}")
    print(f"checked {found or 'no'}")
    return 0
