"""Products of linear regression with a dense A on a device, and what the selected columns of any A are gathered by.

A is stored by columns, (n_cols, n_rows) in C order, centred and weighted: neighbouring threads read neighbouring
samples of a column, in A v as in Aᵀ v. Without twins: on the processor BLAS does these.
"""

from __future__ import annotations

from numba import cuda

from fastrfm._cuda import IS_SIMULATED, N_THREADS, Launch, device_kernel, over_groups, over_items
from fastrfm.kernels.cuda.diagonal import conjugate_gradients, group_size, group_sum, over_rows
from fastrfm.kernels.cuda.products import (
    _ACROSS,
    _DEPTH,
    _DOWN,
    _OWN,
    _OWN_COLS,
    TILE,
    _add_panel,
    _load_rows,
    lower_tile,
    n_tiles,
)

# Parts of A v: as many as keep a device busy, each of at least so many columns.
_MOST_STRIPES, _LEAST_COLUMNS = (3, 4) if IS_SIMULATED else (1024, 64)


def n_runs(n_cols: int, n_rows: int) -> int:
    """Return into how many runs of columns the sums of A v are cut."""
    most = -(-_MOST_STRIPES // max(-(-n_rows // N_THREADS), 1))
    return max(min(most, -(-n_cols // _LEAST_COLUMNS)), 1)


def _over_run_tiles(parts) -> Launch:
    return over_groups(parts.shape[0] * -(-parts.shape[1] // N_THREADS))


@device_kernel(_over_run_tiles, "d1 r2 r1 l0 r2")
def multiply_parts(state, columns, vector, is_squared, parts):
    """Write Σ_j v_j A_ij, or Σ_j v_j A_ij², over runs of columns, to be added in order by :func:`add_runs`.

    Parameters
    ----------
    state : (any,) float64
        Nothing is done where state[0] is not 0.
    columns : (n_cols, n_rows) float32 or float64
    vector : (n_cols,) as `columns`
    is_squared : int
        Not 0 for the squares.
    parts : (n_runs, n_rows) as `columns`, overwritten; a thread owns a row of one run

    Notes
    -----
    An entry is read once: 8 bytes in float64, 2 operations (3 for squares). 8 bytes a row for each run.
    """
    if state[0] != 0.0:
        return
    n_cols, n_rows = columns.shape
    width = (n_cols + parts.shape[0] - 1) // parts.shape[0]
    across = (n_rows + cuda.blockDim.x - 1) // cuda.blockDim.x
    for tile in range(cuda.blockIdx.x, parts.shape[0] * across, cuda.gridDim.x):
        run, i = tile // across, tile % across * cuda.blockDim.x + cuda.threadIdx.x
        if i < n_rows:
            end = (run + 1) * width
            total = parts.dtype.type(0)
            for j in range(run * width, end if end < n_cols else n_cols):
                value = columns[j, i]
                total += vector[j] * (value * value if is_squared else value)
            parts[run, i] = total


@device_kernel(lambda out: over_items(out.size), "d1 r2 r1")
def add_runs(state, parts, out):
    """Write the sums of `parts`, (n_runs, n_rows), in their order, to `out`, unless state[0] is not 0.

    A thread owns rows; 8 bytes for each element of `parts` in float64.
    """
    if state[0] != 0.0:
        return
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        total = parts.dtype.type(0)
        for run in range(parts.shape[0]):
            total += parts[run, i]
        out[i] = total


def _over_columns(columns) -> Launch:
    return over_rows(columns.shape[0], columns.shape[0] * columns.shape[1])


@device_kernel(_over_columns, "d1 r2 r1 r1")
def multiply_transposed(state, columns, vector, out):
    """Write Aᵀ v, unless state[0] is not 0.

    Parameters
    ----------
    state : (any,) float64
    columns : (n_cols, n_rows) float32 or float64
    vector : (n_rows,) as `columns`
    out : (n_cols,) as `columns`, overwritten; a group of threads owns its columns

    Notes
    -----
    An entry is read once: 8 bytes in float64, 2 operations; `vector` comes from the cache.
    """
    if state[0] != 0.0:
        return
    room = cuda.shared.array(N_THREADS, columns.dtype)
    n_cols, n_rows = columns.shape
    size = group_size(n_cols, n_cols * n_rows, cuda.blockDim.x)
    member, number, n_groups = cuda.threadIdx.x & (size - 1), cuda.threadIdx.x // size, cuda.blockDim.x // size
    for first in range(cuda.blockIdx.x * n_groups, n_cols, cuda.gridDim.x * n_groups):
        j = first + number
        total = out.dtype.type(0)
        if j < n_cols:
            for i in range(member, n_rows, size):
                total += columns[j, i] * vector[i]
        total = group_sum(total, room, size)
        if member == 0 and j < n_cols:
            out[j] = total


def _over_lower_tiles(out_parts) -> Launch:
    across = n_tiles(out_parts.shape[1])
    return over_groups(out_parts.shape[0] * (across * (across + 1) // 2))


@device_kernel(_over_lower_tiles, "r2 r1 r3")
def reweighted_parts(columns, weights, out_parts):
    """Write the lower triangle of A K Aᵀ as sums over runs of columns, to be added in order (``products.add_parts``).

    Parameters
    ----------
    columns : (n_cols, n_rows) float32 or float64
    weights : (n_cols,) as `columns`
        The diagonal of K.
    out_parts : (n_runs, n_rows, n_rows) as `columns`
        A block owns tiles at and below the diagonal, all of those on it; tiles above are not touched.

    Notes
    -----
    n_rows² n_cols operations. A panel of 64 rows and 16 columns is read once for every tile that it takes part in,
    n_rows / 64 of them: 16 bytes for 128 multiply-adds in float64, and 8 bytes written for each element of `out_parts`.
    """
    first = cuda.shared.array((_DEPTH, TILE), columns.dtype)
    second = cuda.shared.array((_DEPTH, TILE), columns.dtype)
    sums = cuda.local.array(_OWN, columns.dtype)
    n_cols, n_rows = columns.shape
    across = (n_rows + TILE - 1) // TILE
    n_lower = across * (across + 1) // 2
    width = (n_cols + out_parts.shape[0] - 1) // out_parts.shape[0]
    width = (width + _DEPTH - 1) // _DEPTH * _DEPTH  # whole panels: none reaches into the next run
    for number in range(cuda.blockIdx.x, out_parts.shape[0] * n_lower, cuda.gridDim.x):
        part = number // n_lower
        row, before = lower_tile(number % n_lower)
        top, beside, end = row * TILE, before * TILE, (part + 1) * width
        for e in range(_OWN):
            sums[e] = columns.dtype.type(0)
        for start in range(part * width, end if end < n_cols else n_cols, _DEPTH):
            _load_rows(columns, top, start, first)
            for e in range(cuda.threadIdx.x, _DEPTH * TILE, cuda.blockDim.x):
                d, c = e // TILE, e % TILE
                is_inside = start + d < n_cols and beside + c < n_rows
                second[d, c] = weights[start + d] * columns[start + d, beside + c] if is_inside else first.dtype.type(0)
            cuda.syncthreads()
            _add_panel(first, second, sums)
            cuda.syncthreads()
        for e in range(_OWN):
            i = top + cuda.threadIdx.x // _ACROSS + e // _OWN_COLS * _DOWN
            j = beside + cuda.threadIdx.x % _ACROSS + e % _OWN_COLS * _ACROSS
            if i < n_rows and j < n_rows:
                out_parts[part, i, j] = sums[e]


def solve_dense(
    columns, parts, weights, roots, means, ridge, shift, target, diagonal, tol, max_steps, out
):  # fmt: skip
    """Solve as ``diagonal.solve_reweighted`` with a dense A, launched from the processor.

    Parameters
    ----------
    columns : (n_cols, n_rows) float32 or float64
        Centred already: `means`, (n_cols,), are zero.
    parts : (n_runs, n_rows) as `columns`
        Room for the parts of A v.

    Returns
    -------
    steps : int
    error : float

    Notes
    -----
    In float64 a step moves 16 bytes for each entry: A once by A v, once by Aᵀ v.
    """

    def forward(state, vector, product):
        multiply_parts(state, columns, vector, 0, parts)
        add_runs(state, parts, product)

    def adjoint(state, vector, product):
        multiply_transposed(state, columns, vector, product)

    return conjugate_gradients(
        forward, adjoint, weights, roots, means, ridge, shift, target, diagonal, tol, max_steps, out
    )


def _over_chosen(chosen) -> Launch:
    return over_groups(chosen.size)


@device_kernel(_over_chosen, "r2 l1 r2")
def gather_rows(matrix, chosen, out):
    """Write the chosen rows of `matrix` (columns of A) to `out`, (n_chosen, n_rows); a block owns rows of `out`.

    16 bytes for each element in float64.
    """
    for c in range(cuda.blockIdx.x, chosen.size, cuda.gridDim.x):
        for i in range(cuda.threadIdx.x, out.shape[1], cuda.blockDim.x):
            out[c, i] = matrix[chosen[c], i]


@device_kernel(_over_chosen, "l1 i1 r1 r1 r1 l1 r2")
def expand_rows(indptr, indices, values, own, others, chosen, out):
    """Write chosen compressed rows, less `own` times `others`, densely: columns of A from A by columns, or rows.

    Parameters
    ----------
    indptr, indices, values
        A by columns (or by rows), no index twice in a row.
    own, others
        m and s for columns of A, s and m for rows, as `values`.
    chosen : (n_chosen,) int64
    out : (n_chosen, others.size) as `values`, overwritten; a block owns its rows

    Notes
    -----
    8 bytes for each element of `out` and 28 for each entry in float64.
    """
    for c in range(cuda.blockIdx.x, chosen.size, cuda.gridDim.x):
        row = chosen[c]
        for i in range(cuda.threadIdx.x, others.size, cuda.blockDim.x):
            out[c, i] = -own[row] * others[i]
        cuda.syncthreads()
        for t in range(indptr[row] + cuda.threadIdx.x, indptr[row + 1], cuda.blockDim.x):
            out[c, indices[t]] += values[t]
        cuda.syncthreads()


def _over_gram_rows(out, col_ptr, col_values) -> Launch:
    # A block works through a row's columns one after the other: no more threads than their entries keep busy.
    n_threads = N_THREADS
    while n_threads > 32 and n_threads * (col_ptr.size - 1) > 2 * col_values.size:
        n_threads //= 2
    return over_groups(out.shape[0], n_threads=n_threads)


@device_kernel(_over_gram_rows, "l1 i1 r1 l1 i1 r1 r1 r1 r1 d0 r2")
def reweighted_rows(
    row_ptr, row_indices, row_values, col_ptr, col_indices, col_values, weights, roots, crosses, half, out
):
    """Write the lower triangle of A K Aᵀ for a compressed A, centred by a correction.

    Parameters
    ----------
    row_ptr, row_indices, row_values
        A by rows; col_ptr, col_indices, col_values by columns, indices rising.
    weights : (n_cols,) as the values
        The diagonal of K.
    roots, crosses : (n_rows,) as the values
        s and A K m, without the correction.
    half : float
        ½ mᵀ K m.
    out : (n_rows, n_rows) as the values; a block owns its rows, up to the diagonal

    Notes
    -----
    Row i of `out` is the sum of columns of A, one after the other, each A_ij K_jj times the entries of column j up to
    row i: for every pair of entries in a column 12 bytes from the cache, 16 of `out` and 2 operations in float64.
    """
    for i in range(cuda.blockIdx.x, out.shape[0], cuda.gridDim.x):
        centre = crosses[i] - out.dtype.type(half) * roots[i]
        for k in range(cuda.threadIdx.x, i + 1, cuda.blockDim.x):
            out[i, k] = -centre * roots[k] - roots[i] * (crosses[k] - out.dtype.type(half) * roots[k])
        for t in range(row_ptr[i], row_ptr[i + 1]):
            j = row_indices[t]
            factor, end = weights[j] * row_values[t], col_ptr[j + 1]
            cuda.syncthreads()  # the column before has been added
            u = col_ptr[j] + cuda.threadIdx.x
            while u < end and col_indices[u] <= i:
                out[i, col_indices[u]] += factor * col_values[u]
                u += cuda.blockDim.x
