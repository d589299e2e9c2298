"""Results of the presets: runs, the rows that they make, the page, the recipe."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import page
import pictures
import pytest
import recipe
import results
import rows
import torch
from conftest import Clone, Like
from page import render_page
from rows import Entry, Part, Records, Row, Run
from torch import nn

from mnist_exp.errors import BadInput
from mnist_exp.paths import REPOSITORY

PUBLISHED = rows.read_records(REPOSITORY / results.RECORDS)


def make_part(
    accuracies: list[float], seconds: list[float], preset: str = "digits", **more: object
) -> Part:
    """Runs of the seeds from 1 on."""
    runs = [Run(n, *values) for n, values in enumerate(zip(accuracies, seconds, strict=True), 1)]
    values = {
        "digest": "a1",
        "machine": "CPU",
        "began": "2026-01-02 03:04 UTC",
        "commit": "abc1234",
    }
    values |= {"load": 0.5, "versions": "P 3", "command": "python train.py seed=N", "runs": runs}
    return Part(preset=preset, **{**values, **more})


# --- the page ---


def test_the_interval_is_students() -> None:
    # t of 95 % is 12.706 for one degree of freedom, 4.303 for two, 2.776 for four.
    assert rows.interval([1.0, 3.0]) == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)
    half = 4.303 * 1.0 / 3**0.5
    assert rows.interval([1.0, 2.0, 3.0]) == pytest.approx((2 - half, 2 + half), abs=1e-3)
    half = 2.776 * 2.5**0.5 / 5**0.5
    assert rows.interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3 - half, 3 + half), abs=1e-3)
    assert rows.interval([0.5]) == (0.5, 0.5)


def test_a_headline_has_accuracy_and_training_time() -> None:
    row = Row([make_part([0.995, 0.997, 0.996], [301.2, 299.6, 321.0])])
    assert row.headline == "99.60 ± 0.10 % (n = 3), 301 s of training on CPU"
    single = Row([make_part([0.9], [1.234])])
    assert single.headline == "90.00 % (n = 1), 1.2 s of training on CPU"


@pytest.mark.parametrize("name", [name for name in results.PRESETS if PUBLISHED.best(name)])
def test_a_preset_and_the_readme_say_what_was_measured(name: str) -> None:
    row = PUBLISHED.best(name)
    assert row
    head = (REPOSITORY / "conf" / "experiment" / f"{name}.yaml").read_text("utf-8").splitlines()
    assert head[2] == f"#   python train.py experiment={name}"
    assert head[4] == f"# Test accuracy {row.headline}."
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    assert f"| `{name}` | {row.headline} |" in readme
    noted = "JPEG re-encoding" in row.parts[-1].note
    assert ("JPEG re-encoding" in "\n".join(head[5:7])) == noted


def test_the_published_page_has_every_measured_row() -> None:
    text = (REPOSITORY / results.PAGE).read_text("utf-8")
    cells = {tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in text.splitlines()}
    for name in results.PRESETS:
        for row in PUBLISHED.rows(name):
            assert tuple(page.list_cells(row)) in cells
    for entry in PUBLISHED.history:
        assert (entry.preset, entry.date, entry.commit, entry.figure) in cells


def test_the_page_has_the_commands_failures_and_history() -> None:
    failed = make_part([0.97, 0.98], [5.0, 4.0], "one", wall=20.4, parameters=109386, device="cpu")
    failed.failures = {"4": "exit code 1: no memory"}
    single = make_part([0.9], [7.5], "single", note="the only one", wall=9.0, parameters=10)
    none = make_part([], [], "none", failures={"1": "exit code 1: lost"})
    history = [Entry("one", "2025-12-31", "older", "96.00 %")]
    told = render_page(
        Records([single, failed, none], history), ["one", "single", "none"], ["A: 99 %"], {}
    )
    measured = ["97.50 ± 0.71", "2", "91.15 to 103.85", "4.50 (4.00 to 5.00)"]
    table, _, rest = told[told.index("| preset") :].partition("\n\n")
    assert [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]
    ] == [
        ["one", *measured, "20", "109,386", "CPU", "abc1234"],
        ["single", "90.00", "1", "", "7.50", "9", "10", "CPU", "abc1234"],
        ["none", "failed", "0", "", "", "", "", "CPU", "abc1234"],
    ]
    remarks, _, rest = rest.partition("\n\n")
    assert remarks == (
        "- `one`: **failed**: seed 4: exit code 1: no memory.\n"
        "- `single`: the only one.\n"
        "- `none`: **failed**: seed 1: exit code 1: lost."
    )
    assert re.findall(r"^\| (one|single) +\| (\S+) \| (\w+) ", rest, re.MULTILINE) == [
        ("one", "2025-12-31", "older"),
        ("one", "2026-01-02", "abc1234"),
        ("single", "2026-01-02", "abc1234"),
    ]
    assert "```text\npython train.py seed=N\n```" in rest
    assert "| one    | 1-2, 4 | 2026-01-02 03:04 UTC |" in rest


def test_ratios_to_the_recipe_are_taken_per_round_and_of_means() -> None:
    seconds = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 5.0, 5.0]
    part = make_part([0.9896, 0.99, 0.9904, 0.992] * 2, seconds, "fast")
    part.recipe = [Run(1, 0.989, 10.0), Run(2, 0.99, 10.0)]
    told = page.compare_with_recipe(Row([part]))
    assert "2 rounds, each\nwith one seed of the recipe and then 4 seeds" in told
    assert told.partition("\n\n")[2].partition("\n\n")[2] == (
        "|        | loop, s             | test accuracy, % | n |\n"
        "| ------ | ------------------- | ---------------- | - |\n"
        "| recipe | 10.00               | 98.95 ± 0.07     | 2 |\n"
        "| fast   | 2.50 (1.00 to 5.00) | 99.05 ± 0.10     | 8 |\n"
        "\n"
        "| fast / recipe            | measured               | bar     |            |\n"
        "| ------------------------ | ---------------------- | ------- | ---------- |\n"
        "| loop, within a round     | 0.275 (0.150 to 0.400) | ≤ 0.25  | **missed** |\n"
        "| loop, means of all seeds | 0.275                  | ≤ 0.25  | **missed** |\n"
        "| mean test accuracy, %    | 99.050                 | ≥ 99.00 | met        |"
    )


def test_the_hardest_images_are_those_that_most_runs_get_wrong() -> None:
    wrong = [[(7, 0, 1), (3, 2, 1)], [(3, 2, 0)], [(9, 1, 2), (3, 2, 0)], [(9, 1, 2)]]
    runs = [Run(seed, 0.9, 1.0, errors=errors) for seed, errors in enumerate(wrong)]
    assert pictures.list_hardest(runs) == [3, 9, 7]
    alike = Run(1, 0.9, 1.0, errors=[(number, 0, 1) for number in range(36)])
    assert pictures.list_hardest([alike]) == list(range(0, 36, 2))


# --- from parts to rows ---


def test_parts_of_the_same_code_and_machine_are_one_row() -> None:
    later = make_part([0.8], [3.0], began="2026-01-03 03:04 UTC", commit="def5678")
    later.runs = [replace(later.runs[0], seed=3)]
    records = Records([make_part([0.9, 0.7], [1.0, 2.0]), make_part([0.5], [9.0], machine="GPU")])
    records.parts.append(later)
    other, row = records.rows("digits")
    assert (other.machine, len(other.runs)) == ("GPU", 1)
    assert [(run.seed, run.accuracy) for run in row.runs] == [(1, 0.9), (2, 0.7), (3, 0.8)]
    assert row.commits == "abc1234, def5678"
    assert records.best("digits") == row


def test_older_code_gives_way_when_newer_has_as_many_seeds() -> None:
    old = make_part([0.9, 0.9], [1.0, 1.0])
    old_elsewhere = make_part([0.8] * 9, [2.0] * 9, machine="GPU")
    new = make_part([0.95], [1.0], digest="b2")
    records = Records([old, old_elsewhere, new])
    records.replace_rows({"digits": 3})
    assert records.parts == [old, old_elsewhere, new]
    new.runs.append(Run(2, 0.95, 1.0))
    records.replace_rows({"digits": 3})
    assert records.parts == [old_elsewhere, new]
    assert records.history == [Entry("digits", "2026-01-02", "abc1234", Row([old]).headline)]
    new.runs.append(Run(3, 0.95, 1.0))
    records.replace_rows({"digits": 3})  # all that are planned
    assert records.parts == [new]


def test_the_next_seeds_are_those_that_did_not_run() -> None:
    row = Row([make_part([0.5, 0.75], [1.0, 2.0], failures={"4": "exit code 1: no memory"})])
    assert results.list_seeds("digits", 0, row) == []
    assert results.list_seeds("digits", 3, row) == [3, 5, 6]
    assert results.list_seeds("digits", None, row) == [3, *range(5, 21)]


def test_records_are_read_as_they_were_written_one_run_in_a_line(tmp_path: Path) -> None:
    part = make_part([0.5, 0.75], [1.0, 2.0], failures={"3": "exit code 1: [nan]"})
    part.runs[0] = Run(1, 0.5, 1.0, {"train": [0.25, 0.5]}, [[7, 0, 1]])
    records = Records([part], [Entry("digits", "2025-12-31", "older", "40.00 %")])
    rows.write_records(tmp_path / "results.json", records)
    assert rows.read_records(tmp_path / "results.json") == records
    lines = (tmp_path / "results.json").read_text().splitlines()
    assert '    { "seed": 2, "accuracy": 0.75, "seconds": 2.0 }' in lines


def test_the_digest_is_of_what_decides_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(*overrides: str) -> str:
        return results.find_digest(results.compose_config("digits", overrides))

    digest = find()
    assert digest == find("data.cache=/elsewhere") == find("seed=7")
    assert digest != find("optimizer.lr=0.5")
    monkeypatch.setattr(results, "DECIDES", results.DECIDES[1:])
    assert find() != digest


def test_comments_and_docstrings_do_not_change_code() -> None:
    commented = 'def f(x):\n    """Twice."""\n    return 2 * x  # or x + x\n'
    first = results.strip_text(f'"""A module."""\n\n{commented}')
    assert first == results.strip_text("def f(x):\n    return 2 * x\n")
    assert first != results.strip_text("def f(x):\n    return 3 * x\n")


# --- from runs to parts ---


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that everything is written to instead, with a README and a preset."""
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    for folder in ("benchmarks", "docs", "conf/experiment"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "README.md").write_text("| `digits` | not measured yet | a CNN |\n")
    (tmp_path / "conf/experiment/digits.yaml").write_text("# Test accuracy not measured yet.\n")
    return tmp_path


