"""From triples in file order to compressed rows: by ranges of rows that each fit in memory.

Third part of ``conversion``. The entries of each row are known, so ranges ("buckets") of even size and the place of
every bucket are known as well: one pass writes the triples to their buckets, the next turns each bucket into rows and
hands them on in order. Both passes keep the order of the file within a bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastrfm._interrupt import check
from fastrfm._numba import available_threads
from fastrfm.blocks import index_dtype_for, runs
from fastrfm.conversion.scratch import Column
from fastrfm.conversion.sources import Progress, Source
from fastrfm.kernels.row_buckets import compress_rows, scatter_to_buckets
from fastrfm.readers.triples import first_repeat

_BYTES_PER_ENTRY = 128  # of the budget for each entry of a bucket: read, placed, written, and room for the rest
_FEWEST, _CACHED = 256, 1 << 20  # entries of a bucket: at least, and where more would leave the processor's cache
_MOST_BUCKETS = 512  # beyond, pieces of a block become small writes; a small budget has its way
_N_TASKS = 8


class Buckets:
    """All triples of a source, grouped by ranges of rows.

    Attributes
    ----------
    indptr : (n_rows + 1,) int64
    first_rows : (n_buckets + 1,) int64
    """

    def __init__(self, source: Source, folder: Path, memory: int) -> None:
        self._source, self._folder, self._memory = source, folder, memory
        self.indptr = np.concatenate(([0], np.cumsum(source.row_counts, dtype=np.int64)))
        n_entries = max(min(memory // _BYTES_PER_ENTRY, max(_CACHED, source.n // _MOST_BUCKETS)), _FEWEST)
        self.first_rows = np.array([0] + [last for _, last in runs(self.indptr, n_entries)], dtype=np.int64)
        self.index_dtype = index_dtype_for(source.shape)
        self._columns: list[Column] = []
        self._has_repeats: list[bool] = []

    def fill(self, progress: Progress, *, numbers: bool = False) -> None:
        """Bring the triples to their buckets; with `numbers`, the number of each entry in place of its value."""
        source, n_seen = self._source, 0
        value_dtype = np.dtype(np.float64) if numbers else source.value_dtype
        size = 2 * self.index_dtype.itemsize + value_dtype.itemsize
        in_memory = source.n * size <= self._memory // 4
        suffix = ".numbers" if numbers else ""
        self._columns = [
            Column(dtype, source.n, None if in_memory else self._folder / f"{name}{suffix}")
            for name, dtype in (("rows", self.index_dtype), ("cols", self.index_dtype), ("values", value_dtype))
        ]
        n_rows_of = np.diff(self.first_rows)
        bucket_of_row = np.repeat(np.arange(n_rows_of.size, dtype=np.int32), n_rows_of)
        filled = self.indptr[self.first_rows[:-1]].tolist()
        for rows, cols, values in source.replay():
            check()
            if numbers:  # exact up to 2^53 entries
                values = np.arange(n_seen, n_seen + rows.size, dtype=np.float64)
            self._scatter(rows, cols, values, bucket_of_row, filled)
            n_seen += rows.size
            progress(n_seen / source.n)

    def compressed(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Yield start, stop, columns and values of each bucket's entries, rows in order and columns ascending."""
        for bucket, (first, last) in enumerate(zip(self.first_rows[:-1], self.first_rows[1:], strict=True)):
            check()
            rows, cols, values = self._bucket(bucket)
            indptr = self.indptr[first : last + 1] - self.indptr[first]
            bounds = _shared_rows(indptr)
            placed, out = ([np.empty_like(cols), np.empty_like(values)] for _ in range(2))
            repeats = np.zeros(bounds.size - 1, dtype=np.int64)
            compress_rows(bounds, indptr, rows, cols, values, indptr[:-1].copy(), *placed, *out, repeats)
            self._has_repeats.append(bool(repeats.any()))
            yield int(self.indptr[first]), int(self.indptr[last]), out[0], out[1]

    def find_repeat(self) -> tuple[int, int, int] | None:
        """Return, after :meth:`compressed`, what ``first_repeat`` says of all triples; None if no pair repeats."""
        if not any(self._has_repeats):
            return None
        self.close()
        self.fill(lambda _: None, numbers=True)
        found, n_repeats = [], 0
        for bucket in np.flatnonzero(self._has_repeats).tolist():
            rows, cols, numbers = self._bucket(bucket)
            if repeat := first_repeat(rows, cols):
                found.append((int(numbers[repeat[0]]), int(numbers[repeat[1]])))
                n_repeats += repeat[2]
        return (*min(found), n_repeats)

    def close(self) -> None:
        """Give memory and files back."""
        for column in self._columns:
            column.close()

    def _bucket(self, bucket: int) -> list[np.ndarray]:
        start, stop = self.indptr[self.first_rows[bucket : bucket + 2]].tolist()
        return [column.read(start, stop) for column in self._columns]

    def _scatter(
        self, rows: np.ndarray, cols: np.ndarray, values: np.ndarray, bucket_of_row: np.ndarray, filled: list[int]
    ) -> None:
        n, n_buckets = rows.size, self.first_rows.size - 1
        ends = np.empty((_N_TASKS, n_buckets), dtype=np.int64)
        grouped = [np.empty(n, dtype=column.dtype) for column in self._columns]
        bounds = np.arange(_N_TASKS + 1, dtype=np.int64) * n // _N_TASKS
        scatter_to_buckets(bounds, rows, cols, values, bucket_of_row, self.first_rows[:-1], ends, *grouped)
        start = 0
        for bucket, stop in enumerate(ends[-1].tolist()):
            if stop > start:
                for column, array in zip(self._columns, grouped, strict=True):
                    column.write(filled[bucket], array[start:stop])
                filled[bucket] += stop - start
                start = stop


def _shared_rows(indptr: np.ndarray) -> np.ndarray:
    """Return bounds that give each thread about as many entries; the result is the same for any number of them."""
    n_tasks = min(available_threads(), _N_TASKS)
    targets = indptr[-1] * np.arange(1, n_tasks) // n_tasks
    return np.concatenate(([0], np.searchsorted(indptr, targets), [indptr.size - 1])).astype(np.int64)
