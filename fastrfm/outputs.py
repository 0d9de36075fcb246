"""Outputs larger than memory: the completed matrix and the best columns of each row, written block by block.

Flow: ``CompletionResult`` -> blocks of rows -> a file aside -> its final name (``atomic``). Only factors, a block and
what the caller holds are in memory. Room on the disk is taken first, so that a full one is a clean error. ``store``
shows the writers as its own; not here: what is computed (``results``, ``ranking``).
"""

from __future__ import annotations

import csv
import operator
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import h5py
import numpy as np

from fastrfm._hdf5 import mark, set_attribute, write_names, writing_large_hdf5
from fastrfm._interrupt import check, deferred
from fastrfm._memory import default_memory
from fastrfm.atomic import PathLike, check_output, writing
from fastrfm.blocks import RowBlock, RowBlocks
from fastrfm.errors import InputError
from fastrfm.options import DENSE_DTYPES
from fastrfm.ranking import BYTES_PER_ENTRY
from fastrfm.results import CompletionResult

Progress = Callable[[int], None]
Intervals = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

# Rows and columns: half a MiB of float64, which HDF5's cache of chunks always holds; narrow ones have more rows.
_CHUNK = (64, 1024)
_TILE_ENTRIES = 1 << 21  # computed at a time; a quarter of it is slower, as BLAS threads wait for each other
_BYTES_PER_NAME = 256  # as Python text, and in HDF5's heap while they are written
_FIXED = 48 << 20  # bytes: compiled kernels, BLAS, HDF5, buffers of files


def is_hdf5_name(path: PathLike) -> bool:
    """Return whether a file's name asks for HDF5: .h5 or .hdf5."""
    return os.fspath(path).lower().endswith((".h5", ".hdf5"))


# --- the completed matrix -----------------------------------------------------------------------------------------


