"""torch.compile for a training that resumes bit for bit, with errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from mnist_exp.errors import Failure


class CompileError(Failure):
    """The compiler behind torch.compile failed."""


def compile_in_place(model: nn.Module, wanted: bool | str) -> None:
    """Let torch.compile compile the model in its first steps; wanted: True, False, or a mode.

    In place, so that the state_dict keeps its keys; a copy of the model is not compiled. Every
    shape is compiled separately, so that no step depends on the shapes before it, which differ in a
    resumed training. This costs seconds for each of four shapes: full and last batches, in training
    and validation.
    """
    if wanted is not False:
        model.compile(mode=None if wanted is True else wanted, dynamic=False)


@contextmanager
def catch_compile_errors() -> Iterator[None]:
    """Raise CompileError with the compiler's message instead of torch's error of several pages."""
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # a second to import

        if not isinstance(error, TorchDynamoException):
            raise
        lines = str(error).splitlines()
        reason = next((line for line in lines if "error: " in line), lines[0])
        raise CompileError(
            f"torch.compile: {reason}; trainer.compile=false needs no compiler"
        ) from error
