"""What goes wrong that a person can mend: said in a line, without a traceback."""


class Failure(Exception):
    """Something outside this code failed; the message says what, where and what to do."""

    exit_code = 1


class BadInput(Failure):
    """The command line asks for something that cannot be."""

    exit_code = 2
