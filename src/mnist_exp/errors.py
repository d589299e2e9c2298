"""What goes wrong that a person can mend: said in a line, without a traceback."""

from __future__ import annotations

from mnist_exp.printing import sanitize


class Failure(Exception):
    """Something outside this code failed. Its arguments say what, where and what to do.

    Each is one line, sanitized: names in it may have any character.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(sanitize(str(line)) for line in self.args)


class BadInput(Failure):
    """The command line asks for something that cannot be."""

    exit_code = 2


def one_line(error: BaseException) -> str:
    """All that it says, or its kind where it says nothing."""
    return sanitize(" ".join(str(error).split())) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what it says: torch goes on with advice."""
    return sanitize((str(error).strip() or type(error).__name__).splitlines()[0])
