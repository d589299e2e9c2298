"""What goes wrong that a person can mend: said in a line, without a traceback."""

from __future__ import annotations

from mnist_exp.printing import printable


class Failure(Exception):
    """Something outside this code failed; its lines say what, where and what to do."""

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(printable(str(line)) for line in self.args)


class BadInput(Failure):
    """The command line asks for something that cannot be."""

    exit_code = 2


def one_line(error: BaseException) -> str:
    """All that it says, or its kind where it says nothing."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what it says: torch goes on with advice."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])
