"""Render RESULTS.md from measured rows: no number in it is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, stdev

from measure import format_spread, format_table, judge
from scipy.stats import t


@dataclass(frozen=True)
class Run:
    """One training and its result."""

    round: int  # from 0
    seed: int
    accuracy: float  # 0..1, on the test set
    seconds: float  # of all epochs, or of the loop of the recipe


@dataclass
class Row:
    """The measurements of a preset, when, where, and with which code."""

    began: str
    commit: str
    machine: str
    versions: str
    note: str = ""
    picture: str = ""  # path in the repository
    placed: list[str] = field(default_factory=list)  # keys that say where the data are
    commands: list[str] = field(default_factory=list)
    wall: float = 0.0  # seconds, of all commands
    runs: list[Run] = field(default_factory=list)
    recipe: list[Run] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    parameters: int = 0
    device: str = ""  # with torch's threads, as the runs print it


TITLE = """\
# Results

`make results` writes this page, and every number in it, from the files that the runs left. Each
run trains from its seed and evaluates the weights that it kept on the test set. ± is the sample
standard deviation over the n seeds, and the 95 % interval is that of their mean (Student's t). The
training time is the sum of the epochs of a run, including validation if there is any: median
(minimum to maximum). The wall time is that of the commands below, for all seeds; the data had been
downloaded before.
"""

RECIPE = """\
`speedrun` and the best public recipe for 99 % in one epoch (`benchmarks/recipe.py`: network,
optimizer, and schedule of github.com/tuomaso/train_mnist_fast) ran in turn: {rounds} rounds, each
with one seed of the recipe and then one sweep over {share} seeds of the preset. Each sweep is a new
process; the seeds of the recipe share one process, so only the first includes the warm-up. The
recipe uses all cores. In both, the images are in memory, normalized, before the clock starts. The
seconds of the recipe are those of its loop over the batches; those of the preset are whole epochs.
"""

PICTURE = """\
## Errors of `{}`

![Errors by true and predicted class]({})

All seeds together, each with the weights that were tested.
"""


def render_page(rows: Mapping[str, Row]) -> str:
    """The page as Markdown. rows: preset → its measurements."""
    header = ["preset", "test accuracy, %", "n", "95 % interval", "training, s", "wall, s"]
    parts = [
        TITLE,
        format_table([[*header, "parameters"], *(list_cells(*item) for item in rows.items())]),
    ]
    remarks = [f"- `{name}`: {text}." for name, row in rows.items() for text in list_remarks(row)]
    if remarks:
        parts.append("\n".join(remarks))
    parts += [
        compare_with_recipe(name, row) for name, row in rows.items() if row.recipe and row.runs
    ]
    parts += [PICTURE.format(name, row.picture) for name, row in rows.items() if row.picture]
    commands = "\n".join(command for row in rows.values() for command in row.commands)
    parts.append(f"## Commands\n\n```console\n{commands}\n```")
    header = ["preset", "began", "commit", "machine", "device and threads", "versions"]
    places = [
        [name, row.began, row.commit, row.machine, row.device, row.versions]
        for name, row in rows.items()
    ]
    parts.append(f"## When and where\n\n{format_table([header, *places])}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def headline(row: Row) -> str:
    """The result of a preset in one line, as its file and the README have it."""
    accuracies, seconds = zip(*((100 * run.accuracy, run.seconds) for run in row.runs), strict=True)
    training = median(seconds)
    digits = 0 if training >= 10 else 1
    machine = row.machine.partition(", load")[0]
    accuracy = f"{mean_and_spread(accuracies)} % (n = {len(row.runs)})"
    return f"{accuracy}, {training:.{digits}f} s of training on {machine}"


def list_cells(name: str, row: Row) -> list[str]:
    if not row.runs:
        return [name, "failed", "0", "", "", "", ""]
    accuracies = [100 * run.accuracy for run in row.runs]
    low, high = interval(accuracies)
    return [
        name,
        mean_and_spread(accuracies),
        str(len(accuracies)),
        f"{low:.2f} to {high:.2f}" if low < high else "",
        format_spread([run.seconds for run in row.runs], ".2f"),
        f"{row.wall:.0f}",
        f"{row.parameters:,}",
    ]


def list_remarks(row: Row) -> list[str]:
    placed = " ".join(f"{key}=<folder>" for key in row.placed)
    failed = [f"**failed**: {failure}" for failure in row.failures]
    return [text for text in (row.note, placed and f"measured with `{placed}`", *failed) if text]


def compare_with_recipe(name: str, row: Row) -> str:
    """The preset and the recipe: ratios within a round and of the means, and the bars."""
    numbers = sorted({run.round for run in row.runs} & {run.round for run in row.recipe})

    def seconds(runs: Sequence[Run], number: int) -> float:
        return fmean(run.seconds for run in runs if run.round == number)

    both = {"recipe": row.recipe, name: row.runs}
    accuracies = {who: [100 * run.accuracy for run in runs] for who, runs in both.items()}
    compared = [["", "loop, s", "test accuracy, %", "n"]]
    for who, runs in both.items():
        loops = format_spread([run.seconds for run in runs], ".2f")
        compared.append([who, loops, mean_and_spread(accuracies[who]), str(len(runs))])
    ratios = [seconds(row.runs, number) / seconds(row.recipe, number) for number in numbers]
    means = [fmean(run.seconds for run in runs) for runs in (row.runs, row.recipe)]
    accuracy, whole = fmean(accuracies[name]), means[0] / means[1]
    bars = [
        ("loop, within a round", format_spread(ratios, ".3f"), median(ratios), "≤ 0.25"),
        ("loop, means of all seeds", f"{whole:.3f}", whole, "≤ 0.25"),
        ("mean test accuracy, %", f"{accuracy:.3f}", accuracy, "≥ 99.00"),
    ]
    judged = [[text, shown, limit, judge(value, limit)] for text, shown, value, limit in bars]
    text = RECIPE.format(rounds=len(numbers), share=len(row.runs) // len(numbers))
    judged.insert(0, [f"{name} / recipe", "measured", "bar", ""])
    return f"## In a second\n\n{text}\n{format_table(compared)}\n\n{format_table(judged)}"


def mean_and_spread(values: Sequence[float]) -> str:
    mean = f"{fmean(values):.2f}"
    return f"{mean} ± {stdev(values):.2f}" if len(values) > 1 else mean


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t; for a single value, the value itself."""
    mean, n = fmean(values), len(values)
    half = float(t.ppf(0.975, n - 1)) * stdev(values) / n**0.5 if n > 1 else 0.0
    return mean - half, mean + half
