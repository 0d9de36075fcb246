"""Observations that stay in their file: read in row blocks, as large as a memory budget allows, pass after pass.

Flow: ``store.open_observations`` -> ``StoredObservations`` -> row blocks (``blocks``) -> the solvers' steps, the same
as for observations in memory, with the same bits. Sources read the entries of a span of rows: ``FlatSource`` from
compressed rows, ``DenseSource`` from a 2-D dataset with NaN. Not here: layouts of files and their checks (``store``).
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fastrfm import blocks
from fastrfm._interrupt import check
from fastrfm._places import read_at, write_at
from fastrfm.blocks import EQUAL_WEIGHTS, Compressed, RowBlock, RowBlocks, TileBlock, drawn, index_dtype_for, runs
from fastrfm.errors import FileFormatError, InputError, WriteError
from fastrfm.observations import Observations

# A block is there once as read, once by column, and in passing as rows, shifted values and a kernel's own copies.
_COPIES = 5

Offsets = Callable[[np.ndarray, np.ndarray], np.ndarray]
Entries = tuple[np.ndarray, np.ndarray, np.ndarray]


class Source(Protocol):
    """Where the entries of rows come from."""

    @property
    def dtype(self) -> np.dtype:
        """float32 or float64."""

    @property
    def is_weighted(self) -> bool:
        """Whether there are weights."""

    def entries(self, indptr: np.ndarray, start: int, stop: int) -> Entries:
        """Return (indices, values, weights or none) of rows start:stop, writable and contiguous."""


class OpenFile:
    """A file held open, and what tells that it was changed: HDF5 itself takes what is cut off for zeros.

    Parameters
    ----------
    handle : int
        Closed when this is gone.
    name : str
        For errors.
    """

    def __init__(self, handle: int, name: str) -> None:
        self.handle, self.name = handle, name
        self._stamp = self._look()
        weakref.finalize(self, os.close, handle)

    def _look(self) -> tuple[int, int]:
        found = os.fstat(self.handle)
        return found.st_size, found.st_mtime_ns

    def check(self) -> None:
        """Raise FileFormatError if the file was cut off or written to since it was opened."""
        if self._look() != self._stamp:
            raise FileFormatError(f"{self.name}: was changed while it was read: leave it alone and start over")


class RawArray:
    """A run of numbers in a file, read straight from there: faster than through HDF5, and no page stays mapped.

    Parameters
    ----------
    file : OpenFile
    dtype : dtype
    offset : int
        Bytes before the first number.
    """

    def __init__(self, file: OpenFile, dtype: np.dtype, offset: int) -> None:
        self._file, self.dtype, self._offset = file, np.dtype(dtype), offset

    def read(self, first: int, last: int) -> np.ndarray:
        """Return elements first:last.

        Raises
        ------
        FileFormatError
            If the file ends before, which it did not when it was opened.
        """
        out = np.empty(last - first, dtype=self.dtype)
        if not read_at(self._file.handle, self._offset + first * self.dtype.itemsize, out):
            self._file.check()
            raise FileFormatError(f"{self._file.name}: ends too early: make it again")
        return out

    def write(self, first: int, values: np.ndarray) -> None:
        """Write `values` from element `first` on; WriteError if the disk will not have them."""
        numbers = np.ascontiguousarray(values, dtype=self.dtype)
        try:
            write_at(self._file.handle, self._offset + first * self.dtype.itemsize, numbers)
        except OSError as error:
            raise WriteError(
                f"{self._file.name}: writing failed, {error.strerror}: free space in "
                f"{tempfile.gettempdir()} or set TMPDIR"
            ) from error


class Dataset:
    """A dataset that has to be read through HDF5: chunked or compressed."""

    def __init__(self, dataset: Any, file: OpenFile) -> None:
        self._dataset, self._file = dataset, file
        self.dtype, self.shape = dataset.dtype, dataset.shape

    def read(self, first: int, last: int) -> np.ndarray:
        """Return elements (or rows) first:last; FileFormatError if they can no longer be read."""
        try:
            found = np.asarray(self._dataset[first:last])
        except (OSError, RuntimeError, ValueError) as error:
            self._file.check()
            raise FileFormatError(
                f"{self._file.name}: part of {self._dataset.name} cannot be read ({error}): make it again"
            ) from error
        self._file.check()
        return found


@dataclass(frozen=True)
class FlatSource:
    """Compressed rows: column numbers, values and weights if there are any, one after the other."""

    indices: RawArray | Dataset
    values: RawArray | Dataset
    index_dtype: np.dtype
    dtype: np.dtype
    weights: RawArray | Dataset | None = None

    @property
    def is_weighted(self) -> bool:
        return self.weights is not None

    def entries(self, indptr: np.ndarray, start: int, stop: int) -> Entries:
        first, last = int(indptr[start]), int(indptr[stop])
        indices = self.indices.read(first, last).astype(self.index_dtype, copy=False)
        values = self.values.read(first, last).astype(self.dtype, copy=False)
        if self.weights is None:
            return indices, values, EQUAL_WEIGHTS
        return indices, values, self.weights.read(first, last).astype(np.float64, copy=False)


@dataclass(frozen=True)
class DenseSource:
    """A 2-D dataset in which NaN is missing, read in bands of `band` rows that begin where chunks begin."""

    dataset: Dataset
    band: int
    index_dtype: np.dtype
    dtype: np.dtype
    is_weighted = False

    def bands(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield rows start:stop, band after band."""
        while start < stop:
            check()
            end = min((start // self.band + 1) * self.band, stop)
            yield self.dataset.read(start, end).astype(self.dtype, copy=False)
            start = end

    def entries(self, indptr: np.ndarray, start: int, stop: int) -> Entries:
        n = int(indptr[stop] - indptr[start])
        indices, values, done = np.empty(n, self.index_dtype), np.empty(n, self.dtype), 0
        for band in self.bands(start, stop):
            observed = ~np.isnan(band)
            found = np.nonzero(observed)[1]
            if done + found.size > n:
                break
            indices[done : done + found.size], values[done : done + found.size] = found, band[observed]
            done += found.size
        if done != n:
            raise FileFormatError("the observations of a table were changed while it was read: start over")
        return indices, values, EQUAL_WEIGHTS


@dataclass(frozen=True)
class _Part:
    """The entries of another source that a draw keeps, or those that it leaves out."""

    source: Source
    whole: np.ndarray
    share: float
    seed: int
    is_held: bool

    @property
    def dtype(self) -> np.dtype:
        return self.source.dtype

    @property
    def is_weighted(self) -> bool:
        return self.source.is_weighted

    def mask(self, first: int, last: int) -> np.ndarray:
        """Return which of entries first:last belong to this part."""
        held = drawn(first, last, self.share, self.seed)
        return held if self.is_held else ~held

    def entries(self, indptr: np.ndarray, start: int, stop: int) -> Entries:
        keep = self.mask(int(self.whole[start]), int(self.whole[stop]))
        indices, values, weights = self.source.entries(self.whole, start, stop)
        return indices[keep], values[keep], weights[keep] if weights.size else weights


class StoredObservations(RowBlocks):
    """The observed entries of a matrix, in a file: the same interface as ``Observations``, block by block.

    Attributes
    ----------
    shape, indptr, row_names, col_names
        As of ``Observations``; they are in memory.
    block_entries : int
        Entries of a block.
    """

    def __init__(
        self,
        source: Source,
        shape: tuple[int, int],
        indptr: np.ndarray,
        names: tuple[Any, Any],
        memory: int,
        *,
        offsets_at: Offsets | None = None,
    ) -> None:
        self.shape, self.indptr = shape, indptr
        self.row_names, self.col_names = names
        self._source, self._memory, self._offsets_at = source, memory, offsets_at
        n_bytes = 24 if source.is_weighted else 16
        self.block_entries = max(min(memory // (_COPIES * n_bytes), blocks.BLOCK_ENTRIES), 1)

    @property
    def dtype(self) -> np.dtype:
        return self._source.dtype if self._offsets_at is None else np.dtype(np.float64)

    @property
    def is_weighted(self) -> bool:
        return self._source.is_weighted

    def row_blocks(self, align: int = 1) -> Iterator[RowBlock]:
        for start, stop in runs(self.indptr, self.block_entries, align):
            check()
            yield self._block(start, stop)

    def tile_blocks(self, tiles: np.ndarray) -> Iterator[TileBlock]:
        for first, last in runs(self.indptr[tiles], self.block_entries):
            check()
            yield TileBlock.of(self._block(int(tiles[first]), int(tiles[last])), tiles, first, last)

    def cols_of(self, row: int) -> np.ndarray:
        return self._source.entries(self.indptr, row, row + 1)[0]

    def note(self, **found: Any) -> None:
        """Keep what a pass would find, by the name of its property: passes over a file are dear."""
        vars(self).update(found)

    def _block(self, start: int, stop: int) -> RowBlock:
        indices, values, weights = self._source.entries(self.indptr, start, stop)
        by_row = Compressed(self.indptr[start : stop + 1] - self.indptr[start], indices, values, weights)
        block = RowBlock(start, stop, self.n_cols, by_row)
        if self._offsets_at is None:
            return block
        values = values - self._offsets_at(block.entry_rows(), indices)
        return RowBlock(start, stop, self.n_cols, Compressed(by_row.indptr, indices, values, weights))

    # --- deriving ---------------------------------------------------------------------------------------------

    def _derived(self, source: Source, indptr: np.ndarray, offsets_at: Offsets | None) -> StoredObservations:
        names = self.row_names, self.col_names
        return StoredObservations(source, self.shape, indptr, names, self._memory, offsets_at=offsets_at)

    def shifted(self, offsets_at: Offsets) -> StoredObservations:
        if self._offsets_at is not None:
            raise InputError("offsets are taken off already: shift the observations themselves")
        other = self._derived(self._source, self.indptr, offsets_at)
        other.note(col_counts=self.col_counts)
        return other

    def split(self, share: float, *, random_state: int = 0) -> tuple[StoredObservations, Observations]:
        """Divide the entries at random: (kept, held out); the second in memory.

        Parameters
        ----------
        share : float
            Probability of an entry to be held out.
        random_state : int
            Seed. Entries are drawn in row order, independently: unlike ``Observations.split``, which would need an
            order of all of them in memory.

        Raises
        ------
        InputError
            If `share` is outside (0, 1), leaves either side empty, or the entries held out do not fit into memory.
        """
        if not 0.0 < share < 1.0:
            raise InputError(f"the hold-out share must lie between 0 and 1, got {share!r}")
        if share * self.n_observed * 16 * _COPIES > self._memory:
            raise InputError(
                f"a share of {share:g} of {self.n_observed} entries held out does not fit into the memory allowed: "
                "hold out less, or raise memory"
            )
        kept, held = (_Part(self._source, self.indptr, share, random_state, is_held) for is_held in (False, True))
        counts = np.zeros(self.n_rows, dtype=np.int64)
        for start, stop in runs(self.indptr, self.block_entries):
            mask = held.mask(int(self.indptr[start]), int(self.indptr[stop]))
            pointers = np.concatenate(([0], np.cumsum(mask, dtype=np.int64)))
            counts[start:stop] = np.diff(pointers[self.indptr[start : stop + 1] - self.indptr[start]])
        held_indptr = np.concatenate(([0], np.cumsum(counts)))
        if not 0 < held_indptr[-1] < self.n_observed:
            raise InputError(f"the hold-out share must leave entries on both sides, got {share!r}")
        rest = self._derived(kept, self.indptr - held_indptr, self._offsets_at)
        out = [held.entries(held_indptr, start, stop) for start, stop in runs(self.indptr, self.block_entries)]
        indices, values, weights = (np.concatenate(arrays) for arrays in zip(*out, strict=True))
        names = {"row_names": self.row_names, "col_names": self.col_names}
        held_out = Observations.from_csr(held_indptr, indices, values, self.shape, **names)
        return rest, held_out.with_weights(weights) if self.is_weighted else held_out

    def transposed(self) -> StoredObservations:
        """Return the same entries with rows and columns swapped, in files without a name that go when it does.

        Two passes: blocks turned to columns and appended to runs of columns, then each run put in order.
        """
        indptr = np.concatenate(([0], np.cumsum(self.col_counts))).astype(np.int64)
        index_dtype = index_dtype_for(self.shape)
        rows, cols, values = (_scratch(dtype) for dtype in (index_dtype, index_dtype, self._source.dtype))
        weights = _scratch(np.dtype(np.float64)) if self.is_weighted else None
        turned = StoredObservations(
            FlatSource(rows, values, index_dtype, self._source.dtype, weights),
            self.shape[::-1],
            indptr,
            (self.col_names, self.row_names),
            self._memory,
            offsets_at=None if self._offsets_at is None else _swapped(self._offsets_at),
        )
        spans = list(runs(indptr, self.block_entries))
        filled = [int(indptr[start]) for start, _ in spans]
        for block in self._derived(self._source, self.indptr, None).row_blocks():
            by_column = block.by_column
            of_entry = np.repeat(np.arange(self.n_cols, dtype=index_dtype), np.diff(by_column.indptr))
            for run, (start, stop) in enumerate(spans):
                first, last = by_column.indptr[start], by_column.indptr[stop]
                for array, part in (
                    (rows, by_column.indices + block.start),
                    (cols, of_entry),
                    (values, by_column.values),
                    (weights, by_column.weights),
                ):
                    if array is not None:
                        array.write(filled[run], part[first:last])
                filled[run] += int(last - first)
        for start, stop in spans:
            check()
            first, last = int(indptr[start]), int(indptr[stop])
            order = np.argsort(cols.read(first, last), kind="stable")
            for array in (rows, values, weights):
                if array is not None:
                    array.write(first, array.read(first, last)[order])
        turned.note(col_counts=self.row_counts)
        return turned


def _scratch(dtype: np.dtype) -> RawArray:
    """Return an empty file without a name, which even a killed process leaves no trace of."""
    handle, path = tempfile.mkstemp()
    os.unlink(path)
    return RawArray(OpenFile(handle, "scratch file for the transposed matrix"), dtype, 0)


def _swapped(offsets_at: Offsets) -> Offsets:
    return lambda rows, cols: offsets_at(cols, rows)
