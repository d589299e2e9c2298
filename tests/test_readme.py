"""README and docs: links lead somewhere, commands are valid, and what extend.md adds works."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from conftest import Clone, Like
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import load_digits

from mnist_exp.cli.check import problems
from mnist_exp.paths import CONF, REPOSITORY

README = (REPOSITORY / "README.md").read_text("utf-8")
EXTEND = (REPOSITORY / "docs" / "extend.md").read_text("utf-8")
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted(REPOSITORY.glob("docs/*.md")))]
WRITTEN = ["CHANGELOG.md", "benchmarks/RESULTS.md"]
QUICK = ("trainer.epochs=2", "optimizer.lr=1e-2")


def read(page: str) -> str:
    return (REPOSITORY / page).read_text("utf-8")


# --- README and all pages ---


def test_the_readme_has_at_most_1500_words() -> None:
    assert len(README.split()) <= 1500


def test_the_readme_lists_every_page_with_the_question_that_opens_it() -> None:
    listed = dict(re.findall(r"\((docs/\w+\.md)\) \| (.+\?) \|", README))
    assert sorted(listed) == sorted(PAGES[1:])
    for page, question in listed.items():
        assert read(page).splitlines()[2].startswith(question)


@pytest.mark.parametrize("page", [*PAGES, *WRITTEN])
def test_relative_links_resolve(page: str) -> None:
    text = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if ":" in path:
            continue
        target = REPOSITORY / page if not path else (REPOSITORY / page).parent / path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, link


def commands(page: str) -> Iterator[tuple[list[str], list[str]]]:
    """The words of each command on the page, and the output shown below it."""
    for block in re.findall(r"```console\n(.*?)```", read(page), re.DOTALL):
        block = block.replace("\\\n", "")
        if not block.startswith("$ "):
            for line in block.splitlines():
                yield shlex.split(line, comments=True), []
            continue
        command, *output = block.removeprefix("$ ").splitlines()
        yield shlex.split(command), output


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/extend.md"])
def test_commands_are_valid(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, output in commands(page):
        if words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert all(f"\n{target}:" in read("Makefile") for target in targets)
        if not (scripts := [word for word in words if re.fullmatch(r"\w+\.py", word)]):
            continue
        script, arguments = scripts[0], words[words.index(scripts[0]) + 1 :]
        assert (REPOSITORY / script).is_file()
        if script == "train.py":
            overrides = [word for word in arguments if not word.startswith("-") and word != "job"]
            assert problems(overrides, multirun="-m" in arguments) == output, words
        else:
            name = script.removesuffix(".py")
            module = import_module(f"mnist_exp.cli.{name}")
            monkeypatch.setattr(module, "run_and_exit", lambda act: None)
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            getattr(module, name)()  # exits where the options are wrong


def test_keys_and_options_in_the_pages_exist() -> None:
    folders = [path.name for path in CONF.iterdir() if path.is_dir()]
    groups = "|".join(name for name in folders if name != "hydra")
    top = OmegaConf.load(CONF / "config.yaml")
    for page in PAGES:
        for group, key, option in re.findall(
            rf"`({groups})(?:\.(?!txt|jsonl)(\w+)|=(\w+))", read(page)
        ):
            files = CONF.glob(f"{group}/*.yaml")
            options = {path.stem: list(OmegaConf.load(path)) for path in files}
            if key:
                assert any(key in values for values in [*options.values(), top.get(group, {})]), key
            else:
                assert option in options, f"{page}: {group}={option}"


def test_the_notebook_example_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (_, code) = re.findall(r"```python\n(.*?)```", read("docs/train.md"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    *epochs, test = capsys.readouterr().out.splitlines()
    assert [line[0] for line in epochs] == ["1", "2", "3", "4", "5"]
    (accuracy,) = re.findall(r"'accuracy': (0\.\d+)", test)
    assert float(accuracy) > 0.9


# --- docs/extend.md ---


def blocks_of(title: str) -> tuple[str, list[tuple[str, str]]]:
    """This section, and each file in it: its path and its text."""
    _, _, after = EXTEND.partition(f"\n## {title}\n")
    section = after.partition("\n## ")[0]
    blocks = re.findall(r"```(?:python|yaml)\n(# (\S+)\n.*?)```", section, re.DOTALL)
    return section, [(path, text) for text, path in blocks]


def put(clone: Clone, title: str) -> list[Path]:
    """Write the files that this section shows, which must have as many lines as it says."""
    section, blocks = blocks_of(title)
    (count,) = re.findall(r"(\d+)\s+lines,\s+no\s+other\s+change", section)
    assert sum(text.count("\n") for _, text in blocks) == int(count)
    for path, text in blocks:
        assert not (clone.root / path).exists()
        (clone.root / path).write_text(text)
    return [clone.root / path for path, _ in blocks]


def train(clone: Clone, *arguments: str) -> str:
    """The output of `python train.py`, which must succeed."""
    done = clone.run("train.py", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def check_style(paths: list[Path]) -> None:
    """The examples pass the checks of the project's own code."""
    code = [str(path) for path in paths if path.suffix == ".py"]
    for command in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]):
        subprocess.run([sys.executable, "-m", *command, *code], cwd=REPOSITORY, check=True)


