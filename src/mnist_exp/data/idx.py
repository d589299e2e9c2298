"""IDX, the file format of MNIST: a big-endian header of type and sizes, then unsigned bytes."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray


def idx_header(shape: tuple[int, ...]) -> bytes:
    """The header of an IDX file of unsigned bytes (type 8)."""
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


def idx_encode(array: NDArray[np.uint8]) -> bytes:
    return idx_header(array.shape) + array.tobytes()


def idx_decode(raw: bytes) -> NDArray[np.uint8]:
    """The array in an IDX file whose checksum was verified."""
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
