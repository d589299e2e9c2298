"""`python train.py` beside the tutorial pipeline: whole processes, in turn, median of each.

python benchmarks/compare.py [ROUNDS]    # 3 by default; a minute each on two cores
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def timed(*command: str) -> tuple[float, float]:
    """Wall seconds of `python <command>`, and the test accuracy that it printed last."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = time.perf_counter() - started
    (*_, accuracy) = re.findall(
        r"^test +(?:.*accuracy|\d\.\d+) +(\d\.\d+)", done.stdout, re.MULTILINE
    )
    return seconds, float(accuracy)


@contextmanager
def tutorial_data() -> Iterator[str]:
    """A folder with MNIST as torchvision lays it out, all disk caches warm."""
    timed("train.py", "trainer=debug", "tracking=none")  # fetches the data
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "MNIST", "raw")
        raw.mkdir(parents=True)
        for path in (REPOSITORY / "data" / "cache" / "mnist").glob("*ubyte"):
            (raw / path.name).symlink_to(path)
        yield folder


def main(rounds: int) -> None:
    with tutorial_data() as folder:
        found: dict[str, list[tuple[float, float]]] = {"tutorial": [], "train.py": []}
        for _ in range(rounds):
            found["tutorial"].append(timed("benchmarks/tutorial.py", folder))
            found["train.py"].append(timed("train.py"))
    for name, runs in found.items():
        seconds, accuracy = (statistics.median(column) for column in zip(*runs, strict=True))
        spread = f"{min(runs)[0]:.1f} to {max(runs)[0]:.1f}"
        print(f"{name:<9} median {seconds:5.1f} s ({spread}, n={rounds})  test {accuracy:.4f}")
    pairs = zip(found["tutorial"], found["train.py"], strict=True)
    ratio = statistics.median(slow / fast for (slow, _), (fast, _) in pairs)
    print(f"train.py is {ratio:.1f} times faster (median of the pairs)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
