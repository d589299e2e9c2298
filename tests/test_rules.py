"""What a config value may be."""

from __future__ import annotations

import math
from typing import Any

import pytest
from conftest import Like
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.errors import did_you_mean
from mnist_exp.experiment.rules import OPTION_RULES, RULES, leaves, rule_for
from mnist_exp.paths import CONF

HUGE = 10**400  # no float is as large

# key: values that it may have, values that it may not have
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "batch_size": ([1, 64, 60_000], [0, -1, 1.0, True, "64", None, [64], math.inf]),
    "seed": ([0, 42, 2**32 - 1], [-1, 2**32, 0.5, None]),
    "resume": ([None, "latest", "outputs/2026-01-31/12-00-00-a1b2c3"], ["", 3, True]),
    "reproduce": ([None, "d1fc0ea5"], ["", 3, True]),
    "sweep.combine": (["product", "zip"], ["pairs", None]),
    "sweep.jobs": ([None, "jobs.csv"], ["", 1]),
    "sweep.test": (["winner", "all"], ["none", True, None]),
    "sweep.resume": ([None, "latest", "outputs/2026-01-31/12-00-00-a1b2c3"], ["", 3, True]),
    "sweep.join": ([None, "outputs/lr", "postgresql://lab/optuna"], ["", 3, True]),
    "sweep.max_jobs": ([1, 10_000], [0, 1.5, None]),
    "trainer.epochs": ([1, 5], [0, -1, 2.5, None]),
    "trainer.device": (
        ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps"],
        ["", "gpu", "cuda:", "cuda:a", "cuda:-1", "cuda:0 ", "CPU", 0, None],
    ),
    "trainer.threads": (["auto", 1, 64], [0, -1, "all", 1.5, None]),
    "trainer.channels_last": (["auto", True, False], ["yes", "", 1, None]),
    "trainer.precision": (
        ["float64", "float32", "bfloat16", "float16"],
        ["float", "fp16", 16, True, None],
    ),
    "trainer.compile": (
        [True, False, "default", "reduce-overhead", "max-autotune"],
        ["auto", "", 1, None],
    ),
    "trainer.keep": (["best", "last"], ["first", "", None]),
    "trainer.monitor": (["val/loss", "train/top5"], ["loss", "test/loss", "val/", None]),
    "trainer.clip_norm": ([None, 1, 0.5], [0, -1, math.inf]),
    "trainer.ema_decay": ([None, 0, 0.999], [1, -0.1, True]),
    "trainer.patience": ([None, 1, 5], [0, -1, 1.5]),
    "trainer.accumulate": ([1, 4], [0, 1.5, None]),
    "trainer.deterministic": ([True, False], [0, 1, "true", None]),
    "trainer.checkpoint_every_steps": ([None, 1, 100], [0, -1, 1.5]),
    "trainer.max_batches": ([None, 1, 100], [0, -1, 1.5]),
    "trainer.test": ([True, False], [0, "winner", None]),
    "tracking.figures": ([True, False], ["yes", 1, None]),
    "data.root": (["data", "/a/b"], ["", None, 3]),
    "data.cache": (["data/cache"], ["", None, 3]),
    "data.mirrors": ([None, [], ["https://a.b/c/"]], ["https://a.b/c/", [3], [""]]),
    "data.mean": (
        [None, 0, -0.5, 0.1307, [0.1307], [0.4914, 0.4822, 0]],
        [math.nan, -math.inf, HUGE, "0.1", True, [], [math.nan], ["0.1"], [[0.1]]],
    ),
    "data.std": ([None, 1, 0.3081, [0.2, 1]], [0, -0.1, math.nan, math.inf, [], [0.2, 0]]),
    "data.size": ([[20, 30], None, 1, 224], [0, -1, 32.0, "32", [32], [32, 0], [1, 2, 3]]),
    "data.skip_bad": ([True, False], [0, "true", None]),
    "data.val_fraction": ([0, 0.0, 0.15, 0.999], [1, 1.0, 1.5, -0.1, math.nan]),
    "data.memory_limit": ([8, 0.5], [0, -1, math.inf, "8", None]),
    "data.split_seed": ([0, 7], [-1, 2**32]),
    "model.hidden_sizes": ([[], [1], [128, 64]], [[0], [1, "a"], [1.5], [[1]], 128, None]),
    "model.channels": ([[], [1], [16, 32]], [[0], [1, "a"], [1.5], [[1]], 16, None]),
    "model.hidden_size": ([1, 128], [0, -1, 1.5, [128], None]),
    "model.blocks": ([1, 9], [0, 1.5, [2], None]),
    "model.dropout": ([0, 0.5, 0.99], [1, -0.1, True]),
    "augment.shift": ([0, 2], [-1, 1.5, None]),
    "augment.rotate": ([0, 10.5], [-1, None]),
    "augment.scale": ([0, 0.1], [1, -0.1]),
    "augment.shear": ([0, 45], [46, -1]),
    "augment.padding": (["border", "reflection", "zeros"], ["reflect", "", None]),
    "augment.erase": ([0, 8, "random"], [-1, 0.5, True, "rand"]),
    "optimizer.lr": ([1e-300, 0.1, 1, 10], [0, -1, math.nan, math.inf, HUGE, "1e-3x", True]),
    "optimizer.adamw_lr": ([1e-3], [0, True]),
    "optimizer.betas": ([[0.9, 0.999], [0, 0]], [[0.9], [0.9, 1], [0.9, 0.9, 0.9], 0.9, None]),
    "optimizer.eps": ([1e-8], [0, -1e-8]),
    "optimizer.momentum": ([0, 0.9], [1, -0.1]),
    "optimizer.weight_decay": ([0, 0.01], [-0.01, math.inf]),
    "optimizer.groups": (
        [None, [], [{"match": "head.*", "lr": 0.1}, {"match": "*", "nesterov": True}]],
        ["head.*", {"match": "*", "lr": 1}, [{"match": "*"}], [{"lr": 1, "eps": 1}], ["a"]]
        + [[{"match": "*", "lr": lr}] for lr in (0, "abc", True)],
    ),
    "optimizer.options": ([{"momentum": 0.9}, {}, None], ["momentum", 0.9, [0.9], True]),
    "scheduler.warmup_epochs": ([0, 0.5], [-0.1]),
    "scheduler.cooldown_epochs": ([0, 0.5], [-0.1]),
    "scheduler.every_epochs": ([0.5, 2], [0]),
    "scheduler.gamma": ([0.1], [0]),
    "scheduler.final_factor": ([0, 1, 0.5], [-0.1, 1.1]),
    "scheduler.pct_start": ([0, 0.3], [1]),
    "scheduler.div_factor": ([25], [0]),
    "scheduler.final_div_factor": ([1e4], [0]),
    "tracking.experiment": (
        ["mnist_exp", "Zähler", "v1.0", ".hidden", "my runs"],
        ["", " ", 3, None, "a/b", "../../x", "a\\b", ".", "..", "a\n", "\x1b[31m", "a\0", "\u202e"],
    ),
    "tracking.logdir": (["runs", "/a/b"], ["", None, 3]),
    "tracking.uri": ([None, "http://127.0.0.1:5000"], ["", 3]),
    "tracking.log_checkpoints": ([True, False], [0, "true", None]),
    "tracking.upload_every": ([None, 1, 5], [0, -1, 1.5, "often", True]),
    "tracking.log_model": ([True, False], [1, "false", None]),
    "tracking.register": (
        [None, "digits", "my model"],
        ["", " ", "a/b", "a:b", "a\\b", "..", "a\n", 3, True],
    ),
}


