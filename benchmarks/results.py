"""Measure what the presets reach, a part at a time, and write docs/results.md.

    python benchmarks/results.py [--only PRESET ...] [--seeds N] [--set [PRESET:]KEY=VALUE ...]

Each preset trains once per seed, by the command that a person types, until it has the seeds that
are planned; `--seeds N` measures N more of each, also beyond the plan, and `--seeds 0` only writes
the page. Each run is added to benchmarks/results.json as it ends. Runs with the same digest of
code and config, on the same machine, are one row. When the code has changed a new row begins, and
the old one stays until the new one has as many seeds; then it goes into the history.

The figures in the README and in conf/experiment/ are written, too. The runs stay in outputs/. They
are not tracked, so that no other process runs next to them.
"""

from __future__ import annotations

import argparse
import ast
import functools
import itertools
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pictures
import recipe
import torch
from hydra import compose
from hydra.errors import HydraException
from measure import name_processor
from omegaconf import DictConfig, OmegaConf
from page import render_page
from pictures import Reference
from rows import SHARE, Part, Records, Row, Run, read_records, write_records

from mnist_exp.errors import BadInput, Failure, first_line
from mnist_exp.experiment.build import load_dataset
from mnist_exp.experiment.load import load_model
from mnist_exp.experiment.presets import initialize_hydra
from mnist_exp.files import replace_file
from mnist_exp.paths import LAST, METRICS, REPOSITORY
from mnist_exp.training.loop import predict

RECORDS = Path("benchmarks", "results.json")
PAGE = Path("docs", "results.md")
HEADERS = "conf/experiment"  # files whose line with the figure is written, too
WRITTEN = (str(RECORDS), "docs/results.md", "docs/*.png", "README.md")
PLACES = ("root", "cache", "mirrors")  # keys of data: depend on the machine and change no result
PLACED = rf"^(data\.({'|'.join(PLACES)}))=.*"
DECIDES = ("data/*.py", "models/*.py", "training/*.py", "experiment/build.py", "experiment/run.py")


class Preset(NamedTuple):
    seeds: int  # planned: from 1 to this one
    dataset: str
    beside_recipe: bool = False  # in turn with it
    errors: bool = False  # keep those of each run, and draw them
    folder_note: str = ""  # where its data are a folder of images
    has_files: bool = True  # which data.root names


PRESETS = {
    "baseline": Preset(5, "MNIST"),
    "speedrun": Preset(20, "MNIST", beside_recipe=True),
    "accurate": Preset(20, "MNIST", errors=True),
    "fashion": Preset(5, "Fashion-MNIST", errors=True),
    "cifar10": Preset(
        3,
        "CIFAR-10",
        errors=True,
        folder_note="CIFAR-10 after JPEG re-encoding, not the published pixels",
    ),
    "digits": Preset(20, "digits", errors=True, has_files=False),
}
REFERENCES = (
    Reference("MNIST", 99.699, "MnistSimpleCNN M3", "mean of 30 networks, no ensemble"),
    Reference("MNIST", 99.04, "train_mnist_fast", "0.76 s on a GPU; `recipe` is the same, here"),
    Reference("Fashion-MNIST", 95.98, "ResNet-20 + erasing", "random erasing, 300 epochs"),
    Reference("CIFAR-10", 93.2, "airbench94", "about, without test-time augmentation"),
)


# --- digests ---


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """Raises BadInput."""
    try:
        with initialize_hydra():
            return compose("config", [f"experiment={name}", *overrides])
    except HydraException as error:
        raise BadInput(first_line(error)) from error


def find_digest(config: DictConfig) -> str:
    """12 hex digits: of the values in conf/ and of the code in src/ that decide a result.

    Comments, docstrings, other presets, and code around the training do not count: they would
    start each row anew. Nor do the seed and the places of the data.
    """
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    for key in ("seed", "tracking", "sweep"):
        values.pop(key)
    for key in PLACES:
        values["data"].pop(key, None)
    digest = sha256(json.dumps(values, sort_keys=True).encode())
    source = REPOSITORY / "src" / "mnist_exp"
    for path in sorted(path for pattern in DECIDES for path in source.glob(pattern)):
        code = strip_text(path.read_text("utf-8"))
        digest.update(f"{path.relative_to(source)}\n{code}\n".encode())
    return digest.hexdigest()[:12]