@pytest.fixture
def measure(
    own_files: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[str], dict[int, object]], list[int]]:
    """Measures digits with these words; returns the seeds that then have a run.

    The second argument has for each seed its accuracy, or what to raise.
    """
    monkeypatch.setattr(results, "describe_commit", lambda: "abc1234")

    def measure(words: list[str], accuracies: dict[int, object]) -> list[int]:
        def train(part: Part, seed: int, overrides: list[str]) -> None:
            accuracy = accuracies[seed]
            if isinstance(accuracy, BaseException):
                raise accuracy
            part.runs.append(Run(seed, accuracy, 2.0, {"train": [0.5, 0.75]}))

        monkeypatch.setattr(results, "train", train)
        cache = ["--set", f"data.cache={own_files}/cache"]
        monkeypatch.setattr(sys, "argv", ["results.py", "--only", "digits", *cache, *words])
        results.main()
        (row,) = rows.read_records(own_files / results.RECORDS).rows("digits")
        return [run.seed for run in row.runs]

    return measure


def test_more_seeds_are_added_to_a_row(
    measure: Callable[..., list[int]], own_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure(["--seeds", "2"], {1: 0.5, 2: 0.75}) == [1, 2]
    assert "digits: 18 of 20 seeds" in capsys.readouterr().out
    assert measure(["--seeds", "1"], {3: 0.25}) == [1, 2, 3]
    figure = "50.00 ± 25.00 % (n = 3), 2.0 s of training on "
    assert f"| `digits` | {figure}" in (own_files / "README.md").read_text()
    preset = (own_files / "conf" / "experiment" / "digits.yaml").read_text()
    assert preset.startswith(f"# Test accuracy {figure}")
    text = (own_files / "docs" / "results.md").read_text()
    for name in ("time", "curves"):
        assert f"(results-{name}.png)" in text
        assert (own_files / "docs" / f"results-{name}.png").stat().st_size < 150_000


def test_an_interrupted_measurement_keeps_the_runs_that_had_ended(
    measure: Callable[..., list[int]], own_files: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure([], {1: 0.5, 2: 0.75, 3: KeyboardInterrupt()})
    assert "75.00 %" not in (text := (own_files / "docs" / "results.md").read_text())
    assert "62.50 ± 17.68" in text
    assert measure(["--seeds", "1"], {3: 0.25}) == [1, 2, 3]


def test_a_preset_that_is_refused_is_no_row(measure: Callable[..., list[int]]) -> None:
    with pytest.raises(SystemExit, match="digits: batch_size=0"):
        measure(["--seeds", "1"], {1: BadInput("batch_size=0: must be positive")})


def test_a_word_for_no_preset_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["results.py", "--set", "acurate:data.root=x"])
    with pytest.raises(SystemExit, match="2"):
        results.main()
    assert "acurate" in capsys.readouterr().err


def test_an_override_is_for_one_preset_or_for_all_that_have_its_key() -> None:
    words = [("", "data.root=x"), ("", "a=1"), ("fashion", "b=c:d"), ("digits", "e=2")]
    assert [results.parse_override(word) for word in ("data.root=x", "fashion:b=c:d")] == [
        words[0],
        words[2],
    ]
    assert results.list_overrides("fashion", words) == ["data.root=x", "a=1", "b=c:d"]
    assert results.list_overrides("digits", words) == ["a=1", "e=2"]


def test_a_run_is_read_from_what_it_left_with_validation_or_without(tmp_path: Path) -> None:
    epochs = [{"train/accuracy": 0.25, "val/accuracy": 0.125, "speed/epoch_seconds": 1.5}] * 2
    for name, left_out in (("with", ""), ("without", "val/accuracy")):
        lines = [{key: v for key, v in epoch.items() if key != left_out} for epoch in epochs]
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(line) + "\n" for line in [*lines, {"test/accuracy": 0.75}])
        (tmp_path / name / "metrics.jsonl").write_text(text)
    curves = {"train": [0.25, 0.25], "val": [0.125, 0.125]}
    assert results.read_run(tmp_path / "with", 4) == Run(4, 0.75, 3.0, curves)
    assert results.read_run(tmp_path / "without", 5).curves == {"train": [0.25, 0.25]}