@pytest.mark.parametrize("key", VALUES)
def test_a_rule_allows_only_its_values(key: str) -> None:
    admitted, refused = VALUES[key]
    rule = rule_for(key, default=admitted[-1])
    assert [value for value in admitted if not rule.admits(value)] == []
    assert [value for value in refused if rule.admits(value)] == []


def test_every_key_with_these_values_has_a_rule() -> None:
    assert VALUES.keys() <= RULES.keys() | OPTION_RULES.keys()


def test_every_rule_is_of_a_key_that_a_yaml_file_has() -> None:
    there = {key for key, _ in leaves(OmegaConf.load(CONF / "config.yaml"), resolve=False)}
    for path in CONF.glob("*/*.yaml"):
        keys = leaves(OmegaConf.load(path), resolve=False)
        there |= {f"{path.parent.name}.{key}" for key, _ in keys}
    assert (RULES.keys() | OPTION_RULES.keys()) - there == set()


# default of a key that no rule is about, what it may be, values it may have, values it may not have
DEFAULTS: list[tuple[Any, str, list[Any], list[Any]]] = [
    (True, "true or false", [False], [0, "true", None]),
    (3, "an integer", [-1, 0], [0.5, True, "3", None]),
    (0.5, "a finite number", [0, -1, 1e-9], [math.nan, math.inf, HUGE, True, "0.5", None]),
    (math.inf, "a number", [1.5, -math.inf], [True, "inf"]),
    ("relu", "text", ["", "gelu"], [1, True, None]),
    ([3, 3], "a list, each an integer", [[], [5]], [[0.5], ["a"], 3, None]),
    ([[1], [2]], "a list, each a list, each an integer", [[[1, 2]]], [[1], [["a"]]]),
    ([1, "a"], "a list", [[], [None]], [1, "a"]),
    ([], "a list", [[1, "a"]], [1]),
    (None, "anything", [None, 1, "a", [1]], []),
]


