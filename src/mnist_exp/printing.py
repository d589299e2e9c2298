"""Text on its way to a screen or a log file: nothing in it that a terminal obeys, and no password.

File names, class names and option values may have any character: an escape sequence, a newline, a
byte that is not UTF-8. A name is shown on one line, by `printable`; only text of ours has lines.
"""

from __future__ import annotations

import logging
from copy import copy
from pathlib import Path
from typing import TextIO

from mnist_exp.addresses import redact


def printable(text: str) -> str:
    """One line: each character that is not printable as its backslash escape, such as \\x1b."""
    return "".join(map(escape, redact(text)))


def printable_lines(text: str) -> str:
    """The same for a text that has lines, and tabs, of its own."""
    return "".join(c if c in "\n\t" else escape(c) for c in redact(text))


def escape(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print one line at once, on stdout by default."""
    print(printable(text), file=file, flush=True)


def message(record: logging.LogRecord) -> str:
    """A record's message. Only its format has lines; an argument that is a text is on one line."""
    arguments = record.args
    if isinstance(arguments, tuple):
        arguments = tuple(printable(str(a)) if isinstance(a, str | Path) else a for a in arguments)
    text = str(record.msg)
    return printable_lines(text % arguments if arguments else text)


class Formatter(logging.Formatter):
    """Formats a record as logging does, its message and traceback made printable."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy(record)
        record.msg, record.args = message(record), None
        return printable_lines(super().format(record))