def write_dense(
    path: PathLike,
    result: CompletionResult,
    *,
    dtype: str = "float64",
    memory: int | None = None,
    observations: RowBlocks | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the whole completed matrix to an HDF5 file, /completed, in blocks.

    Parameters
    ----------
    path : str or path
    result : CompletionResult
    dtype : {"float64", "float32"}
        Of the file. All is computed in float64; float32 keeps 7 digits of each value.
    memory : int, optional
        Bytes that result and blocks may take together; a quarter of what is free if None. The observations are not
        counted: they are there already.
    observations : Observations or StoredObservations, optional
        Of the same shape: where an entry is observed, that value is written in place of the estimate.
    force : bool
        Whether an existing file may be replaced.
    progress : callable, optional
        Called with the number of rows that are done, after every block.

    Raises
    ------
    OutputExistsError, WriteError
        See :func:`fastrfm.atomic.writing`; a full disk is met before the work. What was at `path` is then untouched.
    InputError
        If `memory` does not even hold the factors, `dtype` is unknown or too small for the values, the shapes differ,
        or the result holds NaN or infinities.
    """
    _check_dense(path, result, dtype, observations, force)
    n_rows, n_cols = result.shape
    chunks = _chunks(result.shape)
    # What is computed is float64, and is converted in a block of its own.
    tile = _tile(chunks, n_cols, _room(result, memory) // (8 + np.dtype(dtype).itemsize))
    n_bytes = np.dtype(dtype).itemsize * _ceil(n_rows, chunks[0]) * _ceil(n_cols, chunks[1])
    # Ctrl-C and SIGTERM are answered between blocks and so leave HDF5 whole; fsync and rename follow outside.
    with writing_large_hdf5(path, force, n_bytes) as file, deferred():
        mark(file)
        write_names(file, result.row_names, result.col_names)
        dataset = file.create_dataset("completed", shape=result.shape, dtype=dtype, chunks=chunks)
        for name, value in (("encoding-type", "array"), ("encoding-version", "0.2.0")):  # anndata reads it too
            dataset.attrs[name] = value
        set_attribute(dataset, "rank", result.rank)
        set_attribute(dataset, "keeps_observed", observations is not None)
        _fill(dataset, result, tile, _observed_bands(observations, tile[0], n_rows), progress)


def _check_dense(
    path: PathLike, result: CompletionResult, dtype: str, observations: RowBlocks | None, force: bool
) -> None:
    if dtype not in DENSE_DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DENSE_DTYPES)}, got {dtype!r}")
    if observations is not None and observations.shape != result.shape:
        raise InputError(
            f"the observations to keep must have the result's shape {result.shape}, got {observations.shape}"
        )
    check_output(path, force=force)
    result.check_finite()


def _fill(
    dataset: h5py.Dataset,
    result: CompletionResult,
    tile: tuple[int, int],
    bands: Iterator[list[RowBlock]],
    progress: Progress | None,
) -> None:
    n_rows, n_cols = result.shape
    room = np.empty(tile[0] * tile[1])  # fresh memory for each block would cost more than its numbers
    stored = np.empty(room.size, dtype=dataset.dtype)
    for top, observed in zip(range(0, n_rows, tile[0]), bands, strict=True):
        bottom = min(top + tile[0], n_rows)
        for first in range(0, n_cols, tile[1]):
            check()
            last = min(first + tile[1], n_cols)
            shape = bottom - top, last - first
            block = room[: shape[0] * shape[1]].reshape(shape)
            result.block(slice(top, bottom), slice(first, last), out=block)
            for part in observed:
                _put(block, part, (top, first))
            if dataset.dtype != block.dtype:
                block = _converted(block, stored[: block.size].reshape(shape))
            dataset.write_direct(block, dest_sel=np.s_[top:bottom, first:last])
        if progress is not None:
            progress(bottom)


def _converted(block: np.ndarray, out: np.ndarray) -> np.ndarray:
    try:
        with np.errstate(over="raise"):
            np.copyto(out, block, casting="same_kind")
    except FloatingPointError:
        raise InputError("values of the matrix are too large for float32: ask for dtype float64") from None
    return out


def _put(block: np.ndarray, observed: RowBlock, corner: tuple[int, int]) -> None:
    """Write the observed values of those rows and columns of a row block that `block`, at `corner`, covers."""
    top, first = corner
    start, stop = max(top, observed.start), min(top + block.shape[0], observed.stop)
    entries = observed.by_row
    span = slice(entries.indptr[start - observed.start], entries.indptr[stop - observed.start])
    counts = np.diff(entries.indptr[start - observed.start : stop - observed.start + 1])
    rows = np.repeat(np.arange(start - top, stop - top), counts)
    cols = entries.indices[span].astype(np.int64) - first
    inside = (cols >= 0) & (cols < block.shape[1])
    block[rows[inside], cols[inside]] = entries.values[span][inside]


def _observed_bands(observations: RowBlocks | None, height: int, n_rows: int) -> Iterator[list[RowBlock]]:
    """Yield, for each band of `height` rows, the row blocks that reach into it."""
    blocks = iter(()) if observations is None else observations.row_blocks()
    held: list[RowBlock] = []
    for top in range(0, n_rows, height):
        held = [block for block in held if block.stop > top]
        reached = held[-1].stop if held else top
        while observations is not None and reached < min(top + height, n_rows):
            held.append(next(blocks))
            reached = held[-1].stop
        yield held


def _chunks(shape: tuple[int, int]) -> tuple[int, int]:
    """Return chunks of even size, so that those at the edges waste next to nothing."""
    width = -(-shape[1] // -(-shape[1] // _CHUNK[1]))
    most = _CHUNK[0] * _CHUNK[1] // width
    return -(-shape[0] // -(-shape[0] // most)), width


def _tile(chunks: tuple[int, int], n_cols: int, entries: int) -> tuple[int, int]:
    """Return rows and columns of a block of whole chunks with about `entries` entries: as wide as it goes."""
    entries = min(entries, _TILE_ENTRIES)
    across = max(min(entries // (chunks[0] * chunks[1]), -(-n_cols // chunks[1])), 1)
    width = across * chunks[1]
    return max(entries // (chunks[0] * width), 1) * chunks[0], width


def _ceil(size: int, step: int) -> int:
    return -(-size // step) * step


# --- the best columns of each row ---------------------------------------------------------------------------------


def write_top(
    path: PathLike,
    result: CompletionResult,
    n: int,
    *,
    rows: Any = None,
    exclude: RowBlocks | None = None,
    memory: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the `n` columns with the largest estimates of each row, as ``CompletionResult.top`` has them.

    Parameters
    ----------
    path : str or path
        Named .h5 or .hdf5: HDF5 with /cols and /values (docs/hdf5-schema.md). Any other name: csv with the columns
        row, col, value and rank (from 1); row and col are names where the result has them, else zero-based positions.
    result : CompletionResult
    n : int
    rows, exclude
        As in :meth:`fastrfm.CompletionResult.top`; None for all rows.
    memory : int, optional
        Bytes that result and blocks may take together; a quarter of what is free if None. Does not count `exclude`.
    force : bool
        Whether an existing file may be replaced.
    progress : callable, optional
        Called with the number of rows that are done, after every block.

    Raises
    ------
    OutputExistsError, WriteError
        See :func:`fastrfm.atomic.writing`; what was at `path` before is then untouched.
    InputError
        As :meth:`fastrfm.CompletionResult.top`; also if `memory` does not even hold the factors.
    """
    check_output(path, force=force)
    rows = np.arange(result.shape[0]) if rows is None else np.asarray(rows)
    result.top(rows[:0] if rows.ndim == 1 else rows, n, exclude)  # refuses what is wrong before anything is written
    room = _room(result, memory)
    blocks = _top_blocks(result, rows, n, exclude, room, progress)
    if is_hdf5_name(path):
        _write_top_hdf5(path, result, rows, n, exclude is not None, blocks, force)
        return
    with writing(path, force) as aside, aside.open("w", encoding="utf-8", newline="") as text, deferred():
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("row", "col", "value", "rank"))
        for _, of_rows, cols, values in blocks:
            for i, best, estimates in zip(of_rows.tolist(), cols.tolist(), values.tolist(), strict=True):
                row = i if result.row_names is None else result.row_names[i]
                for rank, (j, estimate) in enumerate(zip(best, estimates, strict=True), 1):
                    if j >= 0:
                        table.writerow(
                            (row, j if result.col_names is None else result.col_names[j], repr(estimate), rank)
                        )