@functools.cache
def strip_text(code: str) -> str:
    """The code without comments and docstrings."""
    tree = ast.parse(code)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree)


# --- measuring ---


def measure_preset(
    name: str, count: int | None, overrides: Sequence[str], records: Records
) -> Iterator[None]:
    """Train a preset once per seed; yield after each one, when the records have it.

    count: of seeds, or None for those that are planned. Raises Failure.
    """
    config = compose_config(name, overrides)
    part = start_part(name, overrides, find_digest(config))
    seeds = list_seeds(name, count, find_row(records, part))
    if not seeds:
        return
    # Downloads and decodes, which is not timed.
    test = load_dataset(OmegaConf.to_yaml(config.data, resolve=True)).test
    part = records.add(part)
    for seed in seeds:
        if PRESETS[name].beside_recipe:
            number = (seed - 1) // SHARE + 1
            if number not in (run.seed for run in find_row(records, part).recipe):
                part.recipe.append(run_recipe(number, Path(config.data.cache, "mnist")))
                yield
        train(part, seed, overrides)
        runs = find_row(records, part).runs
        if sum(bool(run.errors) for run in runs) > 1:
            images = test[torch.tensor(pictures.list_hardest(runs))].images
            path = REPOSITORY / "docs" / f"{name}-errors.png"
            pictures.hardest(path, runs, [*part.classes], images.permute(0, 2, 3, 1).numpy())
        yield
        if find_digest(compose_config(name, overrides)) != part.digest:
            raise BadInput(f"{name}: its code or config has changed meanwhile")


def list_seeds(name: str, count: int | None, row: Row) -> list[int]:
    """The next seeds to measure."""
    if count is None:
        return [seed for seed in range(1, PRESETS[name].seeds + 1) if seed not in row.seeds]
    missing = (seed for seed in itertools.count(1) if seed not in row.seeds)
    return list(itertools.islice(missing, count))


def find_row(records: Records, part: Part) -> Row:
    """The row that the part belongs to, or would."""
    for row in records.rows(part.preset):
        if (row.digest, row.machine) == (part.digest, part.machine):
            return row
    return Row([part])


def start_part(name: str, overrides: Sequence[str], digest: str) -> Part:
    """An empty part, with the time, the machine, and the versions of its measurement."""
    words = [re.sub(PLACED, r"\1=FOLDER", word) for word in overrides]
    command = ["python", "train.py", f"experiment={name}", "seed=N", "tracking=none", *words]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"{name_processor()}, {cores} cores"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    packages = [f"{name} {version(name)}" for name in ("torch", "torchvision", "numpy")]
    return Part(
        preset=name,
        digest=digest,
        machine=machine,
        began=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        commit=describe_commit(),
        load=round(os.getloadavg()[0], 1),
        versions=", ".join([f"Python {platform.python_version()}", *packages]),
        command=shlex.join(command),
        note=PRESETS[name].folder_note if "data=image_folder" in overrides else "",
    )


def run_recipe(seed: int, folder: Path) -> Run:
    seconds, accuracy = recipe.run(seed, str(folder))
    print(f"recipe, seed {seed}: {seconds:.2f} s, {accuracy:.4f}", flush=True)
    return Run(seed, accuracy, round(seconds, 4))


