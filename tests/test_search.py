"""A search's space: Hydra's ranges as Optuna's distributions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mnist_exp.search import distribution, open_study, pruning, running


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("a=interval(0,0.5)", FloatDistribution(0.0, 0.5)),
        ("a=tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("a=int(interval(16,128))", IntDistribution(16, 128)),
        ("a=tag(log,int(interval(16,128)))", IntDistribution(16, 128, log=True)),
        ("a=range(1,5)", IntDistribution(1, 4)),
        ("a=range(16,65,16)", IntDistribution(16, 64, step=16)),
        ("a=tag(log,range(1,101))", IntDistribution(1, 100, log=True)),
        ("a=range(0,1,0.25)", CategoricalDistribution([0.0, 0.25, 0.5, 0.75])),
        ("a=mlp,linear", CategoricalDistribution(["mlp", "linear"])),
        ("a=[1,2],[3]", CategoricalDistribution(["[1,2]", "[3]"])),
    ],
)
def test_a_range_in_hydras_syntax_is_a_distribution(typed: str, expected: BaseDistribution) -> None:
    assert distribution(OverridesParser.create().parse_override(typed)) == expected


def test_a_trial_below_the_median_is_pruned_and_one_that_was_killed_is_found_again(
    tmp_path: Path,
) -> None:
    study = open_study(tmp_path)
    for number in range(4):
        study.ask({"x": FloatDistribution(0, 1)})
        told = pruning(tmp_path, number)
        assert [told(epoch, 0.9) for epoch in (1, 2, 3)] == [False, False, False]
        study.tell(number, 0.9)
    study.ask({"x": FloatDistribution(0, 1)})
    told = pruning(tmp_path, 4)
    assert [told(epoch, 0.5) for epoch in (1, 2)] == [False, True]
    assert [trial.number for trial in running(open_study(tmp_path))] == [4]
