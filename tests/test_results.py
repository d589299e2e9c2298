"""Results of the presets: rows from what runs left, the page from rows, the recipe."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import page
import pytest
import recipe
import results
import torch
from conftest import Clone, Like
from page import Row, Run
from torch import nn

from mnist_exp.paths import REPOSITORY

HERE = {"began": "2026-01-02 03:04 UTC", "commit": "abc1234", "machine": "CPU", "versions": "P 3"}


def make_row(accuracies: list[float], seconds: list[float], share: int = 99, **more: object) -> Row:
    """share: runs of a round."""
    metrics = enumerate(zip(accuracies, seconds, strict=True))
    runs = [Run(n // share, n + 1, accuracy, took) for n, (accuracy, took) in metrics]
    return Row(**HERE, runs=runs, **more)


# --- the page ---


def test_the_interval_is_students() -> None:
    # t of 95 % is 12.706 for one degree of freedom, 4.303 for two, 2.776 for four.
    assert page.interval([1.0, 3.0]) == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)
    half = 4.303 * 1.0 / 3**0.5
    assert page.interval([1.0, 2.0, 3.0]) == pytest.approx((2 - half, 2 + half), abs=1e-3)
    half = 2.776 * 2.5**0.5 / 5**0.5
    assert page.interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3 - half, 3 + half), abs=1e-3)
    assert page.interval([0.5]) == (0.5, 0.5)


def test_a_headline_has_accuracy_and_training_time() -> None:
    row = make_row([0.995, 0.997, 0.996], [301.2, 299.6, 321.0])
    assert page.headline(row) == "99.60 ± 0.10 % (n = 3), 301 s of training on CPU"
    assert page.headline(make_row([0.9], [1.234])) == "90.00 % (n = 1), 1.2 s of training on CPU"


@pytest.mark.parametrize("name", results.read_rows())
def test_a_preset_and_the_readme_say_what_was_measured(name: str) -> None:
    row = results.read_rows()[name]
    head = (REPOSITORY / "conf" / "experiment" / f"{name}.yaml").read_text("utf-8").splitlines()
    assert head[2] == f"#   python train.py experiment={name}"
    assert head[4] == f"# Test accuracy {page.headline(row)}."
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    assert f"| `{name}` | {page.headline(row)} |" in readme
    assert ("JPEG re-encoding" in "\n".join(head[5:7])) == ("JPEG re-encoding" in row.note)


def test_the_page_has_the_command_and_failures_of_every_row() -> None:
    rows = {
        "one": make_row(
            [0.97, 0.98],
            [5.0, 4.0],
            commands=["python train.py -m experiment=one seed=1,2"],
            wall=20.4,
            parameters=109386,
            device="cpu, 1 thread",
            placed=["data.root", "data.cache"],
            failures=["seed 3: FAILED no memory"],
            picture="docs/errors.png",
        ),
        "single": make_row([0.9], [7.5], note="the only one", wall=9, parameters=10, device="cpu"),
        "none": make_row([], [], failures=["no such preset"]),
    }
    told = page.render_page(rows)
    assert told.startswith("# Results\n\n")
    table, _, rest = told[told.index("| preset") :].partition("\n\n")
    assert [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]
    ] == [
        ["one", "97.50 ± 0.71", "2", "91.15 to 103.85", "4.50 (4.00 to 5.00)", "20", "109,386"],
        ["single", "90.00", "1", "", "7.50", "9", "10"],
        ["none", "failed", "0", "", "", "", ""],
    ]
    header = "preset | test accuracy, % | n | 95 % interval | training, s | wall, s | parameters"
    assert re.sub(" +", " ", table.splitlines()[0]) == f"| {header} |"
    assert rest == (
        "- `one`: measured with `data.root=<folder> data.cache=<folder>`.\n"
        "- `one`: **failed**: seed 3: FAILED no memory.\n"
        "- `single`: the only one.\n"
        "- `none`: **failed**: no such preset.\n"
        "\n"
        "## Errors of `one`\n"
        "\n"
        "![Errors by true and predicted class](docs/errors.png)\n"
        "\n"
        "All seeds together, each with the weights that were tested.\n"
        "\n"
        "## Commands\n"
        "\n"
        "```console\n"
        "python train.py -m experiment=one seed=1,2\n"
        "```\n"
        "\n"
        "## When and where\n"
        "\n"
        "| preset | began                | commit  | machine | device and threads | versions |\n"
        "| ------ | -------------------- | ------- | ------- | ------------------ | -------- |\n"
        "| one    | 2026-01-02 03:04 UTC | abc1234 | CPU     | cpu, 1 thread      | P 3      |\n"
        "| single | 2026-01-02 03:04 UTC | abc1234 | CPU     | cpu                | P 3      |\n"
        "| none   | 2026-01-02 03:04 UTC | abc1234 | CPU     |                    | P 3      |\n"
    )


def test_ratios_to_the_recipe_are_taken_per_round_and_of_means() -> None:
    row = make_row([0.9896, 0.99, 0.9904, 0.992], [1.0, 2.0, 3.0, 5.0], share=2)
    row.recipe = [Run(0, 1, 0.989, 10.0), Run(1, 2, 0.99, 10.0)]
    told = (
        page.render_page({"fast": row}).partition("## In a second\n\n")[2].partition("\n\n## ")[0]
    )
    assert "2 rounds, each\nwith one seed of the recipe and then one sweep over 2 seeds" in told
    assert told.partition("\n\n")[2] == (
        "|        | loop, s             | test accuracy, % | n |\n"
        "| ------ | ------------------- | ---------------- | - |\n"
        "| recipe | 10.00               | 98.95 ± 0.07     | 2 |\n"
        "| fast   | 2.50 (1.00 to 5.00) | 99.05 ± 0.11     | 4 |\n"
        "\n"
        "| fast / recipe            | measured               | bar     |            |\n"
        "| ------------------------ | ---------------------- | ------- | ---------- |\n"
        "| loop, within a round     | 0.275 (0.150 to 0.400) | ≤ 0.25  | **missed** |\n"
        "| loop, means of all seeds | 0.275                  | ≤ 0.25  | **missed** |\n"
        "| mean test accuracy, %    | 99.050                 | ≥ 99.00 | met        |"
    )


# --- from runs to rows ---


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the rows and the page are written to instead."""
    monkeypatch.setattr(results, "ROWS", tmp_path / "results.json")
    monkeypatch.setattr(results, "PAGE", tmp_path / "RESULTS.md")
    return tmp_path


