"""Arrays out of a pickle that nobody vouches for.

Of a pickled pair of arrays:

    first, second = ArraysOnly(file).load()
    print(first.array.shape)
"""

from __future__ import annotations

import pickle
from io import BufferedIOBase
from typing import Any

import numpy as np


class PickledDtype:
    """What a pickle says of a dtype; only plain numbers are taken."""

    def __init__(self, code: bytes, *copying: object) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        self.dtype = np.dtype((state[1] + self.code).decode())
        if self.dtype.kind not in "fiu":
            raise pickle.UnpicklingError(f"dtype {self.dtype} is not admitted")


class PickledArray:
    """What a pickle says of an array.

    Read without numpy's own unpickling: that believes a crafted dtype which calls addresses of
    objects plain bytes, and then runs what lies there.
    """

    def __init__(self, *placeholders: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _version, shape, pickled, column_major, raw = state
        flat = np.frombuffer(raw, pickled.dtype)
        self.array = flat.reshape(shape, order="F" if column_major else "C")


class ArraysOnly(pickle.Unpickler):
    """An unpickler that knows arrays of numbers and no other name, so a pickle can run no code.

    `load` raises UnpicklingError for another name, and anything at all for damaged bytes.
    """

    def __init__(self, file: BufferedIOBase) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None


ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): PickledArray,
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledDtype,
}
