"""Two sweeps over seeds, compared by `evaluate.py --compare`."""

from __future__ import annotations

import json

import pytest
from conftest import Clone, is_refused
from scipy.stats import ttest_ind

from mnist_exp.sweeps.compare import compare


def test_the_interval_is_that_of_welchs_test() -> None:
    first, second = [0.91, 0.93, 0.90, 0.92], [0.95, 0.97, 0.99]
    found = compare("val/accuracy", first, second)
    expected = ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert found.difference == pytest.approx(0.055)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.sizes == (4, 3)


def test_equal_runs_have_an_interval_without_width() -> None:
    assert compare("loss", [0.5, 0.5], [0.25, 0.25]).interval == (-0.25, -0.25)


def test_two_sweeps_are_compared_in_one_table(clone: Clone) -> None:
    common = ("data=digits", "trainer=debug", "tracking=none", "seed=1,2")
    for folder, rate in (("a", "1e-3"), ("b", "1e-2")):
        done = clone.run(
            "train.py", "-m", *common, f"optimizer.lr={rate}", f"hydra.sweep.dir=outputs/{folder}"
        )
        assert (done.returncode, done.stderr) == (0, "")
    done = clone.run("evaluate.py", "--compare", "outputs/a", "outputs/b")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    shown = {row[0]: row for row in rows if "/" in row[0]}
    assert {"val/accuracy", "val/loss", "test/accuracy", "test/loss"} <= set(shown)
    assert shown["val/loss"].count("(n=2)") == 2
    done = clone.run("evaluate.py", "--compare", "outputs/a", "outputs/b", "--json")
    for found in json.loads(done.stdout)["differences"]:
        first, second = found["means"]
        low, high = found["interval"]
        assert found["difference"] == pytest.approx(second - first)
        assert low <= found["difference"] <= high


def test_a_sweep_without_two_seeds_cannot_be_compared(clone: Clone) -> None:
    common = ("data=digits", "trainer=debug", "tracking=none", "hydra.sweep.dir=outputs/a")
    assert clone.run("train.py", "-m", *common, "optimizer.lr=1e-3,1e-2").returncode == 0
    refused = clone.run("evaluate.py", "--compare", "outputs/a", "outputs/a")
    assert is_refused(refused, 2, "--compare outputs/a", "two seeds")
    refused = clone.run("evaluate.py", "--compare", "nowhere", "outputs/a")
    assert is_refused(refused, 2, "--compare nowhere")
