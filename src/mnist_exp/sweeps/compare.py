"""Compare two sweeps over seeds: the difference of their mean metrics and its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from mnist_exp.errors import BadInput
from mnist_exp.experiment.find import find_sweep
from mnist_exp.sweeps.leaderboard import list_metrics, name_job, rank
from mnist_exp.sweeps.records import read_outcomes, read_sweep

HEADER = ("metric", "A", "B", "B - A", "95 % interval of B - A")


@dataclass(frozen=True)
class Sample:
    """The runs of a sweep's best hyperparameters, which differ in seed, split and fold."""

    name: str  # of the sweep's folder, and the hyperparameters
    metrics: dict[str, list[float]]  # name, such as test/accuracy → the value of each run


def read_sample(word: str) -> Sample:
    """The best row of the sweep that a path or "latest" stands for.

    Raises BadInput if fewer than two of its runs have finished, and Damaged.
    """
    folder = find_sweep(word, "--compare ")
    sweep = read_sweep(folder)
    rows = rank(read_outcomes(folder, sweep.swept))
    finished = rows[0].finished if rows else []
    if len(finished) < 2:
        advice = "an interval needs at least two seeds: -m seed=1,2,3"
        raise BadInput(
            f"--compare {word}: finished runs in its best row: {len(finished)}; {advice}"
        )
    tested = [sweep.tested.get(str(job.job), {}) for job in finished]
    runs = [
        {**job.metrics, **{f"test/{name}": value for name, value in metrics.items()}}
        for job, metrics in zip(finished, tested, strict=True)
    ]
    val = list_metrics(rows)
    names = [*val, *(name.replace("val/", "test/") for name in val)]
    known = [name for name in names if all(name in run for run in runs)]
    metrics = {name: [run[name] for run in runs] for name in known}
    return Sample(" ".join([str(folder), name_job(rows[0].chosen)]).strip(), metrics)


@dataclass(frozen=True)
class Difference:
    """The difference of the means of two samples of a metric, second - first."""

    metric: str
    means: tuple[float, float]
    deviations: tuple[float, float]  # of the samples
    sizes: tuple[int, int]
    difference: float
    interval: tuple[float, float]  # 95 %; the variances may differ (Welch, 1947)

    def cells(self) -> list[str]:
        """Of the table with HEADER."""
        samples = zip(self.means, self.deviations, self.sizes, strict=True)
        texts = [f"{mean:.4f} ± {deviation:.4f} (n={size})" for mean, deviation, size in samples]
        low, high = self.interval
        return [self.metric, *texts, f"{self.difference:+.4f}", f"{low:+.4f} to {high:+.4f}"]


def compare(metric: str, first: Sequence[float], second: Sequence[float]) -> Difference:
    """Of at least two values each."""
    from scipy.stats import t  # half a second to import

    samples = first, second
    means = fmean(first), fmean(second)
    deviations = stdev(first), stdev(second)
    sizes = len(first), len(second)
    variances = [stdev(values) ** 2 / len(values) for values in samples]  # of the means
    half = 0.0
    if any(variances):
        squares = (v**2 / (size - 1) for v, size in zip(variances, sizes, strict=True))
        half = t.ppf(0.975, sum(variances) ** 2 / sum(squares)) * math.sqrt(sum(variances))
    difference = means[1] - means[0]
    interval = difference - half, difference + half
    return Difference(metric, means, deviations, sizes, difference, interval)


def compare_samples(first: Sample, second: Sample) -> list[Difference]:
    """Of each metric that both have."""
    both = [name for name in first.metrics if name in second.metrics]
    return [compare(name, first.metrics[name], second.metrics[name]) for name in both]
