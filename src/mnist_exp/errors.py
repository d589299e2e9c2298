"""Errors that a person can fix, and text that is safe to show.

File names, class names and option values may have any character: an escape sequence, a newline, a
byte that is not UTF-8; addresses may have a password. On a screen or in a log file a name is one
line, made by `sanitize`; only our own text has newlines.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from copy import copy
from difflib import get_close_matches
from pathlib import Path
from typing import TextIO

HIDDEN = "***"

# What stays, in parentheses, and a secret. A user may contain an @, a password also a slash.
PASSWORD = r"[^\n@]*(?:@[^\s/?#@]*)*(?=@)"
OF_DATABASE = rf"((?<!http)(?<!https)://)[^\s/?#:\[]*:{PASSWORD}"
OF_SERVER = rf"(https?://)[^\s/?#:\[]*:(?!\d*(?:[/?#\s]|$)){PASSWORD}"  # no port before a path
TOKEN = r"(https?://)[^\s/?#@:]+(?=@)"  # in place of the user
PARAMETER = (
    r"([?&;](?:[^\s=&#]*(?:passw|passphrase|pwd|secret|token|credential|api_?key|access_?key|"
    r"signature|odbc_connect)[^\s=&#]*|pass|sig)=)[^\s&#]+"
)
SECRETS = [re.compile(s, re.IGNORECASE) for s in (OF_DATABASE, OF_SERVER, TOKEN, PARAMETER)]


def redact(text: str) -> str:
    """The text with *** for each user and password, token or ?password= in an address."""
    for secret in SECRETS:
        text = secret.sub(rf"\1{HIDDEN}", text)
    return text


def did_you_mean(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """A closing question that names the nearest of `words`, or nothing where none is near."""
    lower = {known.lower(): known for known in words}
    near = get_close_matches(word.lower(), lower, 1, cutoff)
    return f"; did you mean {lower[near[0]]}?" if near else ""


class Failure(Exception):
    """Something outside this code failed. Its arguments say what, where and what to do.

    Each is one line, sanitized: names in it may have any character.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(sanitize(str(line)) for line in self.args)


class BadInput(Failure):
    """The command line asks for something impossible."""

    exit_code = 2


def one_line(error: BaseException) -> str:
    """All that it says, or its kind where it says nothing."""
    return sanitize(" ".join(str(error).split())) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error message: torch adds advice."""
    return sanitize((str(error).strip() or type(error).__name__).splitlines()[0])


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
