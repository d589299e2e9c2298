"""Text on its way to a screen or a log file: nothing in it that a terminal obeys, and no password.

File names, class names and option values may have any character: an escape sequence, a newline, a
byte that is not UTF-8. A name is shown on one line, by `sanitize`; only our own text has newlines.
"""

from __future__ import annotations

import logging
from copy import copy
from pathlib import Path
from typing import TextIO

from mnist_exp.addresses import redact


def sanitize(text: str) -> str:
    """One line without secrets: each unprintable character as its escape, such as \\x1b."""
    return "".join(map(escape, redact(text)))


def sanitize_lines(text: str) -> str:
    """The same for a text that has newlines and tabs of its own."""
    return "".join(c if c in "\n\t" else escape(c) for c in redact(text))


def escape(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print one line at once, on stdout by default."""
    print(sanitize(text), file=file, flush=True)


def format_message(record: logging.LogRecord) -> str:
    """A record's message. Only its format has newlines: each argument is shown on one line."""
    arguments = record.args
    if isinstance(arguments, tuple):
        arguments = tuple(sanitize(str(a)) if isinstance(a, str | Path) else a for a in arguments)
    text = str(record.msg)
    return sanitize_lines(text % arguments if arguments else text)


class Formatter(logging.Formatter):
    """Formats a record as logging does, and sanitizes its message and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy(record)
        record.msg, record.args = format_message(record), None
        return sanitize_lines(super().format(record))
