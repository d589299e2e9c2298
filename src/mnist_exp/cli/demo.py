"""`python demo.py`: a page to draw a digit on, with the predictions of trained models."""

from __future__ import annotations

import sys
from argparse import Namespace
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from mnist_exp.cli.options import Parser, choose_checkpoint
from mnist_exp.cli.process import run_and_exit
from mnist_exp.errors import Failure, print_line
from mnist_exp.tracking import FinishedRun
from mnist_exp.tracking.addresses import tracking_uri

DESCRIPTION = """\
Serve a page to draw a digit on: the probabilities, what the network sees, and a choice among the
runs. Needs no internet, and by default accepts connections from this machine only.

  python demo.py
  python demo.py --run latest --port 8000
  python demo.py --host 0.0.0.0            anyone on the network can draw
  python demo.py --host 127.0.0.1 --host hub.example.org    behind a proxy of that name
"""
MOST_RUNS = 50  # in the page's list
MOST_MODELS = 4  # in memory


def demo() -> None:
    """What `python demo.py` does, until it is interrupted."""
    parser = Parser(DESCRIPTION)
    parser.add_argument(
        "--host",
        action="append",
        help="the address to listen on, by default 127.0.0.1; a second --host is another name for "
        "the page, such as a proxy's",
    )
    parser.add_argument("--port", type=int, default=7860, help="0 picks a free one; default 7860")
    options = parser.parse_args()
    if not 0 <= options.port < 2**16:
        parser.error(f"--port {options.port}: must be an integer from 0 to {2**16 - 1}")
    run_and_exit(lambda: serve(options))


def serve(options: Namespace) -> int:
    """Load the chosen model, then serve until the process is interrupted."""
    from mnist_exp.experiment.find import find_checkpoint
    from mnist_exp.experiment.load import load_model
    from mnist_exp.inference.classifier import Classifier
    from mnist_exp.inference.page import Demo

    server = Demo(options.host or ["127.0.0.1"], options.port)
    first = load_model(choose_checkpoint(options), options.device)
    data = first.kind.name
    print_line(f"{first.source}, trained on {data}", sys.stderr)
    runs = [(f"{data}, {Path(options.checkpoint or options.run).resolve().name}", "")]
    if not options.checkpoint:
        runs += list_runs(options.experiment, data)

    @lru_cache(MOST_MODELS)
    def load_one(number: int) -> Classifier:
        if not number:
            return Classifier(first)
        checkpoint = find_checkpoint(runs[number][1], tracking_uri())
        return Classifier(load_model(checkpoint, options.device))

    print(*server.addresses, "Ctrl-C ends it", sep="   ", flush=True)
    server.serve([name for name, _ in runs], load_one)
    return 0


def list_runs(experiment: str, data: str) -> list[tuple[str, str]]:
    """The runs to choose from: a description of each, and its word for `find`.

    Those on this data set come first, then the other data sets; the best run of each first. Empty
    if MLflow does not answer.
    """
    from mnist_exp.experiment.find import rank_runs

    try:
        runs = rank_runs(experiment, tracking_uri())
    except Failure:
        return []
    runs.sort(key=lambda run: (run.data != data, run.data))
    return [(describe(run), run.reference) for run in runs[:MOST_RUNS]]


def describe(run: FinishedRun) -> str:
    """A run's data set, name, score and start time; other runs may have the same name."""
    score = run.score or "not validated"
    start = datetime.fromtimestamp(run.start_time)
    return f"{run.data}, {run.name}, {score}, {start:%Y-%m-%d %H:%M}"
