"""torch.compile for a training that has to go on bit for bit, and that fails in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from mnist_exp.errors import Failure


class CompileError(Failure):
    """torch.compile's compiler failed."""


def compile_in_place(model: nn.Module, wanted: bool | str) -> None:
    """Have torch.compile take the model at its first steps, if wanted: True, or one of its modes.

    In place, so that the state_dict has the same keys; a copy of the model is not compiled. Each
    shape of images is compiled for itself, so that no step depends on which shapes came before it,
    which differ in a resumed training. That costs seconds for each of four: whole and last batches,
    in training and in validation.
    """
    if wanted is not False:
        model.compile(mode=None if wanted is True else wanted, dynamic=False)


@contextmanager
def failing_in_one_line() -> Iterator[None]:
    """Raise CompileError, with what the compiler said, for torch's error of several pages."""
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # a second to import

        if not isinstance(error, TorchDynamoException):
            raise
        lines = str(error).splitlines()
        reason = next((line for line in lines if "error: " in line), lines[0])
        raise CompileError(f"torch.compile: {reason}; trainer.compile=false needs none") from error
