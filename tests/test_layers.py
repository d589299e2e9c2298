"""The packages are layers: each may import those after it, none before it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_exp.paths import REPOSITORY

SOURCES = REPOSITORY / "src" / "mnist_exp"
LAYERS = (
    *(
        "__main__",
        "api",
        "cli",
        "sweeps",
        "inference",
        "experiment",
        "training",
        "data",
        "models",
        "tracking",
    ),
    *("figures", "machine", "files", "paths", "errors"),
)
MODULES = sorted(path for path in SOURCES.rglob("*.py") if path != SOURCES / "__init__.py")


def name_of(module: Path) -> str:
    """The module's dotted name below the package."""
    return ".".join(module.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")


def imports(module: Path) -> Iterator[str]:
    """What a module imports, at its top or in a function."""
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "write the whole name instead of a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layers_of(module: Path) -> set[str]:
    """The layers that a module imports."""
    return {name.split(".")[1] for name in imports(module) if name.partition(".")[0] == "mnist_exp"}


def test_the_package_has_these_layers_and_nothing_else() -> None:
    found = {path.stem for path in SOURCES.iterdir() if path.stem not in ("__pycache__", "py")}
    assert found - {"__init__"} == set(LAYERS)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_module_imports_only_its_own_layer_and_those_below(module: Path) -> None:
    own = LAYERS.index(name_of(module).partition(".")[0])
    assert sorted(layers_of(module) & set(LAYERS[:own])) == []


@pytest.mark.parametrize("script", sorted(REPOSITORY.glob("*.py")), ids=lambda path: path.name)
def test_scripts_import_their_command_and_nothing_else_of_ours(script: Path) -> None:
    assert layers_of(script) == {"cli"}


def test_commands_are_imported_without_anything_heavy() -> None:
    heavy = {"torch", "torchvision", "mlflow", "rich", "sklearn", "numpy", "fastapi", "uvicorn"}
    commands = [name_of(path) for path in MODULES if path.parent.name == "cli"]
    code = f"""if True:
        import sys, importlib
        for module in {commands}:
            importlib.import_module("mnist_exp." + module)
            print(module, *{heavy} & sys.modules.keys())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == commands