def test_only_measures_what_it_names_and_the_page_keeps_the_other_rows(
    own_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = make_row([0.97, 0.98], [5.0, 4.0], recipe=[Run(0, 1, 0.9, 8.0)], placed=["data.root"])
    results.write({"speedrun": kept, "accurate": make_row([0.5], [1.0])})
    asked = []

    def measure_preset(name: str, words: list[str]) -> Row:
        asked.append((name, words))
        return make_row([0.75], [2.0])

    monkeypatch.setattr(results, "measure_preset", measure_preset)
    words = ["--only", "accurate", "baseline", "--set", "a=1", "accurate:b=c:d", "fashion:e=2"]
    monkeypatch.setattr(sys, "argv", ["results.py", *words])
    results.main()
    assert asked == [("accurate", ["a=1", "b=c:d"]), ("baseline", ["a=1"])]
    rows = results.read_rows()
    assert list(rows) == ["baseline", "speedrun", "accurate"]
    assert (rows["speedrun"], rows["accurate"]) == (kept, make_row([0.75], [2.0]))
    assert (own_files / "RESULTS.md").read_text() == page.render_page(rows)


def test_a_word_for_no_preset_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["results.py", "--set", "acurate:data.root=x"])
    with pytest.raises(SystemExit, match="2"):
        results.main()
    assert "acurate" in capsys.readouterr().err


def test_a_preset_that_cannot_be_composed_is_a_failed_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(results.PRESETS, "nowhere", results.Preset(2))
    row = results.measure_preset("nowhere", [])
    assert (row.runs, row.failures) == ([], [Like("…'experiment/nowhere'…")])


