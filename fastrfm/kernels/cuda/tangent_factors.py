"""Factors of the tangent system on a device: inverse Cholesky factors of k x k systems, one for each row or column.

Twins of the factor functions of ``kernels.tangent``, in the same layout. A block forms a system: in shared memory where
it fits (up to k = 92 in float64, 136 in float32), beyond that where it is stored. Systems of columns are formed like
those of rows, from a list of each column's rows that is made on the way: no floating-point number is added by an atomic
addition, so that every result has the same bits each time. What happens inside a block is in ``_tangent_systems``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from fastrfm._cuda import MOST_SHARED_BYTES, Launch, device_kernel, empty, fetch, over_groups, over_items, put
from fastrfm._lanes import LANES
from fastrfm.kernels.cuda._chunks import smaller
from fastrfm.kernels.cuda._tangent_systems import LEAST_THREADS, PANEL, add_gram, form, invert_factor, move, threads_for
from fastrfm.kernels.tangent import factor_size

_MOST_GROUPS, _MOST_COUNTS = 1024, 1 << 25  # of rows, in listing columns; of numbers for that, 128 MiB


def _forming(n_groups: int, k: int, itemsize: int, n_gathered: int) -> Launch:
    """Return a block for each system, with shared memory for the system too where that fits."""
    n_threads = threads_for(factor_size(k) // LANES)
    n = n_threads + (1 + n_gathered) * k
    near = n + factor_size(k)
    n = near if near * itemsize <= MOST_SHARED_BYTES else n
    return over_groups(n_groups, shared_bytes=n * itemsize, n_threads=n_threads)


def _over_some_rows(basis, penalty, out) -> Launch:
    return _forming(out.shape[0], penalty.size, basis.dtype.itemsize, PANEL)


@device_kernel(_over_some_rows, "l0 l1 i1 r2 r1 r2")
def factor_some_rows(first_row, indptr, indices, basis, penalty, out):
    """Write the factors of the rows from `first_row` on, as many as `out` has; not a twin itself."""
    n_threads, k, size = cuda.blockDim.x, penalty.size, out.shape[1]
    shared = cuda.shared.array(0, dtype=basis.dtype)
    room, pivotal = shared[:n_threads], shared[n_threads : n_threads + k]
    panel, near = shared[n_threads + k : n_threads + (1 + PANEL) * k], shared[n_threads + (1 + PANEL) * k :]
    is_near = near.size >= size
    for s in range(cuda.blockIdx.x, smaller(out.shape[0], indptr.size - 1 - first_row), cuda.gridDim.x):
        start = indptr[first_row + s]
        n = indptr[first_row + s + 1] - start
        if is_near:
            form(near, basis, indices, start, n, panel)
            invert_factor(near, penalty, pivotal, room)
            move(near, out[s], size)
        else:
            form(out[s], basis, indices, start, n, panel)
            invert_factor(out[s], penalty, pivotal, room)


def factor_rows(bounds: Any, indptr: Any, indices: Any, basis: Any, penalty: Any, out: Any) -> None:
    """Write the inverse Cholesky factors of M_i = V_JᵀV_J + diag(penalty), J the observed columns of row i.

    Parameters
    ----------
    bounds
        Not used: a block takes a row at a time.
    indptr, indices
        The entries by row.
    basis : (n_cols, k) float32 or float64
        V.
    penalty : (k,) as `basis`
    out : (n_rows, factor_size(k)) as `basis`, written; a block owns its rows

    Notes
    -----
    Memory traffic in elements: an entry reads its index (by four threads at once, so once) and k of V, gathered in runs
    of four; a row writes factor_size(k). An entry takes k (k + 1) / 2 multiply-adds out of shared memory, a row k³ / 3
    more. Systems that do not fit into shared memory are read and written where they are stored, k (k + 1) / 2 elements
    for every 16 entries and for each of k / 2 steps of the elimination.
    """
    factor_some_rows(0, indptr, indices, basis, penalty, out)


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


@device_kernel(lambda places: over_groups(places.shape[0], n_threads=LEAST_THREADS), "l1 i1 l1 i2 i1")
def _list_rows(indptr, indices, starts, places, rows):
    """Write the rows of each column, ascending; a block takes the rows of a group one after the other.

    A row has a column once, so that it does not matter which of its entries comes first.
    """
    n_groups, n_rows = places.shape[0], indptr.size - 1
    height = (n_rows + n_groups - 1) // n_groups
    for group in range(cuda.blockIdx.x, n_groups, cuda.gridDim.x):
        for i in range(smaller(group * height, n_rows), smaller((group + 1) * height, n_rows)):
            t = indptr[i] + cuda.threadIdx.x
            while t < indptr[i + 1]:
                j = indices[t]
                rows[starts[j] + cuda.atomic.add(places, (group, j), 1)] = i
                t += cuda.blockDim.x
            cuda.syncthreads()


def _over_grams(left, out) -> Launch:
    return _forming(out.shape[0], left.shape[1], left.dtype.itemsize, PANEL)


@device_kernel(_over_grams, "l1 i1 r2 r2")
def _add_grams(starts, rows, left, out):
    """Add the systems of columns whose rows are listed; a block owns its columns."""
    n_threads, k, size = cuda.blockDim.x, left.shape[1], out.shape[1]
    shared = cuda.shared.array(0, dtype=left.dtype)
    panel, near = shared[n_threads + k : n_threads + (1 + PANEL) * k], shared[n_threads + (1 + PANEL) * k :]
    is_near = near.size >= size
    for j in range(cuda.blockIdx.x, out.shape[0], cuda.gridDim.x):
        start = starts[j]
        n = starts[j + 1] - start
        if is_near and n > 0:
            move(out[j], near, size)
            add_gram(near, left, rows, start, n, panel)
            move(near, out[j], size)
        elif n > 0:
            add_gram(out[j], left, rows, start, n, panel)


def add_column_grams(stripes: Any, indptr: Any, indices: Any, left: Any, out: Any) -> None:
    """Add Σ_i u_i u_iᵀ over the observed rows i of each column to its lower triangle.

    Parameters
    ----------
    stripes
        Not used.
    indptr, indices
        The entries by row, each column at most once in a row.
    left : (n_rows, k) float32 or float64
        U.
    out : (n_cols, factor_size(k)) as `left`, added to; a block owns its columns

    Raises
    ------
    DeviceMemoryError
        If there is no room for the list of rows: 4 bytes an entry, and up to 128 MiB of counts.

    Notes
    -----
    The entries come by row. Adding to columns from there takes k (k + 1) / 2 atomic additions an entry, ten times and
    more what everything else here takes, in an order that no two runs share. So the rows of each column are listed
    first, by counting: rows in up to 1024 groups, a block each. Of this, the column's lengths travel to the processor
    and their sums back.

    Memory traffic: an entry's index is read twice and its row written and read, 16 bytes with atomic additions to two
    numbers of 4 bytes; groups times columns numbers of 4 bytes are written and read three times. Then an entry reads k
    elements of U, gathered in runs of four, for k (k + 1) / 2 multiply-adds out of shared memory; a column reads and
    writes factor_size(k). A column is one block's: the longest bounds the time where it has more than about a
    thousandth of the entries.
    """
    n_rows, n_cols = indptr.size - 1, out.shape[0]
    if min(n_rows, n_cols, indices.size) == 0:
        return
    n_groups = max(min(n_rows, _MOST_GROUPS, _MOST_COUNTS // n_cols), 1)
    counts, lengths, rows = empty((n_groups, n_cols), np.int32), empty(n_cols, np.int64), empty(indices.size, np.int32)
    _count_columns(indptr, indices, counts)
    _set_places(counts, lengths)
    starts = put(np.concatenate([[0], np.cumsum(fetch(lengths))]))
    _list_rows(indptr, indices, starts, counts, rows)
    _add_grams(starts, rows, left, out)


def _over_columns(penalty, grams) -> Launch:
    return _forming(grams.shape[0], penalty.size, grams.dtype.itemsize, 0)


@device_kernel(_over_columns, "l1 r1 r2")
def factor_columns(stripes, penalty, grams):
    """Replace the lower triangles of C_j, less its penalty, by the inverse Cholesky factors of C_j.

    Parameters
    ----------
    stripes
        Not used.
    penalty : (k,) float32 or float64
        Added to the diagonals.
    grams : (n_cols, factor_size(k)) as `penalty`, replaced; a block owns its columns
        From :func:`add_column_grams`.

    Notes
    -----
    Memory traffic in elements: a column reads and writes factor_size(k), for k³ / 3 multiply-adds in shared memory, or
    where it is stored if it does not fit there.
    """
    n_threads, k, size = cuda.blockDim.x, penalty.size, grams.shape[1]
    shared = cuda.shared.array(0, dtype=grams.dtype)
    room, pivotal, near = shared[:n_threads], shared[n_threads : n_threads + k], shared[n_threads + k :]
    is_near = near.size >= size
    for j in range(cuda.blockIdx.x, grams.shape[0], cuda.gridDim.x):
        if is_near:
            move(grams[j], near, size)
            invert_factor(near, penalty, pivotal, room)
            move(near, grams[j], size)
        else:
            invert_factor(grams[j], penalty, pivotal, room)
