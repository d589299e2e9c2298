"""RESULTS.md from measured rows: no figure in it is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, stdev

from measure import spread, table, verdict
from scipy.stats import t


@dataclass(frozen=True)
class Run:
    """One training and what it found."""

    round: int  # from 0
    seed: int
    accuracy: float  # 0..1, on the test set
    seconds: float  # of all epochs, or of the recipe's loop


@dataclass
class Row:
    """What was measured of a preset, when, where and of which code."""

    began: str
    commit: str
    machine: str
    versions: str
    note: str = ""
    picture: str = ""  # path in the repository
    placed: list[str] = field(default_factory=list)  # keys that said where the data lie
    commands: list[str] = field(default_factory=list)
    wall: float = 0.0  # seconds, of all commands
    runs: list[Run] = field(default_factory=list)
    recipe: list[Run] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    parameters: int = 0
    device: str = ""  # with torch's threads, as the runs say it


TITLE = """\
# Results

Written by `make results` from what the runs left, as is every figure here. A run trains from its
seed, and the weights that it kept are judged by the test set. ± is the sample standard deviation
over the n seeds, the 95 % interval that of their mean (Student's t). Training is the sum of a run's
epochs, with validation where there is one: median (least to most). The wall time is that of the
commands below, from start to end, for all seeds; the data had been fetched before.
"""

RECIPE = """\
`speedrun` and the best public recipe for 99 % in one epoch (`benchmarks/recipe.py`: network,
optimizer and schedule of github.com/tuomaso/train_mnist_fast), in turn: {rounds} rounds, each of
one seed of the recipe and then one sweep over {share} of the preset, which is a new process; the
recipe's seeds share one, so that its first alone warms up. The recipe has every core. In both the
images lie in memory, normalised, before the clock starts; the recipe's seconds are those of its
loop over the batches, the preset's those of its epochs, whatever is in them.
"""

PICTURE = """\
## What `{}` gets wrong

![Errors by true and predicted class]({})

All seeds together, each with the weights that it was tested with.
"""


def told(rows: Mapping[str, Row]) -> str:
    """The page. rows: preset → what was measured."""
    header = ["preset", "test accuracy, %", "n", "95 % interval", "training, s", "wall, s"]
    parts = [TITLE, table([[*header, "parameters"], *(cells(*item) for item in rows.items())])]
    remarks = [f"- `{name}`: {text}." for name, row in rows.items() for text in remarks_on(row)]
    if remarks:
        parts.append("\n".join(remarks))
    parts += [beside_recipe(name, row) for name, row in rows.items() if row.recipe and row.runs]
    parts += [PICTURE.format(name, row.picture) for name, row in rows.items() if row.picture]
    commands = "\n".join(command for row in rows.values() for command in row.commands)
    parts.append(f"## Commands\n\n```console\n{commands}\n```")
    header = ["preset", "began", "commit", "machine", "device and threads", "versions"]
    places = [
        [name, row.began, row.commit, row.machine, row.device, row.versions]
        for name, row in rows.items()
    ]
    parts.append(f"## When and where\n\n{table([header, *places])}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def headline(row: Row) -> str:
    """What to expect of a preset, as its file begins with it."""
    accuracies, seconds = zip(*((100 * run.accuracy, run.seconds) for run in row.runs), strict=True)
    training = median(seconds)
    digits = 0 if training >= 10 else 1
    machine = row.machine.partition(", load")[0]
    said = f"{mean_and_spread(accuracies)} % (n = {len(row.runs)})"
    return f"{said}, {training:.{digits}f} s of training on {machine}"


def cells(name: str, row: Row) -> list[str]:
    if not row.runs:
        return [name, "failed", "0", "", "", "", ""]
    accuracies = [100 * run.accuracy for run in row.runs]
    low, high = interval(accuracies)
    return [
        name,
        mean_and_spread(accuracies),
        str(len(accuracies)),
        f"{low:.2f} to {high:.2f}" if low < high else "",
        spread([run.seconds for run in row.runs], ".2f"),
        f"{row.wall:.0f}",
        f"{row.parameters:,}",
    ]


def remarks_on(row: Row) -> list[str]:
    placed = " ".join(f"{key}=<folder>" for key in row.placed)
    failed = [f"**failed**: {failure}" for failure in row.failures]
    return [text for text in (row.note, placed and f"measured with `{placed}`", *failed) if text]


def beside_recipe(name: str, row: Row) -> str:
    """The preset against the recipe: ratios within a round and of the means, and the bars."""
    numbers = sorted({run.round for run in row.runs} & {run.round for run in row.recipe})

    def seconds(runs: Sequence[Run], number: int) -> float:
        return fmean(run.seconds for run in runs if run.round == number)

    both = {"recipe": row.recipe, name: row.runs}
    accuracies = {who: [100 * run.accuracy for run in runs] for who, runs in both.items()}
    compared = [["", "loop, s", "test accuracy, %", "n"]]
    for who, runs in both.items():
        loops = spread([run.seconds for run in runs], ".2f")
        compared.append([who, loops, mean_and_spread(accuracies[who]), str(len(runs))])
    ratios = [seconds(row.runs, number) / seconds(row.recipe, number) for number in numbers]
    means = [fmean(run.seconds for run in runs) for runs in (row.runs, row.recipe)]
    accuracy, whole = fmean(accuracies[name]), means[0] / means[1]
    bars = [
        ("loop, within a round", spread(ratios, ".3f"), median(ratios), "≤ 0.25"),
        ("loop, means of all seeds", f"{whole:.3f}", whole, "≤ 0.25"),
        ("mean test accuracy, %", f"{accuracy:.3f}", accuracy, "≥ 99.00"),
    ]
    judged = [[text, said, limit, verdict(value, limit)] for text, said, value, limit in bars]
    text = RECIPE.format(rounds=len(numbers), share=len(row.runs) // len(numbers))
    judged.insert(0, [f"{name} / recipe", "measured", "bar", ""])
    return f"## In a second\n\n{text}\n{table(compared)}\n\n{table(judged)}"


def mean_and_spread(values: Sequence[float]) -> str:
    mean = f"{fmean(values):.2f}"
    return f"{mean} ± {stdev(values):.2f}" if len(values) > 1 else mean


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Of 95 % for the mean, by Student's t; of a single value nothing is known but itself."""
    mean, n = fmean(values), len(values)
    half = float(t.ppf(0.975, n - 1)) * stdev(values) / n**0.5 if n > 1 else 0.0
    return mean - half, mean + half
