"""Columns of numbers that stay in memory while they are few and lie in a scratch folder when they are many.

Lowest part of ``conversion``: a ``Spool`` is appended to and played back in order; a ``Column`` has a known length and
is written and read by place. Errors of the disk are OSError here; ``atomic.scratch_folder`` words them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastrfm._places import read_at, write_at


class Column:
    """`n` numbers of one dtype, in memory, or in a file at `path` whose room is taken at once."""

    def __init__(self, dtype: Any, n: int, path: Path | None) -> None:
        self.dtype = np.dtype(dtype)
        self._array = np.empty(n, dtype=self.dtype) if path is None else None
        self._handle = -1 if path is None else os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        if path is not None and n:
            os.posix_fallocate(self._handle, 0, n * self.dtype.itemsize)

    def write(self, start: int, numbers: np.ndarray) -> None:
        """Put numbers at places ``start:start + numbers.size``."""
        if self._array is not None:
            self._array[start : start + numbers.size] = numbers
            return
        write_at(self._handle, start * self.dtype.itemsize, np.ascontiguousarray(numbers, dtype=self.dtype))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers at places ``start:stop``; not to be changed."""
        if self._array is not None:
            return self._array[start:stop]
        numbers = np.empty(stop - start, dtype=self.dtype)
        if not read_at(self._handle, start * self.dtype.itemsize, numbers):
            raise OSError(errno.EIO, "a scratch file is shorter than what was written to it")
        return numbers

    def close(self) -> None:
        """Give memory and file back."""
        self._array = np.empty(0, dtype=self.dtype) if self._handle < 0 else None
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class Spool:
    """Blocks of equally long arrays, one for each of `dtypes`, in memory up to `n_bytes` and then in `folder`."""

    def __init__(self, folder: Path, dtypes: Sequence[Any], n_bytes: int) -> None:
        self.n = 0
        self._folder, self._dtypes, self._n_bytes = folder, [np.dtype(dtype) for dtype in dtypes], n_bytes
        self._kept: list[tuple[np.ndarray, ...]] = []
        self._columns: list[Column] = []

    def append(self, *arrays: np.ndarray) -> None:
        """Add a block; the arrays are copied."""
        block = tuple(array.astype(dtype) for array, dtype in zip(arrays, self._dtypes, strict=True))
        size = sum(dtype.itemsize for dtype in self._dtypes)
        if not self._columns and (self.n + block[0].size) * size > self._n_bytes:
            self._columns = [Column(dtype, 0, self._folder / f"spool{k}") for k, dtype in enumerate(self._dtypes)]
            kept, self._kept, self.n = self._kept, [], 0
            for earlier in kept:
                self._write(earlier)
        if self._columns:
            self._write(block)
        else:
            self._kept.append(block)
            self.n += block[0].size

    def blocks(self, n: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield all blocks in order: as they came from memory, `n` numbers at a time from the folder."""
        if not self._columns:
            yield from self._kept
            return
        for start in range(0, self.n, n):
            yield tuple(column.read(start, min(start + n, self.n)) for column in self._columns)

    def close(self) -> None:
        """Give memory and files back."""
        self._kept = []
        for column in self._columns:
            column.close()

    def _write(self, block: tuple[np.ndarray, ...]) -> None:
        for column, array in zip(self._columns, block, strict=True):
            column.write(self.n, array)
        self.n += block[0].size