def _top_blocks(
    result: CompletionResult,
    rows: np.ndarray,
    n: int,
    exclude: RowBlocks | None,
    room: int,
    progress: Progress | None,
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield start, rows, columns and values of blocks of rows; half of `room` is for each block's answer."""
    step = max(min(room // 2 // (200 * n), 1 << 14), 1)  # bytes of a pair as numbers, then as Python's objects
    block_bytes = min(room // 2, 1 << 26)
    for start in range(0, rows.size, step):
        check()
        wanted = rows[start : start + step]
        yield start, wanted, *result.top(wanted, n, exclude, block_bytes=block_bytes)
        if progress is not None:
            progress(min(start + step, rows.size))


def _write_top_hdf5(
    path: PathLike,
    result: CompletionResult,
    rows: np.ndarray,
    n: int,
    is_excluding: bool,
    blocks: Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]],
    force: bool,
) -> None:
    with writing_large_hdf5(path, force, 8 * rows.size * (2 * n + 1)) as file, deferred():
        mark(file)
        set_attribute(file, "excludes_observed", is_excluding)
        write_names(file, None if result.row_names is None else result.row_names[rows], result.col_names)
        file.create_dataset("rows", data=rows.astype(np.int64, copy=False))
        cols = file.create_dataset("cols", shape=(rows.size, n), dtype=np.int64)
        values = file.create_dataset("values", shape=(rows.size, n), dtype=np.float64)
        for start, _, best, estimates in blocks:
            cols[start : start + len(best)] = best
            values[start : start + len(best)] = estimates


# --- predictions --------------------------------------------------------------------------------------------------


def write_predictions(
    path: PathLike,
    result: CompletionResult,
    n_pairs: int,
    blocks: Iterable[tuple[int, np.ndarray, np.ndarray]],
    *,
    intervals: Intervals | None = None,
    force: bool = False,
) -> None:
    """Write pairs of positions and the estimates there to an HDF5 file: /rows, /cols and /predictions.

    Parameters
    ----------
    path : str or path
    result : CompletionResult
    n_pairs : int
    blocks : iterable of (start, rows, cols)
        Consecutive parts of the pairs; positions, int64.
    intervals : callable, optional
        Takes rows and columns and returns the lower and the upper ends of intervals there: /low and /high.
    force : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputExistsError, WriteError
        See :func:`fastrfm.atomic.writing`; what was at `path` before is then untouched.
    InputError
        As :meth:`fastrfm.CompletionResult.predict`.
    """
    ends = () if intervals is None else ("low", "high")
    with writing_large_hdf5(path, force, 8 * (3 + len(ends)) * n_pairs) as file, deferred():
        mark(file)
        rows, cols = (file.create_dataset(name, shape=(n_pairs,), dtype=np.int64) for name in ("rows", "cols"))
        numbers = [file.create_dataset(name, shape=(n_pairs,), dtype=np.float64) for name in ("predictions", *ends)]
        for start, i, j in blocks:
            span = slice(start, start + i.size)
            rows[span], cols[span] = i, j
            found = (result.predict(i, j), *(() if intervals is None else intervals(i, j)))
            for dataset, values in zip(numbers, found, strict=True):
                dataset[span] = values


def _room(result: CompletionResult, memory: int | None) -> int:
    """Return the bytes that blocks may take beside the result.

    Raises
    ------
    InputError
        If `memory` is no whole number, or not enough for the result and the smallest block.
    """
    memory = default_memory() if memory is None else operator.index(memory)
    held = result.left.nbytes + result.right.nbytes + _FIXED
    held += sum(_BYTES_PER_NAME * len(names) for names in (result.row_names, result.col_names) if names is not None)
    least = held + max(_CHUNK[0] * _CHUNK[1] * 32, 2 * BYTES_PER_ENTRY * result.shape[1])
    if memory < least:
        raise InputError(
            f"memory of {memory} bytes is too little: the factors, names and one block take {least}, "
            f"give at least {-(-least // (1 << 20))}M"
        )
    return memory - held