def train(part: Part, seed: int, overrides: Sequence[str]) -> None:
    """Run one training and add it to the part. Raises BadInput if the command refuses to."""
    words = ["train.py", f"experiment={part.preset}", f"seed={seed}", "tracking=none", *overrides]
    started = time.perf_counter()
    code, printed = run_command([sys.executable, *words])
    last = (printed.strip().splitlines() or ["no output"])[-1]
    if code == 2:
        raise BadInput(last.removeprefix("error: "))
    part.wall = round(part.wall + time.perf_counter() - started, 1)
    if found := re.findall(r"^.+ on (.+): ([\d,]+) parameters", printed, re.MULTILINE):
        device, parameters = found[0]
        part.parameters = int(parameters.replace(",", ""))
        if device not in part.device.split("; "):  # other threads, where other processes ran
            part.device = "; ".join(filter(None, [part.device, device]))
    folders = re.findall(r"^outputs +(.+)$", printed, re.MULTILINE)
    if code or not folders:
        part.failures[str(seed)] = f"exit code {code}: {last}"
        return
    folder = REPOSITORY / folders[-1]
    run = read_run(folder, seed)
    if PRESETS[part.preset].errors:
        try:
            run = replace(run, errors=list_errors(part, folder, run.accuracy))
        except Exception as error:  # keep the run, which may have taken a long time
            reason = f"its weights: {type(error).__name__}: {first_line(error)}"
            part.failures[str(seed)] = reason
    part.runs.append(run)


def run_command(command: Sequence[str]) -> tuple[int, str]:
    """Run the command and show its output; return its exit code and its output."""
    lines = []
    process = subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    finally:
        process.wait()  # Ctrl-C reached it, too
    return process.returncode, "".join(lines)


def read_run(folder: Path, seed: int) -> Run:
    """What a run left in its output folder."""
    metrics = [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]
    (accuracy,) = (line["test/accuracy"] for line in metrics if "test/accuracy" in line)
    seconds = sum(line.get("speed/epoch_seconds", 0.0) for line in metrics)
    curves = {}
    for split in ("train", "val"):
        key = f"{split}/accuracy"
        if curve := [round(line[key], 4) for line in metrics if key in line]:
            curves[split] = curve
    return Run(seed, round(accuracy, 6), round(seconds, 4), curves)


def list_errors(part: Part, folder: Path, accuracy: float) -> list[tuple[int, int, int]]:
    """Test images that the kept weights get wrong: number, true and predicted class.

    Raises ValueError if the weights give another accuracy than the run did.
    """
    trained = load_model(folder / LAST)
    test = trained.test_split()
    predicted, labels = predict(trained.model, test, trained.precision).cpu(), test.labels.cpu()
    counts = torch.bincount(labels, minlength=len(trained.kind.class_names)).tolist()
    part.classes = dict(zip(trained.kind.class_names, counts, strict=True))
    wrong = (predicted != labels).nonzero().flatten().tolist()
    if abs(len(wrong) - (1 - accuracy) * len(test)) > 2.5:  # near a tie the last bits decide
        raise ValueError(f"they now get {len(wrong)} of {len(test)} test images wrong")
    return [(number, int(labels[number]), int(predicted[number])) for number in wrong]