def test_the_commit_is_dirty_where_more_has_changed_than_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    assert results.describe_commit() == "unknown"

    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=b")
        done = subprocess.run(["git", *who, *words], cwd=tmp_path, capture_output=True, text=True)
        return done.stdout.strip()

    git("init")
    git("commit", "--allow-empty", "--message=first")
    preset = tmp_path / "conf" / "experiment" / "digits.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text("# Test accuracy unknown.\nseed: 1\n")
    git("add", ".")
    git("commit", "--message=second")
    preset.write_text("# Test accuracy 99 %.\nseed: 1\n")
    (tmp_path / "README.md").write_text("new")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text("new")
    (tmp_path / "docs" / "errors.png").write_text("new")
    assert results.describe_commit() == git("rev-parse", "--short", "HEAD") != ""
    preset.write_text("# Test accuracy 99 %.\nseed: 2\n")
    assert results.describe_commit() == git("rev-parse", "--short", "HEAD") + "-dirty"


@pytest.mark.slow
def test_presets_are_measured_by_the_command_and_failures_are_listed(clone: Clone) -> None:
    shutil.copytree(REPOSITORY / "benchmarks", clone.root / "benchmarks")
    shutil.copy(REPOSITORY / "README.md", clone.root)
    (clone.root / "docs").mkdir()
    file = clone.root / results.RECORDS
    file.unlink()
    (clone.root / "conf" / "experiment" / "speedrun.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /data: digits}, {override /model: mlp}]\n"
        "trainer: {epochs: 1}\n"
    )
    make_cache(clone.root / "data" / "cache" / "mnist")
    words = ["baseline:data=digits", "baseline:optimizer.lr=1e30", "digits:trainer.epochs=2"]
    words += ["fashion:batch_size=0", "fashion:data=digits"]
    words += [f"data.cache={clone.root}/data/cache"]
    only = ["baseline", "speedrun", "digits", "fashion"]
    command = ["benchmarks/results.py", "--seeds", "1", "--set", *words, "--only", *only]
    done = clone.run(*command, timeout=280)
    refused = "fashion: batch_size=0: …\n"
    assert (done.returncode, done.stderr) == (1, Like(f"{refused}something failed; …\n"))
    assert "speedrun: 19 of 20 seeds" in done.stdout

    records = rows.read_records(file)
    failed, fast, digits = records.parts
    assert (failed.preset, failed.runs) == ("baseline", [])
    assert failed.failures == {"1": Like("exit code 1: …finite…epoch 1 (train nan, val nan)…")}
    assert ([run.seed for run in fast.recipe], [run.seed for run in fast.runs]) == ([1], [1])
    assert digits.command == (
        "python train.py experiment=digits seed=N tracking=none trainer.epochs=2 data.cache=FOLDER"
    )
    (run,) = digits.runs
    assert 0.5 < run.accuracy < 1
    assert len(run.curves["train"]) == 2
    assert digits.wall > run.seconds > 0
    assert digits.parameters > 10_000
    assert digits.device.startswith("cpu, ")
    assert len(run.errors) == round((1 - run.accuracy) * sum(digits.classes.values()))
    errors = clone.root / "docs" / "digits-errors.png"
    assert not errors.exists()  # no image is harder than others for one run

    again = clone.run(*command[:-4], "digits", timeout=280)
    assert again.returncode == 0, again.stderr
    assert [run.seed for run in rows.read_records(file).parts[-1].runs] == [1, 2]
    for name in ("results-time", "results-curves", "digits-confusion", "digits-errors"):
        assert (clone.root / "docs" / f"{name}.png").stat().st_size > 10_000
    text = (clone.root / results.PAGE).read_text()
    assert "| baseline | failed " in text
    assert str(clone.root) not in text + file.read_text()


