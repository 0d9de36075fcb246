"""Numbers at a place of an open file, whole: the system may read or write less than it was asked to.

Used for files that are not HDF5's to read: contiguous datasets, and scratch files. Errors of the disk are OSError.
"""

from __future__ import annotations

import os

import numpy as np


def read_at(handle: int, position: int, out: np.ndarray) -> bool:
    """Fill a contiguous array from byte `position` on; return whether the file reached that far."""
    rest = out.view(np.uint8)
    while rest.size:
        n_read = os.preadv(handle, [rest.data], position)
        if n_read == 0:
            return False
        rest, position = rest[n_read:], position + n_read
    return True


def write_at(handle: int, position: int, numbers: np.ndarray) -> None:
    """Write a contiguous array from byte `position` on."""
    rest = numbers.view(np.uint8)
    while rest.size:
        n_written = os.pwrite(handle, rest.data, position)
        rest, position = rest[n_written:], position + n_written
