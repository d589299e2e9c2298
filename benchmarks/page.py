"""Render docs/results.md from measured rows: no number in it is typed by hand."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean, median

from measure import format_spread, format_table, judge
from rows import SHARE, Part, Records, Row, format_mean, interval, make_entry

TITLE = """\
# Results

What do the presets reach, and how was it measured? `make results` writes this page, and every
number in it, from `benchmarks/results.json`. [benchmarks](benchmarks.md#accuracy) says how to
measure more.

Each run trains from its seed and tests the weights of its last epoch, or with validation those of
its best one, once and without test-time augmentation. ± is the sample standard deviation over the
n seeds, and the 95 % interval is that of their mean (Student's t). The training time is the sum of
the epochs of a run, including validation if there is any: median (minimum to maximum). The wall
time is that of all commands below; the data had been downloaded before.
"""

TIME = """\
## Accuracy against training time

![Test accuracy against training time]({})

Bars are 95 % intervals. Results of others that were measured on other machines are lines:

{}
"""

CURVES = """\
## Learning curves

![Accuracy over the epochs]({})

Mean over the seeds, from the lowest to the highest of them in the pale band. Training accuracy is
that of augmented images, during the epoch. The diamond is the test accuracy with its 95 % interval.
"""

ERRORS = """\
## Errors of `{}`

![Errors by true and predicted class]({})

All seeds together, each with the weights that were tested.
"""

HARDEST = """\
![The test images that are wrong most often]({})

Above the true class is the wrong one predicted most often; the fractions are of all seeds.
"""

RECIPE = """\
## In a second: {where}

`{name}` and the best public recipe for 99 % in one epoch (`benchmarks/recipe.py`: network,
optimizer, and schedule of github.com/tuomaso/train_mnist_fast) ran in turn: {rounds} rounds, each
with one seed of the recipe and then {share} seeds of the preset. The recipe uses all cores. In
both, the images are in memory, normalized, before the clock starts. The seconds of the recipe are
those of its loop over the batches; those of the preset are whole epochs.
"""

HISTORY = """\
## History

Each row that was measured, by its last day; a row gives way when newer code is measured with as
many seeds.
"""

COMMANDS = """\
## Commands

N is each of the seeds below, FOLDER the place of the data.

```text
{}
```
"""


def render_page(
    records: Records,
    presets: Collection[str],
    references: Sequence[str],
    pictures: Mapping[str, str],
) -> str:
    """The page as Markdown.

    presets: in their order; references: remarks on results of others; pictures: file name by
    "time", "curves", the preset whose errors it counts, or "<preset> images".
    """
    rows = [row for name in presets for row in records.rows(name)]
    header = ["preset", "test accuracy, %", "n", "95 % interval", "training, s", "wall, s"]
    header += ["parameters", "machine", "commit"]
    parts = [TITLE, format_table([header, *map(list_cells, rows)])]
    remarks = [f"- `{row.preset}`: {text}." for row in rows for text in list_remarks(row)]
    parts += ["\n".join(dict.fromkeys(remarks))] * bool(remarks)
    if "time" in pictures:
        listed = "\n".join(f"- {reference}" for reference in references)
        parts.append(TIME.format(pictures["time"], listed))
    if "curves" in pictures:
        parts.append(CURVES.format(pictures["curves"]))
    for name in presets:
        if name in pictures:
            parts.append(ERRORS.format(name, pictures[name]))
        if f"{name} images" in pictures:
            parts.append(HARDEST.format(pictures[f"{name} images"]))
    parts += filter(None, (compare_with_recipe(row) for row in rows if row.recipe and row.runs))
    entries = [entry for entry in records.history if entry.preset in presets]
    entries += [make_entry(row) for row in rows if row.runs]
    entries.sort(key=lambda entry: ([*presets].index(entry.preset), entry.date))
    history = [[entry.preset, entry.date, entry.commit, entry.figure] for entry in entries]
    parts += [HISTORY, format_table([["preset", "date", "commit", "test accuracy"], *history])]
    measured = [part for row in rows for part in row.parts]
    commands = "\n".join(dict.fromkeys(part.command for part in measured))
    parts.append(COMMANDS.format(commands))
    header = ["preset", "seeds", "began", "commit", "machine", "load before", "device and threads"]
    places = format_table([[*header, "versions"], *map(list_places, measured)])
    parts.append(f"## When and where\n\n{places}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def list_cells(row: Row) -> list[str]:
    where = [row.machine, row.commits]
    if not row.runs:
        return [row.preset, "failed", "0", "", "", "", "", *where]
    low, high = interval(row.accuracies)
    return [
        row.preset,
        format_mean(row.accuracies),
        str(len(row.runs)),
        f"{low:.2f} to {high:.2f}" if low < high else "",
        format_spread([run.seconds for run in row.runs], ".2f"),
        f"{sum(part.wall for part in row.parts):.0f}",
        f"{row.parameters:,}",
        *where,
    ]


def list_places(part: Part) -> list[str]:
    where = [part.machine, f"{part.load:.1f}", part.device, part.versions]
    return [part.preset, format_seeds(part), part.began, part.commit, *where]


def format_seeds(part: Part) -> str:
    """Such as 1-5, 7."""
    spans: list[list[int]] = []
    for seed in sorted({run.seed for run in part.runs} | {int(seed) for seed in part.failures}):
        if spans and spans[-1][-1] == seed - 1:
            spans[-1][1:] = [seed]
        else:
            spans.append([seed])
    return ", ".join("-".join(map(str, span)) for span in spans)


def list_remarks(row: Row) -> list[str]:
    failed = [f"**failed**: seed {seed}: {reason}" for seed, reason in row.failures.items()]
    return [row.parts[-1].note, *failed] if row.parts[-1].note else failed


def compare_with_recipe(row: Row) -> str:
    """The preset and the recipe: ratios within a round and of the means, and the bars.

    Empty if they did not run in turn.
    """
    name = row.preset
    rounds: dict[int, list[float]] = {}  # seed of the recipe → seconds of the runs after it
    for run in row.runs:
        rounds.setdefault((run.seed - 1) // SHARE + 1, []).append(run.seconds)
    both = {"recipe": row.recipe, name: row.runs}
    compared = [["", "loop, s", "test accuracy, %", "n"]]
    for who, runs in both.items():
        loops = format_spread([run.seconds for run in runs], ".2f")
        accuracy = format_mean([100 * run.accuracy for run in runs])
        compared.append([who, loops, accuracy, str(len(runs))])
    recipe = {run.seed: run.seconds for run in row.recipe if run.seed in rounds}
    ratios = [fmean(rounds[seed]) / seconds for seed, seconds in recipe.items()]
    if not ratios:
        return ""
    means = [fmean(run.seconds for run in runs) for runs in (row.runs, row.recipe)]
    mean, whole = fmean(row.accuracies), means[0] / means[1]
    bars = [
        ("loop, within a round", format_spread(ratios, ".3f"), median(ratios), "≤ 0.25"),
        ("loop, means of all seeds", f"{whole:.3f}", whole, "≤ 0.25"),
        ("mean test accuracy, %", f"{mean:.3f}", mean, "≥ 99.00"),
    ]
    judged = [[text, shown, limit, judge(value, limit)] for text, shown, value, limit in bars]
    judged.insert(0, [f"{name} / recipe", "measured", "bar", ""])
    text = RECIPE.format(
        name=name, where=f"{row.machine}, {row.commits}", rounds=len(ratios), share=SHARE
    )
    return f"{text}\n{format_table(compared)}\n\n{format_table(judged)}"
