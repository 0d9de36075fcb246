"""Factors of the tangent system on a device: inverse Cholesky factors of k x k systems, one for each row or column.

Twins of the factor functions of ``kernels.tangent``, in the same layout. A block forms a system: in shared memory where
it fits (up to k = 92 in float64, 136 in float32), beyond that where it is stored. Systems of columns are formed like
those of rows, from a list of each column's rows that is made on the way: no floating-point number is added by an atomic
addition, so that every result has the same bits each time. What happens inside a block is in ``_tangent_systems``.
"""

from __future__ import annotations

from typing import Any

from numba import cuda

from fastrfm._cuda import MOST_SHARED_BYTES, Launch, device_kernel, over_groups
from fastrfm._lanes import LANES
from fastrfm.kernels.cuda._chunks import smaller
from fastrfm.kernels.cuda._tangent_systems import PANEL, add_gram, form, invert_factor, move, threads_for
from fastrfm.kernels.cuda.swap_axes import list_rows
from fastrfm.kernels.tangent import factor_size


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
        If there is no room for the list of rows: 4 bytes an entry, and what ``swap_axes`` counts with.

    Notes
    -----
    The entries come by row. Adding to columns from there takes k (k + 1) / 2 atomic additions an entry, ten times and
    more what everything else here takes, in an order that no two runs share. So the rows of each column are listed
    first, by ``swap_axes``.

    Memory traffic: that of the list, which is read once more. Then an entry reads k elements of U, gathered in runs of
    four, for k (k + 1) / 2 multiply-adds out of shared memory; a column reads and writes factor_size(k). A column is
    one block's: the longest bounds the time where it has more than about a thousandth of the entries.
    """
    n_rows, n_cols = indptr.size - 1, out.shape[0]
    if min(n_rows, n_cols, indices.size) == 0:
        return
    starts, rows = list_rows(indptr, indices, n_cols)
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
