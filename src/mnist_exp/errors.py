"""What goes wrong that a person can mend: said in a line, without a traceback."""

from __future__ import annotations


class Failure(Exception):
    """Something outside this code failed; the message says what, where and what to do."""

    exit_code = 1


class BadInput(Failure):
    """The command line asks for something that cannot be."""

    exit_code = 2


def one_line(error: BaseException) -> str:
    """All that it says, or its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what it says: torch goes on with advice."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