@pytest.mark.parametrize(("default", "allowed", "admitted", "refused"), DEFAULTS)
def test_a_key_without_a_rule_keeps_its_defaults_type(
    default: Any, allowed: str, admitted: list[Any], refused: list[Any]
) -> None:
    rule = rule_for("model.mine", default)
    assert rule.allowed == allowed
    assert [value for value in [default, *admitted] if not rule.admits(value)] == []
    assert [value for value in refused if rule.admits(value)] == []


def test_another_class_may_mean_something_else_by_an_options_name() -> None:
    assert rule_for("model.hidden_sizes", default=128).allowed == "an integer"
    assert rule_for("optimizer.betas", default=0.9).allowed == "a finite number"


def test_a_mandatory_value_has_the_rule_of_its_key() -> None:
    assert rule_for("data.root", default="???").allowed == "text that is not empty"
    assert rule_for("data.mine", default="???").allowed == "anything"


def test_a_key_of_the_code_keeps_its_rule_whatever_the_yaml_default() -> None:
    assert rule_for("batch_size", default="many").allowed == "an integer >= 1"


def test_a_problem_names_what_is_allowed_and_the_nearest_word() -> None:
    assert RULES["trainer.keep"].wrong("lst") == Like("…best | last; did you mean last?")
    assert RULES["trainer.keep"].wrong("none") == Like("…best | last")
    assert RULES["trainer.keep"].wrong("last") is None


def test_a_nearest_word_is_suggested_only_where_one_is_near() -> None:
    assert did_you_mean("optimzer", ["optimizer", "scheduler"]) == "; did you mean optimizer?"
    assert did_you_mean("foo", ["optimizer", "scheduler"]) == ""


def test_leaves_have_dotted_keys_and_resolved_values() -> None:
    config = OmegaConf.create({"a": 1, "b": {"c": "${a}", "d": {"e": [1, "${a}"], "f": None}}})
    assert dict(leaves(config)) == {"a": 1, "b.c": 1, "b.d.e": [1, 1], "b.d.f": None}
    assert dict(leaves(config, resolve=False))["b.c"] == "${a}"
    options = {"optimizer": {"options": {"betas": [0, 1], "eps": 1}}}
    assert dict(leaves(OmegaConf.create(options))) == {
        "optimizer.options": {"betas": [0, 1], "eps": 1}
    }


def test_leaves_of_a_broken_reference_raise() -> None:
    with pytest.raises(OmegaConfBaseException, match="nowhere"):
        list(leaves(OmegaConf.create({"a": "${nowhere}"})))