@pytest.mark.slow
def test_a_model_of_two_files_trains_resumes_and_predicts(clone: Clone) -> None:
    code, config = put(clone, "A model")
    assert (code.suffix, config.suffix) == (".py", ".yaml")
    check_style([code])
    train(clone, "data=digits", "model=patches", "model.patch=2", *QUICK)
    train(clone, "resume=latest", "trainer.epochs=3")
    image = clone.root / "one.png"
    Image.fromarray(load_digits().images[1].astype(np.uint8) * 15).resize((80, 80)).save(image)
    done = clone.run("predict.py", "--run", "latest", str(image))
    assert (done.returncode, done.stdout.count("%")) == (0, 3)

    done = clone.run("train.py", "data=digits", "model=patches", "model.width=wide")
    assert done.stderr == Like("model.width=wide: …integer\n")
    done = clone.run("train.py", "model=patch")
    assert done.stderr == Like("model=patch: …cnn | linear | mlp | patches |…patches?\n")


@pytest.mark.slow
def test_a_data_set_of_two_files_trains(clone: Clone) -> None:
    check_style(put(clone, "A data set"))
    digits = load_digits()
    images = (digits.images[:, None] * 15).astype(np.uint8)
    parts = {"train": slice(0, 1500), "test": slice(1500, None)}
    arrays = {f"{part}_images": images[rows] for part, rows in parts.items()}
    arrays |= {f"{part}_labels": digits.target[rows] for part, rows in parts.items()}
    np.savez(clone.root / "digits.npz", **arrays)
    assert "data=arrays" in train(clone, "data=arrays", "data.file=digits.npz", *QUICK)
    done = clone.run("evaluate.py", "--run", "latest", "--json")
    assert '"images": 297' in done.stdout
    assert clone.run("train.py", "data=arrays").returncode == 2  # without a file


def test_an_optimizer_of_one_file_trains(clone: Clone) -> None:
    (config,) = put(clone, "An optimizer")
    assert config.suffix == ".yaml"
    assert "radam" in train(clone, "data=digits", "optimizer=radam", *QUICK)


@pytest.mark.slow
def test_a_tracker_of_two_files_logs_each_metric_once_across_a_resume(clone: Clone) -> None:
    code, _ = put(clone, "A tracker")
    check_style([code])
    train(clone, "data=digits", "tracking=csv", *QUICK)
    train(clone, "resume=latest", "trainer.epochs=3")
    (file,) = clone.root.glob("csv/*.csv")
    lines = file.read_text().splitlines()
    assert len(lines) == len(set(lines))
    assert [line[0] for line in lines if ",val/accuracy," in line] == ["1", "2", "3"]


def insert(clone: Clone, block: tuple[str, str], before: str) -> None:
    """Insert the lines of a block into the file that it names."""
    path, text = block
    _, _, lines = text.partition("\n")
    code = (clone.root / path).read_text()
    assert code.count(before) == 1
    (clone.root / path).write_text(code.replace(before, lines + before))


@pytest.mark.slow
def test_a_trainer_option_is_two_lines_and_an_older_checkpoint_resumes(clone: Clone) -> None:
    train(clone, "data=digits", "tracking=none", *QUICK)
    _, (default, field, use) = blocks_of("A trainer option")
    for path, text in (default, field):
        added = text.partition("\n")[2]
        assert added.count("\n") == 1
        file = clone.root / path
        file.write_text(file.read_text() + added)
    insert(clone, use, before="    state.scaler.step(state.optimizer)\n")
    done = clone.run("train.py", "trainer.clip_value=-1")
    assert done.stderr == "trainer.clip_value=-1: must be null or a number > 0\n"
    train(clone, "resume=latest", "trainer.epochs=3")
    without = train(clone, "data=digits", "tracking=none", *QUICK)
    clipped = train(clone, "data=digits", "tracking=none", "trainer.clip_value=1e-4", *QUICK)
    assert without.split("loss")[1] != clipped.split("loss")[1]


@pytest.mark.slow  # mypy, without a cache
def test_a_loss_a_metric_a_callback_a_schedule_and_an_augmentation_are_two_files_each(
    clone: Clone,
) -> None:
    titles = ("A loss", "A metric", "A callback", "A schedule", "An augmentation")
    code = [next(iter(put(clone, title))) for title in titles]
    check_style(code)
    chosen = ("loss=brier", "metrics=[accuracy,worst_recall]", "callbacks=[weight_norm]")
    more = ("scheduler=square_root", "augment=brightness", "trainer.monitor=val/worst_recall")
    printed = train(clone, "data=digits", "tracking=none", *chosen, *more, *QUICK)
    assert printed.count(" worst_recall 0.") == 4
    (metrics,) = clone.root.glob("outputs/*/*/metrics.jsonl")
    assert metrics.read_text().count('"weight_norm": ') == 2
    evaluated = clone.run("evaluate.py", "--run", "latest", "--json")
    assert "worst_recall" in json.loads(evaluated.stdout)