def describe_commit() -> str:
    """The commit, with "-dirty" if files have changed other than those this program writes."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True)
        return done.stdout.strip()

    others = [f":!{path}" for path in (*WRITTEN, HEADERS)]
    changed = (
        git("status", "--porcelain", "--", ".", *others)
        + git("diff", "HEAD", "-I^# Test accuracy ", "--", HEADERS)
        + git("ls-files", "--others", "--exclude-standard", "--", HEADERS)
    )
    return (git("rev-parse", "--short", "HEAD") or "unknown") + "-dirty" * bool(changed)


# --- writing ---


def write_text(path: Path, text: str) -> None:
    with replace_file(REPOSITORY / path) as temporary:
        temporary.write_text(text, "utf-8")


def write_pages(records: Records) -> None:
    """Draw the pictures; write the page, and the figures in the README and in the presets."""
    best = {name: row for name in PRESETS if (row := records.best(name))}
    write_text(
        PAGE, render_page(records, list(PRESETS), describe_references(), draw(best, records))
    )
    for name, row in best.items():
        replace_lines(Path("README.md"), rf"(\| `{name}` \| )[^|]*( \|)", row.headline)
        header = Path(HEADERS, f"{name}.yaml")
        replace_lines(header, r"(# Test accuracy ).*(\.)", row.headline)


def draw(best: dict[str, Row], records: Records) -> dict[str, str]:
    """Draw what there is data for; return the names of the files, also of those drawn before."""
    docs = REPOSITORY / PAGE.parent
    rows = [(row, PRESETS[name].dataset) for name in best for row in records.rows(name) if row.runs]
    if rows:
        pictures.accuracy_by_time(docs / "results-time.png", rows, REFERENCES)
    if curved := [row for row in best.values() if len(row.runs[0].curves.get("train", ())) > 1]:
        pictures.learning_curves(docs / "results-curves.png", curved)
    for name, row in best.items():
        known = [run for run in row.runs if run.errors or run.accuracy == 1]
        if known and row.classes:
            pictures.errors(docs / f"{name}-confusion.png", known, row.classes)
    files = {"time": "results-time.png", "curves": "results-curves.png"}
    for name, preset in PRESETS.items():
        if preset.errors:
            files |= {name: f"{name}-confusion.png", f"{name} images": f"{name}-errors.png"}
    return {key: file for key, file in files.items() if (docs / file).exists()}


def describe_references() -> list[str]:
    return [f"{r.name}, {r.dataset}: {r.accuracy:g} % ({r.remark})" for r in REFERENCES]


def replace_lines(path: Path, pattern: str, figure: str) -> None:
    """Put the figure between the two groups of the pattern, where a line begins with it."""
    text = (REPOSITORY / path).read_text("utf-8")
    changed = re.sub(f"^{pattern}", rf"\g<1>{figure}\g<2>", text, count=1, flags=re.MULTILINE)
    if changed != text:
        write_text(path, changed)


def describe_rest(records: Records, overrides: dict[str, list[str]]) -> list[str]:
    """What is left to measure with today's code, one line for each preset."""
    lines = []
    for name, preset in PRESETS.items():
        try:
            digest = find_digest(compose_config(name, overrides[name]))
        except BadInput as error:
            lines.append(f"{name}: {error}")
            continue
        seeds = list_seeds(name, None, find_row(records, start_part(name, overrides[name], digest)))
        if not seeds:
            continue
        line = f"{name}: {len(seeds)} of {preset.seeds} seeds"
        if known := records.best(name):
            wall = sum(part.wall for part in known.parts) / len(known.runs)
            line += f", about {wall * len(seeds) / 60:.0f} minutes"
        lines.append(line)
    return lines or ["nothing"]


# --- the command ---


def parse_override(word: str) -> tuple[str, str]:
    """The preset, or "" for all of them, and the override for it."""
    prefix = re.match(r"(\w+):", word)
    preset, word = (prefix[1], word[prefix.end() :]) if prefix else ("", word)
    if preset and preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise argparse.ArgumentTypeError(f"{preset} is not a preset; there are {known}")
    return preset, word


def list_overrides(name: str, words: Sequence[tuple[str, str]]) -> list[str]:
    """Those for this preset, and those for all presets whose key it has."""
    has_files = PRESETS[name].has_files
    return [
        word
        for preset, word in words
        if preset == name or (not preset and (has_files or not word.startswith("data.root=")))
    ]


def parse_count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word}: must be an integer >= 0")
    return int(word)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    choice = f"from {', '.join(PRESETS)}"
    parser.add_argument("--only", nargs="+", choices=PRESETS, metavar="PRESET", help=choice)
    parser.add_argument(
        "--seeds",
        type=parse_count,
        metavar="N",
        help="measure N more of each preset; 0 only writes the page; by default, those planned",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        type=parse_override,
        default=[],
        metavar="[PRESET:]KEY=VALUE",
        help="more overrides for train.py, such as data.root=FOLDER",
    )
    options = parser.parse_args()
    overrides = {name: list_overrides(name, options.set) for name in PRESETS}
    records, errors = read_records(REPOSITORY / RECORDS), []
    names = options.only or list(PRESETS)
    try:
        for name in names:
            try:
                for _ in measure_preset(name, options.seeds, overrides[name], records):
                    records.replace_rows({name: preset.seeds for name, preset in PRESETS.items()})
                    write_records(REPOSITORY / RECORDS, records)
            except Failure as error:
                errors.append(f"{name}: {error}")
    finally:
        write_pages(records)
    print("\nleft to measure:", *describe_rest(records, overrides), sep="\n  ")
    if any(row.failures for name in names for row in records.rows(name)):
        errors.append(f"something failed; see {PAGE}")
    if errors:
        sys.exit("\n".join(errors))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the runs that had ended are kept")
