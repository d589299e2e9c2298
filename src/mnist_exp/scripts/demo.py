"""`python demo.py`: a page to draw a digit on, and what the models make of it."""

from __future__ import annotations

from argparse import Namespace
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from mnist_exp.errors import Failure
from mnist_exp.scripts import Parser, answer, chosen, tracking_uri

DESCRIPTION = """\
Serve a page to draw a digit on: the probabilities, what the network sees, and a choice among the
runs. Needs no internet, and listens for this machine alone unless told otherwise.

  python demo.py
  python demo.py --run latest --port 8000
  python demo.py --host 0.0.0.0            anybody in the network can draw
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
        help="the address to listen on, 127.0.0.1 by default; given again, another name that opens "
        "the page, such as a proxy's",
    )
    parser.add_argument("--port", type=int, default=7860, help="0: a free one; default 7860")
    options = parser.parse_args()
    if not 0 <= options.port < 2**16:
        parser.error(f"--port {options.port}: must be an integer from 0 to {2**16 - 1}")
    answer(lambda: served(options))


def served(options: Namespace) -> int:
    """Load the chosen model, then serve until the process is interrupted."""
    from mnist_exp.demo import Demo
    from mnist_exp.trained import Trained, find, load

    server, first = Demo(options.host or ["127.0.0.1"], options.port), chosen(options)
    runs = [] if options.checkpoint else finished(options.experiment)
    if options.checkpoint or options.run != "best":
        runs.insert(0, (Path(options.checkpoint or options.run).resolve().name, ""))

    @lru_cache(MOST_MODELS)
    def load_one(number: int) -> Trained:
        path = find(runs[number][1], tracking_uri()) if number else first
        return load(path, options.device)

    load_one(0)  # what is wrong with it is said before anybody draws
    print(*server.addresses, "Ctrl-C ends it", sep="   ", flush=True)
    server.serve([name for name, _ in runs], load_one)
    return 0


def finished(experiment: str) -> list[tuple[str, str]]:
    """What to call the runs to choose from, and their ids, the best first; none without MLflow."""
    from mnist_exp.tracking.store import ranked_runs

    try:
        runs = ranked_runs(experiment, tracking_uri())
    except Failure:
        return []
    return [(called(r.name, r.began, r.accuracy), r.run_id) for r in runs[:MOST_RUNS]]


def called(name: str, began: float, accuracy: float | None) -> str:
    """A run by its name, which others may have, too, what it is worth, and when it began."""
    worth = "not validated" if accuracy is None else f"{accuracy:.2%} in validation"
    return f"{name}, {worth}, {datetime.fromtimestamp(began):%Y-%m-%d %H:%M}"