# --- the recipe ---


def make_cache(folder: Path, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """The cache of MNIST, with noise; returns training images and test labels."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part in ("train", "t10k"):
        pixels = random.integers(0, 256, (count, 28, 28), np.uint8)
        np.save(folder / f"{part}-images-idx3-ubyte.npy", pixels)
        labels = random.integers(0, 10, count, np.uint8)
        np.save(folder / f"{part}-labels-idx1-ubyte.npy", labels)
    return np.load(folder / "train-images-idx3-ubyte.npy"), labels


def test_the_recipes_network_is_the_published_one() -> None:
    shapes = [tuple(p.shape) for p in recipe.network().parameters()]
    assert shapes == [
        *((24, 1, 5, 5), (24,)),
        *((32, 24, 3, 3), (32,)),
        *((256, 800), (256,)),
        *((10, 256), (10,)),
    ]
    assert recipe.network()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_recipe_takes_the_images_in_the_order_of_the_file_once(tmp_path: Path) -> None:
    raw, _ = make_cache(tmp_path / "mnist")
    images, labels = recipe.load(str(tmp_path / "mnist"), "train")
    assert images.shape == (300, 1, 28, 28)
    assert images[1, 0, 0, 5].item() == pytest.approx((raw[1, 0, 5] / 255 - 0.1307) / 0.3081)
    seen: list[torch.Tensor] = []
    model = recipe.network()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    before = [p.detach().clone() for p in model.parameters()]
    assert recipe.train(model, images, labels) > 0
    assert [len(batch) for batch in seen] == [256, 44]
    assert torch.equal(torch.cat(seen), images)
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_run_of_the_recipe_has_its_seeds_weights_and_is_tested_on_the_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, labels = make_cache(tmp_path / "mnist", count=1200)
    weights = []

    def train(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> float:
        weights.append(model[0].weight.detach().clone())
        model[-1].weight.data.zero_()  # it now answers with the largest bias
        model[-1].bias.data.copy_(torch.arange(10))
        return 1.25

    monkeypatch.setattr(recipe, "train", train)
    runs = [recipe.run(seed, str(tmp_path / "mnist")) for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert runs == [(1.25, (labels == 9).mean())] * 3


def test_the_recipe_uses_every_core_whatever_ran_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cache(tmp_path / "mnist")
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(recipe, "THREADS", 2)
    monkeypatch.setattr(recipe, "train", lambda *arguments: seen.append(torch.get_num_threads()))
    torch.set_num_threads(1)  # as a small model does when its weights are looked at
    recipe.run(1, str(tmp_path / "mnist"))
    torch.set_num_threads(before)
    assert seen == [2]
