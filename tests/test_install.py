"""What `make` does about Python and .venv, with shell scripts in place of Python; the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_exp.paths import REPOSITORY

# Answers as Python does what scripts/venv.sh asks, and prints what else it is to run.
PYTHON = """#!/bin/sh
case "$*" in
    *ensurepip*) exit {without_venv} ;;
    -c*) echo {identity} ;;
    "-m venv .venv") mkdir .venv/bin && cp "$0" .venv/bin/python ;;
    *) echo "ran $*" ;;
esac
"""
MAKES = ("PYTHON", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # set where `make test` runs this
BROKEN = "#!/bin/sh\nexit 127\n"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def write_python(path: Path, identity: str, without_venv: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PYTHON.format(identity=identity, without_venv=without_venv))
    path.chmod(0o755)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with what make reads, and a python3 (3.12) and a python3.13 in bin/."""
    (tmp_path / "scripts").mkdir()
    for name in ("Makefile", "pyproject.toml", "scripts/venv.sh"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    write_python(tmp_path / "bin" / "python3", "3.12 /usr")
    write_python(tmp_path / "bin" / "python3.13", "3.13 /usr")
    return tmp_path


def make(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in MAKES}
    return subprocess.run(
        ["make", "--silent", *arguments],
        cwd=root,
        env={**inherited, "PATH": f"{root / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )


def run_make(root: Path, *arguments: str) -> list[str]:
    """What `make` runs with the Python in .venv; it must succeed."""
    done = make(root, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def fail_make(root: Path, *arguments: str) -> str:
    """The one line with which `make` ends before it runs anything."""
    done = make(root, *arguments)
    error, make_says = done.stderr.splitlines()
    assert (done.returncode, done.stdout, error[:7]) == (2, "", "error: ")
    assert make_says.startswith("make: ***")
    return error


@pytest.mark.parametrize("version", ["2.7", "3.9", "3.15"])
def test_another_python_is_refused_before_anything_is_made(version: str, root: Path) -> None:
    write_python(root / "bin" / "python3", f"{version} /usr")
    error = fail_make(root, "train")
    assert f"Python {version}" in error
    assert "3.10 to 3.14" in error
    assert not (root / ".venv").exists()


def test_a_missing_python_is_refused_and_leaves_the_venv_there(root: Path) -> None:
    assert "3.10 to 3.14" in fail_make(root, "train", "PYTHON=python3.99")
    assert not (root / ".venv").exists()
    run_make(root, "train")
    assert "python3.99" in fail_make(root, "train", "PYTHON=python3.99")
    assert run_make(root, "train") == ["ran train.py"]


def test_a_python_without_venv_is_refused(root: Path) -> None:
    write_python(root / "bin" / "python3", "3.12 /usr", without_venv=1)
    assert "module venv" in fail_make(root, "train")
    assert not (root / ".venv").exists()


def test_train_installs_what_training_needs_and_test_the_rest_each_once(root: Path) -> None:
    assert run_make(root, "train", "ARGS=seed=1") == [
        "ran -m pip install -e .",
        "ran train.py seed=1",
    ]
    assert run_make(root, "train") == ["ran train.py"]
    assert run_make(root, "test") == ["ran -m pip install -e .[dev]", "ran -m pytest"]
    assert run_make(root, "test") == ["ran -m pytest"]
    later = (root / ".venv" / "installed_dev").stat().st_mtime + 1
    os.utime(root / "pyproject.toml", (later, later))
    assert run_make(root, "train")[0] == "ran -m pip install -e ."


def test_a_venv_that_make_made_is_made_again_for_another_python(root: Path) -> None:
    run_make(root, "train")
    made_again = ["ran -m pip install -e .", "ran train.py"]
    assert run_make(root, "train", "PYTHON=python3.13") == made_again
    assert "3.13" in (root / ".venv" / "bin" / "python").read_text()
    assert run_make(root, "train") == ["ran train.py"]  # none asked for: it keeps its Python
    assert run_make(root, "train", "PYTHON=python3") == made_again


def test_make_replaces_its_venv_if_the_python_does_not_start(root: Path) -> None:
    run_make(root, "train")
    python = root / ".venv" / "bin" / "python"
    made_again = ["ran -m pip install -e .", "ran train.py"]
    python.write_text(BROKEN)
    assert run_make(root, "train") == made_again
    write_python(python, "3.13 /usr")  # an upgrade of the system: it starts, without the packages
    assert run_make(root, "train") == made_again


def test_another_venv_is_used_and_nothing_is_installed_into_it(root: Path) -> None:
    write_python(root / ".venv" / "bin" / "python", "3.11 /opt")
    said, *commands = run_make(root, "train")
    assert "not made by make" in said
    assert commands == ["ran train.py"]
    assert [path.name for path in (root / ".venv").iterdir()] == ["bin"]


@pytest.mark.parametrize("content", [BROKEN, PYTHON.format(identity="3.11 /opt", without_venv=0)])
def test_another_venv_is_left_alone_where_it_cannot_be_used(content: str, root: Path) -> None:
    python = root / ".venv" / "bin" / "python"
    write_python(python, "")
    python.write_text(content)
    assert "not made by make" in fail_make(root, "train", "PYTHON=python3.13")
    assert python.read_text() == content


@pytest.mark.slow
def test_an_installed_package_has_its_config_and_writes_below_the_current_folder(
    tmp_path: Path,
) -> None:
    pytest.importorskip("hatchling", reason="needs hatchling, to build without a network")
    venv, folder = tmp_path / "venv", tmp_path / "folder"
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    present = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "present.pth").write_text("\n".join(present))

    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "install"]
    subprocess.run(
        [*pip, "--no-index", "--no-build-isolation", "--no-deps", REPOSITORY], check=True
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*words: str) -> str:
        command = [venv / "bin" / words[0], *words[1:]]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert "\nepoch 1/1 " in run("mnist-exp", "data=digits", "trainer.epochs=1")
    assert {path.name for path in folder.iterdir()} >= {"outputs", "mlruns", "mlflow.db", "data"}
    assert "epoch 2/2 " in run("python", "-m", "mnist_exp", "resume=latest", "trainer.epochs=2")
    assert '"images": 359' in run("mnist-exp", "evaluate", "--run", "latest", "--json")
    assert "  mnist-exp train -m " in run("mnist-exp", "--help")
