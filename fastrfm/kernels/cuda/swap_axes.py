"""The entries of a row block grouped by column, on a device: a counting sort, the twin of ``blocks.swap_axes``.

Rows are taken in up to 1024 groups, a block of threads each. Every column's rows come out ascending, so that the result
has the same bits each time and is the processor's. Nothing comes back to the processor on the way. For the adjoint
sweep of streamed row blocks, which come by row, and for the systems of columns of ``tangent_factors``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from fastrfm._cuda import N_THREADS, Launch, device_kernel, empty, over_groups, over_items, scratch, scratch_rows
from fastrfm.kernels.cuda._chunks import smaller

_MOST_GROUPS, _MOST_COUNTS = 1024, 1 << 25  # of rows; of numbers for counting, 128 MiB
_LIST_THREADS = min(32, N_THREADS)  # a warp: they take a row together, and most rows are short
_SCAN_THREADS = 4 * N_THREADS


@device_kernel(lambda counts: over_groups(counts.shape[0]), "l1 i1 i2")
def _count_columns(indptr, indices, counts):
    """Write how many entries each group of rows has in each column; a block owns its groups."""
    n_groups, n_cols, me, n_threads = counts.shape[0], counts.shape[1], cuda.threadIdx.x, cuda.blockDim.x
    n_rows = indptr.size - 1
    height = (n_rows + n_groups - 1) // n_groups
    for group in range(cuda.blockIdx.x, n_groups, cuda.gridDim.x):
        for j in range(me, n_cols, n_threads):
            counts[group, j] = 0
        cuda.syncthreads()
        first, last = smaller(group * height, n_rows), smaller((group + 1) * height, n_rows)
        for t in range(indptr[first] + me, indptr[last], n_threads):
            cuda.atomic.add(counts, (group, indices[t]), 1)
        cuda.syncthreads()


@device_kernel(lambda lengths: over_items(lengths.size), "i2 l1")
def _set_places(counts, lengths):
    """Turn each group's counts into those of the groups before it, and write the length of each column."""
    for j in range(cuda.grid(1), lengths.size, cuda.gridsize(1)):
        before = 0
        for group in range(counts.shape[0]):
            count = counts[group, j]
            counts[group, j] = before
            before += count
        lengths[j] = before


@device_kernel(lambda starts: Launch(1, _SCAN_THREADS), "l1 l1")
def _add_up(lengths, starts):
    """Write the sum of the lengths before each column, and of all; one block, whose threads take a run of columns."""
    sums = cuda.shared.array(_SCAN_THREADS, np.int64)
    me, n_cols = cuda.threadIdx.x, lengths.size
    height = (n_cols + cuda.blockDim.x - 1) // cuda.blockDim.x
    first, last = smaller(me * height, n_cols), smaller((me + 1) * height, n_cols)
    total = np.int64(0)
    for j in range(first, last):
        total += lengths[j]
    sums[me] = total
    cuda.syncthreads()
    if me == 0:
        before = np.int64(0)
        for thread in range(cuda.blockDim.x):
            count = sums[thread]
            sums[thread] = before
            before += count
        starts[n_cols] = before
    cuda.syncthreads()
    before = sums[me]
    for j in range(first, last):
        starts[j] = before
        before += lengths[j]


@device_kernel(lambda places: over_groups(places.shape[0], n_threads=_LIST_THREADS), "l1 i1 v1 d1 l1 i2 i1 v1 d1")
def _list_entries(indptr, indices, values, weights, starts, places, rows, moved_values, moved_weights):
    """Write the entries of each column, their rows ascending; a block takes the rows of a group one after the other.

    A row has a column once, so that it does not matter which of its entries comes first.
    """
    n_groups, n_rows = places.shape[0], indptr.size - 1
    height = (n_rows + n_groups - 1) // n_groups
    for group in range(cuda.blockIdx.x, n_groups, cuda.gridDim.x):
        for i in range(smaller(group * height, n_rows), smaller((group + 1) * height, n_rows)):
            t = indptr[i] + cuda.threadIdx.x
            while t < indptr[i + 1]:
                j = indices[t]
                place = starts[j] + cuda.atomic.add(places, (group, j), 1)
                rows[place] = i
                if values.size > 0:
                    moved_values[place] = values[t]
                if weights.size > 0:
                    moved_weights[place] = weights[t]
                t += cuda.blockDim.x
            cuda.syncthreads()


def swap_axes(
    indptr: Any, indices: Any, values: Any, weights: Any, starts: Any, rows: Any, moved_values: Any, moved_weights: Any
) -> None:
    """Write the entries, which come by row, grouped by column.

    Parameters
    ----------
    indptr : (n_rows + 1,) int64
    indices : (n_entries,) int32 or int64
        Columns, each at most once in a row.
    values, weights : (n_entries,), or (0,) for none
        float32 or float64; float64.
    starts : (n_cols + 1,) int64, written
        Column j owns entries ``starts[j]:starts[j + 1]`` of what is written.
    rows : (n_entries,) int32 or int64, written
        Ascending in each column.
    moved_values, moved_weights : as `values` and `weights`, written

    Raises
    ------
    DeviceMemoryError
        If there is no room for counts: 4 bytes a column, for each of up to 1024 groups as far as there is memory, at
        most 128 MiB.

    Notes
    -----
    Memory traffic: an entry's index is read twice, its row, value and weight are written anywhere, with atomic
    additions to two numbers of 4 bytes; groups times columns numbers of 4 bytes are written and read three times.
    """
    n_rows, n_cols = indptr.size - 1, starts.size - 1
    n_groups = max(min(n_rows, _MOST_GROUPS, _MOST_COUNTS // max(n_cols, 1)), 1)
    counts = scratch_rows("swap_axes.counts", n_groups, n_cols, np.int32)
    lengths = scratch("swap_axes.lengths", (n_cols,), np.int64)
    if n_cols:
        _count_columns(indptr, indices, counts)
        _set_places(counts, lengths)
    _add_up(lengths, starts)
    if indices.size:
        _list_entries(indptr, indices, values, weights, starts, counts, rows, moved_values, moved_weights)


def list_rows(indptr: Any, indices: Any, n_cols: int) -> tuple[Any, Any]:
    """Return where each column's rows begin, (n_cols + 1,) int64, and the rows, (n_entries,) int32.

    Parameters and errors are those of :func:`swap_axes`; 4 bytes an entry more.
    """
    starts, rows, none = empty(n_cols + 1, np.int64), empty(indices.size, np.int32), empty(0)
    swap_axes(indptr, indices, none, none, starts, rows, none, none)
    return starts, rows