def test_a_row_is_read_from_what_the_jobs_left_with_validation_or_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_val = {"epoch": 1, "val/accuracy": 0.5}
    without = {"epoch": 1, "train/accuracy": 0.5}
    tested = {"epoch": 1, "test/loss": 0.1, "test/accuracy": 0.75}
    for number, lines in enumerate(([with_val, with_val, tested], [without, tested], [without])):
        folder = tmp_path / str(number)
        folder.mkdir()
        lines = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(lines)
        ended = "FINISHED" if number < 2 else "FAILED"
        outcome = {"job": number, "chosen": {}, "overrides": ["data=digits", f"seed={number + 4}"]}
        outcome |= {
            "seconds": number + 1.5,
            "status": ended,
            "reason": "no memory" if number == 2 else "",
        }
        (folder / "outcome.json").write_text(json.dumps(outcome))
    printed = "seed=4 on cpu, 2 threads, x86_64: 1,000 parameters, 0.1 MFLOP an image\n"
    printed += f"epoch 1/1\noutputs  {tmp_path}\n"
    monkeypatch.setattr(results, "run_command", lambda command: (1, printed))
    row = Row(**HERE)
    finished = results.run_sweep(row, 3, ["train.py"])
    assert row.runs == [Run(3, 4, 0.75, 1.5), Run(3, 5, 0.75, 2.5)]
    assert row.failures == ["seed 6: FAILED no memory"]
    assert (row.device, [job.job for job in finished]) == ("cpu, 2 threads, x86_64", [0, 1])


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
    (tmp_path / "RESULTS.md").write_text("new")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "errors.png").write_text("new")
    assert results.describe_commit() == git("rev-parse", "--short", "HEAD") != ""
    (tmp_path / "code.py").write_text("new")
    assert results.describe_commit() == git("rev-parse", "--short", "HEAD") + "-dirty"


@pytest.mark.slow
def test_presets_are_measured_by_the_command_and_failures_are_listed(clone: Clone) -> None:
    shutil.copytree(REPOSITORY / "benchmarks", clone.root / "benchmarks")
    (clone.root / "benchmarks" / "results.json").unlink(missing_ok=True)
    for name in ("speedrun", "accurate", "fashion"):
        (clone.root / "conf" / "experiment" / f"{name}.yaml").write_text(
            "# @package _global_\n"
            "defaults: [{override /data: digits}, {override /model: mlp}]\n"
            f"batch_size: {0 if name == 'fashion' else 64}\n"
            "trainer: {epochs: 1}\n"
        )
    make_cache(clone.root / "data" / "cache" / "mnist")
    cache = f"data.cache={clone.root}/data/cache"
    words = ["baseline:data=digits", "baseline:optimizer.lr=1e30", cache]
    only = ["baseline", "speedrun", "accurate", "fashion"]
    done = clone.run("benchmarks/results.py", "--only", *only, "--set", *words, timeout=280)
    assert (done.returncode, done.stderr) == (1, Like("…RESULTS.md…\n"))

    rows = json.loads((clone.root / "benchmarks" / "results.json").read_text())
    assert list(rows) == only
    assert rows["baseline"]["commands"] == [
        "python train.py -m experiment=baseline seed=1,2,3,4,5 sweep.test=all tracking=none "
        "hydra/launcher=basic data=digits optimizer.lr=1e30"
    ]
    nan = "…loss…finite…epoch 1 (train nan, val nan)…1e+30"
    failed = [Like(f"seed {seed}: FAILED {nan}") for seed in range(1, 6)]
    assert (rows["baseline"]["runs"], rows["baseline"]["failures"]) == ([], failed)
    (refused,) = rows["fashion"]["failures"]
    assert refused == Like("exit code 2: batch_size=0 (conf/experiment/fashion.yaml): …>= 1")
    fast, accurate = rows["speedrun"], rows["accurate"]
    assert fast["failures"] == accurate["failures"] == []
    pairs = [(run["round"], run["seed"]) for run in fast["runs"]]
    assert pairs == [((seed - 1) // 4, seed) for seed in range(1, 21)]
    assert [run["seed"] for run in fast["recipe"]] == [1, 2, 3, 4, 5]
    assert all(0.5 < run["accuracy"] < 1 and run["seconds"] > 0 for run in fast["runs"])
    assert accurate["commands"] == [
        "python train.py -m experiment=accurate seed=1,2,3 sweep.test=all tracking=none "
        "hydra/launcher=basic"
    ]
    assert (accurate["parameters"], accurate["placed"]) == (17226, ["data.cache"])
    assert accurate["device"].startswith("cpu, 1 thread")
    assert accurate["wall"] > sum(run["seconds"] for run in accurate["runs"])
    assert accurate["picture"] == "docs/accurate-confusion.png"
    assert (clone.root / "docs" / "accurate-confusion.png").stat().st_size > 10_000
    text = (clone.root / "RESULTS.md").read_text()
    assert "| baseline | failed " in text
    assert str(clone.root) not in text


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
