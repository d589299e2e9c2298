"""Which room may import which: no arrow turns round."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_exp.paths import REPOSITORY

SOURCES = REPOSITORY / "src" / "mnist_exp"

# Room: what it may import besides the standard library; after the bar, inside functions only.
# A room may name only rooms above it. A name covers all below it, unless that has its own line.
ROOMS = {
    "addresses": "",
    "printing": "addresses",
    "errors": "printing",
    "paths": "errors",
    "files": "filelock errors",
    "images": "PIL files",
    "signals": "",
    "process": "errors printing signals",
    "commands": "paths",
    "help": "paths",
    "versions": "hydra omegaconf",
    "config": "omegaconf addresses paths versions",
    "targets": "hydra omegaconf errors paths versions",
    "data": "torch numpy filelock errors files printing | PIL images sklearn torchvision",
    "models": "torch | torchvision",
    "reading": "PIL numpy errors files images",
    "preparing": "PIL torch numpy scipy data reading",
    "optimizers": "torch",
    "schedules": "torch",
    "augmentation": "torch",
    "precision": "torch",
    "compiling": "torch errors",
    "checkpoint": "torch numpy omegaconf errors files paths",
    "ranks": "torch errors paths",
    "environment": "torch errors paths ranks",
    "command_line": "hydra omegaconf config errors printing targets | environment",
    "planning": "hydra omegaconf config errors targets",
    "tracking": "errors",
    "tracking.beside": "omegaconf targets tracking",
    "tracking.served": "mlflow numpy | torch",
    "tracking.models": "mlflow numpy filelock paths tracking",
    "tracking.store": "mlflow filelock addresses errors paths printing tracking",
    "tracking.mlflow": "mlflow tracking tracking.store | tracking.models",
    "tracking.tensorboard": "tensorboard tracking",
    "progress": "torch errors",
    "training": "torch augmentation data.splits precision progress ranks",
    "screen": "torch rich printing progress",
    "journal": "progress",
    "figures": "matplotlib numpy files",
    "scores": "torch",
    "pictures": "torch data progress scores | figures",
    "building": (
        "torch omegaconf checkpoint data environment errors models.layout models.summary precision "
        "targets"
    ),
    "resuming": "omegaconf addresses commands config errors paths | tracking.store",
    "ranking": "omegaconf checkpoint commands config errors paths tracking | tracking.store",
    "trained": (
        "torch omegaconf building checkpoint commands config data environment errors journal "
        "models.summary paths precision progress ranking resuming targets tracking training "
        "| tracking.store"
    ),
    "demo": "fastapi starlette uvicorn errors preparing printing reading trained",
    "exporting": "torch data errors files training | onnxruntime",
    "experiment": (
        "torch omegaconf augmentation building checkpoint commands compiling config data "
        "environment errors exporting files journal paths pictures precision printing progress "
        "ranks resuming scores screen signals targets tracking tracking.beside training"
    ),
    "reproduction": (
        "omegaconf checkpoint config environment errors experiment paths resuming screen targets "
        "tracking.store"
    ),
    "leaderboard": "pydantic errors files",
    "search": "optuna hydra errors leaderboard",
    "sweeps": (
        "omegaconf commands config environment errors experiment files leaderboard paths planning "
        "progress screen signals tracking tracking.beside trained | figures search"
    ),
    "evaluation": (
        "torch hydra omegaconf building commands data errors journal paths pictures progress "
        "resuming scores screen targets trained training | tracking.store"
    ),
    "cli": (
        "hydra omegaconf addresses command_line commands config errors help paths planning "
        "printing process resuming signals tracking.beside versions | experiment joblib ranks "
        "reproduction sweeps"
    ),
    "scripts": "addresses errors paths printing process signals tracking | trained",
    "scripts.predict": "errors printing scripts | figures preparing reading trained",
    "scripts.evaluate": "addresses errors scripts | command_line evaluation",
    "scripts.demo": "addresses errors printing scripts tracking | demo ranking trained",
    "scripts.export": "config errors printing scripts | exporting trained",
}

MODULES = sorted(path for path in SOURCES.rglob("*.py") if path != SOURCES / "__init__.py")


def name_of(module: Path) -> str:
    """Its dotted name below the package."""
    return ".".join(module.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str:
    """The nearest of a dotted name and what is above it that has a line in the table."""
    while name and name not in ROOMS:
        name = name.rpartition(".")[0]
    return name


def imports(module: Path) -> Iterator[tuple[str, bool]]:
    """What a module imports, ours by its name below the package; and whether in a function."""

    def below(node: ast.AST, in_function: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "relative imports hide where they lead"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"  # a module, or what is in one
                is_module = name.removeprefix("mnist_exp.") in map(name_of, MODULES)
                yield name if is_module else node.module, in_function
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from below(child, in_function or is_function)

    for name, in_function in below(ast.parse(module.read_text("utf-8")), in_function=False):
        first = name.partition(".")[0]
        if first == "mnist_exp":
            yield name.removeprefix("mnist_exp."), in_function
        elif first not in sys.stdlib_module_names:
            yield first, in_function


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_module_imports_only_what_its_room_may(module: Path) -> None:
    room = room_of(name_of(module))
    assert room, f"{name_of(module)} has no line in the table: say what it may import"
    always, _, in_functions = (part.split() for part in ROOMS[room].partition("|"))
    for imported, in_function in imports(module):
        allowed = {room, *always, *(in_functions if in_function else [])}
        where = "in a function" if in_function else "at its top"
        assert {imported, room_of(imported)} & allowed, f"{room} imports {imported} {where}"


def test_no_room_names_one_below_it() -> None:
    above: list[str] = []
    for room, allowed in ROOMS.items():
        ours = [name for name in allowed.replace("|", "").split() if room_of(name)]
        assert [name for name in ours if room_of(name) not in above] == []
        above.append(room)


def test_every_room_of_the_table_is_there() -> None:
    assert {room_of(name_of(module)) for module in MODULES} == ROOMS.keys()


@pytest.mark.parametrize("script", sorted(REPOSITORY.glob("*.py")), ids=lambda path: path.name)
def test_scripts_import_their_command_line_and_nothing_else_of_ours(script: Path) -> None:
    own = "cli" if script.stem == "train" else f"scripts.{script.stem}"
    assert {imported for imported, _ in imports(script)} == {own}


COMMAND_LINES = ["cli", *(name_of(path) for path in MODULES if path.parent.name == "scripts")]


@pytest.mark.parametrize("module", COMMAND_LINES)
def test_a_command_line_is_read_without_anything_heavy(module: str) -> None:
    code = f"import sys, mnist_exp.{module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "torchvision", "mlflow", "rich", "sklearn", "numpy", "fastapi", "uvicorn"}
    assert set(done.stdout.split()) & heavy == set()
