"""What is printed or logged is escaped and has no passwords."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import Clone
from PIL import Image

from mnist_exp.errors import BadInput, Formatter, format_message, one_line, sanitize, sanitize_lines
from mnist_exp.experiment.versions import HYDRA_1_3

HARMFUL = "\x1b[31m\x9b5m\u202e\r\n\x07\udce9"
ESCAPED = r"\x1b[31m\x9b5m\u202e\r\n\x07\udce9"


def test_what_a_terminal_obeys_is_escaped_and_the_rest_is_as_it_was() -> None:
    for text in ("Zähler 0–9 × 数字", "a b", ESCAPED):
        assert sanitize(text) == text
    assert sanitize(f"a{HARMFUL}b\t") == rf"a{ESCAPED}b\t"
    assert sanitize_lines("a\n\tb\x1b\r") == "a\n\tb\\x1b\\r"


def test_a_failure_prints_a_line_for_each_of_its_arguments() -> None:
    assert str(BadInput(f"a{HARMFUL}", "b")) == f"a{ESCAPED}\nb"
    assert one_line(ValueError("a\x1b http://ann:pw@host\nb")) == r"a\x1b http://***@host b"


def record(text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("name", logging.INFO, "file", 1, text, arguments, None)


def test_the_arguments_of_a_record_stay_on_one_line() -> None:
    assert format_message(record("to go on:\n%s, %d %%", f"a{HARMFUL}", 3)) == (
        f"to go on:\na{ESCAPED}, 3 %"
    )
    assert format_message(record("100 %")) == "100 %"


def test_a_traceback_in_a_log_file_is_escaped() -> None:
    try:
        raise ValueError("a\x1b[31m http://ann:pw@host")
    except ValueError as error:
        raised = record("failed: %s", error)
        raised.exc_info = (type(error), error, error.__traceback__)
    text = Formatter("%(levelname)s %(message)s").format(raised)
    first, *_, last = text.splitlines()
    assert first == r"INFO failed: a\x1b[31m http://***@host"
    assert last == r"ValueError: a\x1b[31m http://***@host"


def check_harmless(*texts: str) -> None:
    for text in texts:
        assert all(c.isprintable() or c == "\n" for c in text), repr(text)


@pytest.fixture
def photos(clone: Clone) -> str:
    """Three classes with a damaged file each; the override that names their folder."""
    random, root = np.random.default_rng(0), b"photos\x1b[5m" + b"\xe9" * HYDRA_1_3
    for level, name in enumerate((b"\x1b[31mred\nforged: line", b"caf\xe9", b"[/b] \xe2\x80\xae")):
        folder = Path(os.fsdecode(os.path.join(os.fsencode(clone.root), root, name)))  # noqa: PTH118
        folder.mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, 100, (8, 8)) + 70 * level
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        (folder / os.fsdecode(b"bad\x9b\n.png")).write_bytes(b"")
    return f"data.root='{os.fsdecode(root)}'"


@pytest.mark.slow
def test_no_name_of_a_file_or_class_reaches_the_screen_as_it_is(clone: Clone, photos: str) -> None:
    typed = ("data=image_folder", photos, "data.skip_bad=true", "trainer.epochs=1")
    done = clone.run("train.py", *typed, "tracking=none")
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = clone.folders()
    assert r"\x1b[31mred\nforged: line/bad" in done.stdout
    check_harmless(done.stdout, (folder / "train.log").read_text())

    done = clone.run("evaluate.py", "--run", "latest")  # with pictures
    assert done.returncode == 0, done.stderr
    assert "\n\\x1b[31mred\\nforged: line  " in done.stdout
    check_harmless(done.stdout, done.stderr)

    image = next(path for path in clone.root.rglob("1.png") if "caf" in str(path))
    absent = f"no{HARMFUL}.png"
    done = clone.run("predict.py", "--run", "latest", str(image), absent)
    assert done.returncode == 2
    assert r"caf\udce9/1.png  " in done.stdout
    assert f"error: no{ESCAPED}.png: " in done.stderr
    check_harmless(done.stdout, done.stderr)


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "data=digits", f"mo{HARMFUL}=3"],
        ["train.py", "data=digits", f"model='{HARMFUL}'"],
        ["train.py", f"--no{HARMFUL}"],
        ["train.py", "data=image_folder", f"data.root='no{HARMFUL}'"],
        ["predict.py", f"--no{HARMFUL}", "a.png"],
        ["predict.py", "--checkpoint", f"no{HARMFUL}", "a.png"],
        ["evaluate.py", "--run", f"no{HARMFUL}"],
        ["evaluate.py", "--data", "digits", f"data.no{HARMFUL}=3"],
    ],
)
def test_no_mistake_is_repeated_as_it_was_typed(trained: Clone, command: list[str]) -> None:
    done = trained.run(*command)
    assert done.returncode in (1, 2)
    assert ESCAPED in done.stderr + done.stdout
    check_harmless(done.stdout, done.stderr)
